//! Reports of agents: each a row that is never changed.

use super::given::{Kept, given, listed};
use super::{Db, DbError, DbResult, Tx, on, on_tx, signed, unsigned};
use crashyard_protocol::AttemptId;
use crashyard_protocol::agent::{Report, Role};
use crashyard_protocol::clock::Timestamp;
use serde::Serialize;
use sqlx::FromRow;
use sqlx::types::Json;
use std::collections::{HashMap, HashSet};

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

#[derive(Serialize)]
struct NewReport<'a> {
    attempt: &'a AttemptId,
    role: Role,
    seq: i64,
    body: Kept<'a, Report>,
    at: Timestamp,
}

/// What numbers a report: its attempt, its agent, its place in the agent's journal.
type Number = (AttemptId, Role, i64);

impl ReportRow {
    fn number(&self) -> Number {
        (self.attempt_id.clone(), self.role, self.seq)
    }
}

/// Records reports: for each, `true` if it is new, `false` if it was there. Other content under a number is a conflict, after
/// which the transaction is not to be committed.
pub async fn record_all(tx: &mut Tx, rows: &[ReportRow]) -> DbResult<Vec<bool>> {
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let reports: Vec<NewReport<'_>> = rows
        .iter()
        .map(|row| NewReport {
            attempt: &row.attempt_id,
            role: row.role,
            seq: row.seq,
            body: Kept(tx.kind(), &row.body.0),
            at: row.received_at,
        })
        .collect();
    let text = given!(
        tx,
        insert "report (attempt_id, role, seq, body, received_at) SELECT attempt, role, seq, body, at FROM ",
        [attempt text, role text, seq bigint, body jsonb, at bigint],
        " WHERE TRUE ON CONFLICT DO NOTHING RETURNING attempt_id, role, seq"
    );
    let inserted: Vec<Number> = on_tx!(tx, |c| sqlx::query_as(text).bind(Json(&reports)).fetch_all(c).await)?;
    let mut inserted: HashSet<Number> = inserted.into_iter().collect();
    // Of two that come with one number at once, the first is the new one.
    let new: Vec<bool> = rows.iter().map(|row| inserted.remove(&row.number())).collect();
    let before: Vec<&ReportRow> = rows.iter().zip(&new).filter(|(_, new)| !**new).map(|(row, _)| row).collect();
    if !before.is_empty() {
        compare(tx, &before).await?;
    }
    Ok(new)
}

/// Refuses reports that say something else than what is there under their numbers.
async fn compare(tx: &mut Tx, rows: &[&ReportRow]) -> DbResult<()> {
    let numbers: Vec<_> = rows
        .iter()
        .map(|row| serde_json::json!({ "attempt": row.attempt_id, "role": row.role, "seq": row.seq }))
        .collect();
    let text = given!(
        tx,
        "SELECT report.* FROM report, ",
        [attempt text, role text, seq bigint],
        at "report.attempt_id" = "attempt",
        " AND report.role = given.role AND report.seq = given.seq"
    );
    let there: Vec<ReportRow> = on_tx!(tx, |c| sqlx::query_as(text).bind(Json(&numbers)).fetch_all(c).await)?;
    let there: HashMap<Number, ReportRow> = there.into_iter().map(|row| (row.number(), row)).collect();
    for row in rows {
        if there.get(&row.number()).is_none_or(|there| there.body != row.body) {
            return Err(DbError::Conflict(format!(
                "report {} of the {} is there already and says something else",
                row.seq, row.role
            )));
        }
    }
    Ok(())
}

/// The number the next report of one agent should have.
pub async fn next_seq(db: &Db, attempt: &AttemptId, role: Role) -> DbResult<u64> {
    let last: Option<i64> = on!(db.read(), |c| {
        sqlx::query_scalar(
        "SELECT (SELECT MAX(seq) FROM report WHERE attempt_id = attempt.id AND role = $2) FROM attempt WHERE id = $1",
    )
    .bind(attempt)
    .bind(role)
    .fetch_one(c)
    .await
    })?;
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

/// Every report of several attempts; those of each in the order in which they came.
pub async fn of_attempts(tx: &mut Tx, attempts: &[&AttemptId]) -> DbResult<Vec<ReportRow>> {
    let text = listed!(tx, "SELECT * FROM report WHERE ", "attempt_id", " ORDER BY received_at, role, seq");
    Ok(on_tx!(tx, |c| sqlx::query_as(text).bind(Json(attempts)).fetch_all(c).await)?)
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
