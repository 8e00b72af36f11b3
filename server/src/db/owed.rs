//! What is owed and was not delivered: rows that no other part of the server would leave like this for long.
//!
//! Reads only. Each question is one that a healthy farm answers with nothing.

use super::{Db, DbResult, on};
use crashyard_protocol::clock::Timestamp;
use sqlx::FromRow;

/// Rows named for each question.
const NAMED: i64 = 100;

/// One thing that is owed.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct OwedRow {
    /// Id of the run, job, attempt or machine.
    pub id: String,
    /// Its name, where it has one.
    pub name: Option<String>,
    /// Since when.
    pub since: Timestamp,
}

macro_rules! question {
    ($db:expr, $text:literal, $before:expr) => {
        on!($db.read(), |c| sqlx::query_as(concat!($text, " ORDER BY 3, 1 LIMIT $2"))
            .bind($before)
            .bind(NAMED)
            .fetch_all(c)
            .await)
    };
}

/// Jobs that have waited since before this moment.
pub async fn waiting_jobs(db: &Db, before: Timestamp) -> DbResult<Vec<OwedRow>> {
    Ok(question!(
        db,
        "SELECT j.id, r.name, j.created_at AS since FROM job j JOIN run r ON r.id = j.run_id \
         WHERE j.state = 'queued' AND j.created_at <= $1",
        before
    )?)
}

/// Jobs that a machine is said to have, without an attempt that could give them a verdict.
pub async fn jobs_without_attempt(db: &Db, before: Timestamp) -> DbResult<Vec<OwedRow>> {
    Ok(question!(
        db,
        "SELECT j.id, r.name, j.created_at AS since FROM job j JOIN run r ON r.id = j.run_id WHERE j.state = 'leased' \
         AND j.created_at <= $1 AND NOT EXISTS (SELECT 1 FROM attempt a WHERE a.job_id = j.id \
         AND a.number = j.attempt_count AND a.state IN ('running', 'collecting'))",
        before
    )?)
}

/// Attempts whose lease ran out before this moment, and which nobody has ended.
pub async fn attempts_without_lease(db: &Db, before: Timestamp) -> DbResult<Vec<OwedRow>> {
    Ok(question!(
        db,
        "SELECT a.id, m.name, a.lease_expires_at AS since FROM attempt a JOIN machine m ON m.id = a.machine_id \
         WHERE a.state IN ('running', 'collecting') AND a.lease_expires_at <= $1",
        before
    )?)
}

/// Machines that an attempt is said to own which is over.
pub async fn machines_without_attempt(db: &Db, before: Timestamp) -> DbResult<Vec<OwedRow>> {
    Ok(question!(
        db,
        "SELECT m.id, m.name, m.state_since AS since FROM machine m WHERE m.state IN ('leased', 'held') \
         AND m.state_since <= $1 AND NOT EXISTS (SELECT 1 FROM attempt a WHERE a.id = m.attempt_id \
         AND a.state IN ('running', 'collecting'))",
        before
    )?)
}

/// Open runs of which no job is left to do.
pub async fn runs_without_jobs(db: &Db, before: Timestamp) -> DbResult<Vec<OwedRow>> {
    Ok(question!(
        db,
        "SELECT r.id, r.name, r.created_at AS since FROM run r WHERE r.state = 'open' AND r.created_at <= $1 \
         AND NOT EXISTS (SELECT 1 FROM job j WHERE j.run_id = r.id AND j.state IN ('queued', 'leased'))",
        before
    )?)
}
