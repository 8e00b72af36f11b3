//! Marks the kernel log and crashes the kernel.

use super::modules::{self, CRASHYARD_VMX, IPMI, LKDTM};
use super::steps::StepResult;
use super::vmx;
use crate::ipmi::in_band;
use anyhow::{Context as _, anyhow};
use crashyard_protocol::Trigger;
use crashyard_protocol::agent::Report;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use std::path::Path;
use std::time::Duration;
use tokio::time::Instant;

/// How long a trigger from outside may take to arrive before the agent says that it did not.
const OUTSIDE_TRIGGER: Duration = Duration::from_secs(25);

/// How long the machine's own BMC may take to say what it is.
const BMC: Duration = Duration::from_secs(5);

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
    if trigger == Trigger::BmcNmi {
        steps.extend(find_bmc().await);
    }
    steps.push(allow(trigger, cpu));
    steps
}

/// Looks for the machine's own BMC, while there is time to say that there is none. A driver that finds no BMC cannot be loaded,
/// which is told as what it means.
async fn find_bmc() -> Vec<StepResult> {
    const STEP: &str = "find-bmc";
    let start = std::time::Instant::now();
    let device = Path::new(in_band::DEVICE);
    let (mut steps, mut refused) = (Vec::new(), String::new());
    if !device.exists() {
        for name in IPMI {
            for step in modules::load(name).await {
                if step.ok {
                    steps.push(step);
                } else {
                    refused.push_str(&format!("; {}: {}", step.command.unwrap_or(step.name), step.output.trim()));
                }
            }
        }
    }
    let found = if device.exists() {
        let asked = tokio::task::spawn_blocking(|| in_band::identity(&mut in_band::open(device, BMC)?));
        asked.await.context("the IPMI library failed").flatten()
    } else {
        Err(anyhow!(
            "there is no {}: this machine has no BMC that its kernel finds, or the kernel has no modules {}{refused}",
            device.display(),
            IPMI.join(" and ")
        ))
    };
    steps.push(
        match found {
            Ok(id) => StepResult::done(
                STEP,
                format!(
                    "the BMC at {} answers: manufacturer {}, firmware {}.{:02}",
                    device.display(),
                    id.manufacturer_id,
                    id.major_fw_revision,
                    id.minor_fw_revision
                ),
            ),
            Err(error) => StepResult::failed(STEP, format!("{error:#}")),
        }
        .since(start),
    );
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
            Trigger::BmcNmi => {
                set("/proc/sys/kernel/unknown_nmi_panic", "1")?;
                "an unknown NMI panics now; the BMC is asked for it behind the marker".to_owned()
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

/// A trigger that did not get as far as the kernel, which is no fault of the kernel's.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NotDelivered(String);

/// What is told of a kernel that goes on after the trigger.
pub fn survived(why: &anyhow::Error) -> Report {
    match why.downcast_ref::<NotDelivered>() {
        Some(NotDelivered(detail)) => Report::Power { action: "nmi".into(), ok: false, detail: detail.clone() },
        None => StepResult::failed("trigger", format!("{why:#}")).report(),
    }
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
        Trigger::BmcNmi => by_bmc().await,
        _ => anyhow!("this agent does not know how to pull {trigger}"),
    }
}

/// Has the machine's own BMC send the NMI. The answer is waited for as long as the NMI: where the one is late, the other may be.
async fn by_bmc() -> anyhow::Error {
    let until = Instant::now() + OUTSIDE_TRIGGER;
    let asked = tokio::task::spawn_blocking(|| {
        in_band::send_nmi(&mut in_band::open(Path::new(in_band::DEVICE), OUTSIDE_TRIGGER)?)
    });
    if let Err(error) = asked.await.context("the IPMI library failed").flatten() {
        return NotDelivered(format!("asked through {} for an NMI, {error:#}", in_band::DEVICE)).into();
    }
    tokio::time::sleep_until(until).await;
    anyhow!(
        "the BMC took the diagnostic interrupt, but no NMI came within {} s, or it did not panic this kernel",
        OUTSIDE_TRIGGER.as_secs()
    )
}

fn set(path: &str, value: &str) -> anyhow::Result<()> {
    std::fs::write(path, value).with_context(|| format!("write {value:?} to {path}"))
}
