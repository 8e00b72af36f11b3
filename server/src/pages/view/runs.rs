//! The list of runs, newest first, a heading for each day.

use super::console::path_part;
use super::{Shell, took};
use crate::pages::format::{Chip, When};
use crate::pages::text::visible;
use askama::Template;
use crashyard_protocol::api::{Page, Run};
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{RunId, RunState, Status};

/// The page at `/`.
#[derive(Debug, Template)]
#[template(path = "runs.html")]
pub struct RunsPage {
    shell: Shell,
    days: Vec<Day>,
    open: usize,
    /// Whether this is the first page of the list.
    newest: bool,
    next: Option<String>,
}

/// The runs submitted on one day.
#[derive(Debug)]
struct Day {
    at: When,
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    id: RunId,
    name: String,
    plan: String,
    chip: Chip,
    share: Share,
    at: When,
    took: String,
    since: Option<When>,
}

impl RunsPage {
    /// The list from a page of runs.
    #[must_use]
    pub fn new(runs: &Page<Run>, newest: bool, now: Timestamp) -> Self {
        let mut days: Vec<Day> = Vec::new();
        for run in &runs.items {
            let at = When(run.created_at);
            let row = Row {
                id: run.id.clone(),
                name: visible(&run.name).into_owned(),
                plan: visible(&run.plan).into_owned(),
                chip: Chip::run(run.state, run.status),
                share: Share::of(run),
                at,
                took: took(run.created_at, run.finished_at, now),
                since: (run.state == RunState::Open).then_some(at),
            };
            match days.last_mut() {
                Some(day) if day.at.date() == at.date() => day.rows.push(row),
                _ => days.push(Day { at, rows: vec![row] }),
            }
        }
        Self {
            shell: Shell { section: "runs", now: Some(When(now)) },
            days,
            open: runs.items.iter().filter(|run| run.state == RunState::Open).count(),
            newest,
            next: runs.next.as_deref().map(path_part),
        }
    }
}

/// How a run's jobs are shared out among the results: the bar and the words beside it.
#[derive(Clone, Debug)]
pub struct Share {
    /// Results with at least one job, in the order in which they are shown; `MISS` of an open run is what is owed.
    pub parts: Vec<Part>,
}

/// One part of a [`Share`].
#[derive(Clone, Debug)]
pub struct Part {
    /// Word and tone.
    pub chip: Chip,
    /// Number of jobs.
    pub count: u32,
    /// Offset from the left in thousandths of the whole.
    pub offset: u32,
    /// Width in thousandths of the whole.
    pub width: u32,
}

impl Share {
    /// The share of a run's counts.
    #[must_use]
    pub fn of(run: &Run) -> Self {
        let total: u32 = run.counts.values().sum();
        let mut done = 0;
        let mut parts = Vec::new();
        for status in [Status::Pass, Status::Done, Status::Fail, Status::Error, Status::Miss, Status::Skip] {
            let count = run.counts.get(&status).copied().unwrap_or(0);
            if count == 0 {
                continue;
            }
            let chip = if status == Status::Miss && run.state == RunState::Open {
                Chip { word: "owed", tone: "wait" }
            } else {
                Chip::status(status)
            };
            let offset = thousandths(done, total);
            done += count;
            parts.push(Part { chip, count, offset, width: thousandths(done, total) - offset });
        }
        Self { parts }
    }
}

fn thousandths(part: u32, whole: u32) -> u32 {
    u32::try_from(u64::from(part) * 1000 / u64::from(whole.max(1))).unwrap_or(1000)
}
