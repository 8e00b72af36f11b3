//! What the readers find in an attempt's evidence once it is over: the crash reports of its consoles, the capsule of its
//! dump, and the crash reports in the dump's own kernel log, to be compared with those of the console.
//!
//! Findings explain, they never judge: the verdict is [`crate::triage`]'s, from facts that were there in time. Each is
//! kept as an artifact of the attempt whose name carries the version of the rules it was made with, and crashes that
//! nobody asked for are recorded under their signatures, of that version too. A better reader adds findings and
//! signatures and leaves the old ones as they are, so nothing that people have triaged is ever re-bucketed.
//!
//! Attempts are read one after another, and what was found in several is written in one transaction.

use crate::app::AppState;
use crate::db::artifact::{self, ArtifactRow, OnePiece, SegmentRow};
use crate::db::attempt::FullAttempt;
use crate::db::signature::{self, NewPlace, NewSignature};
use crate::db::{attempt, signed, unsigned};
use crate::error::{AppError, AppResult};
use crate::evidence::grouped;
use crate::ranges::{self, Stored};
use bytes::Bytes;
use crashyard_crashlog::{Intent, Kind, Options, Outcome, Parser, RULE_VERSION, Report};
use crashyard_protocol::api::{CAPSULE, DUMP};
use crashyard_protocol::{ArtifactId, ArtifactState, AttemptId, SignatureId};
use crashyard_vmcore::{Capsule, VERSION as CAPSULE_VERSION};
use serde::Serialize;
use std::collections::{HashMap, VecDeque};
use std::time::Duration;
use tokio::time::Instant;

/// How the names of findings begin; agents cannot upload files of such names.
pub const PREFIX: &str = "found-";
/// How the names of crash reports begin.
pub const REPORTS: &str = "found-crash-reports";
/// How the names of the crash reports in a dump's log begin.
pub const DUMP_REPORTS: &str = "found-dump-reports";
/// Counts up when something else is made of what the readers find.
const ROUND: i64 = 1;
/// Bytes of a console read at a time.
const PIECE: u64 = 4 << 20;
/// Segments of consoles up to this size are looked up for all attempts at once, and are in memory together.
const SMALL: u64 = 256 << 10;
/// What was found is written when reading has taken so long: nobody's findings wait for the dumps of all others.
const LONG: Duration = Duration::from_secs(1);
/// Signatures recorded of one console; a kernel that dies in this many ways at once is one problem.
const SIGNATURES: usize = 200;

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

/// Something found, and under which name it is kept.
struct Finding {
    name: String,
    text: Bytes,
}

impl Finding {
    fn new(name: String, what: &impl Serialize) -> AppResult<Self> {
        let text = serde_json::to_vec(what).map_err(|error| AppError::Internal(error.into()))?;
        Ok(Self { name, text: Bytes::from(text) })
    }
}

/// What there is of an attempt to be read.
struct Evidence {
    full: FullAttempt,
    artifacts: Vec<ArtifactRow>,
    /// The segments of its small consoles.
    segments: HashMap<ArtifactId, Vec<SegmentRow>>,
}

/// What was found in an attempt. Large files are in the blob store.
struct Found {
    attempt: AttemptId,
    files: Vec<(String, SegmentRow)>,
    seen: Vec<(NewSignature, NewPlace)>,
}

/// Reads everything of these attempts, or of the first of them where that takes long, stores what was found, and notes that they
/// were read. Returned are those that could not be read, and why. Doing it again changes nothing.
pub async fn read_all(state: &AppState, ids: &[AttemptId]) -> AppResult<Vec<(AttemptId, AppError)>> {
    let mut evidence = look_up(state, &ids.iter().collect::<Vec<_>>()).await?;
    let (mut found, mut failed) = (Vec::new(), Vec::new());
    let begun = Instant::now();
    for id in ids {
        let one = match evidence.remove(id) {
            Some(evidence) => read(state, evidence).await,
            None => Err(AppError::not_found("attempt")),
        };
        match one {
            Ok(one) => found.push(one),
            Err(error) => failed.push((id.clone(), error)),
        }
        if begun.elapsed() > LONG {
            break;
        }
    }
    write(state, &found).await?;
    Ok(failed)
}

async fn look_up(state: &AppState, ids: &[&AttemptId]) -> AppResult<HashMap<AttemptId, Evidence>> {
    let attempts = attempt::full_all(&state.db, ids).await?;
    let artifacts = artifact::list_all(&state.db, ids).await?;
    let small = artifacts.iter().filter(|file| file.console_source().is_some() && unsigned(file.size) <= SMALL);
    let small: Vec<&ArtifactId> = small.map(|file| &file.id).collect();
    let segments = artifact::segments_of(&state.db, &small).await?;
    let mut segments = grouped(segments, |segment| Some(segment.artifact_id.clone()));
    let mut artifacts = grouped(artifacts, |file| file.attempt_id.clone());
    let all = attempts.into_iter().map(|full| {
        let id = full.attempt.id.clone();
        let artifacts = artifacts.remove(&id).unwrap_or_default();
        let segments = artifacts.iter().filter_map(|file| segments.remove_entry(&file.id)).collect();
        (id, Evidence { full, artifacts, segments })
    });
    Ok(all.collect())
}

async fn read(state: &AppState, evidence: Evidence) -> AppResult<Found> {
    let Evidence { full, artifacts, mut segments } = evidence;
    let id = &full.attempt.id;
    let intent = || Intent { marker: Some(format!("attempt={id}")), expect: full.scenario.expect.panic.clone() };
    let mut consoles = Vec::new();
    for console in &artifacts {
        if let Some(source) = console.console_source() {
            let segments = segments.remove(&console.id).unwrap_or_default();
            let outcome = reports(state, console, segments.into(), intent()).await?;
            consoles.push(ConsoleReports { source: source.to_owned(), artifact: console.id.clone(), outcome });
        }
    }
    let mut findings = vec![Finding::new(reports_name(), &consoles)?];
    let dump = artifacts.iter().find(|file| file.name == DUMP && file.state != ArtifactState::Dropped);
    if let Some(dump) = dump
        && let Some(capsule) = capsule(state, dump).await?
    {
        let log = log_text(&capsule);
        let options = Options { intent: Some(intent()) };
        let outcome = tokio::task::spawn_blocking(move || crashyard_crashlog::parse(log.as_bytes(), options)).await?;
        let in_dump = [ConsoleReports { source: DUMP.to_owned(), artifact: dump.id.clone(), outcome }];
        findings.push(Finding::new(dump_reports_name(), &in_dump)?);
        findings.push(Finding::new(capsule_name(), &capsule)?);
    }
    let mut files = Vec::new();
    for finding in findings {
        // One of that name is kept already, if it was read before.
        if !artifacts.iter().any(|file| file.name == finding.name) {
            files.push(keep(state, finding).await?);
        }
    }
    let seen = consoles.iter().flat_map(|console| seen(state, &full, console)).collect();
    Ok(Found { attempt: full.attempt.id, files, seen })
}

/// Writes what was found. Attempts are locked before anything else: another server that has read the same ones waits for it, and
/// then finds all of it there.
async fn write(state: &AppState, found: &[Found]) -> AppResult<()> {
    if found.is_empty() {
        return Ok(());
    }
    let attempts: Vec<&AttemptId> = found.iter().map(|one| &one.attempt).collect();
    let seen: Vec<&(NewSignature, NewPlace)> = found.iter().flat_map(|one| &one.seen).collect();
    let files = found
        .iter()
        .flat_map(|one| one.files.iter().map(|(called, segment)| OnePiece { attempt: &one.attempt, called, segment }));
    let files: Vec<OnePiece<'_>> = files.collect();
    let mut tx = state.db.begin().await?;
    attempt::set_read_by(&mut tx, &attempts, version()).await?;
    signature::record_all(&mut tx, &seen).await?;
    artifact::keep_whole(&mut tx, &files).await?;
    tx.commit().await?;
    Ok(())
}

/// The kernel log in a capsule as a console would have shown it. Offsets in [`dump_reports_name`] count in this text.
#[must_use]
pub fn log_text(capsule: &Capsule) -> String {
    capsule.dmesg.iter().fold(String::new(), |text, line| text + &line.stamped() + "\n")
}

async fn reports(
    state: &AppState,
    console: &ArtifactRow,
    mut segments: VecDeque<SegmentRow>,
    intent: Intent,
) -> AppResult<Outcome> {
    let mut parser = Parser::new(Options { intent: Some(intent) });
    let (mut at, end) = (0, unsigned(console.size));
    while at < end {
        let until = end.min(at + PIECE);
        let bytes = ranges::read_on(state, &console.id, at..until, &mut segments).await?;
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

/// The signatures of what nobody asked for on a console, and where each is there.
fn seen(state: &AppState, full: &FullAttempt, console: &ConsoleReports) -> Vec<(NewSignature, NewPlace)> {
    let all = &console.outcome.reports;
    let mut seen: Vec<(&Report, i64)> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    for report in all.iter().filter(|report| is_problem(report, all)) {
        let place = *places.entry(fingerprint(report)).or_insert(seen.len());
        match seen.get_mut(place) {
            Some((_, count)) => *count += 1,
            None => seen.push((report, 1)),
        }
    }
    let recorded = seen.into_iter().take(SIGNATURES).map(|(report, reports)| {
        let new = NewSignature {
            id: SignatureId::from_ulid(state.ids.next()),
            rule_version: i64::from(RULE_VERSION),
            fingerprint: fingerprint(report),
            title: report.title.clone(),
            kind: word(report.kind),
            frame: report.frame.clone(),
            module: report.module.clone(),
            frames: report.fingerprint.frames.clone(),
        };
        let place = NewPlace {
            artifact_id: console.artifact.clone(),
            attempt_id: full.attempt.id.clone(),
            source: console.source.clone(),
            start_at: signed(report.start),
            line: signed(report.line),
            reports,
            seen_at: full.attempt.started_at,
        };
        (new, place)
    });
    recorded.collect()
}

/// Whether a report is a problem of its own: not what the scenario asked for, not printed before, and neither a panic that only
/// ends a problem that is reported anyway nor the same problem met again on the way down from it.
fn is_problem(report: &Report, all: &[Report]) -> bool {
    let causes = std::iter::successors(report.cause, |cause| all.get(*cause)?.cause);
    let mut problems = causes.filter_map(|cause| all.get(cause)).filter(|cause| cause.intended != Some(true));
    let tail = problems.any(|cause| report.kind == Kind::Panic || report.title == cause.title);
    report.intended != Some(true) && report.duplicate_of.is_none() && !tail
}

/// What makes two reports the same to one version of the rules: title and telling frames. The database stores these, so this
/// must never change.
fn fingerprint(report: &Report) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in std::iter::once(&report.title).chain(&report.fingerprint.frames) {
        hasher.update(part.as_bytes());
        hasher.update(b"\0");
    }
    hasher.finalize().to_hex()[..32].to_owned()
}

/// The word that crash reports use for a class of problems.
fn word(kind: Kind) -> String {
    match serde_json::to_value(kind) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

/// Makes the bytes of a finding durable, if they are many, and returns its name and its row.
async fn keep(state: &AppState, finding: Finding) -> AppResult<(String, SegmentRow)> {
    let Finding { name, text } = finding;
    let segment = SegmentRow {
        artifact_id: ArtifactId::from_ulid(state.ids.next()),
        start_at: 0,
        length: signed(text.len() as u64),
        hash: blake3::hash(&text).to_hex().to_string(),
        received_at: state.now(),
        bytes: None,
    };
    Ok((name, state.blobs.keep(segment, text).await?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_crash_on_the_way_down_is_one_problem_however_often_it_is_met() {
        let oops = |second: u32, path: &str| {
            format!(
                "[   {second}.000001] BUG: unable to handle page fault for address: ffffffffffffffc8\n\
                 [   {second}.000002] CPU: 0 UID: 0 PID: 1 Comm: init Not tainted 7.3.4 #1\n\
                 [   {second}.000003] RIP: 0010:own_disable+0x1/0x2 [own]\n[   {second}.000004] Call Trace:\n\
                 [   {second}.000005]  {path}+0x1/0x2\n[   {second}.000006]  panic+0x1/0x2\n\
                 [   {second}.000007] ---[ end trace 0000000000000000 ]---\n"
            )
        };
        let panic = |second: u32, words: &str| {
            format!(
                "[   {second}.100001] Kernel panic - not syncing: {words}\n\
                 [   {second}.100002] CPU: 0 UID: 0 PID: 1 Comm: init Not tainted 7.3.4 #1\n\
                 [   {second}.100003] Call Trace:\n[   {second}.100004]  panic+0x1/0x2\n[   {second}.100005]  own_write+0x1/0x2\n"
            )
        };
        let log = panic(20, "sysrq triggered crash")
            + &oops(21, "native_machine_crash_shutdown")
            + &panic(21, "Attempted to kill init! exitcode=0x00000009")
            + &oops(22, "native_machine_emergency_restart");
        let options = Options { intent: Some(Intent::new("sysrq triggered crash")) };
        let all = crashyard_crashlog::parse(log.as_bytes(), options).reports;
        assert_eq!(all.len(), 4);
        let problems: Vec<u64> =
            all.iter().filter(|report| is_problem(report, &all)).map(|report| report.line).collect();
        assert_eq!(problems, [all[1].line]);
    }
}
