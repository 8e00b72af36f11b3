//! Whether a scenario makes sense, for the one who wrote it: each objection says what to write instead.

use super::{Scenario, VmxState};

/// Longest command line that is taken from a scenario.
const CMDLINE_MAX: usize = 1024;

/// Longest text that is one line for people.
const TEXT_MAX: usize = 200;

impl Scenario {
    /// What is wrong with it.
    ///
    /// # Errors
    /// A sentence that says what to change.
    pub fn check(&self) -> Result<(), String> {
        let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if !(1..=100).contains(&self.name.len()) || !self.name.bytes().all(word) {
            return Err(format!(
                "a scenario's name has 1 to 100 lower-case letters, digits and dashes; change {:?}",
                self.name
            ));
        }
        if !is_line(&self.title) {
            return Err(format!("give it a title of 1 to {TEXT_MAX} characters: one line for people"));
        }
        // An empty expectation would take any panic for the intended one.
        if !is_line(&self.expect.panic) {
            return Err(format!(
                "say in expect.panic which panic is the intended one: 1 to {TEXT_MAX} characters of its message{}",
                if self.trigger.is_oops() { ", here of the header of the oops" } else { "" }
            ));
        }
        if self.capture.dump_level > 31 {
            return Err(format!(
                "capture.dump_level is a sum of 1, 2, 4, 8 and 16 (makedumpfile -d), so at most 31; it is {}",
                self.capture.dump_level
            ));
        }
        for (name, line) in [
            ("boot.cmdline", &self.boot.cmdline),
            ("boot.crashkernel", &self.boot.crashkernel),
            ("capture.cmdline", &self.capture.cmdline),
        ] {
            if line.len() > CMDLINE_MAX || line.chars().any(char::is_control) {
                return Err(format!("make {name} one line of at most {CMDLINE_MAX} bytes"));
            }
        }
        if !(1..=1024).contains(&self.boot.cpus) || !(64..=1 << 24).contains(&self.boot.memory_mib) {
            return Err("boot.cpus must be 1 to 1024, boot.memory_mib at least 64".into());
        }
        self.check_state()?;
        self.check_trigger()
    }

    fn check_state(&self) -> Result<(), String> {
        let vmx = self.vmx;
        match (self.vmx_number, vmx.number()) {
            (Some(_), None) => Err(format!("the VMX state {vmx} takes no vmx_number: leave it out")),
            (Some(number), Some((_, most))) => {
                // No VMCS loaded is another state; a change of a list may be cut before its first write.
                let least = u32::from(vmx == VmxState::VmcsLoaded);
                if (least..=most).contains(&number) {
                    return Ok(());
                }
                Err(format!("vmx_number of {vmx} must be {least} to {most}, not {number}"))
            }
            (None, _) => Ok(()),
        }
    }

    fn check_trigger(&self) -> Result<(), String> {
        let trigger = self.trigger;
        if trigger.is_lockup() && self.boot.cpus < 2 {
            return Err(format!("{trigger} needs a second CPU that notices: set boot.cpus to 2 or more"));
        }
        if trigger.is_nmi_from_outside() && self.cpu.is_some() {
            return Err("an NMI from outside picks its own CPU: leave cpu out, or use module-nmi-panic".into());
        }
        match self.cpu {
            Some(cpu) if cpu >= self.boot.cpus => {
                Err(format!("cpu counts from 0 and must be below boot.cpus ({}); it is {cpu}", self.boot.cpus))
            }
            _ => Ok(()),
        }
    }
}

fn is_line(text: &str) -> bool {
    !text.trim().is_empty() && text.chars().count() <= TEXT_MAX && !text.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use crate::{Scenario, Trigger, VmxState};

    fn sound() -> Scenario {
        serde_json::from_str(r#"{"name": "a", "title": "A", "trigger": "sysrq-c", "expect": {"panic": "sysrq"}}"#)
            .unwrap()
    }

    #[test]
    fn each_objection_says_what_to_change() {
        assert_eq!(sound().check(), Ok(()));
        type Change = fn(&mut Scenario);
        let cases: [(Change, &str); 14] = [
            (|s| s.name = "With Capitals".into(), "lower-case letters"),
            (|s| s.title = " ".into(), "give it a title"),
            (|s| s.expect.panic.clear(), "say in expect.panic"),
            (|s| s.capture.dump_level = 32, "at most 31"),
            (|s| s.boot.cmdline = "a\nb".into(), "make boot.cmdline one line"),
            (|s| s.boot.cpus = 0, "boot.cpus must be"),
            (|s| s.vmx_number = Some(1), "leave it out"),
            (|s| (s.vmx, s.vmx_number) = (VmxState::VmcsLoaded, Some(0)), "must be 1 to 64, not 0"),
            (|s| (s.vmx, s.vmx_number) = (VmxState::ListAddCut, Some(5)), "must be 0 to 4, not 5"),
            (|s| (s.trigger, s.boot.cpus) = (Trigger::ModuleHardlockup, 1), "set boot.cpus to 2"),
            (|s| (s.trigger, s.boot.cpus) = (Trigger::LkdtmHardlockup, 1), "set boot.cpus to 2"),
            (|s| (s.trigger, s.cpu) = (Trigger::Nmi, Some(0)), "leave cpu out"),
            (|s| (s.trigger, s.cpu) = (Trigger::BmcNmi, Some(0)), "leave cpu out"),
            (|s| s.cpu = Some(2), "must be below boot.cpus (2); it is 2"),
        ];
        for (change, says) in cases {
            let mut scenario = sound();
            change(&mut scenario);
            let objection = scenario.check().unwrap_err();
            assert!(objection.contains(says), "{objection:?} should say {says:?}");
        }
    }

    #[test]
    fn what_is_misspelt_is_refused_with_the_words_that_are_known() {
        let text = r#"{"name": "a", "title": "A", "trigger": "sysrq", "expect": {"panic": "x"}}"#;
        let said = serde_json::from_str::<Scenario>(text).unwrap_err().to_string();
        assert!(said.contains("unknown variant `sysrq`") && said.contains("`sysrq-c`"), "{said}");
        let text = r#"{"name": "a", "title": "A", "trigger": "sysrq-c", "expects": {"panic": "x"}}"#;
        let said = serde_json::from_str::<Scenario>(text).unwrap_err().to_string();
        assert!(said.contains("unknown field `expects`") && said.contains("`expect`"), "{said}");
    }
}
