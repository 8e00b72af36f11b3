//! The capture kernel's command line.
//!
//! As distributions do it: what the kernel under test was booted with, since the hardware and its workarounds are the
//! same, without what belongs to that one boot, and with what a capture kernel needs. The scenario speaks last.

/// Words a capture kernel needs: one CPU (the others were stopped, not shut down), interrupts polled and hardware
/// reset, because nobody put it in order before (`Documentation/admin-guide/kdump/kdump.rst`).
const CAPTURE_WORDS: &str = "irqpoll nr_cpus=1 reset_devices";

/// Prefixes of words that belong to one boot only.
const NOT_INHERITED: [&str; 4] = ["crashkernel=", "BOOT_IMAGE=", "initrd=", "elfcorehdr="];

/// Composes the command line from the running kernel's and what the scenario adds to it.
#[must_use]
pub fn for_capture(running: &str, scenario: &str) -> String {
    running
        .split_whitespace()
        .filter(|word| !NOT_INHERITED.iter().any(|prefix| word.starts_with(prefix)))
        .chain(CAPTURE_WORDS.split_whitespace())
        .chain(scenario.split_whitespace())
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn console_and_workarounds_are_inherited_and_the_scenario_has_the_last_word() {
        assert_eq!(
            for_capture("console=ttyS0,115200 no_timer_check crashkernel=192M\n", "rdinit=/x"),
            "console=ttyS0,115200 no_timer_check irqpoll nr_cpus=1 reset_devices rdinit=/x"
        );
    }
}
