//! What each kind of build must come to in each scenario, and why.

use super::builds::Kind;
use crate::demo::stories::Story;
use anyhow::Context as _;
use crashyard_protocol::{Scenario, StageName, Status, VmxState};

/// The scenarios of the matrix.
const SCENARIOS: [&str; 4] = [
    include_str!("../../scenarios/vmx/kvm-loaded.toml"),
    include_str!("../../scenarios/vmx/kvm-running.toml"),
    include_str!("../../scenarios/vmx/vmcs-loaded.toml"),
    include_str!("../../scenarios/vmx/vmcs-launched.toml"),
];

/// The stories of one kind of build.
pub fn stories(kind: Kind) -> anyhow::Result<Vec<Story>> {
    SCENARIOS
        .iter()
        .map(|text| {
            let scenario: Scenario = toml::from_str(text).with_context(|| format!("a scenario: {text}"))?;
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
        // Whoever used VMX before: the jump finds it on.
        Kind::LeakedVmxon => (Status::Fail, Some(StageName::Captured), "CR4.VMXE"),
        // KVM's own callback does its work; the module's does not.
        Kind::SkippedVmclear if vmx.is_of_module() => (Status::Fail, Some(StageName::Verified), "VMCLEAR"),
        Kind::Good | Kind::SeedBug | Kind::SkippedVmclear => pass,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cell_is_a_valid_scenario_with_a_prediction() {
        for kind in Kind::ALL {
            let stories = stories(kind).unwrap();
            assert_eq!(stories.len(), 4);
            for story in &stories {
                story.scenario.check_vmx().unwrap();
                assert!(story.scenario.vmx != VmxState::None);
            }
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
}
