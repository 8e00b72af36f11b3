//! A scenario in sentences: what is done to the machine, and what must come of it. For pages and terminals.

use super::{Scenario, Transport, Trigger, VmxState};

impl Scenario {
    /// What is done, in order.
    #[must_use]
    pub fn does(&self) -> Vec<String> {
        let boot = &self.boot;
        let mut first = match boot.crashkernel.as_str() {
            "" => "Boot with no memory reserved for a crash kernel".to_owned(),
            reserved => format!("Boot with crashkernel={reserved} and load the crash kernel"),
        };
        if !boot.cmdline.is_empty() {
            first.push_str(&format!("; added to the command line: {}", boot.cmdline));
        }
        let mut steps = vec![first];
        steps.extend(self.state_in_words());
        steps.push(format!("Crash: {}.", self.trigger_in_words()));
        let way = match self.capture.transport {
            Transport::Network => "send it to the server",
            Transport::Disk => "write it to a disk that the controller reads",
        };
        steps.push(format!(
            "In the capture kernel, filter the dump at level {}, compression {}, and {way}.",
            self.capture.dump_level, self.capture.compression
        ));
        if let Some(bytes) = self.capture.die_after_bytes {
            steps.push(format!("Fault injection: the capture agent kills itself once after {bytes} bytes."));
        }
        steps
    }

    /// What of an attempt nobody chooses, where it booted with this command line: it may be another each time. No step draws a
    /// random number, so there is no seed that would bring it back.
    #[must_use]
    pub fn left_open(&self, cmdline: Option<&str>) -> Vec<String> {
        let mut open = Vec::new();
        if self.cpu.is_none() && self.trigger.module_command().is_none() {
            open.push(
                if self.trigger.is_nmi_from_outside() {
                    "Which CPU crashes: the one that the NMI reaches first."
                } else {
                    "Which CPU crashes: the one that the agent runs on at that moment. With `cpu` in the scenario it is \
                     always the same."
                }
                .into(),
            );
        }
        if !cmdline.is_some_and(|line| line.split_whitespace().any(|word| word == "nokaslr")) {
            open.push(
                "Where the kernel lies in memory, if it has KASLR: its own choice at each boot; `nokaslr` on the command line \
                 takes it away, and the dump says where it was."
                    .into(),
            );
        }
        open.push("What the other CPUs do in the moment of the crash.".into());
        open
    }

    /// What must be seen.
    #[must_use]
    pub fn expects(&self) -> Vec<String> {
        let how = if self.trigger.is_oops() { "The oops whose header says" } else { "The panic whose message says" };
        let mut expected = vec![
            format!("{how} \"{}\", after the marker and on the console.", self.expect.panic),
            "The capture kernel comes, and every byte of the dump arrives.".into(),
            "The dump is of this crash, and every online CPU has saved its registers.".into(),
        ];
        if self.vmx.is_of_kvm() {
            expected.push("KVM's lists of loaded VMCSes are whole, and every VMCS on them is clear in memory.".into());
            expected.push("CR4.VMXE is clear on every CPU.".into());
        }
        expected.extend(self.module_oracles().map(str::to_owned));
        expected.push("The machine comes back healthy.".into());
        expected
    }

    fn state_in_words(&self) -> Option<String> {
        let number = self.vmx_number().unwrap_or_default();
        Some(match self.vmx {
            VmxState::None => return None,
            VmxState::KvmLoaded => "Load kvm_intel, and run no guest.".into(),
            VmxState::KvmUsed => "Load kvm_intel, run a guest on each CPU, and let it end.".into(),
            VmxState::KvmRunning => "Load kvm_intel, and leave a guest spinning on each CPU.".into(),
            VmxState::Vmxon => "Put each CPU into VMX operation, with no VMCS.".into(),
            VmxState::VmcsLoaded => format!("Load {number} VMCSes on each CPU, by the VMX module."),
            VmxState::VmcsLaunched => "Leave a guest of the VMX module spinning on each CPU.".into(),
            VmxState::ListAddCut => {
                format!("Add a VMCS to each CPU's list of two, and stop after {number} of 4 pointer writes.")
            }
            VmxState::ListDelCut => {
                format!(
                    "Remove the middle VMCS from each CPU's list of three, and stop after {number} of 2 pointer writes."
                )
            }
            VmxState::VmxonFault => "Execute a VMXON that faults on each CPU, which must survive it.".into(),
        })
    }

    fn trigger_in_words(&self) -> String {
        let what = match self.trigger {
            Trigger::SysrqC => "sysrq-c",
            Trigger::Nmi => return "a diagnostic NMI from outside".into(),
            Trigger::BmcNmi => return "a diagnostic NMI that the machine asks its own BMC for".into(),
            Trigger::ModulePanic => "panic() in process context",
            Trigger::ModuleOops => "a null pointer written through, with panic_on_oops",
            Trigger::ModuleIrqPanic => "panic() in an interrupt",
            Trigger::ModuleNmiPanic => "nmi_panic() in an NMI",
            Trigger::ModuleHardlockup => "interrupts off for ever, until another CPU notices",
            Trigger::LkdtmPanic => "LKDTM's PANIC",
            Trigger::LkdtmBug => "LKDTM's BUG, with panic_on_oops",
            Trigger::LkdtmException => "LKDTM's EXCEPTION, with panic_on_oops",
            Trigger::LkdtmHardlockup => "LKDTM's HARDLOCKUP, until another CPU notices",
        };
        match (self.cpu, self.trigger.module_command()) {
            (Some(cpu), _) => format!("{what}, on CPU {cpu}"),
            (None, Some(_)) => format!("{what}, on CPU 0"),
            (None, None) => format!("{what}, on any CPU"),
        }
    }

    fn module_oracles(&self) -> impl Iterator<Item = &'static str> {
        let number = self.vmx_number().unwrap_or_default();
        let entry = match self.vmx {
            VmxState::ListAddCut if number < 4 => {
                Some("The VMCS that was being added does not show up in the walk, and the other two are VMCLEARed.")
            }
            VmxState::ListDelCut if number < 2 => {
                Some("The VMCS that was being removed still shows up in the walk: all three are VMCLEARed.")
            }
            VmxState::VmxonFault => Some("VMX is off on every CPU, so the crash callback had nothing to do on any."),
            state if state.is_of_module() => {
                Some("Every VMCS that was loaded got its VMCLEAR, and is clear in memory.")
            }
            _ => None,
        };
        let common = self.vmx.is_of_module() && self.vmx != VmxState::VmxonFault;
        entry.into_iter().chain(
            ["Each CPU's list leads back to its head.", "Each CPU left VMX operation."]
                .into_iter()
                .filter(move |_| common),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_chooses_is_said_and_what_is_chosen_is_not() {
        let scenario = |more: &str| -> Scenario {
            serde_json::from_str(&format!(r#"{{"name": "a", "title": "A", "expect": {{"panic": "x"}}, {more}}}"#))
                .unwrap()
        };
        let open = scenario(r#""trigger": "sysrq-c""#).left_open(None);
        assert!(open.len() == 3 && open[0].contains("that the agent runs on"), "{open:?}");
        let open = scenario(r#""trigger": "sysrq-c", "cpu": 1"#).left_open(Some("quiet nokaslr"));
        assert_eq!(open, ["What the other CPUs do in the moment of the crash."]);
        for trigger in ["nmi", "bmc-nmi"] {
            let open = scenario(&format!(r#""trigger": "{trigger}""#)).left_open(None);
            assert_eq!(open[0], "Which CPU crashes: the one that the NMI reaches first.", "nobody can choose");
        }
        assert_eq!(scenario(r#""trigger": "module-panic""#).left_open(Some("nokaslr")).len(), 1, "that is on CPU 0");
    }

    #[test]
    fn every_state_and_trigger_is_put_into_words() {
        for vmx in VmxState::ALL {
            for trigger in Trigger::ALL {
                let text = format!(
                    r#"{{"name": "a", "title": "A", "vmx": "{vmx}", "trigger": "{trigger}", "expect": {{"panic": "x"}}}}"#
                );
                let scenario: Scenario = serde_json::from_str(&text).unwrap();
                let (does, expects) = (scenario.does(), scenario.expects());
                assert_eq!(does.len(), if *vmx == VmxState::None { 3 } else { 4 }, "{does:?}");
                assert!(expects.len() >= 4 + usize::from(*vmx != VmxState::None), "{expects:?}");
                let oops = expects[0].starts_with("The oops");
                assert_eq!(oops, trigger.is_oops());
            }
        }
    }
}
