//! Brings the CPUs' virtualisation into the state of the scenario.
//!
//! What is reported as reached is what the kernel shows afterwards, not what the commands promised.

use super::modules::{self, CRASHYARD_VMX, KVM_INTEL};
use super::steps::StepResult;
use super::{facts, kvm};
use anyhow::{Context as _, ensure};
use crashyard_protocol::{Scenario, VmxState};
use std::path::Path;
use std::time::Instant;

/// Where the VMX module takes commands (docs/VMX.md).
const COMMAND: &str = "/sys/kernel/debug/crashyard_vmx/command";

/// Reaches the scenario's state: every step taken, and the state that is there afterwards.
pub async fn reach(scenario: &Scenario) -> (Vec<StepResult>, VmxState) {
    let wanted = scenario.vmx;
    let mut steps = Vec::new();
    let module = match wanted {
        VmxState::None => {
            return (vec![StepResult::done("vmx-state", "nothing to do: no VMX state is asked for")], wanted);
        }
        _ if wanted.is_of_kvm() => KVM_INTEL,
        _ => CRASHYARD_VMX,
    };
    steps.extend(modules::load(module).await);
    if steps.iter().any(|step| !step.ok) {
        return (steps, VmxState::None);
    }
    let start = Instant::now();
    let reached = if wanted.is_of_kvm() { with_kvm(wanted) } else { with_module(scenario) };
    match reached {
        Ok(text) => {
            steps.push(StepResult::done("vmx-state", text).since(start));
            (steps, wanted)
        }
        Err(error) => {
            steps.push(StepResult::failed("vmx-state", format!("{error:#}")).since(start));
            (steps, VmxState::None)
        }
    }
}

fn with_kvm(wanted: VmxState) -> anyhow::Result<String> {
    ensure!(Path::new("/dev/kvm").exists(), "kvm_intel is loaded, but there is no /dev/kvm");
    let cpus = facts::online_cpus()?;
    Ok(match wanted {
        VmxState::KvmUsed => {
            kvm::run_once(&cpus)?;
            format!("a guest has run on each of CPUs {cpus:?} and is gone")
        }
        VmxState::KvmRunning => {
            kvm::keep_running(&cpus)?;
            format!("a guest spins on each of CPUs {cpus:?}")
        }
        _ => "kvm_intel is loaded, no guest has run".into(),
    })
}

fn with_module(scenario: &Scenario) -> anyhow::Result<String> {
    let number = scenario.vmx_number().map(|number| format!(" {number}")).unwrap_or_default();
    command(&format!("{}{number}", scenario.vmx))?;
    let answer = std::fs::read_to_string(COMMAND).with_context(|| format!("read {COMMAND}"))?;
    let states = states(&answer);
    let online = facts::online_cpus()?;
    // A VMXON that faulted leaves nothing behind.
    let wanted = if scenario.vmx == VmxState::VmxonFault { "off" } else { scenario.vmx.as_str() };
    for cpu in &online {
        let state = states.iter().find(|(number, _)| number == cpu).map(|(_, state)| *state);
        ensure!(state == Some(wanted), "CPU {cpu} is in state {}, not {wanted}", state.unwrap_or("unknown"));
    }
    Ok(format!("{}{number} on each of CPUs {online:?}", scenario.vmx))
}

/// Gives the module one command; its answer is in the error if it is not `ok`.
pub fn command(line: &str) -> anyhow::Result<()> {
    ensure!(
        Path::new(COMMAND).exists(),
        "{COMMAND} is missing: is debugfs mounted (mount -t debugfs debugfs /sys/kernel/debug) and the module loaded?"
    );
    let written = std::fs::write(COMMAND, line);
    let answer = std::fs::read_to_string(COMMAND).with_context(|| format!("read {COMMAND}"))?;
    let answer = answer.lines().next().unwrap_or_default();
    written.with_context(|| format!("the VMX module refused {line:?}: {answer}"))?;
    ensure!(answer == format!("ok {line}"), "the VMX module answered {line:?} with {answer:?}");
    Ok(())
}

/// CPU and state out of the lines `cpuN state=NAME …`.
fn states(answer: &str) -> Vec<(u32, &str)> {
    answer
        .lines()
        .filter_map(|line| {
            let (cpu, rest) = line.strip_prefix("cpu")?.split_once(" state=")?;
            Some((cpu.parse().ok()?, rest.split(' ').next()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_read_from_the_modules_answer() {
        let answer =
            "ok vmcs-loaded 3\ncpu0 state=vmcs-loaded listed=3 record=0x1000\ncpu1 state=off listed=0 record=0x2\n";
        assert_eq!(states(answer), [(0, "vmcs-loaded"), (1, "off")]);
        assert_eq!(states("error -16: vmxon\n"), []);
    }
}
