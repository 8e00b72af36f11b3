//! A catalogue: VMX states × triggers × CPUs, written down once instead of a file for each combination.
//!
//! What is in it is data; what comes out are ordinary scenarios. Their names follow from what they are made of, so that a
//! catalogue that grows changes no name:
//!
//! ```text
//! CATALOGUE-STATE[-NUMBER][-TRIGGER][-cpuCPU]        vmx-list-add-cut-1-nmi-panic-cpu1
//! ```
//!
//! Left out are the number that the state has by itself, `sysrq-c`, and a CPU that is not given.

use crate::{Boot, Capture, Deadlines, Expect, Scenario, Trigger, VmxState};
use serde::Deserialize;
use std::collections::BTreeSet;

/// Most scenarios of one catalogue.
const MOST: usize = 2000;

/// A catalogue as it is written down.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Catalogue {
    /// What the names of its scenarios begin with.
    pub catalogue: String,
    /// How the kernel under test boots, in all of them.
    #[serde(default)]
    pub boot: Boot,
    /// How the capture kernel boots, and what it dumps, in all of them.
    #[serde(default)]
    pub capture: Capture,
    /// How long each stage may take, in all of them.
    #[serde(default)]
    pub deadlines: Deadlines,
    /// The states.
    #[serde(rename = "state")]
    pub states: Vec<State>,
    /// What is crossed with each of them.
    #[serde(rename = "trigger")]
    pub triggers: Vec<Crash>,
}

/// A state of VMX.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Which.
    pub vmx: VmxState,
    /// Its numbers; empty: the one it has by itself.
    #[serde(default)]
    pub numbers: Vec<u32>,
    /// In words; `{}` stands for the number.
    pub title: String,
}

/// A way to crash.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Crash {
    /// Which.
    pub trigger: Trigger,
    /// The CPUs, one after the other; empty: whichever it is.
    #[serde(default)]
    pub cpus: Vec<u32>,
    /// In words.
    pub title: String,
    /// What the intended panic says.
    pub panic: String,
}

impl Catalogue {
    /// Its scenarios, each checked.
    ///
    /// # Errors
    /// What to change, and in which scenario.
    pub fn scenarios(&self) -> Result<Vec<Scenario>, String> {
        let mut scenarios = Vec::new();
        for state in &self.states {
            for number in or_none(&state.numbers) {
                for crash in &self.triggers {
                    for cpu in or_none(&crash.cpus) {
                        scenarios.push(self.scenario(state, number, crash, cpu));
                    }
                }
            }
            if scenarios.len() > MOST {
                return Err(format!("a catalogue may have {MOST} scenarios; divide {:?} into several", self.catalogue));
            }
        }
        if scenarios.is_empty() {
            return Err("a catalogue needs at least one [[state]] and one [[trigger]]".into());
        }
        let mut names = BTreeSet::new();
        for scenario in &scenarios {
            scenario.check().map_err(|why| format!("{}: {why}", scenario.name))?;
            if !names.insert(&scenario.name) {
                return Err(format!(
                    "{} comes out twice: remove a [[state]] or [[trigger]] that repeats another",
                    scenario.name
                ));
            }
        }
        Ok(scenarios)
    }

    fn scenario(&self, state: &State, number: Option<u32>, crash: &Crash, cpu: Option<u32>) -> Scenario {
        let by_itself = state.vmx.number().map(|(by_itself, _)| by_itself);
        let mut name = format!("{}-{}", self.catalogue, state.vmx);
        if let Some(number) = number.filter(|number| Some(*number) != by_itself) {
            name.push_str(&format!("-{number}"));
        }
        if crash.trigger != Trigger::SysrqC {
            let trigger = crash.trigger.as_str();
            name.push_str(&format!("-{}", trigger.strip_prefix("module-").unwrap_or(trigger)));
        }
        if let Some(cpu) = cpu {
            name.push_str(&format!("-cpu{cpu}"));
        }
        let number_in_words = number.or(by_itself).map(|number| number.to_string()).unwrap_or_default();
        let mut title = format!("{}; {}", state.title.replace("{}", &number_in_words), crash.title);
        if let Some(cpu) = cpu {
            title.push_str(&format!(" on CPU {cpu}"));
        }
        Scenario {
            name,
            title,
            vmx: state.vmx,
            vmx_number: number,
            trigger: crash.trigger,
            cpu,
            boot: self.boot.clone(),
            capture: self.capture.clone(),
            expect: Expect { panic: crash.panic.clone() },
            deadlines: self.deadlines.clone(),
        }
    }
}

/// Each of them, or once none.
fn or_none(numbers: &[u32]) -> Vec<Option<u32>> {
    if numbers.is_empty() { vec![None] } else { numbers.iter().copied().map(Some).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalogue(numbers: &[u32], cpus: &[u32]) -> Catalogue {
        let text = serde_json::json!({
            "catalogue": "vmx",
            "state": [
                { "vmx": "kvm-loaded", "title": "KVM" },
                { "vmx": "list-add-cut", "numbers": numbers, "title": "cut after {}" },
            ],
            "trigger": [
                { "trigger": "sysrq-c", "title": "sysrq", "panic": "sysrq" },
                { "trigger": "module-nmi-panic", "cpus": cpus, "title": "in an NMI", "panic": "nmi" },
            ],
        });
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn states_times_triggers_times_cpus_under_names_that_say_so() {
        let scenarios = catalogue(&[1, 2], &[0, 1]).scenarios().unwrap();
        let names: Vec<&str> = scenarios.iter().map(|scenario| scenario.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "vmx-kvm-loaded",
                "vmx-kvm-loaded-nmi-panic-cpu0",
                "vmx-kvm-loaded-nmi-panic-cpu1",
                "vmx-list-add-cut-1",
                "vmx-list-add-cut-1-nmi-panic-cpu0",
                "vmx-list-add-cut-1-nmi-panic-cpu1",
                "vmx-list-add-cut",
                "vmx-list-add-cut-nmi-panic-cpu0",
                "vmx-list-add-cut-nmi-panic-cpu1",
            ]
        );
        assert_eq!(scenarios[5].title, "cut after 1; in an NMI on CPU 1");
        assert_eq!((scenarios[5].vmx_number, scenarios[5].cpu), (Some(1), Some(1)));
    }

    #[test]
    fn what_is_wrong_is_said_with_the_scenario_it_is_in() {
        assert_eq!(
            catalogue(&[9], &[]).scenarios().unwrap_err(),
            "vmx-list-add-cut-9: vmx_number of list-add-cut must be 0 to 4, not 9"
        );
        assert!(catalogue(&[2, 2], &[]).scenarios().unwrap_err().contains("comes out twice"));
        assert!(catalogue(&[], &[7]).scenarios().unwrap_err().contains("below boot.cpus"));
        let empty = Catalogue { states: Vec::new(), ..catalogue(&[], &[]) };
        assert!(empty.scenarios().unwrap_err().contains("at least one [[state]]"));
    }
}
