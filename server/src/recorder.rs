//! Reports of agents, many in one commit ([`crate::group`]): ten thousand machines in attempts hand in some hundred a second.

use crate::db::attempt::Whose;
use crate::db::event::{self, Told};
use crate::db::report::{self, ReportRow};
use crate::db::{self, Db, DbError, DbResult, Tx, inventory, signed};
use crate::group::Together;
use crashyard_protocol::agent::{Numbered, Report, Role};
use crashyard_protocol::api::EventBody;
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{AttemptId, MachineId, RunId};
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

/// What became of them: they are durable.
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

/// Records reports.
#[derive(Debug)]
pub struct Recorder;

impl Together for Recorder {
    type Ask = HandedIn;
    type Answer = Recorded;
    const QUEUE: usize = 4096;
    const BATCH: usize = 256;

    /// A report that contradicts one that is there spoils the transaction, so that nothing of its request is kept.
    async fn write(&self, _: &Db, mut tx: Tx, asks: &[HandedIn]) -> DbResult<Vec<DbResult<Recorded>>> {
        let attempts = db::attempt::whose(&mut tx, &asks.iter().map(|ask| &ask.attempt).collect::<Vec<_>>()).await?;
        let mut answers = Vec::with_capacity(asks.len());
        let mut rows = Vec::new();
        for (place, ask) in asks.iter().enumerate() {
            answers.push(held(&attempts, ask).map(|attempt| {
                rows.extend(ask.reports.iter().map(|numbered| (place, row(ask, numbered))));
                let (run, machine) = (attempt.run_id.clone(), attempt.machine_id.clone());
                Recorded { run, machine, news: false, seen_otherwise: false }
            }));
        }
        let (places, rows): (Vec<usize>, Vec<ReportRow>) = rows.into_iter().unzip();
        let new = report::record_all(&mut tx, &rows).await?;
        let mut of_run: BTreeMap<&RunId, Vec<Told<'_>>> = BTreeMap::new();
        for ((place, row), _) in places.into_iter().zip(&rows).zip(new).filter(|(_, new)| *new) {
            let (Some(Ok(answer)), Some(attempt)) = (answers.get_mut(place), attempts.get(&row.attempt_id)) else {
                continue;
            };
            answer.news = true;
            if let (Role::Target, Report::Inventory { facts }) = (row.role, &row.body.0) {
                let machine = &attempt.machine_id;
                answer.seen_otherwise |=
                    inventory::learn(&mut tx, machine, &row.attempt_id, facts, row.received_at).await?;
            }
            let body = EventBody::Report { by: row.role, report: row.body.0.clone() };
            of_run.entry(&attempt.run_id).or_default().push((Some(&attempt.job_id), Some(&attempt.id), body));
        }
        if let Some(first) = asks.first() {
            event::append_all(&mut tx, first.at, &of_run).await?;
        }
        tx.commit().await?;
        Ok(answers)
    }
}

/// The attempt, if these reports belong to the lease that holds now.
fn held<'a>(attempts: &'a HashMap<AttemptId, Whose>, ask: &HandedIn) -> DbResult<&'a Whose> {
    let attempt = attempts.get(&ask.attempt).ok_or(DbError::NotFound)?;
    attempt.check_epoch(ask.epoch)?;
    Ok(attempt)
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
