//! Events of runs. `seq` is drawn from the run's row inside the writing transaction, so it has no gaps, and a reader
//! that has seen N knows that nothing below N will appear later.

use super::{Db, DbResult, Tx, on, on_tx, signed};
use crashyard_protocol::api::EventBody;
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{AttemptId, JobId, RunId};
use sqlx::types::Json;
use sqlx::{FromRow, QueryBuilder};

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

/// Records several events of one run.
pub async fn append_all(tx: &mut Tx, run: &RunId, at: Timestamp, events: &[Told<'_>]) -> DbResult<()> {
    let count = i64::try_from(events.len()).unwrap_or(i64::MAX);
    let last: i64 = on_tx!(tx, |c| sqlx::query_scalar(
        "UPDATE run SET last_event = last_event + $2 WHERE id = $1 RETURNING last_event",
    )
    .bind(run)
    .bind(count)
    .fetch_one(c)
    .await)?;
    on_tx!(tx, |c| {
        let mut query = QueryBuilder::new("INSERT INTO event (run_id, seq, at, job_id, attempt_id, body) ");
        query.push_values((last - count + 1..).zip(events), |mut row, (seq, (job, attempt, body))| {
            row.push_bind(run.clone())
                .push_bind(seq)
                .push_bind(at)
                .push_bind(job.cloned())
                .push_bind(attempt.cloned())
                .push_bind(Json(body.clone()));
        });
        query.build().execute(c).await.map(drop)
    })?;
    Ok(())
}

/// Records an event.
pub async fn append(tx: &mut Tx, about: About<'_>, at: Timestamp, body: EventBody) -> DbResult<i64> {
    let seq: i64 = on_tx!(tx, |c| sqlx::query_scalar(
        "UPDATE run SET last_event = last_event + 1 WHERE id = $1 RETURNING last_event",
    )
    .bind(about.run)
    .fetch_one(c)
    .await)?;
    let body = Json(body);
    on_tx!(tx, |c| sqlx::query(
        "INSERT INTO event (run_id, seq, at, job_id, attempt_id, body) VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(about.run)
    .bind(seq)
    .bind(at)
    .bind(about.job)
    .bind(about.attempt)
    .bind(&body)
    .execute(c)
    .await
    .map(drop))?;
    Ok(seq)
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
