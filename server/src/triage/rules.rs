//! The rules of the eight stages: what proves each one, what disproves it, and what its deadline means.
//!
//! | stage | failure means |
//! |---|---|
//! | provisioned | MISS: the lab did not bring the kernel up |
//! | armed | FAIL where the kernel is seen at fault (it oopsed, refused, fell over), else ERROR |
//! | triggered | ERROR: the agent |
//! | panicked | FAIL: wrong or missing panic (ERROR where nobody could look for it in the dump) |
//! | captured | FAIL: the crash path died (ERROR where only the console fails to show a capture kernel that called in) |
//! | dumped | FAIL or ERROR by cause |
//! | verified | FAIL: incomplete or wrong (ERROR where it could not be looked at) |
//! | returned | MISS: the machine is quarantined, the verdict stands |
//!
//! One rule cuts across: where the lab took itself away (lease lost, machine handed back, power action failed), there
//! is no evidence either way, and the stage reads MISS.
//!
//! Each rule only *assesses*: it names the moment at which its proof was complete, and the moments at which the
//! evidence against it was conclusive. Which of them came first is decided in [`super::contract`].

mod after;
mod before;

use super::console::{MarkKind, Phase};
use super::evidence::Lease;
use super::scene::{self, Line, SETTLE, Scene, short};
use crashyard_protocol::agent::{Report, Role};
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{Proof, StageName, Status};

/// The proof of a stage is complete.
#[derive(Clone, Debug)]
pub(super) struct Proven {
    /// Since when.
    pub at: Timestamp,
    /// What proves it, in one line.
    pub text: String,
    /// Where to look.
    pub proofs: Vec<Proof>,
}

/// A stage cannot be proven any more.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    /// From when on that is certain; may be in the future.
    pub at: Timestamp,
    /// What it means.
    pub status: Status,
    /// What was seen, and what a person can do.
    pub text: String,
    /// Where to look.
    pub proofs: Vec<Proof>,
}

/// What the evidence says about one stage.
#[derive(Clone, Debug)]
pub(super) struct Assessment {
    /// Set once the proof is complete.
    pub proven: Option<Proven>,
    /// Everything that speaks against it.
    pub failures: Vec<Failure>,
    /// What it means if the deadline passes now.
    pub overdue: Failure,
}

/// What the evidence in a scene says about one stage, which began at `started`.
pub(super) fn assess(stage: StageName, scene: &Scene<'_>, started: Timestamp) -> Assessment {
    let mut assessment = match stage {
        StageName::Provisioned => before::provisioned(scene),
        StageName::Armed => before::armed(scene, started),
        StageName::Triggered => before::triggered(scene),
        StageName::Panicked => after::panicked(scene, started),
        StageName::Captured => after::captured(scene),
        StageName::Dumped => after::dumped(scene),
        StageName::Verified => after::verified(scene),
        StageName::Returned => after::returned(scene),
    };
    // Reading the dump needs the server alone; handing the machine back is what `returned` is about.
    let by_the_lab = match stage {
        StageName::Verified | StageName::Returned => false,
        // Its steps to the dump have their own.
        StageName::Panicked => waits_for(stage, scene, started).is_empty(),
        _ => true,
    };
    if by_the_lab {
        assessment.failures.extend(lab_went_away(scene, stage));
    }
    assessment
}

/// Other stages for which a stage waits, and since when, as far as they have begun.
pub(super) fn waits_for(stage: StageName, scene: &Scene<'_>, started: Timestamp) -> Vec<(StageName, Timestamp)> {
    match stage {
        StageName::Panicked => after::steps_to_the_dump(scene, started),
        _ => Vec::new(),
    }
}

/// The title of the crash that nobody asked for, near the stage that is blamed.
pub(super) fn signature(scene: &Scene<'_>, blamed: StageName) -> Option<String> {
    let phases: &[Phase] = match blamed {
        StageName::Provisioned | StageName::Armed | StageName::Triggered => &[Phase::Before],
        StageName::Panicked => &[Phase::Triggered, Phase::Before, Phase::Capture],
        StageName::Captured => &[Phase::Crashed, Phase::Capture],
        StageName::Dumped => &[Phase::Capture],
        StageName::Verified | StageName::Returned => &[],
    };
    phases.iter().find_map(|phase| unwanted(scene, *phase)).map(title)
}

/// The first oops of a phase, or else its first panic that is not the intended one.
fn unwanted<'a>(scene: &Scene<'a>, phase: Phase) -> Option<Line<'a>> {
    oops(scene, phase).or_else(|| panic(scene, phase))
}

fn oops<'a>(scene: &Scene<'a>, phase: Phase) -> Option<Line<'a>> {
    scene.line(phase, |kind| matches!(kind, MarkKind::Oops { .. }))
}

fn panic<'a>(scene: &Scene<'a>, phase: Phase) -> Option<Line<'a>> {
    scene.line(phase, |kind| matches!(kind, MarkKind::Panic { intended: false, .. }))
}

/// What a crash is filed under.
fn title(line: Line<'_>) -> String {
    match &line.mark.kind {
        MarkKind::Oops { title } => title.clone(),
        MarkKind::Panic { message, .. } => format!("Kernel panic: {}", short(message)),
        _ => short(&line.mark.text),
    }
}

/// Where a line stands, for a sentence.
fn place(line: Line<'_>) -> String {
    format!("console line {}", line.mark.line)
}

/// The lease is gone, or a power action failed: nothing is known about the kernel from here on.
fn lab_went_away(scene: &Scene<'_>, stage: StageName) -> Option<Failure> {
    match scene.lease() {
        Lease::Held => None,
        Lease::Lost { at } => {
            let text = format!(
                "The lease ran out while `{stage}` was waited for: its controller stopped renewing it. Look at the \
                 controller's log and at its network; the job is queued again within its budget."
            );
            let fact = "the lease ran out".to_owned();
            Some(Failure { at: *at, status: Status::Miss, text, proofs: vec![Proof::Server { text: fact }] })
        }
        Lease::Released { at, detail, .. } => {
            let text = format!(
                "The controller handed the machine back while `{stage}` was waited for: {}. Look at the controller's \
                 log.",
                said(detail)
            );
            let fact = format!("the controller released the attempt: {}", said(detail));
            Some(Failure { at: *at, status: Status::Miss, text, proofs: vec![Proof::Server { text: fact }] })
        }
    }
}

/// A power action that did not work, by the one who was to do it.
fn power_failed(
    scene: &Scene<'_>,
    by: Role,
    actions: &[&str],
    text: impl Fn(&str, String) -> String,
) -> Option<Failure> {
    scene.said_by(by).find_map(|report| match &report.report {
        Report::Power { action, ok: false, detail } if actions.contains(&action.as_str()) => Some(Failure {
            at: report.received_at,
            status: Status::Miss,
            text: text(action, said(detail)),
            proofs: vec![scene::report(report)],
        }),
        _ => None,
    })
}

/// The machine stopped by itself. Certain once whatever it printed last has had time to arrive.
fn machine_ended(scene: &Scene<'_>, status: Status, text: impl Fn(String) -> String) -> Option<Failure> {
    let (report, detail) = scene.ended()?;
    let at = scene.after(report.received_at, SETTLE);
    Some(Failure { at, status, text: text(said(detail)), proofs: vec![scene::report(report)] })
}

/// Somebody's words inside a sentence of ours.
fn said(detail: &str) -> String {
    let detail = short(detail);
    let detail = detail.trim_end_matches('.');
    if detail.is_empty() { "no reason given".to_owned() } else { detail.to_owned() }
}

/// A failure that one console line shows.
fn shown(line: Line<'_>, status: Status, text: String) -> Failure {
    Failure { at: line.mark.at, status, text, proofs: vec![line.proof()] }
}

/// What a passed deadline means.
fn overdue(status: Status, text: String, proofs: Vec<Proof>) -> Failure {
    Failure { at: Timestamp(0), status, text, proofs }
}

/// A fact that the server established itself.
fn server(text: impl Into<String>) -> Proof {
    Proof::Server { text: text.into() }
}
