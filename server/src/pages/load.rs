//! What the pages show, out of the ledger and the blob store: a fixed number of queries for each page.

use super::lines::LineIndex;
use super::view::console::{self, NAME_PREFIX, OVERHANG_BYTES, PAGE_BYTES, Piece, TAIL_BYTES, cut_page, cut_tail};
use crate::api::machines::shown;
use crate::api::{PageQuery, wire};
use crate::app::AppState;
use crate::db;
use crate::db::attempt::AttemptRow;
use crate::error::{AppError, AppResult};
use crate::passes::glimpse::Glimpse;
use crate::ranges;
use crashyard_protocol::api::{Artifact, Attempt, Build, Event, Evidence, Job, Machine, Page, Run, StoredScenario};
use crashyard_protocol::{ArtifactState, AttemptId, BuildId, JobId, MachineId, RunId, Stage};
use std::collections::HashMap;

/// Events of one attempt that a page looks at.
const EVENTS: i64 = 5_000;
/// Machines on one page; a lab's machines are wanted at a glance.
const MACHINES: u32 = 200;
/// Scenarios on one page: all that a farm may reasonably have.
const SCENARIOS: usize = 2_000;
/// Machines of one farm.
const MACHINES_KNOWN: i64 = 100_000;
/// A finding larger than this is not shown, only offered for download.
const FINDING_BYTES: u64 = 16 << 20;
/// The console shown first, where an attempt has several.
const MAIN_CONSOLE: &str = "console-serial";

/// A page of runs.
pub async fn runs(state: &AppState, before: Option<String>) -> AppResult<Page<Run>> {
    let query = PageQuery { before, limit: None };
    let (before, limit) = query.checked()?;
    let rows = db::run::list(&state.db, before, limit).await?;
    let counts = db::run::counts(&state.db, before, limit).await?;
    Ok(query.page(rows.into_iter().map(|row| wire::run(row, &counts)).collect(), |run: &Run| run.id.to_string()))
}

/// The stored scenarios, and whether there are more.
pub async fn scenarios(state: &AppState) -> AppResult<(Vec<StoredScenario>, bool)> {
    let limit = i64::try_from(SCENARIOS + 1).unwrap_or(i64::MAX);
    let mut rows = db::plan::list_scenarios(&state.db, None, limit).await?;
    let cut = rows.len() > SCENARIOS;
    rows.truncate(SCENARIOS);
    Ok((rows.into_iter().map(wire::scenario).collect(), cut))
}

/// A run with everything its grid shows.
pub struct RunParts {
    /// The run.
    pub run: Run,
    /// The kernel it tests.
    pub build: Build,
    /// Its jobs, in order.
    pub jobs: Vec<Job>,
    /// Every attempt of them, with stages and without artifacts.
    pub attempts: Vec<Attempt>,
}

/// A run, its jobs and their attempts.
pub async fn run(state: &AppState, id: &RunId) -> AppResult<RunParts> {
    let row = db::run::get(&state.db, id).await.map_err(|error| AppError::or_not_found(error, "run"))?;
    let counts = db::run::counts_of(&state.db, id).await?;
    let build = wire::build(state, db::build::get(&state.db, &row.build_id).await?).await?;
    let rows = db::attempt::of_run(&state.db, id).await?;
    let names = machine_names(state).await?;
    let mut stages = db::attempt::stages_of_run(&state.db, id).await?;
    let mut tries: HashMap<JobId, Vec<AttemptId>> = HashMap::new();
    for row in &rows {
        tries.entry(row.job_id.clone()).or_default().push(row.id.clone());
    }
    let jobs = db::run::jobs(&state.db, id).await?;
    Ok(RunParts {
        run: wire::run(row, &counts),
        jobs: jobs
            .into_iter()
            .map(|row| {
                let attempts = tries.remove(&row.job.id).unwrap_or_default();
                wire::job(row, attempts)
            })
            .collect(),
        attempts: rows.into_iter().map(|row| in_grid(row, &names, &mut stages, &build.id)).collect(),
        build,
    })
}

/// The newest finding of a kind (see [`crate::findings`]), if there is one that can be read.
pub async fn finding<T: serde::de::DeserializeOwned>(
    state: &AppState,
    attempt: &Attempt,
    kind: &str,
) -> AppResult<Option<T>> {
    let Some(file) = attempt.newest(kind).filter(|file| file.size <= FINDING_BYTES) else { return Ok(None) };
    let bytes = ranges::read(state, &file.id, 0..file.size).await?;
    Ok(serde_json::from_slice(&bytes).ok())
}

/// What was seen of a dump that is not whole.
pub async fn glimpse(state: &AppState, attempt: &Attempt) -> AppResult<Option<(u64, Glimpse)>> {
    let Some(dump) = attempt.dump().filter(|dump| dump.state == ArtifactState::Open) else { return Ok(None) };
    let Some(row) = db::dump::glimpse(&state.db, &dump.id).await? else { return Ok(None) };
    let seen = row.body.and_then(|body| serde_json::from_value(body.0).ok());
    Ok(seen.map(|seen| (db::unsigned(row.bytes), seen)))
}

/// The machines' names, by id: one query, however many attempts a run has.
async fn machine_names(state: &AppState) -> AppResult<HashMap<MachineId, String>> {
    let rows = db::machine::list(&state.db, None, MACHINES_KNOWN).await?;
    Ok(rows.into_iter().map(|row| (row.machine.id, row.machine.name)).collect())
}

/// An attempt as the grid of its run shows it.
fn in_grid(
    row: AttemptRow,
    names: &HashMap<MachineId, String>,
    stages: &mut HashMap<AttemptId, Vec<Stage>>,
    build: &BuildId,
) -> Attempt {
    Attempt {
        stages: stages.remove(&row.id).unwrap_or_default(),
        artifacts: Vec::new(),
        machine_name: names.get(&row.machine_id).cloned().unwrap_or_default(),
        id: row.id,
        job: row.job_id,
        run: row.run_id,
        number: u32::try_from(row.number).unwrap_or(u32::MAX),
        purpose: row.purpose,
        build: row.boots_build_id.unwrap_or_else(|| build.clone()),
        held_until: row.held_until,
        machine: row.machine_id,
        controller: row.controller_id,
        state: row.state,
        verdict: row.verdict,
        reason: row.reason,
        blamed_stage: row.blamed_stage,
        started_at: row.started_at,
        finished_at: row.finished_at,
    }
}

/// An attempt with everything its page shows but its console.
pub struct AttemptParts {
    /// The attempt.
    pub attempt: Attempt,
    /// Its job.
    pub job: Job,
    /// Its run, without counts.
    pub run: Run,
    /// The run's events about it.
    pub events: Vec<Event>,
    /// What its agents reported.
    pub evidence: Vec<Evidence>,
}

/// An attempt and what belongs to it.
pub async fn attempt(state: &AppState, id: &AttemptId) -> AppResult<AttemptParts> {
    // The run first: its newest event is where the page goes on, so whatever comes after it must not be missed.
    let row = db::attempt::get(&state.db, id).await.map_err(|error| AppError::or_not_found(error, "attempt"))?;
    let run = wire::run(db::run::get(&state.db, &row.run_id).await?, &[]);
    let attempt = attempt_with_artifacts(state, id).await?;
    let tries = db::run::attempts_of(&state.db, &attempt.job).await?;
    let job = wire::job(db::run::job(&state.db, &attempt.job).await?, tries);
    let events = db::event::of_attempt(&state.db, id, 0, EVENTS).await?;
    let reports = db::report::of_attempt(&state.db, id).await?;
    Ok(AttemptParts {
        attempt,
        job,
        run,
        events: events.into_iter().map(wire::event).collect(),
        evidence: reports.into_iter().map(wire::evidence).collect(),
    })
}

/// An attempt with its stages and artifacts.
pub async fn attempt_with_artifacts(state: &AppState, id: &AttemptId) -> AppResult<Attempt> {
    let full = db::attempt::full(&state.db, id).await.map_err(|error| AppError::or_not_found(error, "attempt"))?;
    wire::attempt(state, full).await
}

/// The console to show beside the stages.
pub fn main_console(attempt: &Attempt) -> Option<&Artifact> {
    let mut consoles = attempt.artifacts.iter().filter(|artifact| artifact.name.starts_with(NAME_PREFIX));
    let first = consoles.next()?;
    Some(if first.name == MAIN_CONSOLE {
        first
    } else {
        consoles.find(|artifact| artifact.name == MAIN_CONSOLE).unwrap_or(first)
    })
}

/// The console of this source.
pub fn console<'a>(attempt: &'a Attempt, source: &str) -> Option<&'a Artifact> {
    attempt.artifacts.iter().find(|artifact| artifact.name.strip_prefix(NAME_PREFIX) == Some(source))
}

/// Where the page that shows this byte starts; the last page, if the console is not that long.
pub fn page_of(console: &Artifact, at: u64) -> u64 {
    (at / PAGE_BYTES * PAGE_BYTES).min(console::last_page(console.size))
}

/// The end of a console.
pub async fn tail(state: &AppState, index: &LineIndex, console: &Artifact) -> AppResult<Piece> {
    if console.state == ArtifactState::Dropped {
        return Ok(Piece { from: console.size, first_line: 1, bytes: Vec::new() });
    }
    let from = console.size.saturating_sub(TAIL_BYTES);
    let before = index.line_ends_before(state, &console.id, from).await?;
    let bytes = ranges::read(state, &console.id, from..console.size).await?;
    Ok(cut_tail(from, bytes.into(), before))
}

/// One page of a console.
pub async fn page(state: &AppState, index: &LineIndex, console: &Artifact, start: u64) -> AppResult<Piece> {
    if console.state == ArtifactState::Dropped {
        return Ok(Piece { from: start, first_line: 1, bytes: Vec::new() });
    }
    let from = start.saturating_sub(1);
    let before = index.line_ends_before(state, &console.id, from).await?;
    let end = console.size.min(start.saturating_add(PAGE_BYTES + OVERHANG_BYTES));
    let bytes = ranges::read(state, &console.id, from..end).await?;
    Ok(cut_page(start, from, &bytes, before))
}

/// A page of machines; by name, where one page holds them all.
pub async fn machines(state: &AppState, before: Option<String>) -> AppResult<Page<Machine>> {
    let query = PageQuery { before, limit: Some(MACHINES) };
    let (before, limit) = query.checked()?;
    let rows = shown(state, db::machine::list(&state.db, before, limit).await?).await?;
    let mut page = query.page(rows, |machine: &Machine| machine.id.to_string());
    if page.next.is_none() && query.before.is_none() {
        page.items.sort_by(|a, b| a.name.cmp(&b.name));
    }
    Ok(page)
}
