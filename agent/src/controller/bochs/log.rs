//! What Bochs says about the end of its machine.
//!
//! Its exit status is worth nothing: Bochs ends every power-off with a panic of its own. Its log tells the ends apart,
//! and of a triple fault it is the only witness: the machine cannot say anything about that any more.

/// How a machine ended, in one line, from Bochs's log (`log:` of its configuration, format of Bochs 2.7).
pub fn ending(log: &str) -> Option<String> {
    if log.contains("ACPI control: soft power off") {
        return Some("the guest powered off".into());
    }
    let panic = log.lines().rev().find_map(|line| line.split_once(">>PANIC<< ").map(|(_, words)| words.trim()))?;
    if panic.contains("3rd (") && panic.contains("exception with no resolution") {
        return Some(format!("triple fault: {panic}{}", registers(log)));
    }
    Some(format!("Bochs stopped the machine: {panic}"))
}

/// Where each CPU was, and its CR4: the dump of registers that Bochs writes when it stops.
fn registers(log: &str) -> String {
    let mut words = String::new();
    // Each stop has its own dump; the last one counts, and it starts with the last panic.
    let last = log.rfind(">>PANIC<<").unwrap_or(0);
    for line in log[last..].lines() {
        let Some((_, registers)) = line.split_once("] | ") else { continue };
        for word in registers.split_whitespace() {
            if word.starts_with("RIP=") || word.starts_with("CR4=") {
                words.push_str("; ");
                words.push_str(word);
            }
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_apart() {
        assert_eq!(ending("00695885604i[CPU0  ] cpu hardware reset\n"), None);
        let off = "1p[ACPI  ] >>PANIC<< ACPI control: soft power off\n2i[CPU0  ] CPU is in long mode (halted)\n";
        assert_eq!(ending(off).unwrap(), "the guest powered off");
        let disk = "1p[HD    ] >>PANIC<< ata0-1: could not open hard drive image file 'dump.disk'\n";
        assert_eq!(
            ending(disk).unwrap(),
            "Bochs stopped the machine: ata0-1: could not open hard drive image file 'dump.disk'"
        );
    }

    #[test]
    fn a_triple_fault_says_where_and_whether_vmx_was_on() {
        let log = "1i[CPU0  ] | RIP=0000000000000000 (0)\n\
                   2p[CPU0  ] >>PANIC<< exception(): 3rd (13) exception with no resolution\n\
                   3i[CPU0  ] CPU is in long mode (active)\n\
                   3i[CPU0  ] | RIP=0000000002a3f05c (0000000002a3f05c)\n\
                   3i[CPU0  ] | CR3=0x0000000002a3d000 CR4=0x000026b0\n";
        assert_eq!(
            ending(log).unwrap(),
            "triple fault: exception(): 3rd (13) exception with no resolution; RIP=0000000002a3f05c; CR4=0x000026b0"
        );
    }
}
