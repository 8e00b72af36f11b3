//! Marks the kernel log and crashes the kernel.

use super::modules::{self, CRASHYARD_VMX, LKDTM};
use super::steps::StepResult;
use super::vmx;
use anyhow::{Context as _, anyhow};
use crashyard_protocol::Trigger;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use std::time::Duration;

/// How long a trigger from outside may take to arrive before the agent says that it did not.
const OUTSIDE_TRIGGER: Duration = Duration::from_secs(25);

/// Seconds after which a CPU that does not answer counts as locked up; the kernel's own default is 10.
const LOCKUP_SECONDS: &str = "2";

/// Where LKDTM takes the type of a crash that is to come at once (`Documentation/fault-injection/provoke-crashes.rst`).
const PROVOKE: &str = "/sys/kernel/debug/provoke-crash/DIRECT";

/// Makes the trigger possible, without pulling it.
pub async fn prepare(trigger: Trigger, cpu: Option<u32>) -> Vec<StepResult> {
    let mut steps = Vec::new();
    if trigger.module_command().is_some() {
        steps.extend(modules::load(CRASHYARD_VMX).await);
    }
    if trigger.lkdtm_type().is_some() {
        steps.extend(modules::load(LKDTM).await);
    }
    steps.push(allow(trigger, cpu));
    steps
}

fn allow(trigger: Trigger, cpu: Option<u32>) -> StepResult {
    let attempt = || -> anyhow::Result<String> {
        let mut done = match trigger {
            Trigger::SysrqC => {
                set("/proc/sys/kernel/sysrq", "1")?;
                "sysrq enabled".to_owned()
            }
            Trigger::Nmi => {
                set("/proc/sys/kernel/unknown_nmi_panic", "1")?;
                "an unknown NMI panics now; the controller sends it when it sees the marker".to_owned()
            }
            Trigger::ModuleOops | Trigger::LkdtmBug | Trigger::LkdtmException => {
                set("/proc/sys/kernel/panic_on_oops", "1")?;
                "an oops is fatal now".to_owned()
            }
            Trigger::ModuleHardlockup | Trigger::LkdtmHardlockup => {
                set("/proc/sys/kernel/hardlockup_panic", "1")?;
                set("/proc/sys/kernel/watchdog_thresh", LOCKUP_SECONDS)?;
                format!("a CPU that is locked up for {LOCKUP_SECONDS} s panics now")
            }
            Trigger::ModulePanic | Trigger::ModuleIrqPanic | Trigger::ModuleNmiPanic | Trigger::LkdtmPanic => {
                "nothing to prepare".to_owned()
            }
        };
        if let Some(cpu) = cpu.filter(|_| trigger.module_command().is_none()) {
            let mut set = CpuSet::new();
            set.set(cpu as usize).with_context(|| format!("no such CPU: {cpu}"))?;
            sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("move to CPU {cpu}"))?;
            done.push_str(&format!("; on CPU {cpu}"));
        }
        Ok(done)
    };
    match attempt() {
        Ok(text) => StepResult::done("prepare-trigger", text),
        Err(error) => StepResult::failed("prepare-trigger", format!("{error:#}")),
    }
}

/// Writes the marker to the kernel log, loud enough for every console.
pub fn mark(marker: &str) -> anyhow::Result<()> {
    // Priority 0 (emergency) passes any console log level; the facility is the kernel log's own "user".
    set("/dev/kmsg", &format!("<8>{marker}\n"))
}

/// Crashes the kernel. Comes back only with the reason why that did not work.
pub async fn pull(trigger: Trigger, cpu: Option<u32>) -> anyhow::Error {
    if let Some(verb) = trigger.module_command() {
        return match vmx::command(&format!("{verb} cpu={}", cpu.unwrap_or(0))) {
            Ok(()) => anyhow!("the VMX module was told to {verb}, but the kernel goes on"),
            Err(error) => error,
        };
    }
    if let Some(kind) = trigger.lkdtm_type() {
        return match set(PROVOKE, kind) {
            Ok(()) => anyhow!("LKDTM took {kind}, but the kernel goes on"),
            Err(error) => error.context("is the kernel built with CONFIG_LKDTM, and debugfs mounted?"),
        };
    }
    match trigger {
        Trigger::SysrqC => match set("/proc/sysrq-trigger", "c") {
            Ok(()) => anyhow!("sysrq-c was accepted, but the kernel goes on"),
            Err(error) => error,
        },
        Trigger::Nmi => {
            tokio::time::sleep(OUTSIDE_TRIGGER).await;
            anyhow!("no NMI came within {} s, or it did not panic this kernel", OUTSIDE_TRIGGER.as_secs())
        }
        _ => anyhow!("this agent does not know how to pull {trigger}"),
    }
}

fn set(path: &str, value: &str) -> anyhow::Result<()> {
    std::fs::write(path, value).with_context(|| format!("write {value:?} to {path}"))
}
