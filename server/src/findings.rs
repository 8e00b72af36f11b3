//! What the readers find in an attempt's evidence once it is over: the crash reports of its consoles, the capsule of its
//! dump, and the crash reports in the dump's own kernel log, to be compared with those of the console.
//!
//! Findings explain, they never judge: the verdict is [`crate::triage`]'s, from facts that were there in time. Each is
//! kept as an artifact of the attempt whose name carries the version of the rules it was made with. A better reader
//! adds a finding and leaves the old one as it is, so nothing that people have triaged is ever re-bucketed.

use crate::app::AppState;
use crate::db::artifact::{self, ArtifactRow, Owner, SegmentRow};
use crate::db::{attempt, signed, unsigned};
use crate::error::{AppError, AppResult};
use crate::judging::DUMP;
use crate::ranges::{self, Stored};
use bytes::Bytes;
use crashyard_crashlog::{Intent, Options, Outcome, Parser, RULE_VERSION};
use crashyard_protocol::{ArtifactId, ArtifactState, AttemptId};
use crashyard_vmcore::{Capsule, VERSION as CAPSULE_VERSION};
use serde::Serialize;

/// How the names of findings begin; agents cannot upload files of such names.
pub const PREFIX: &str = "found-";
/// How the names of crash reports begin.
pub const REPORTS: &str = "found-crash-reports";
/// How the names of capsules begin.
pub const CAPSULE: &str = "found-capsule";
/// How the names of the crash reports in a dump's log begin.
pub const DUMP_REPORTS: &str = "found-dump-reports";
/// Counts up when something else is made of what the readers find.
const ROUND: i64 = 1;
/// Bytes of a console read at a time.
const PIECE: u64 = 4 << 20;

/// Name of the artifact with the crash reports, by the current rules.
#[must_use]
pub fn reports_name() -> String {
    format!("{REPORTS}.v{RULE_VERSION}.json")
}

/// Name of the artifact with the crash reports in the dump's log, by the current rules.
#[must_use]
pub fn dump_reports_name() -> String {
    format!("{DUMP_REPORTS}.v{RULE_VERSION}.json")
}

/// Name of the artifact with the capsule, by the current reader.
#[must_use]
pub fn capsule_name() -> String {
    format!("{CAPSULE}.v{CAPSULE_VERSION}.json")
}

/// Grows whenever one of the readers does.
#[must_use]
pub fn version() -> i64 {
    i64::from(RULE_VERSION) + 1000 * i64::from(CAPSULE_VERSION) + 1_000_000 * ROUND
}

/// The crash reports of one console, or of the log in a dump, as stored.
#[derive(Serialize)]
struct ConsoleReports {
    source: String,
    artifact: ArtifactId,
    #[serde(flatten)]
    outcome: Outcome,
}

/// Reads everything of an attempt and stores what was found. Doing it again changes nothing.
pub async fn read(state: &AppState, id: &AttemptId) -> AppResult<()> {
    let full = attempt::full(&state.db, id).await?;
    let intent = || Intent { marker: Some(format!("attempt={id}")), expect: full.scenario.expect.panic.clone() };
    let artifacts = artifact::list(&state.db, &Owner::Attempt(id.clone())).await?;
    let mut consoles = Vec::new();
    for console in &artifacts {
        if let Some(source) = console.console_source() {
            let outcome = reports(state, console, intent()).await?;
            consoles.push(ConsoleReports { source: source.to_owned(), artifact: console.id.clone(), outcome });
        }
    }
    store(state, id, &reports_name(), &consoles).await?;
    let dump = artifacts.iter().find(|file| file.name == DUMP && file.state != ArtifactState::Dropped);
    if let Some(dump) = dump
        && let Some(capsule) = capsule(state, dump).await?
    {
        let log = log_text(&capsule);
        let options = Options { intent: Some(intent()) };
        let outcome = tokio::task::spawn_blocking(move || crashyard_crashlog::parse(log.as_bytes(), options)).await?;
        let in_dump = [ConsoleReports { source: DUMP.to_owned(), artifact: dump.id.clone(), outcome }];
        store(state, id, &dump_reports_name(), &in_dump).await?;
        store(state, id, &capsule_name(), &capsule).await?;
    }
    Ok(())
}

/// The kernel log in a capsule as a console would have shown it. Offsets in [`dump_reports_name`] count in this text.
#[must_use]
pub fn log_text(capsule: &Capsule) -> String {
    capsule.dmesg.iter().fold(String::new(), |text, line| text + &line.stamped() + "\n")
}

async fn reports(state: &AppState, console: &ArtifactRow, intent: Intent) -> AppResult<Outcome> {
    let mut parser = Parser::new(Options { intent: Some(intent) });
    let (mut at, end) = (0, unsigned(console.size));
    while at < end {
        let until = end.min(at + PIECE);
        let bytes = ranges::read(state, &console.id, at..until).await?;
        parser = tokio::task::spawn_blocking(move || {
            parser.feed(&bytes);
            parser
        })
        .await?;
        at = until;
    }
    Ok(tokio::task::spawn_blocking(move || parser.finish()).await?)
}

/// The capsule, of a dump that never became whole as far as it goes; `None` of one that cannot be read at all, which the
/// stage `verified` has said already.
async fn capsule(state: &AppState, dump: &ArtifactRow) -> AppResult<Option<Capsule>> {
    let whole = dump.state == ArtifactState::Complete;
    let stored =
        if whole { Stored::open(state, &dump.id).await? } else { Stored::open_prefix(state, &dump.id).await? };
    read_capsule(state, stored, !whole).await
}

/// Reads a capsule on a thread of its own, with the tables of kernels seen before.
pub async fn read_capsule(state: &AppState, stored: Stored, partial: bool) -> AppResult<Option<Capsule>> {
    let tables = state.tables.clone();
    let (capsule, failure) = tokio::task::spawn_blocking(move || {
        let options = crashyard_vmcore::Options { cache: Some(&tables), partial, ..Default::default() };
        let capsule = crashyard_vmcore::capsule(&stored, &options);
        (capsule, stored.failure())
    })
    .await?;
    if let Some(failure) = failure {
        return Err(AppError::Unavailable(anyhow::Error::new(failure).context("reading a dump")));
    }
    Ok(capsule.ok())
}

async fn store(state: &AppState, id: &AttemptId, name: &str, finding: &impl Serialize) -> AppResult<()> {
    let owner = Owner::Attempt(id.clone());
    if artifact::find(&state.db, &owner, name).await?.is_some_and(|found| found.state == ArtifactState::Complete) {
        return Ok(());
    }
    let bytes = Bytes::from(serde_json::to_vec(finding).map_err(|error| AppError::Internal(error.into()))?);
    let hash = blake3::hash(&bytes).to_hex().to_string();
    let now = state.now();
    let mut tx = state.db.begin().await?;
    let file = artifact::open(&mut tx, &owner, &ArtifactId::from_ulid(state.ids.next()), name, now).await?;
    tx.commit().await?;
    let segment = SegmentRow {
        artifact_id: file.id.clone(),
        start_at: 0,
        length: signed(bytes.len() as u64),
        hash: hash.clone(),
        received_at: now,
    };
    state.blobs.put(&segment, bytes).await?;
    let mut tx = state.db.begin().await?;
    artifact::add_chunk(&mut tx, &segment).await?;
    artifact::complete(&mut tx, &file.id, &hash, now).await?;
    tx.commit().await?;
    Ok(())
}
