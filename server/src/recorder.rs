//! What agents hand in becomes evidence: reports, the end of a file, the lease itself; and so does what the server reads in a
//! dump. All of it is written down in the transaction that judges what it means ([`crate::judging`]), with the events that tell of
//! it.

use crate::db::artifact::{self, ArtifactRow, Whole};
use crate::db::attempt::{self, AttemptRow, Locked};
use crate::db::event::Told;
use crate::db::flow::Had;
use crate::db::lease::{self, End};
use crate::db::report::{self, ReportRow};
use crate::db::{DbError, DbResult, Tx, inventory, signed, unsigned};
use crate::trust::Rule;
use crashyard_protocol::agent::{Numbered, Report, Role};
use crashyard_protocol::api::{DUMP, EventBody};
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{ArtifactId, AttemptId, JobId, MachineId, RunId};
use sqlx::types::Json;
use std::collections::{BTreeMap, HashMap};

/// What is handed in.
#[derive(Clone, Debug)]
pub struct HandedIn {
    /// The attempt it is evidence of.
    pub attempt: AttemptId,
    /// The epoch it was sent with, or read under.
    pub epoch: u64,
    /// When the server had it.
    pub at: Timestamp,
    /// What it is.
    pub what: What,
}

/// What there is to hand in.
#[derive(Clone, Debug)]
pub enum What {
    /// What was seen.
    Reports {
        /// Who saw it.
        by: Role,
        /// In the order it was seen.
        reports: Vec<Numbered>,
    },
    /// A file, all bytes of which are here.
    File {
        /// Which.
        artifact: ArtifactId,
        /// The BLAKE3 of the whole.
        blake3: String,
    },
    /// What the server itself has read in the dump. That needs no lease, and the first reading stays.
    Reading(serde_json::Value),
    /// The lease: the attempt ends with it.
    Lease {
        /// Whether the machine may take the next job.
        healthy: bool,
        /// What was checked, or what failed.
        detail: String,
    },
}

/// What became of it: it is durable when the transaction is.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// The attempt's run.
    pub run: RunId,
    /// The attempt's machine.
    pub machine: MachineId,
    /// Whether any of it was not there before.
    pub news: bool,
    /// Whether the machine is made of something else than was known.
    pub seen_otherwise: bool,
    /// The file that was closed; `None` if it was not open any more.
    pub file: Option<ArtifactRow>,
}

impl Recorded {
    fn of(attempt: &AttemptRow) -> Self {
        let (run, machine) = (attempt.run_id.clone(), attempt.machine_id.clone());
        Self { run, machine, news: false, seen_otherwise: false, file: None }
    }
}

/// What was written down of several, and is to be told.
#[derive(Debug, Default)]
pub struct Recording {
    /// An answer for each, in their order.
    pub answers: Vec<DbResult<Recorded>>,
    /// What submitters have had of attempts that ended with it. That is corrected when nothing else needs a lock
    /// ([`crate::db::flow::correct`]).
    pub ended: Vec<Had>,
    news: Vec<News>,
}

#[derive(Debug)]
struct News {
    run: RunId,
    job: JobId,
    attempt: AttemptId,
    body: EventBody,
}

impl News {
    fn of(attempt: &AttemptRow, body: EventBody) -> Self {
        Self { run: attempt.run_id.clone(), job: attempt.job_id.clone(), attempt: attempt.id.clone(), body }
    }
}

impl Recording {
    /// The events that tell of it.
    #[must_use]
    pub fn told(&self) -> BTreeMap<&RunId, Vec<Told<'_>>> {
        let mut of_run: BTreeMap<&RunId, Vec<Told<'_>>> = BTreeMap::new();
        for one in &self.news {
            of_run.entry(&one.run).or_default().push((Some(&one.job), Some(&one.attempt), one.body.clone()));
        }
        of_run
    }
}

/// Writes down what was handed in, each to the attempt it belongs to; these are locked, and come to be what they are afterwards. A
/// report that contradicts one that is there spoils the transaction, so that nothing of its request is kept.
pub async fn record(
    tx: &mut Tx,
    attempts: &mut [Locked],
    asks: &[&HandedIn],
    rule: &Rule,
    now: Timestamp,
) -> DbResult<Recording> {
    let held: HashMap<&AttemptId, &Locked> = attempts.iter().map(|one| (&one.attempt.id, one)).collect();
    let answers = asks.iter().map(|ask| held_by(&held, ask).map(|locked| Recorded::of(&locked.attempt))).collect();
    let mut recording = Recording { answers, ..Recording::default() };
    record_reports(tx, &held, asks, &mut recording).await?;
    close_files(tx, &held, asks, &mut recording).await?;
    keep_readings(tx, attempts, asks).await?;
    end_leases(tx, attempts, asks, &mut recording, rule, now).await?;
    Ok(recording)
}

async fn record_reports(
    tx: &mut Tx,
    attempts: &HashMap<&AttemptId, &Locked>,
    asks: &[&HandedIn],
    recording: &mut Recording,
) -> DbResult<()> {
    let mut rows = Vec::new();
    for (place, (ask, answer)) in asks.iter().zip(&recording.answers).enumerate() {
        if let (What::Reports { by, reports }, Ok(_)) = (&ask.what, answer) {
            rows.extend(reports.iter().map(|numbered| (place, row(ask, *by, numbered))));
        }
    }
    let (places, rows): (Vec<usize>, Vec<ReportRow>) = rows.into_iter().unzip();
    let new = report::record_all(tx, &rows).await?;
    for ((place, row), _) in places.into_iter().zip(rows).zip(new).filter(|(_, new)| *new) {
        let (Some(Ok(answer)), Some(locked)) = (recording.answers.get_mut(place), attempts.get(&row.attempt_id)) else {
            continue;
        };
        answer.news = true;
        if let (Role::Target, Report::Inventory { facts }) = (row.role, &row.body.0) {
            answer.seen_otherwise |=
                inventory::learn(tx, &answer.machine, &row.attempt_id, facts, row.received_at).await?;
        }
        recording.news.push(News::of(&locked.attempt, EventBody::Report { by: row.role, report: row.body.0 }));
    }
    Ok(())
}

async fn close_files(
    tx: &mut Tx,
    attempts: &HashMap<&AttemptId, &Locked>,
    asks: &[&HandedIn],
    recording: &mut Recording,
) -> DbResult<()> {
    let mut places = HashMap::new();
    let mut files = Vec::new();
    for (place, (ask, answer)) in asks.iter().zip(&recording.answers).enumerate() {
        if let (What::File { artifact, blake3 }, Ok(_)) = (&ask.what, answer)
            && places.insert(artifact, place).is_none()
        {
            files.push(Whole { artifact, hash: blake3, at: ask.at });
        }
    }
    for file in artifact::complete_all(tx, &files).await? {
        let Some((place, ask)) = places.get(&file.id).and_then(|place| Some((*place, asks.get(*place)?))) else {
            continue;
        };
        let (Some(Ok(answer)), Some(locked)) = (recording.answers.get_mut(place), attempts.get(&ask.attempt)) else {
            continue;
        };
        if file.name == DUMP {
            let bytes = unsigned(file.size);
            recording.news.push(News::of(&locked.attempt, EventBody::DumpProgress { bytes }));
        }
        answer.news = true;
        answer.file = Some(file);
    }
    Ok(())
}

async fn keep_readings(tx: &mut Tx, attempts: &mut [Locked], asks: &[&HandedIn]) -> DbResult<()> {
    let mut readings = Vec::new();
    for ask in asks {
        let What::Reading(facts) = &ask.what else { continue };
        let locked = attempts.iter_mut().find(|locked| locked.attempt.id == ask.attempt);
        if let Some(locked) = locked.filter(|locked| locked.attempt.dump_facts.is_none()) {
            locked.attempt.dump_facts = Some(Json(facts.clone()));
            readings.push((&ask.attempt, facts));
        }
    }
    attempt::set_dump_facts(tx, &readings).await
}

/// A lease that was handed back before has its answer like one that is handed back now.
async fn end_leases(
    tx: &mut Tx,
    attempts: &mut [Locked],
    asks: &[&HandedIn],
    recording: &mut Recording,
    rule: &Rule,
    now: Timestamp,
) -> DbResult<()> {
    let mut places = Vec::new();
    let mut ends = Vec::new();
    for (place, ask) in asks.iter().enumerate() {
        if let What::Lease { healthy, detail } = &ask.what {
            places.push(place);
            ends.push((&ask.attempt, End::Released { epoch: ask.epoch, healthy: *healthy, detail }));
        }
    }
    let ended = lease::end_all(tx, attempts, &ends, rule, now).await?;
    for ((place, (id, _)), ended) in places.into_iter().zip(ends).zip(ended) {
        let locked = attempts.iter().find(|locked| locked.attempt.id == *id);
        let (Some(answer), Some(locked)) = (recording.answers.get_mut(place), locked) else { continue };
        *answer = ended.map(|now| Recorded { news: now, ..Recorded::of(&locked.attempt) });
        if answer.as_ref().is_ok_and(|answer| answer.news) {
            recording.ended.extend(Had::of(locked));
        }
    }
    Ok(())
}

/// The attempt, if this belongs to the lease that holds now, or needs none.
fn held_by<'a>(attempts: &HashMap<&AttemptId, &'a Locked>, ask: &HandedIn) -> DbResult<&'a Locked> {
    let locked = attempts.get(&ask.attempt).ok_or(DbError::NotFound)?;
    if !matches!(ask.what, What::Reading(_)) {
        locked.attempt.check_epoch(ask.epoch)?;
    }
    Ok(locked)
}

fn row(ask: &HandedIn, by: Role, numbered: &Numbered) -> ReportRow {
    ReportRow {
        attempt_id: ask.attempt.clone(),
        role: by,
        seq: signed(numbered.seq),
        body: Json(numbered.report.clone()),
        received_at: ask.at,
    }
}
