//! One run: its jobs as rows, the eight stages as columns, filled in live.

use super::runs::Share;
use super::{Cell, Shell, took};
use crate::pages::format::{Chip, When};
use crate::pages::text::visible;
use askama::Template;
use crashyard_protocol::api::{Attempt, Build, Job, Run};
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{AttemptId, AttemptState, JobId, JobState, RunId, RunState, StageName, Status};
use std::collections::HashMap;

/// The page at `/runs/{id}`.
#[derive(Debug, Template)]
#[template(path = "run.html")]
pub struct RunPage {
    shell: Shell,
    id: RunId,
    name: String,
    plan: String,
    build: Option<BuildFacts>,
    chip: Chip,
    open: bool,
    done: usize,
    share: Share,
    at: When,
    took: String,
    last_event: u64,
    stages: &'static [StageName],
    rows: Vec<Row>,
}

#[derive(Debug)]
struct BuildFacts {
    name: String,
    release: String,
    architecture: String,
    config: Option<String>,
    build_id: Option<String>,
}

/// One job.
#[derive(Debug)]
struct Row {
    id: JobId,
    number: u32,
    name: String,
    title: String,
    chip: Chip,
    /// Whether no machine has it yet.
    queued: bool,
    /// Where the contract stopped; of a job still on a machine, with what its attempt showed.
    stopped: Option<String>,
    reason: Option<String>,
    cells: Vec<Cell>,
    attempt: Option<Link>,
    earlier: Vec<Link>,
    took: String,
}

/// One attempt of a job.
#[derive(Debug)]
struct Link {
    id: AttemptId,
    number: u32,
    machine: String,
    chip: Chip,
}

impl RunPage {
    /// The page from a run, its jobs in order and all their attempts (in any order, with their stages).
    #[must_use]
    pub fn new(run: &Run, build: Option<&Build>, jobs: &[Job], attempts: &[Attempt], now: Timestamp) -> Self {
        let mut of_job: HashMap<&JobId, Vec<&Attempt>> = HashMap::new();
        for attempt in attempts {
            of_job.entry(&attempt.job).or_default().push(attempt);
        }
        let rows: Vec<Row> =
            jobs.iter().map(|job| Row::new(job, of_job.remove(&job.id).unwrap_or_default(), now)).collect();
        Self {
            shell: Shell { section: "runs", now: Some(When(now)) },
            id: run.id.clone(),
            name: visible(&run.name).into_owned(),
            plan: visible(&run.plan).into_owned(),
            build: build.map(|build| BuildFacts {
                name: visible(&build.name).into_owned(),
                release: visible(&build.release).into_owned(),
                architecture: visible(&build.architecture).into_owned(),
                config: build.config_name.as_deref().map(|name| visible(name).into_owned()),
                build_id: build.build_id.as_deref().map(|id| visible(id).into_owned()),
            }),
            chip: Chip::run(run.state, run.status),
            open: run.state == RunState::Open,
            done: jobs.iter().filter(|job| job.finished_at.is_some()).count(),
            share: Share::of(run),
            at: When(run.created_at),
            took: took(run.created_at, run.finished_at, now),
            last_event: run.last_event,
            stages: StageName::ALL,
            rows,
        }
    }

    /// What the title says first.
    fn title_state(&self) -> String {
        if self.open { format!("{}/{} done", self.done, self.rows.len()) } else { self.chip.word.to_owned() }
    }
}

/// Where a job's contract stopped, in words.
fn stopped(job: &Job, newest: Option<&Attempt>) -> Option<String> {
    let judged = newest.filter(|attempt| attempt.state == AttemptState::Collecting && job.state == JobState::Leased);
    match judged {
        Some(attempt) => {
            let at = attempt.blamed_stage.map(|stage| format!(" at {stage}")).unwrap_or_default();
            Some(format!("{}{at}, machine not back yet", attempt.verdict))
        }
        None => job.blamed_stage.filter(|_| job.status != Status::Pass).map(|stage| format!("at {stage}")),
    }
}

impl Row {
    fn new(job: &Job, mut attempts: Vec<&Attempt>, now: Timestamp) -> Self {
        attempts.sort_by_key(|attempt| attempt.number);
        let newest = attempts.pop();
        let link = |attempt: &Attempt| Link {
            id: attempt.id.clone(),
            number: attempt.number,
            machine: visible(&attempt.machine_name).into_owned(),
            chip: Chip::attempt(attempt.state, attempt.verdict),
        };
        let stage = |name| newest.and_then(|attempt| attempt.stages.iter().find(|stage| stage.name == name));
        Self {
            id: job.id.clone(),
            number: job.ordinal + 1,
            name: visible(&job.scenario.name).into_owned(),
            title: visible(&job.scenario.title).into_owned(),
            chip: Chip::job(job.state, job.status),
            queued: job.state == JobState::Queued,
            stopped: stopped(job, newest),
            reason: job.reason.as_deref().map(|reason| visible(reason).into_owned()),
            cells: StageName::ALL.iter().map(|name| Cell::new(*name, stage(*name), now)).collect(),
            attempt: newest.map(link),
            earlier: attempts.into_iter().map(link).collect(),
            took: newest
                .filter(|attempt| attempt.state != AttemptState::Running)
                .map(|attempt| took(attempt.started_at, attempt.finished_at, now))
                .unwrap_or_default(),
        }
    }
}
