//! The stages from the crash on: `panicked`, `captured`, `dumped`, `verified`, `returned`.
//!
//! A console is read in order, and agents wait for their reports' answers before they go on. So what a console shows
//! about the crash path is conclusive at once; only "the machine ended" waits for the lines it may have overtaken.
//!
//! One thing a console may keep to itself: a kernel that panics in an NMI puts the message into its log and jumps to the
//! capture kernel before it prints it. So where a capture kernel comes and nothing was printed, the log in the dump is
//! asked, and `panicked` waits for it as long as there is a dump to hope for.

use super::{
    Assessment, Failure, Proven, assess, machine_ended, oops, overdue, panic, place, power_failed, said, server, shown,
    title, unwanted,
};
use crate::triage::console::{Intent, MarkKind, Phase, may_be_cut};
use crate::triage::dump::{Expected, Oracle, Outcome, oracles};
use crate::triage::evidence::Lease;
use crate::triage::scene::{self, Line, Scene};
use crashyard_protocol::agent::{DumpFailure, Report, Role};
use crashyard_protocol::api::Evidence;
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{Proof, StageName, Status, Transport};
use std::time::Duration;

/// How long a capture kernel may need to print its banner after a panic inside the crash path. The nested panic tries
/// to start it once more, and that works where the first try died early.
const SECOND_TRY: Duration = Duration::from_secs(30);

/// The oracles of a dump that concern the log of the crashed kernel.
const OF_THE_LOG: [&str; 2] = ["marker", "panic"];

/// The intended panic: on the console, or else in the log of the dump.
pub(super) fn panicked(scene: &Scene<'_>, started: Timestamp) -> Assessment {
    let mut found = panicked_on_console(scene);
    let Some(kernel) = unannounced(scene) else { return found };
    // What came once the capture kernel ran says nothing of how the kernel before it ended.
    found.failures.retain(|failure| failure.at < kernel.mark.at);
    let in_dump = panicked_in_dump(scene, started, kernel);
    found.failures.extend(in_dump.failures);
    // Another console may still bring it.
    let proven = found.proven.into_iter().chain(in_dump.proven).min_by_key(|proven| proven.at);
    Assessment { proven, failures: found.failures, overdue: in_dump.overdue }
}

/// The stages that `panicked` waits for where only a dump can prove it, and since when, as far as they have begun.
pub(super) fn steps_to_the_dump(scene: &Scene<'_>, started: Timestamp) -> Vec<(StageName, Timestamp)> {
    let mut since = unannounced(scene).map(|kernel| kernel.mark.at);
    let mut steps = Vec::new();
    for step in [StageName::Captured, StageName::Dumped, StageName::Verified] {
        let Some(at) = since else { break };
        steps.push((step, at));
        since = assess(step, scene, started).proven.map(|proven| proven.at);
    }
    steps
}

/// A capture kernel that follows the trigger, with the intended panic on no console by then.
fn unannounced<'a>(scene: &Scene<'a>) -> Option<Line<'a>> {
    let announced = |kernel: Line<'_>| intended(scene).is_some_and(|panic| panic.mark.at <= kernel.mark.at);
    starts(scene, Phase::Triggered).filter(|kernel| !announced(*kernel))
}

/// A capture kernel that starts in a phase.
fn starts<'a>(scene: &Scene<'a>, phase: Phase) -> Option<Line<'a>> {
    scene.line(phase, |kind| matches!(kind, MarkKind::CommandLine { capture: true }))
}

/// The intended panic.
fn intended<'a>(scene: &Scene<'a>) -> Option<Line<'a>> {
    scene.line(Phase::Triggered, |kind| matches!(kind, MarkKind::Panic { intended: true, .. }))
}

/// The intended panic in the log of the dump that an unannounced capture kernel took. Where there is no dump to read,
/// that is for what would fail the stages up to it.
fn panicked_in_dump(scene: &Scene<'_>, started: Timestamp, kernel: Line<'_>) -> Assessment {
    let expected = &scene.scenario.expect.panic;
    // Nothing of it counts before the capture kernel was heard of: until then nobody would have looked there.
    let since = kernel.mark.at;
    let not_before = |failure: Failure| Failure { at: failure.at.max(since), ..failure };
    let read = dump_shows(scene, |oracle| OF_THE_LOG.contains(&oracle.name.as_str()));
    let mut failures: Vec<Failure> = read.failures.into_iter().map(not_before).collect();
    let mut overdue = read.overdue;
    for step in [StageName::Dumped, StageName::Captured] {
        let found = assess(step, scene, started);
        let done = found.proven.map(|proven| proven.at);
        let against = found.failures.into_iter().map(not_before);
        failures.extend(against.filter(|failure| done.is_none_or(|done| failure.at < done)));
        if done.is_none() {
            overdue = found.overdue;
        }
    }
    let with_kernel = |proofs: Vec<Proof>| std::iter::once(kernel.proof()).chain(proofs).collect();
    let neither = |failure: Failure| Failure {
        text: format!(
            "The capture kernel started ({}), but the intended panic (\"{expected}\") is not on the console before it, \
             and no dump shows it. {}",
            place(kernel),
            failure.text
        ),
        proofs: with_kernel(failure.proofs),
        ..failure
    };
    Assessment {
        proven: read.proven.map(|proven| Proven {
            at: proven.at.max(since),
            text: format!(
                "The intended panic was read in the log of the dump, and not on the console, where the capture kernel \
                 follows the trigger ({}). A kernel that panics in an NMI jumps before it prints.",
                place(kernel)
            ),
            proofs: with_kernel(proven.proofs),
        }),
        failures: failures.into_iter().map(neither).collect(),
        overdue: neither(overdue),
    }
}

/// The intended panic on the console.
fn panicked_on_console(scene: &Scene<'_>) -> Assessment {
    let expected = &scene.scenario.expect.panic;
    let proven = intended(scene).map(|line| Proven {
        at: line.mark.at,
        text: format!("The intended panic is on {}.", place(line)),
        proofs: vec![line.proof()],
    });

    let mut failures: Vec<Failure> = Vec::new();
    failures.extend(panic(scene, Phase::Triggered).map(|line| {
        let text = format!(
            "The wrong panic came: \"{}\" ({}) instead of one with \"{expected}\". The kernel died of something else \
             before the crash that was asked for.",
            title(line),
            place(line)
        );
        shown(line, Status::Fail, text)
    }));
    failures.extend(reset(scene, Phase::Triggered).map(|line| {
        let text = format!(
            "The machine went through reset without a panic: another kernel starts at {}. A triple fault looks like \
             this.",
            place(line)
        );
        shown(line, Status::Fail, text)
    }));
    // The machine's driver sends it, or the machine has asked its own BMC.
    for (by, check) in [(Role::Controller, "driver"), (Role::Target, "BMC")] {
        failures.extend(power_failed(scene, by, &["nmi"], |action, detail| {
            format!(
                "The {action} that was to crash the kernel was not delivered: {detail}. Check the machine's {check}."
            )
        }));
    }
    failures.extend(machine_ended(scene, Status::Fail, |detail| {
        format!(
            "The machine ended after the trigger without a panic: {detail}.{}",
            oops_seen(oops(scene, Phase::Triggered))
        )
    }));

    let oops = oops(scene, Phase::Triggered);
    let overdue = if expected.is_empty() {
        let text = "The scenario does not say which panic it expects (`expect.panic` is empty), so none can be the \
                    intended one.";
        overdue(Status::Error, text.to_owned(), Vec::new())
    } else {
        let text = format!(
            "No panic with \"{expected}\" came after the trigger.{} Read the console after the marker: the trigger \
             may be refused (`kernel.sysrq`, `panic_on_oops`), or the kernel hangs.",
            oops_seen(oops)
        );
        overdue(Status::Fail, text, oops.iter().map(Line::proof).collect())
    };
    Assessment { proven, failures, overdue }
}

fn oops_seen(oops: Option<Line<'_>>) -> String {
    oops.map(|line| format!(" It oopsed before: {} ({}).", title(line), place(line))).unwrap_or_default()
}

/// A kernel that is no capture kernel starts where none should.
fn reset<'a>(scene: &Scene<'a>, phase: Phase) -> Option<Line<'a>> {
    scene
        .lines()
        .filter(|line| line.mark.phase == phase && !may_be_cut(line.mark))
        .find(|line| matches!(line.mark.kind, MarkKind::CommandLine { capture: false }))
}

/// The capture kernel's banner on the console, and the capture agent's call.
pub(super) fn captured(scene: &Scene<'_>) -> Assessment {
    let kernel = starts(scene, Phase::Crashed).or_else(|| starts(scene, Phase::Triggered));
    let call = scene.said_by(Role::Capture).find(|said| matches!(said.report, Report::CaptureStarted { .. }));
    let proven = kernel.and_then(|line| {
        let mut proofs: Vec<Proof> = scene.banner_before(line).iter().map(Line::proof).collect();
        proofs.push(line.proof());
        let (at, who) = match call {
            Some(said) => {
                proofs.push(scene::report(said));
                (said.received_at, "its agent called")
            }
            // Without a network nobody can call; the dump that the controller read from the disk says as much.
            None => {
                proofs.push(server("the dump that the capture agent wrote to the disk is here"));
                (dump_from_disk(scene)?, "its agent wrote the dump to the disk")
            }
        };
        let text = format!("The capture kernel booted ({}), and {who}.", place(line));
        Some(Proven { at: line.mark.at.max(at), text, proofs })
    });

    let mut failures: Vec<Failure> = Vec::new();
    failures.extend(capture_kernel_died(scene).map(|line| {
        let text = format!(
            "The capture kernel died: {} ({}). No dump was taken. Check its command line (`capture.cmdline`), its \
             memory (`crashkernel=`) and its initrd.",
            title(line),
            place(line)
        );
        shown(line, Status::Fail, text)
    }));
    failures.extend(jump_died(scene));
    let oops = oops(scene, Phase::Crashed);
    let in_crash_path = oops
        .map(|line| format!(" The crash path hit an unintended crash: {} ({}).", title(line), place(line)))
        .unwrap_or_default();
    let with_oops = |mut failure: Failure| {
        failure.proofs.extend(oops.iter().map(Line::proof));
        failure
    };
    failures.extend(scene.line(Phase::Crashed, |kind| matches!(kind, MarkKind::DeadEnd)).map(|line| {
        let text = format!(
            "The kernel stopped for good after the intended panic ({}) instead of starting the capture kernel.\
             {in_crash_path}",
            place(line)
        );
        with_oops(shown(line, Status::Fail, text))
    }));
    failures.extend(reset(scene, Phase::Crashed).map(|line| {
        let text = format!(
            "The machine went through reset after the intended panic: the next kernel ({}) is no capture kernel. A \
             triple fault in the crash path looks like this.{in_crash_path}",
            place(line)
        );
        with_oops(shown(line, Status::Fail, text))
    }));
    failures.extend(oops.and(panic(scene, Phase::Crashed)).map(|line| {
        let text = format!(
            "The kernel panicked again inside the crash path ({}), and no capture kernel followed.{in_crash_path}",
            place(line)
        );
        let mut failure = with_oops(shown(line, Status::Fail, text));
        failure.at = scene.after(failure.at, SECOND_TRY);
        failure
    }).filter(|_| kernel.is_none()));
    // A machine that writes its dump to a disk may be off before anybody has read the disk.
    if kernel.is_none() || scene.scenario.capture.transport == Transport::Network {
        failures.extend(
            machine_ended(scene, Status::Fail, |detail| {
                let when = match kernel {
                    Some(_) => "in the capture kernel, before its agent called",
                    None => "after the intended panic, without a capture kernel",
                };
                format!("The machine ended {when}: {detail}.{in_crash_path}")
            })
            .map(with_oops),
        );
    }

    let overdue = match (kernel, call) {
        (None, Some(said)) => {
            let text = "The capture agent called, but no kernel with `elfcorehdr=` is on the console after the panic. \
                        Check that `console=` is on the capture kernel's command line (`capture.cmdline`), and that \
                        this command line is short enough to be printed whole.";
            overdue(Status::Error, text.to_owned(), vec![scene::report(said)])
        }
        (Some(line), _) => {
            let text = format!(
                "The capture kernel booted ({}), but its agent never called. Read the console after that line: its \
                 memory (`crashkernel=`), its initrd and its network come into question.",
                place(line)
            );
            overdue(Status::Fail, text, vec![line.proof()])
        }
        (None, None) if oops.is_some() => {
            let text = format!("The crash path died after the intended panic; no capture kernel came.{in_crash_path}");
            overdue(Status::Fail, text, oops.iter().map(Line::proof).collect())
        }
        (None, None) => {
            let text = "After the intended panic the console is silent: no capture kernel came. The crash path or the \
                        jump into the capture kernel hangs; try `earlyprintk` in `capture.cmdline`, and `kexec -p \
                        --console-serial`.";
            overdue(Status::Fail, text.to_owned(), Vec::new())
        }
    };
    Assessment { proven, failures, overdue }
}

fn dump_from_disk(scene: &Scene<'_>) -> Option<crashyard_protocol::clock::Timestamp> {
    let by_disk = scene.scenario.capture.transport == Transport::Disk;
    scene.dump().filter(|_| by_disk).and_then(|dump| scene.known(dump.completed_at?))
}

/// A panic, or the last words of a task, in the capture kernel.
fn capture_kernel_died<'a>(scene: &Scene<'a>) -> Option<Line<'a>> {
    scene.line(Phase::Capture, |kind| matches!(kind, MarkKind::Panic { .. } | MarkKind::DeadEnd))
}

/// Every byte with the server, hash equal: the server's own count, not the agent's word.
pub(super) fn dumped(scene: &Scene<'_>) -> Assessment {
    let bytes = scene.dump().map_or(0, |dump| dump.bytes);
    let proven = scene.dump().and_then(|dump| {
        let hash = dump.blake3.as_deref().unwrap_or("unknown");
        let text =
            format!("All {} bytes of the dump are here, and their hash is the one that was announced.", dump.bytes);
        let fact = format!("{} bytes, BLAKE3 {hash}", dump.bytes);
        Some(Proven { at: scene.known(dump.completed_at?)?, text, proofs: vec![server(fact)] })
    });

    let mut failures: Vec<Failure> = Vec::new();
    failures.extend(scene.said_by(Role::Capture).find_map(|said| dump_failed(said, bytes)));
    failures.extend(scene.lines().find_map(|line| match &line.mark.kind {
        MarkKind::DumpFailed { cause } if line.mark.phase == Phase::Capture => {
            let (status, advice) = blame_dump(*cause);
            Some(shown(line, status, format!("The capture agent says on {} that it failed. {advice}", place(line))))
        }
        _ => None,
    }));
    failures.extend(scene.dump().and_then(|dump| dump.mismatch.as_ref()).and_then(|(at, how)| {
        let text = format!(
            "The dump's bytes are not the ones that were announced: {}. They changed between the capture agent and \
             the store; check the machine's memory and network, and run the job again.",
            said(how)
        );
        let proofs = vec![server(format!("hash mismatch: {}", said(how)))];
        Some(Failure { at: scene.known(*at)?, status: Status::Error, text, proofs })
    }));
    failures.extend(capture_kernel_died(scene).map(|line| {
        let text = format!(
            "The capture kernel died with {bytes} bytes of the dump sent: {} ({}). Check its memory (`crashkernel=`).",
            title(line),
            place(line)
        );
        shown(line, Status::Fail, text)
    }));
    // A machine that wrote its dump to a disk is off before the controller reads the disk.
    if scene.scenario.capture.transport == Transport::Network {
        failures.extend(machine_ended(scene, Status::Fail, |detail| {
            format!(
                "The dump is cut: the machine ended with {bytes} bytes of it sent ({detail}). Read the end of the \
                 console, after the capture kernel's banner."
            )
        }));
    }

    let oops = unwanted(scene, Phase::Capture);
    let seen = oops.map(|line| format!(" The capture kernel hit a crash: {} ({}).", title(line), place(line)));
    let text = format!(
        "The dump is not complete: {bytes} bytes are here, and the rest did not come in time.{} Read the console after \
         the capture kernel's banner; if it is merely slow, give `deadlines.dumped` more time.",
        seen.unwrap_or_default()
    );
    let mut proofs = vec![server(format!("{bytes} bytes received, upload not closed"))];
    proofs.extend(oops.iter().map(Line::proof));
    Assessment { proven, failures, overdue: overdue(Status::Fail, text, proofs) }
}

fn dump_failed(said: &Evidence, bytes: u64) -> Option<Failure> {
    let Report::DumpFailed { cause, detail } = &said.report else { return None };
    let (status, advice) = blame_dump(*cause);
    let text = format!("The capture agent gave up after {bytes} bytes: {}. {advice}", super::said(detail));
    Some(Failure { at: said.received_at, status, text, proofs: vec![scene::report(said)] })
}

/// Whose fault a failed dump is, and what to do about it.
fn blame_dump(cause: DumpFailure) -> (Status, &'static str) {
    match cause {
        DumpFailure::Makedumpfile => (
            Status::Fail,
            "makedumpfile could not read the crashed kernel's memory. Check that its version knows this kernel, and \
             how much memory the capture kernel has (`crashkernel=`).",
        ),
        DumpFailure::Network => (
            Status::Error,
            "The network stayed away in the capture kernel. Check that its initrd has the driver and that the server \
             can be reached from the machine.",
        ),
        DumpFailure::Disk => {
            (Status::Error, "The dump disk could not be written. Check that it is there and large enough.")
        }
    }
}

/// The jump to the capture kernel took an exception and said which. CR4 is judged from what it printed: VMXE can only be
/// cleared outside VMX operation (SDM volume 3, 24.8), and clearing it is one of the first things a jump does.
fn jump_died(scene: &Scene<'_>) -> Option<Failure> {
    const VMXE: u64 = 1 << 13;
    let register = |wanted: &str| {
        let line = scene
            .line(Phase::Crashed, |kind| matches!(kind, MarkKind::JumpDied { register, .. } if register == wanted))?;
        let MarkKind::JumpDied { value, .. } = line.mark.kind else { return None };
        Some((line, value))
    };
    let ((line, vector), (_, found), (last, wanted)) = (register("Exc")?, register("r12")?, register("r13")?);
    let why = if vector == 13 && found & VMXE != 0 && wanted & VMXE == 0 {
        ": CR4.VMXE was set and could not be cleared, so this CPU was still in VMX operation"
    } else {
        ""
    };
    let text = format!("The jump to the capture kernel died of exception {vector} ({}){why}.", place(line));
    let mut failure = shown(line, Status::Fail, text);
    failure.at = last.mark.at;
    failure.proofs.push(last.proof());
    Some(failure)
}

/// The dump read, and every oracle held.
pub(super) fn verified(scene: &Scene<'_>) -> Assessment {
    dump_shows(scene, |_| true)
}

/// The dump read, and those oracles held that are wanted.
fn dump_shows(scene: &Scene<'_>, wanted: impl Fn(&Oracle) -> bool) -> Assessment {
    let mut proven = None;
    let mut failures = Vec::new();
    if let Some(reading) = scene.reading() {
        let at = reading.at;
        match &reading.outcome {
            Ok(facts) => {
                let intent = Intent::new(&scene.evidence.attempt, scene.scenario);
                let expected = Expected::of(scene.build, intent, scene.scenario.vmx, scene.evidence);
                let mut oracles = oracles(facts, &expected);
                oracles.retain(wanted);
                match weigh(&oracles) {
                    (None, text, proofs) => proven = Some(Proven { at, text, proofs }),
                    (Some(status), text, proofs) => failures.push(Failure { at, status, text, proofs }),
                }
            }
            Err(unreadable) => {
                let why = said(&unreadable.why);
                let (status, text) = if unreadable.broken {
                    (Status::Fail, format!("The dump is broken: {why}. The capture kernel wrote it like that."))
                } else {
                    (Status::Error, format!("The dump could not be read: {why}. This server does not know its kind."))
                };
                failures.push(Failure { at, status, text, proofs: vec![server(why)] });
            }
        }
    }
    let text = "The dump was not read in time. Look at the server's log; nothing is known about the dump.";
    Assessment { proven, failures, overdue: overdue(Status::Error, text.to_owned(), Vec::new()) }
}

/// What all oracles together say: the first broken one counts most, then the first that nobody could evaluate. No
/// oracle at all proves nothing.
fn weigh(oracles: &[Oracle]) -> (Option<Status>, String, Vec<Proof>) {
    let proofs = oracles.iter().map(|oracle| server(format!("{}: {}", oracle.name, oracle.text))).collect();
    let first = |outcome| oracles.iter().find(move |oracle| oracle.outcome == outcome);
    let (status, text) = if let Some(oracle) = first(Outcome::Broken) {
        (Some(Status::Fail), format!("The dump is wrong ({}): {}.", oracle.name, oracle.text))
    } else if let Some(oracle) = first(Outcome::NotEvaluated) {
        let text = format!(
            "The dump could not be checked ({}): {}. What cannot be looked at does not count as right.",
            oracle.name, oracle.text
        );
        (Some(Status::Error), text)
    } else if oracles.is_empty() {
        (Some(Status::Error), "The dump was read, but nothing in it was checked.".to_owned())
    } else {
        let names: Vec<&str> = oracles.iter().map(|oracle| oracle.name.as_str()).collect();
        (None, format!("The dump is of this kernel and of this crash ({} hold).", names.join(", ")))
    };
    (status, text, proofs)
}

/// The machine handed back healthy. What is at stake is the machine; the verdict stands.
pub(super) fn returned(scene: &Scene<'_>) -> Assessment {
    let mut proven = None;
    let mut failures: Vec<Failure> = Vec::new();
    let check = |wanted: bool| {
        scene.said_by(Role::Controller).find_map(|report| match &report.report {
            Report::Health { healthy, detail } if *healthy == wanted => Some((report, detail.as_str())),
            _ => None,
        })
    };
    failures.extend(check(false).map(|(report, detail)| Failure {
        at: report.received_at,
        status: Status::Miss,
        text: format!("The machine failed its health check: {}. It needs a person.", said(detail)),
        proofs: vec![scene::report(report)],
    }));
    match scene.lease() {
        Lease::Held => {}
        Lease::Released { at, healthy: true, detail } => {
            let mut proofs: Vec<Proof> = check(true).map(|(report, _)| scene::report(report)).into_iter().collect();
            proofs.push(server(format!("released as healthy: {}", said(detail))));
            let text = "The machine passed its health check and was handed back.".to_owned();
            proven = Some(Proven { at: *at, text, proofs });
        }
        Lease::Released { at, healthy: false, detail } => failures.push(Failure {
            at: *at,
            status: Status::Miss,
            text: format!("The machine was handed back as not healthy: {}. It needs a person.", said(detail)),
            proofs: vec![server(format!("released as not healthy: {}", said(detail)))],
        }),
        Lease::Lost { at } => failures.push(Failure {
            at: *at,
            status: Status::Miss,
            text: "The lease ran out before the machine was handed back; nobody knows what state it is in. Look at \
                   its controller."
                .to_owned(),
            proofs: vec![server("the lease ran out")],
        }),
    }
    let text = "The machine was not handed back in time. Look at its controller's log, then at the machine.";
    Assessment { proven, failures, overdue: overdue(Status::Miss, text.to_owned(), Vec::new()) }
}
