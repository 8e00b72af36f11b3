//! What each kind of build must come to in each scenario, and why.

use super::builds::Kind;
use crate::demo::stories::Story;
use anyhow::{Context as _, ensure};
use crashyard_protocol::catalogue::Catalogue;
use crashyard_protocol::{Scenario, StageName, Status, VmxState};

/// The catalogue that the matrix is taken from.
const CATALOGUE: &str = include_str!("../../scenarios/vmx.toml");

/// The scenarios of the matrix.
const SCENARIOS: [&str; 4] = ["vmx-kvm-loaded", "vmx-kvm-running", "vmx-vmcs-loaded", "vmx-vmcs-launched"];

/// All scenarios of the catalogue.
pub fn catalogue() -> anyhow::Result<Vec<Scenario>> {
    let catalogue: Catalogue = toml::from_str(CATALOGUE).context("the catalogue of VMX scenarios")?;
    catalogue.scenarios().map_err(anyhow::Error::msg)
}

/// The scenarios for Debian's kernels.
pub fn debian() -> anyhow::Result<Vec<Scenario>> {
    let catalogue: Catalogue =
        toml::from_str(include_str!("../../scenarios/debian.toml")).context("the scenarios for Debian's kernels")?;
    catalogue.scenarios().map_err(anyhow::Error::msg)
}

/// The stories of a kernel of Debian's, in which nothing is known to be broken: all of them, or the ones named.
pub fn debian_stories(names: &[String]) -> anyhow::Result<Vec<Story>> {
    let mut scenarios = debian()?;
    for name in names {
        ensure!(
            scenarios.iter().any(|scenario| scenario.name == *name),
            "for Debian's kernels there is no scenario {name}; crashyard-lab demo-vmx --list prints debian-…"
        );
    }
    scenarios.retain(|scenario| names.is_empty() || names.contains(&scenario.name));
    let pass = |scenario| Story { scenario, verdict: Status::Pass, blamed: None, reason_says: "", resumed: false };
    Ok(scenarios.into_iter().map(pass).collect())
}

/// The stories of one kind of build: those of the matrix, or the ones named.
pub fn stories(kind: Kind, names: &[String]) -> anyhow::Result<Vec<Story>> {
    let catalogue = catalogue()?;
    let matrix = SCENARIOS.map(str::to_owned);
    let names = if names.is_empty() { &matrix } else { names };
    names
        .iter()
        .map(|name| {
            let scenario = catalogue.iter().find(|scenario| scenario.name == *name).cloned();
            let scenario = scenario.with_context(|| {
                format!("the catalogue has no scenario {name}; crashyard-lab demo-vmx --list prints those it has")
            })?;
            let (verdict, blamed, reason_says) = predict(kind, scenario.vmx);
            Ok(Story { scenario, verdict, blamed, reason_says, resumed: false })
        })
        .collect()
}

/// The verdict, the stage it is blamed on, and words that the reason must have.
fn predict(kind: Kind, vmx: VmxState) -> (Status, Option<StageName>, &'static str) {
    let pass = (Status::Pass, None, "");
    match kind {
        // Only a list that nobody has used yet is broken: a guest that has run on every CPU hides the bug, and the
        // module's states have nothing to do with KVM.
        Kind::SeedBug if vmx == VmxState::KvmLoaded => {
            (Status::Fail, Some(StageName::Captured), "vmx_emergency_disable_virtualization_cpu")
        }
        // Whoever used VMX before, or nobody: the jump finds it on.
        Kind::LeakedVmxon => (Status::Fail, Some(StageName::Captured), "CR4.VMXE"),
        // KVM's own callback does its work; the module's does not.
        Kind::SkippedVmclear if vmx.is_of_module() && !matches!(vmx, VmxState::Vmxon | VmxState::VmxonFault) => {
            (Status::Fail, Some(StageName::Verified), "VMCLEAR")
        }
        Kind::Good | Kind::SeedBug | Kind::SkippedVmclear => pass,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crashyard_protocol::Trigger;

    #[test]
    fn every_cell_is_a_valid_scenario_with_a_prediction() {
        for kind in Kind::ALL {
            let stories = stories(kind, &[]).unwrap();
            assert_eq!(stories.len(), 4);
            assert!(stories.iter().all(|story| story.scenario.vmx != VmxState::None));
            // A matrix in which nothing is expected to fail would prove nothing.
            let fails = stories.iter().filter(|story| story.verdict == Status::Fail).count();
            assert_eq!(
                fails,
                match kind {
                    Kind::Good => 0,
                    Kind::SeedBug => 1,
                    Kind::LeakedVmxon => 4,
                    Kind::SkippedVmclear => 2,
                }
            );
        }
    }
    #[test]
    fn the_catalogue_has_every_state_and_every_trigger_that_an_emulated_machine_can_be_given() {
        let catalogue = catalogue().unwrap();
        for state in VmxState::ALL {
            assert!(catalogue.iter().any(|scenario| scenario.vmx == *state), "{state}");
        }
        for trigger in Trigger::ALL.iter().filter(|trigger| !trigger.is_nmi_from_outside()) {
            assert!(catalogue.iter().any(|scenario| scenario.trigger == *trigger), "{trigger}");
        }
        assert!(stories(Kind::Good, &["vmx-nonsense".to_owned()]).is_err());
        assert_eq!(debian_stories(&[]).unwrap().len(), 3);
        assert!(debian_stories(&["vmx-kvm-loaded".to_owned()]).is_err());
    }
}
