//! Events of runs. `seq` is drawn from the run's row inside the writing transaction, so it has no gaps, and a reader
//! that has seen N knows that nothing below N will appear later.

use super::given::{Kept, given, update_in_order};
use super::{Db, DbResult, Tx, on, on_tx, signed};
use crashyard_protocol::api::EventBody;
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{AttemptId, JobId, RunId};
use serde::Serialize;
use sqlx::FromRow;
use sqlx::types::Json;
use std::collections::BTreeMap;

/// One event of a run.
#[derive(Clone, Debug, PartialEq, FromRow)]
pub struct EventRow {
    /// The run.
    pub run_id: RunId,
    /// Counts from 1.
    pub seq: i64,
    /// When it happened.
    pub at: Timestamp,
    /// The job it is about.
    pub job_id: Option<JobId>,
    /// The attempt it is about.
    pub attempt_id: Option<AttemptId>,
    /// What happened.
    pub body: Json<EventBody>,
}

/// What an event is about.
#[derive(Clone, Copy, Debug)]
pub struct About<'a> {
    /// The run.
    pub run: &'a RunId,
    /// The job.
    pub job: Option<&'a JobId>,
    /// The attempt.
    pub attempt: Option<&'a AttemptId>,
}

/// One of several events of a run: its job, its attempt, what happened.
pub type Told<'a> = (Option<&'a JobId>, Option<&'a AttemptId>, EventBody);

#[derive(Serialize)]
struct More<'a> {
    run: &'a RunId,
    more: usize,
}

#[derive(Serialize)]
struct NewEvent<'a> {
    run: &'a RunId,
    seq: i64,
    job: Option<&'a JobId>,
    attempt: Option<&'a AttemptId>,
    body: Kept<'a, EventBody>,
}

/// Records events of several runs; a run without any is only locked with the others.
pub async fn append_all(tx: &mut Tx, at: Timestamp, of_run: &BTreeMap<&RunId, Vec<Told<'_>>>) -> DbResult<()> {
    if of_run.is_empty() {
        return Ok(());
    }
    let more: Vec<More<'_>> = of_run.iter().map(|(run, events)| More { run, more: events.len() }).collect();
    let text = update_in_order!(
        tx,
        "run" SET "last_event = last_event + given.more",
        [run text, more bigint],
        "run",
        " RETURNING run.id, last_event"
    );
    let last: Vec<(RunId, i64)> = on_tx!(tx, |c| sqlx::query_as(text).bind(Json(&more)).fetch_all(c).await)?;
    let mut rows = Vec::new();
    for (run, last) in &last {
        let events = of_run.get(run).map_or(&[][..], Vec::as_slice);
        let count = i64::try_from(events.len()).unwrap_or(i64::MAX);
        for (seq, (job, attempt, body)) in (last - count + 1..).zip(events) {
            rows.push(NewEvent { run, seq, job: *job, attempt: *attempt, body: Kept(tx.kind(), body) });
        }
    }
    if rows.is_empty() {
        return Ok(());
    }
    let text = given!(
        tx,
        insert "event (run_id, seq, at, job_id, attempt_id, body) SELECT run, seq, $2, job, attempt, body FROM ",
        [run text, seq bigint, job text, attempt text, body jsonb],
        ""
    );
    on_tx!(tx, |c| sqlx::query(text).bind(Json(&rows)).bind(at).execute(c).await.map(drop))?;
    Ok(())
}

/// Records an event.
pub async fn append(tx: &mut Tx, about: About<'_>, at: Timestamp, body: EventBody) -> DbResult<()> {
    append_all(tx, at, &BTreeMap::from([(about.run, vec![(about.job, about.attempt, body)])])).await
}

/// Events of a run behind `after`, in order.
pub async fn of_run(db: &Db, run: &RunId, after: u64, limit: i64) -> DbResult<Vec<EventRow>> {
    Ok(on!(db.read(), |c| sqlx::query_as("SELECT * FROM event WHERE run_id = $1 AND seq > $2 ORDER BY seq LIMIT $3")
        .bind(run)
        .bind(signed(after))
        .bind(limit)
        .fetch_all(c)
        .await)?)
}

/// Events of one attempt behind `after`, in order.
pub async fn of_attempt(db: &Db, attempt: &AttemptId, after: u64, limit: i64) -> DbResult<Vec<EventRow>> {
    Ok(on!(db.read(), |c| sqlx::query_as(
        "SELECT * FROM event WHERE attempt_id = $1 AND seq > $2 ORDER BY seq LIMIT $3",
    )
    .bind(attempt)
    .bind(signed(after))
    .bind(limit)
    .fetch_all(c)
    .await)?)
}
