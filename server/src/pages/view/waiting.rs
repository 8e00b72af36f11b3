//! Why a job waits.

use super::Shell;
use crate::pages::format::{Chip, When};
use crate::pages::text::visible;
use askama::Template;
use crashyard_protocol::api::{Job, Waiting};
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{AttemptId, RunId};

/// The page at `/jobs/{id}/waiting`.
#[derive(Debug, Template)]
#[template(path = "waiting.html")]
pub struct WaitingPage {
    shell: Shell,
    run: RunId,
    name: String,
    chip: Chip,
    summary: String,
    submitter: String,
    priority: &'static str,
    since: When,
    deadline: Option<When>,
    expected: Option<When>,
    constraints: Vec<ConstraintRow>,
    machines: Vec<MachineRow>,
    more: u32,
    ahead: Vec<AheadRow>,
}

#[derive(Debug)]
struct ConstraintRow {
    constraint: String,
    satisfied_by: u32,
    failed_by: u32,
    fails: Vec<(String, String)>,
}

#[derive(Debug)]
struct MachineRow {
    name: String,
    chip: Chip,
    since: When,
    until: Option<When>,
    next: Option<String>,
    reason: Option<String>,
    /// Since when nothing was heard of its controller, and where it was then.
    silent: Option<(When, Chip)>,
    attempt: Option<AttemptId>,
}

#[derive(Debug)]
struct AheadRow {
    submitter: String,
    priority: &'static str,
    jobs: u64,
    first: bool,
}

impl WaitingPage {
    /// The page from a job and what it waits for.
    #[must_use]
    pub fn new(job: &Job, waiting: &Waiting, now: Timestamp) -> Self {
        let text = |text: &str| visible(text).into_owned();
        Self {
            shell: Shell { section: "runs", now: Some(When(now)) },
            run: job.run.clone(),
            name: text(&job.scenario.name),
            chip: Chip::job(job.state, job.status),
            summary: text(&waiting.summary),
            submitter: text(&waiting.submitter),
            priority: waiting.priority.as_str(),
            since: When(waiting.since),
            deadline: waiting.deadline.map(When),
            expected: waiting.expected_start.map(When),
            constraints: waiting
                .constraints
                .iter()
                .map(|one| ConstraintRow {
                    constraint: text(&one.constraint),
                    satisfied_by: one.satisfied_by,
                    failed_by: one.failed_by,
                    fails: one.fails.iter().map(|fail| (text(&fail.machine), text(&fail.found))).collect(),
                })
                .collect(),
            machines: waiting
                .machines
                .iter()
                .map(|one| MachineRow {
                    name: text(&one.name),
                    chip: if one.silent_since.is_some() { Chip::UNKNOWN } else { Chip::machine(one.state) },
                    since: When(one.since),
                    until: one.until.map(When),
                    next: one.next.as_deref().map(text),
                    reason: match (&one.reason, one.announced) {
                        (_, false) => Some("its controller does not name it any more".to_owned()),
                        (reason, true) => reason.as_deref().map(text),
                    },
                    silent: one.silent_since.map(|at| (When(at), Chip::machine(one.state))),
                    attempt: one.attempt.clone(),
                })
                .collect(),
            more: waiting.fitting.saturating_sub(u32::try_from(waiting.machines.len()).unwrap_or(u32::MAX)),
            ahead: waiting
                .ahead
                .iter()
                .map(|one| AheadRow {
                    submitter: text(&one.submitter),
                    priority: one.priority.as_str(),
                    jobs: one.jobs,
                    first: one.first,
                })
                .collect(),
        }
    }
}
