//! Reports of agents become evidence: written down with the events that tell of them, in the transaction that judges what they
//! mean ([`crate::judging`]).

use crate::db::attempt::FullAttempt;
use crate::db::event::Told;
use crate::db::report::{self, ReportRow};
use crate::db::{DbError, DbResult, Tx, inventory, signed};
use crashyard_protocol::agent::{Numbered, Report, Role};
use crashyard_protocol::api::EventBody;
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{AttemptId, JobId, MachineId, RunId};
use sqlx::types::Json;
use std::collections::{BTreeMap, HashMap};

/// Reports that one agent hands in.
#[derive(Clone, Debug)]
pub struct HandedIn {
    /// The attempt they are evidence of.
    pub attempt: AttemptId,
    /// The epoch they were sent with.
    pub epoch: u64,
    /// Who saw it.
    pub by: Role,
    /// What was seen.
    pub reports: Vec<Numbered>,
    /// When the server had them.
    pub at: Timestamp,
}

/// What became of them: they are durable when the transaction is.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// The attempt's run.
    pub run: RunId,
    /// The attempt's machine.
    pub machine: MachineId,
    /// Whether any of them was not there before.
    pub news: bool,
    /// Whether the machine is made of something else than was known.
    pub seen_otherwise: bool,
}

/// What was written down of several, and is to be told.
#[derive(Debug, Default)]
pub struct Recording {
    /// An answer for each, in their order.
    pub answers: Vec<DbResult<Recorded>>,
    news: Vec<News>,
}

#[derive(Debug)]
struct News {
    run: RunId,
    job: JobId,
    attempt: AttemptId,
    body: EventBody,
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

/// Writes reports down, each to the attempt it belongs to; these are locked. A report that contradicts one that is there spoils
/// the transaction, so that nothing of its request is kept.
pub async fn record(tx: &mut Tx, attempts: &[FullAttempt], asks: &[&HandedIn]) -> DbResult<Recording> {
    let attempts: HashMap<&AttemptId, &FullAttempt> = attempts.iter().map(|one| (&one.attempt.id, one)).collect();
    let mut recording = Recording::default();
    let mut rows = Vec::new();
    for (place, ask) in asks.iter().enumerate() {
        recording.answers.push(held(&attempts, ask).map(|full| {
            rows.extend(ask.reports.iter().map(|numbered| (place, row(ask, numbered))));
            let (run, machine) = (full.attempt.run_id.clone(), full.attempt.machine_id.clone());
            Recorded { run, machine, news: false, seen_otherwise: false }
        }));
    }
    let (places, rows): (Vec<usize>, Vec<ReportRow>) = rows.into_iter().unzip();
    let new = report::record_all(tx, &rows).await?;
    for ((place, row), _) in places.into_iter().zip(rows).zip(new).filter(|(_, new)| *new) {
        let (Some(Ok(answer)), Some(full)) = (recording.answers.get_mut(place), attempts.get(&row.attempt_id)) else {
            continue;
        };
        answer.news = true;
        if let (Role::Target, Report::Inventory { facts }) = (row.role, &row.body.0) {
            answer.seen_otherwise |=
                inventory::learn(tx, &answer.machine, &row.attempt_id, facts, row.received_at).await?;
        }
        recording.news.push(News {
            run: full.attempt.run_id.clone(),
            job: full.attempt.job_id.clone(),
            attempt: row.attempt_id,
            body: EventBody::Report { by: row.role, report: row.body.0 },
        });
    }
    Ok(recording)
}

/// The attempt, if these reports belong to the lease that holds now.
fn held<'a>(attempts: &HashMap<&AttemptId, &'a FullAttempt>, ask: &HandedIn) -> DbResult<&'a FullAttempt> {
    let full = attempts.get(&ask.attempt).ok_or(DbError::NotFound)?;
    full.attempt.check_epoch(ask.epoch)?;
    Ok(full)
}

fn row(ask: &HandedIn, numbered: &Numbered) -> ReportRow {
    ReportRow {
        attempt_id: ask.attempt.clone(),
        role: ask.by,
        seq: signed(numbered.seq),
        body: Json(numbered.report.clone()),
        received_at: ask.at,
    }
}
