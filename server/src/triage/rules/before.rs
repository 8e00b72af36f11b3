//! The stages before the crash: `provisioned`, `armed`, `triggered`.
//!
//! Nothing is urgent here, so evidence against a stage waits for [`SETTLE`]: the console may be ahead of a report.

use super::{Assessment, Failure, Proven, machine_ended, overdue, panic, place, power_failed, said, shown, title};
use crate::triage::console::{MarkKind, Phase};
use crate::triage::scene::{self, Line, SETTLE, Scene, short};
use crashyard_protocol::agent::{Report, Role};
use crashyard_protocol::api::Evidence;
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{Status, VmxState};

/// The banner of the kernel under test on the console, and its agent's word that this is the kernel that runs.
pub(super) fn provisioned(scene: &Scene<'_>) -> Assessment {
    let build = scene.build;
    let banner = scene
        .lines()
        .filter(|line| matches!(&line.mark.kind, MarkKind::Banner { release } if *release == build.release))
        .min_by_key(|line| line.mark.at);
    let kernels: Vec<_> = scene.said_by(Role::Target).filter(|said| wrong_kernel(scene, said).is_some()).collect();
    let right = kernels.iter().find(|said| wrong_kernel(scene, said).is_some_and(|wrong| wrong.is_none()));

    let proven = banner.zip(right).map(|(banner, report)| Proven {
        at: banner.mark.at.max(report.received_at),
        text: format!(
            "Kernel {} runs: its banner is on {}, and its agent says the same{}.",
            build.release,
            place(banner),
            if build.build_id.is_some() { ", build id included" } else { "" }
        ),
        proofs: vec![banner.proof(), scene::report(report)],
    });

    let mut failures: Vec<Failure> = kernels
        .iter()
        .filter_map(|said| {
            let text = wrong_kernel(scene, said)??;
            Some(Failure { at: said.received_at, status: Status::Miss, text, proofs: vec![scene::report(said)] })
        })
        .take(1)
        .collect();
    failures.extend(power_failed(scene, Role::Controller, &["on", "reset"], |action, detail| {
        format!("The machine could not be powered ({action}): {detail}. Check its driver and its power supply.")
    }));
    failures.extend(panic(scene, Phase::Before).map(|line| {
        let text = format!(
            "The kernel panicked before its agent was up ({}, {}). Read the console from there; if it is the kernel \
             under test, it does not boot on this machine.",
            title(line),
            place(line)
        );
        settled(scene, shown(line, Status::Miss, text))
    }));
    failures.extend(machine_ended(scene, Status::Miss, |detail| {
        format!("The machine ended before the kernel under test was up: {detail}. Read the end of its console.")
    }));

    let text = match (banner, kernels.first()) {
        (None, None) if scene.console_bytes() == 0 => {
            "Nothing came from the machine: no byte on the console, no call from its agent. Check that it was powered \
             on and that the console is connected."
                .to_owned()
        }
        (None, None) => format!(
            "No kernel {} came up: its banner is not on the console and its agent did not call. Read the end of the \
             console; the boot loader or the download of the kernel may have failed.",
            build.release
        ),
        (Some(banner), _) => format!(
            "Kernel {} booted ({}), but its agent did not call. Read the console after that line: the initrd, the \
             network of the machine and the address of the server come into question.",
            build.release,
            place(banner)
        ),
        (None, Some(_)) => format!(
            "The agent called from kernel {}, but the kernel's banner is not on the console. Check that the console \
             is recorded from power-on and that `console=` is on the kernel's command line.",
            build.release
        ),
    };
    let proofs = banner.iter().map(Line::proof).collect();
    Assessment { proven, failures, overdue: overdue(Status::Miss, text, proofs) }
}

/// For a report that names the running kernel: why it is the wrong one, if it is. `None` for any other report.
fn wrong_kernel(scene: &Scene<'_>, said: &Evidence) -> Option<Option<String>> {
    let Report::Kernel { release, build_id, .. } = &said.report else { return None };
    let build = scene.build;
    if *release != build.release {
        return Some(Some(format!(
            "The wrong kernel booted: {} runs instead of {}. Check what the machine boots and that the build's \
             `release` is the kernel's `uname -r`.",
            short(release),
            build.release
        )));
    }
    Some(match (build_id, &build.build_id) {
        (Some(found), Some(wanted)) if !found.eq_ignore_ascii_case(wanted) => Some(format!(
            "Another build of kernel {release} booted: its build id is {}, the build's is {wanted}. The machine boots \
             an older file, or the build was submitted with the wrong build id.",
            short(found)
        )),
        _ => None,
    })
}

/// The agent's word that everything is in place.
pub(super) fn armed(scene: &Scene<'_>, started: Timestamp) -> Assessment {
    let wanted = scene.scenario.vmx;
    let armed = scene.said_by(Role::Target).find(|said| matches!(said.report, Report::Armed { .. }));
    let proven = armed.and_then(|said| match &said.report {
        Report::Armed { crash_kernel_loaded: true, crash_kernel_bytes, vmx } if *vmx == wanted => Some(Proven {
            at: said.received_at,
            text: format!(
                "The crash kernel is loaded ({} MiB reserved), VMX state `{vmx}` is reached.",
                crash_kernel_bytes / (1024 * 1024)
            ),
            proofs: vec![scene::report(said)],
        }),
        _ => None,
    });

    let mut failures: Vec<Failure> = Vec::new();
    failures.extend(scene.said_by(Role::Target).find_map(|said| failed_step(scene, said)));
    failures.extend(armed.and_then(|said| not_armed(said, wanted)));
    let crashed = panic(scene, Phase::Before);
    failures.extend(crashed.map(|line| {
        let text = format!(
            "The kernel panicked while it was being armed ({}, {}), before anybody asked for a crash.",
            title(line),
            place(line)
        );
        settled(scene, shown(line, Status::Fail, text))
    }));
    let kernel_at_fault = oops_since(scene, started);
    failures.extend(
        machine_ended(scene, Status::Error, |detail| {
            format!("The machine ended while it was being armed: {detail}. Read the end of its console.")
        })
        .map(|failure| blame_kernel(failure, kernel_at_fault)),
    );

    let last = scene.said_by(Role::Target).filter(|said| matches!(said.report, Report::Step { .. })).last();
    let text = match last.map(|said| &said.report) {
        Some(Report::Step { name, .. }) => format!(
            "Arming did not finish in time; the last step reported is `{}`. Read the console from there.",
            short(name)
        ),
        _ => "Arming did not finish in time, and no step was reported. Read the console from the agent's start on."
            .to_owned(),
    };
    let overdue = overdue(Status::Error, text, last.map(scene::report).into_iter().collect());
    Assessment { proven, failures, overdue: blame_kernel(overdue, kernel_at_fault) }
}

fn oops_since<'a>(scene: &Scene<'a>, started: Timestamp) -> Option<Line<'a>> {
    scene
        .lines()
        .filter(|line| line.mark.phase == Phase::Before && line.mark.at >= started)
        .find(|line| matches!(line.mark.kind, MarkKind::Oops { .. }))
}

/// Makes an agent's failure the kernel's where the kernel is seen to be at fault.
fn blame_kernel(mut failure: Failure, oops: Option<Line<'_>>) -> Failure {
    if let Some(line) = oops {
        failure.status = Status::Fail;
        failure.text = format!("{} The kernel oopsed meanwhile: {} ({}).", failure.text, title(line), place(line));
        failure.proofs.push(line.proof());
    } else if failure.text.to_ascii_lowercase().contains("triple fault") {
        failure.status = Status::Fail;
    }
    failure
}

/// A step that did not reach its goal.
fn failed_step(scene: &Scene<'_>, said: &Evidence) -> Option<Failure> {
    let Report::Step { name, command, code, ok: false, output, .. } = &said.report else { return None };
    let what = match (command, code) {
        (Some(command), Some(code)) => format!("{} returned {code}: {}", short(command), self::said(output)),
        (Some(command), None) => format!("{} did not end properly: {}", short(command), self::said(output)),
        (None, _) => format!("Step `{}` failed: {}", short(name), self::said(output)),
    };
    let (status, advice) = blame_step(scene, name, output);
    let proofs = vec![scene::report(said)];
    Some(Failure { at: said.received_at, status, text: format!("{what}. {advice}"), proofs })
}

/// Whose fault a failed step is, and what to do about it.
fn blame_step(scene: &Scene<'_>, name: &str, output: &str) -> (Status, String) {
    let boot = &scene.scenario.boot;
    let output = output.to_ascii_lowercase();
    if name.contains("crash-kernel") || name.contains("kexec") {
        let unreserved = output.contains("not reserved") || output.contains("crashkernel");
        if boot.crashkernel.is_empty() {
            let advice = "The scenario reserves no memory for it (`boot.crashkernel` is empty). Boot with \
                          `crashkernel=192M`."
                .to_owned();
            return (Status::Error, advice);
        }
        if unreserved {
            let advice = format!(
                "The kernel reserved nothing although it was booted with `crashkernel={}`. Give the machine more \
                 memory or ask for less; the line `crashkernel reserved` early on the console says what it did.",
                boot.crashkernel
            );
            return (Status::Error, advice);
        }
        if output.contains("kexec_load failed") || output.contains("kexec_file_load failed") {
            let advice = "The kernel refused the crash kernel although memory is reserved for it. Read its log for \
                          the reason."
                .to_owned();
            return (Status::Fail, advice);
        }
        let advice = "Check that the build's kernel and initrd can be loaded by kexec-tools.".to_owned();
        return (Status::Error, advice);
    }
    if name.contains("vmx") {
        let advice = format!(
            "VMX state `{}` was not reached. Check that the machine has VMX and that the module fits the kernel.",
            scene.scenario.vmx
        );
        return (Status::Error, advice);
    }
    (Status::Error, "Read the target agent's lines on the console.".to_owned())
}

/// An agent that says it is done although not everything is in place.
fn not_armed(said: &Evidence, wanted: VmxState) -> Option<Failure> {
    let text = match &said.report {
        Report::Armed { crash_kernel_loaded: false, crash_kernel_bytes: 0, .. } => {
            "No crash kernel is loaded and no memory is reserved for one. Boot with `crashkernel=192M`.".to_owned()
        }
        Report::Armed { crash_kernel_loaded: false, crash_kernel_bytes, .. } => format!(
            "No crash kernel is loaded although {crash_kernel_bytes} bytes are reserved for one: \
             /sys/kernel/kexec_crash_loaded reads 0. Look at the arming steps."
        ),
        Report::Armed { vmx, .. } if *vmx != wanted => format!(
            "VMX state `{vmx}` was reached instead of `{wanted}`. Check that the machine has VMX and that the \
             scenario asks for what its kernel can do."
        ),
        _ => return None,
    };
    Some(Failure { at: said.received_at, status: Status::Error, text, proofs: vec![scene::report(said)] })
}

/// The marker on the console.
pub(super) fn triggered(scene: &Scene<'_>) -> Assessment {
    let marker = scene.line(Phase::Before, |kind| matches!(kind, MarkKind::Marker));
    let proven = marker.map(|line| Proven {
        at: line.mark.at,
        text: format!("The marker is on {}.", place(line)),
        proofs: vec![line.proof()],
    });
    let triggering = scene.said_by(Role::Target).find(|said| matches!(said.report, Report::Triggering { .. }));

    let mut failures: Vec<Failure> = Vec::new();
    failures.extend(panic(scene, Phase::Before).map(|line| {
        let text = if triggering.is_some() {
            format!(
                "The kernel panicked ({}, {}), but this attempt's marker is not on the console before it, so nobody \
                 can tell that this is the crash that was asked for. Check the kernel's console log level (`quiet`, \
                 `loglevel=`).",
                title(line),
                place(line)
            )
        } else {
            format!(
                "The kernel panicked ({}, {}) before its agent had announced the trigger.",
                title(line),
                place(line)
            )
        };
        settled(scene, shown(line, Status::Error, text))
    }));
    failures.extend(machine_ended(scene, Status::Error, |detail| {
        format!("The machine ended before the marker was on the console: {detail}. Read the end of its console.")
    }));

    let text = if triggering.is_some() {
        "The agent announced the trigger, but the marker is not on the console. Check the kernel's console log level \
         (`quiet`, `loglevel=`) and that /dev/kmsg can be written."
    } else {
        "The agent was told to trigger and did not. Read the target agent's lines on the console."
    };
    let proofs = triggering.map(scene::report).into_iter().collect();
    Assessment { proven, failures, overdue: overdue(Status::Error, text.to_owned(), proofs) }
}

fn settled(scene: &Scene<'_>, mut failure: Failure) -> Failure {
    failure.at = scene.after(failure.at, SETTLE);
    failure
}
