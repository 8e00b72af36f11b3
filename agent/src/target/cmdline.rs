//! The capture kernel's command line.
//!
//! It boots on the same hardware, so it wants the same console and the same workarounds as the kernel under test, but
//! neither its crash memory nor what the scenario added to that boot only.

/// Words a capture kernel needs: one CPU (the others were stopped, not shut down), interrupts polled and hardware
/// reset, because nobody put it in order before (`Documentation/admin-guide/kdump/kdump.rst`).
const CAPTURE_WORDS: &str = "irqpoll nr_cpus=1 reset_devices";

/// Prefixes of words that belong to one boot only.
const NOT_INHERITED: [&str; 4] = ["crashkernel=", "BOOT_IMAGE=", "initrd=", "elfcorehdr="];

/// Composes the command line from the running kernel's, what the scenario added to that one, and what it adds here.
#[must_use]
pub fn for_capture(running: &str, scenario_boot: &str, scenario_capture: &str) -> String {
    let mut added: Vec<&str> = scenario_boot.split_whitespace().collect();
    let mut words: Vec<&str> = Vec::new();
    for word in running.split_whitespace() {
        if let Some(at) = added.iter().position(|mine| *mine == word) {
            added.swap_remove(at);
        } else if !NOT_INHERITED.iter().any(|prefix| word.starts_with(prefix)) {
            words.push(word);
        }
    }
    words.extend(CAPTURE_WORDS.split_whitespace());
    words.extend(scenario_capture.split_whitespace());
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn console_and_workarounds_are_inherited_and_the_scenario_has_the_last_word() {
        assert_eq!(
            for_capture(
                "console=ttyS0,115200 no_timer_check crashkernel=192M slub_debug=FZ\n",
                "slub_debug=FZ",
                "rdinit=/x"
            ),
            "console=ttyS0,115200 no_timer_check irqpoll nr_cpus=1 reset_devices rdinit=/x"
        );
    }

    #[test]
    fn a_word_both_machine_and_scenario_gave_is_taken_away_once() {
        assert_eq!(for_capture("quiet quiet", "quiet", ""), "quiet irqpoll nr_cpus=1 reset_devices");
    }
}
