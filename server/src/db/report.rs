//! Reports of agents: each a row that is never changed.

use super::{Db, DbError, DbResult, Tx, on, on_tx, signed, unsigned};
use crashyard_protocol::AttemptId;
use crashyard_protocol::agent::{Report, Role};
use crashyard_protocol::clock::Timestamp;
use sqlx::FromRow;
use sqlx::types::Json;

/// One report as recorded.
#[derive(Clone, Debug, PartialEq, FromRow)]
pub struct ReportRow {
    /// The attempt.
    pub attempt_id: AttemptId,
    /// Who saw it.
    pub role: Role,
    /// Counts from 0 for each role.
    pub seq: i64,
    /// What was seen.
    pub body: Json<Report>,
    /// When the server got it.
    pub received_at: Timestamp,
}

/// Records a report. `true` if it is new, `false` if it was there; other content under the number is a conflict.
pub async fn record(tx: &mut Tx, row: &ReportRow) -> DbResult<bool> {
    let new = on_tx!(tx, |c| sqlx::query(
        "INSERT INTO report (attempt_id, role, seq, body, received_at) VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT DO NOTHING",
    )
    .bind(&row.attempt_id)
    .bind(row.role)
    .bind(row.seq)
    .bind(&row.body)
    .bind(row.received_at)
    .execute(c)
    .await
    .map(|done| done.rows_affected()))?;
    if new == 1 {
        return Ok(true);
    }
    let old: Json<Report> = on_tx!(tx, |c| {
        sqlx::query_scalar("SELECT body FROM report WHERE attempt_id = $1 AND role = $2 AND seq = $3")
            .bind(&row.attempt_id)
            .bind(row.role)
            .bind(row.seq)
            .fetch_one(c)
            .await
    })?;
    if old == row.body {
        Ok(false)
    } else {
        Err(DbError::Conflict(format!(
            "report {} of the {} is there already and says something else",
            row.seq, row.role
        )))
    }
}

/// The number the next report of one agent should have.
pub async fn next_seq(db: &Db, attempt: &AttemptId, role: Role) -> DbResult<u64> {
    let last: Option<i64> =
        on!(db.read(), |c| sqlx::query_scalar("SELECT MAX(seq) FROM report WHERE attempt_id = $1 AND role = $2",)
            .bind(attempt)
            .bind(role)
            .fetch_one(c)
            .await)?;
    Ok(last.map_or(0, |last| unsigned(last) + 1))
}

/// Every report of an attempt, in the order in which they came.
pub async fn of_attempt(db: &Db, attempt: &AttemptId) -> DbResult<Vec<ReportRow>> {
    Ok(on!(db.read(), |c| sqlx::query_as(
        "SELECT * FROM report WHERE attempt_id = $1 ORDER BY received_at, role, seq",
    )
    .bind(attempt)
    .fetch_all(c)
    .await)?)
}

/// Whether anything at all came from an attempt's agents: reports, or console bytes.
pub async fn anything_came(tx: &mut Tx, attempt: &AttemptId) -> DbResult<bool> {
    let count: i64 = on_tx!(tx, |c| sqlx::query_scalar(
        "SELECT (SELECT COUNT(*) FROM report WHERE attempt_id = $1) + \
         (SELECT COUNT(*) FROM artifact WHERE attempt_id = $1)",
    )
    .bind(attempt)
    .fetch_one(c)
    .await)?;
    Ok(count > 0)
}

/// The sequence number as the wire has it.
#[must_use]
pub fn seq_column(seq: u64) -> i64 {
    signed(seq)
}
