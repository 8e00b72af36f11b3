//! Errands: what a machine's controller does with it when no attempt has it, before its next job.
//!
//! A row is open until its controller says what came of it, or somebody takes it back. Until then each claim that calls the
//! machine idle may be given it again: that is what makes it outlive a `kill -9` of either side. A machine with an open errand
//! says so in its own row (`errand_owed`), where claims see it without looking here.

use super::life::{self, ChangeRow, SERVER};
use super::{Db, DbResult, Tx, on, on_tx};
use crate::trust::Rule;
pub use crashyard_protocol::ErrandKind as Kind;
use crashyard_protocol::check::Finding;
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{ControllerId, ErrandId, MachineId, MachineState};
use sqlx::FromRow;
use sqlx::types::Json;
use std::time::Duration;

/// How long a person waits for a machine that its controller is busy with: longer than any errand takes, so behind it the
/// controller is gone.
pub const PATIENCE: Duration = Duration::from_secs(10 * 60);

/// An errand.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct ErrandRow {
    /// Id.
    pub id: ErrandId,
    /// The machine.
    pub machine_id: MachineId,
    /// What is to be done.
    pub kind: Kind,
    /// Of a check: whether the machine is switched off and on as well.
    pub cycle: bool,
    /// Who wants it.
    pub wanted_by: String,
    /// Since when.
    pub wanted_at: Timestamp,
    /// When its controller took it up last.
    pub given_at: Option<Timestamp>,
    /// When it was over.
    pub ended_at: Option<Timestamp>,
    /// Whether it could be done.
    pub ok: Option<bool>,
    /// How, or why not.
    pub detail: Option<String>,
    /// What a check found.
    pub findings: Option<Json<Vec<Finding>>>,
}

impl ErrandRow {
    /// One that is wanted now.
    #[must_use]
    pub fn new(id: ErrandId, machine: &MachineId, kind: Kind, by: &str, now: Timestamp) -> Self {
        Self {
            id,
            machine_id: machine.clone(),
            kind,
            cycle: false,
            wanted_by: by.to_owned(),
            wanted_at: now,
            given_at: None,
            ended_at: None,
            ok: None,
            detail: None,
            findings: None,
        }
    }
}

/// What came of an errand.
#[derive(Clone, Copy, Debug)]
pub struct Outcome<'a> {
    /// Whether it could be done.
    pub ok: bool,
    /// How, or why not.
    pub detail: &'a str,
    /// What a check found.
    pub findings: &'a [Finding],
}

/// Locks a machine's row, which everybody takes before its errands and reservations.
async fn lock(tx: &mut Tx, machine: &MachineId) -> DbResult<()> {
    on_tx!(tx, |c| sqlx::query("UPDATE machine SET last_seen_at = last_seen_at WHERE id = $1")
        .bind(machine)
        .execute(c)
        .await
        .map(drop))?;
    Ok(())
}

/// Writes into the machine's row whether it has an open errand.
async fn mark(tx: &mut Tx, machine: &MachineId) -> DbResult<()> {
    on_tx!(tx, |c| {
        sqlx::query(
            "UPDATE machine SET errand_owed = EXISTS (SELECT 1 FROM errand e WHERE e.machine_id = $1 \
             AND e.ended_at IS NULL) WHERE id = $1",
        )
        .bind(machine)
        .execute(c)
        .await
        .map(drop)
    })?;
    Ok(())
}

/// Wants an errand, unless one of its kind is open; says which that is.
pub async fn want(tx: &mut Tx, row: &ErrandRow) -> DbResult<ErrandRow> {
    lock(tx, &row.machine_id).await?;
    on_tx!(tx, |c| sqlx::query(
        "INSERT INTO errand (id, machine_id, kind, cycle, wanted_by, wanted_at) VALUES ($1, $2, $3, $4, $5, $6) \
         ON CONFLICT DO NOTHING",
    )
    .bind(&row.id)
    .bind(&row.machine_id)
    .bind(row.kind)
    .bind(row.cycle)
    .bind(&row.wanted_by)
    .bind(row.wanted_at)
    .execute(c)
    .await
    .map(drop))?;
    mark(tx, &row.machine_id).await?;
    Ok(on_tx!(tx, |c| {
        sqlx::query_as("SELECT * FROM errand WHERE machine_id = $1 AND kind = $2 AND ended_at IS NULL")
            .bind(&row.machine_id)
            .bind(row.kind)
            .fetch_one(c)
            .await
    })?)
}

/// Gives the next errand of a machine to its controller: powering off first, as a check would have to deal with what a person
/// left running. `None` if there is none, or an attempt or a person has the machine.
pub async fn give(
    tx: &mut Tx,
    machine: &MachineId,
    controller: &ControllerId,
    now: Timestamp,
) -> DbResult<Option<ErrandRow>> {
    let idle = on_tx!(tx, |c| {
        sqlx::query(
            "UPDATE machine SET last_seen_at = $3 WHERE id = $1 AND controller_id = $2 AND announced AND errand_owed \
             AND attempt_id IS NULL AND state IN ('enrolled', 'available', 'quarantined')",
        )
        .bind(machine)
        .bind(controller)
        .bind(now)
        .execute(c)
        .await
        .map(|done| done.rows_affected())
    })?;
    if idle == 0 {
        return Ok(None);
    }
    Ok(on_tx!(tx, |c| {
        sqlx::query_as(
            "UPDATE errand SET given_at = $2 WHERE id = (SELECT id FROM errand WHERE machine_id = $1 \
             AND ended_at IS NULL ORDER BY kind DESC LIMIT 1) RETURNING *",
        )
        .bind(machine)
        .bind(now)
        .fetch_optional(c)
        .await
    })?)
}

/// Whether its controller is busy with a machine that is about to be somebody's.
pub async fn under_way(tx: &mut Tx, machine: &MachineId, now: Timestamp) -> DbResult<bool> {
    lock(tx, machine).await?;
    let since = Timestamp(now.0.saturating_sub(i64::try_from(PATIENCE.as_millis()).unwrap_or(0)));
    let count: i64 = on_tx!(tx, |c| sqlx::query_scalar(
        "SELECT COUNT(*) FROM errand WHERE machine_id = $1 AND ended_at IS NULL AND given_at > $2",
    )
    .bind(machine)
    .bind(since)
    .fetch_one(c)
    .await)?;
    Ok(count > 0)
}

/// Closes an open errand; `None` if it is over already, or there is none.
async fn close(tx: &mut Tx, id: &ErrandId, outcome: &Outcome<'_>, now: Timestamp) -> DbResult<Option<ErrandRow>> {
    let findings = (!outcome.findings.is_empty()).then_some(Json(outcome.findings));
    let closed: Option<ErrandRow> = on_tx!(tx, |c| sqlx::query_as(
        "UPDATE errand SET ended_at = $2, ok = $3, detail = $4, findings = $5 WHERE id = $1 AND ended_at IS NULL \
         RETURNING *",
    )
    .bind(id)
    .bind(now)
    .bind(outcome.ok)
    .bind(outcome.detail)
    .bind(findings)
    .fetch_optional(c)
    .await)?;
    if let Some(closed) = &closed {
        mark(tx, &closed.machine_id).await?;
    }
    Ok(closed)
}

/// Takes an open errand of a machine back, whoever may be at it.
pub async fn cancel(tx: &mut Tx, machine: &MachineId, kind: Kind, why: &str, now: Timestamp) -> DbResult<bool> {
    lock(tx, machine).await?;
    let open: Option<ErrandId> = on_tx!(tx, |c| sqlx::query_scalar(
        "SELECT id FROM errand WHERE machine_id = $1 AND kind = $2 AND ended_at IS NULL",
    )
    .bind(machine)
    .bind(kind)
    .fetch_optional(c)
    .await)?;
    let Some(open) = open else { return Ok(false) };
    let outcome = Outcome { ok: false, detail: why, findings: &[] };
    Ok(close(tx, &open, &outcome, now).await?.is_some())
}

/// Writes down what came of an errand, once. A machine that was powered off is offered again; one that could not be is not
/// trusted, as one that could not be returned after an attempt.
pub async fn finish(
    tx: &mut Tx,
    errand: &ErrandRow,
    outcome: &Outcome<'_>,
    rule: &Rule,
    now: Timestamp,
) -> DbResult<()> {
    let machine = &errand.machine_id;
    lock(tx, machine).await?;
    let Some(closed) = close(tx, &errand.id, outcome, now).await? else { return Ok(()) };
    if closed.kind == Kind::Off {
        after_off(tx, machine, outcome, rule, now).await?;
    }
    // Whoever asked for the machine meanwhile comes before the jobs.
    super::reservation::begin_all(tx, &[machine], now).await?;
    Ok(())
}

async fn after_off(
    tx: &mut Tx,
    machine: &MachineId,
    outcome: &Outcome<'_>,
    rule: &Rule,
    now: Timestamp,
) -> DbResult<()> {
    let state: MachineState = on_tx!(tx, |c| sqlx::query_scalar(
        "UPDATE machine SET reason = CASE WHEN state = 'enrolled' THEN NULL ELSE reason END WHERE id = $1 \
         RETURNING state",
    )
    .bind(machine)
    .fetch_one(c)
    .await)?;
    let detail = outcome.detail;
    let reason = if outcome.ok {
        format!("Powered off after a person had it: {detail}")
    } else {
        let why = format!("It could not be powered off after a person had it: {detail}");
        if life::quarantine(tx, machine, &why, None, rule, now).await? {
            return Ok(());
        }
        why
    };
    let change = ChangeRow { at: now, state, reason: Some(reason), decided_by: SERVER.to_owned(), attempt_id: None };
    life::note(tx, machine, &change).await
}

/// One errand.
pub async fn get(db: &Db, id: &ErrandId) -> DbResult<ErrandRow> {
    Ok(on!(db.read(), |c| sqlx::query_as("SELECT * FROM errand WHERE id = $1").bind(id).fetch_one(c).await)?)
}

/// The newest check of a machine.
pub async fn last_check(db: &Db, machine: &MachineId) -> DbResult<Option<ErrandRow>> {
    Ok(on!(db.read(), |c| sqlx::query_as(
        "SELECT * FROM errand WHERE machine_id = $1 AND kind = 'check' ORDER BY id DESC LIMIT 1",
    )
    .bind(machine)
    .fetch_optional(c)
    .await)?)
}

/// The open errands of a machine, in the order in which they are given.
pub async fn open(db: &Db, machine: &MachineId) -> DbResult<Vec<ErrandRow>> {
    Ok(on!(db.read(), |c| sqlx::query_as(
        "SELECT * FROM errand WHERE machine_id = $1 AND ended_at IS NULL ORDER BY kind DESC",
    )
    .bind(machine)
    .fetch_all(c)
    .await)?)
}

/// Every open errand, in the order in which they are given.
pub async fn all_open(db: &Db) -> DbResult<Vec<ErrandRow>> {
    Ok(on!(db.read(), |c| sqlx::query_as(
        "SELECT * FROM errand WHERE ended_at IS NULL ORDER BY machine_id, kind DESC"
    )
    .fetch_all(c)
    .await)?)
}
