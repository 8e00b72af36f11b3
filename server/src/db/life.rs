//! A machine's life outside of attempts: every change of its state, with its reason and who decided it.
//!
//! What attempts do to a machine is in their own rows; the history that people see is both, in order of time. Nothing
//! here touches a machine that an attempt owns: that is [`super::lease`]'s.

use super::attempt::AttemptRow;
use super::given::given;
use super::machine::{MachineRow, Trusted};
use super::reservation;
use super::{Db, DbResult, Tx, on, on_tx};
use crate::trust::{Outcome, Rule, Trust};
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{AttemptId, AttemptState, MachineId, MachineState, Status};
use serde::Serialize;
use sqlx::FromRow;
use sqlx::types::Json;
use std::collections::HashMap;

/// Who decides what no person does.
pub const SERVER: &str = "server";

/// A change of a machine's state.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct ChangeRow {
    /// When.
    pub at: Timestamp,
    /// Into which state.
    pub state: MachineState,
    /// Why.
    pub reason: Option<String>,
    /// `server`, or `token:NAME`.
    pub decided_by: String,
    /// The attempt it has to do with.
    pub attempt_id: Option<AttemptId>,
}

/// Writes a change into the machine's history. The caller has changed the machine's row, and so has its lock.
pub async fn note(tx: &mut Tx, machine: &MachineId, change: &ChangeRow) -> DbResult<()> {
    on_tx!(tx, |c| sqlx::query(
        "INSERT INTO machine_change (machine_id, seq, at, state, reason, decided_by, attempt_id) \
         SELECT $1, COALESCE(MAX(seq), 0) + 1, $2, $3, $4, $5, $6 FROM machine_change WHERE machine_id = $1",
    )
    .bind(machine)
    .bind(change.at)
    .bind(change.state)
    .bind(&change.reason)
    .bind(&change.decided_by)
    .bind(&change.attempt_id)
    .execute(c)
    .await
    .map(drop))?;
    Ok(())
}

/// The newest changes of a machine.
pub async fn changes(db: &Db, machine: &MachineId, limit: i64) -> DbResult<Vec<ChangeRow>> {
    Ok(on!(db.read(), |c| sqlx::query_as(
        "SELECT * FROM machine_change WHERE machine_id = $1 ORDER BY seq DESC LIMIT $2",
    )
    .bind(machine)
    .bind(limit)
    .fetch_all(c)
    .await)?)
}

/// Puts a machine that no attempt owns into a state, on a person's word; `None` if an attempt owns it. A reservation
/// ends with it, and what the machine did before is forgiven.
pub async fn decide(
    tx: &mut Tx,
    machine: &MachineId,
    state: MachineState,
    reason: Option<&str>,
    by: &str,
    now: Timestamp,
) -> DbResult<Option<MachineRow>> {
    let row: Option<MachineRow> = on_tx!(tx, |c| sqlx::query_as(
        "UPDATE machine SET state = $2, reason = $3, state_since = $4, quarantined_until = NULL, probation = 0, \
         trusted_since = $4 WHERE id = $1 AND attempt_id IS NULL RETURNING *",
    )
    .bind(machine)
    .bind(state)
    .bind(reason)
    .bind(now)
    .fetch_optional(c)
    .await)?;
    if row.is_some() {
        let closed = reservation::close(tx, machine, by, now).await?;
        let reason = reason.map(str::to_owned);
        note(tx, machine, &ChangeRow { at: now, state, reason, decided_by: by.to_owned(), attempt_id: None }).await?;
        // Who retires a machine says that it is gone.
        if let Some(closed) = closed.filter(|one| one.began_at.is_some() && state != MachineState::Retired) {
            reservation::owe_off(tx, &closed, now).await?;
        }
    }
    Ok(row)
}

/// Quarantines a machine that nobody has until a moment after which it gets another chance; `false` if somebody has it.
pub async fn quarantine(
    tx: &mut Tx,
    machine: &MachineId,
    reason: &str,
    attempt: Option<&AttemptId>,
    rule: &Rule,
    now: Timestamp,
) -> DbResult<bool> {
    let times: Option<i64> = on_tx!(tx, |c| sqlx::query_scalar(
        "UPDATE machine SET state = 'quarantined', reason = $2, state_since = $3, probation = probation + 1 \
         WHERE id = $1 AND attempt_id IS NULL AND state IN ('enrolled', 'available') RETURNING probation",
    )
    .bind(machine)
    .bind(reason)
    .bind(now)
    .fetch_optional(c)
    .await)?;
    let Some(times) = times else { return Ok(false) };
    on_tx!(tx, |c| sqlx::query("UPDATE machine SET quarantined_until = $2 WHERE id = $1")
        .bind(machine)
        .bind(rule.until(times - 1, now))
        .execute(c)
        .await
        .map(drop))?;
    let change = ChangeRow {
        at: now,
        state: MachineState::Quarantined,
        reason: Some(reason.to_owned()),
        decided_by: SERVER.to_owned(),
        attempt_id: attempt.cloned(),
    };
    note(tx, machine, &change).await?;
    Ok(true)
}

/// What attempts say about their machines, once these are free: reservations that wait for them begin; a machine that is not
/// trusted is quarantined; one that has proven itself is not on probation any more.
pub async fn after_attempts(
    tx: &mut Tx,
    ended: &[(&AttemptRow, &Trusted)],
    rule: &Rule,
    now: Timestamp,
) -> DbResult<()> {
    let machines: Vec<&MachineId> = ended.iter().map(|(attempt, _)| &attempt.machine_id).collect();
    let taken = reservation::begin_all(tx, &machines, now).await?;
    let trust = trust(tx, ended, rule).await?;
    for ((attempt, trusted), trust) in ended.iter().zip(trust) {
        let machine = &attempt.machine_id;
        match trust {
            Trust::Keep => {}
            Trust::Proven => {
                on_tx!(tx, |c| sqlx::query("UPDATE machine SET probation = 0 WHERE id = $1")
                    .bind(machine)
                    .execute(c)
                    .await
                    .map(drop))?;
            }
            Trust::Quarantine(why) if taken.contains(machine) => {
                reservation::distrust(tx, machine, &why, rule.until(trusted.probation, now)).await?;
            }
            Trust::Quarantine(why) => {
                quarantine(tx, machine, &why, Some(&attempt.id), rule, now).await?;
            }
        }
    }
    Ok(())
}

/// What follows for machines from how they were returned, and from how their last attempts ended. Those before are looked up only
/// where the last one leaves it open.
async fn trust(tx: &mut Tx, ended: &[(&AttemptRow, &Trusted)], rule: &Rule) -> DbResult<Vec<Trust>> {
    let open: Vec<&Trusted> = ended
        .iter()
        .filter(|(attempt, trusted)| known(attempt, trusted, rule).is_none())
        .map(|(_, one)| *one)
        .collect();
    let before = outcomes(tx, &open, rule).await?;
    let looked = |one: &Trusted| rule.look(one.probation, before.get(&one.id).map_or(&[], Vec::as_slice));
    Ok(ended.iter().map(|(attempt, one)| known(attempt, one, rule).unwrap_or_else(|| looked(one))).collect())
}

/// What the last attempt alone says.
fn known(attempt: &AttemptRow, trusted: &Trusted, rule: &Rule) -> Option<Trust> {
    if attempt.released_healthy == Some(false) {
        return Some(Trust::Quarantine(attempt.release_detail.clone().unwrap_or_default()));
    }
    let AttemptRow { verdict, blamed_stage, gave_way, .. } = *attempt;
    let last = Outcome { verdict, blamed_stage, gave_way };
    let counts = attempt.started_at >= trusted.trusted_since;
    (counts && last.went_well()).then(|| rule.look(trusted.probation, &[last]))
}

#[derive(Serialize)]
struct Since<'a> {
    machine: &'a MachineId,
    since: Timestamp,
}

#[derive(FromRow)]
struct OutcomeRow {
    machine_id: MachineId,
    #[sqlx(flatten)]
    outcome: Outcome,
}

/// How the last attempts of machines ended, as far as they count: the newest first.
async fn outcomes(tx: &mut Tx, machines: &[&Trusted], rule: &Rule) -> DbResult<HashMap<MachineId, Vec<Outcome>>> {
    if machines.is_empty() {
        return Ok(HashMap::new());
    }
    let text = given!(
        tx,
        "SELECT a.machine_id, a.verdict, a.blamed_stage, a.gave_way FROM attempt a, ",
        [machine text, since bigint],
        at "a.machine_id" = "machine",
        " AND a.started_at >= given.since AND a.state IN ('done', 'lost') AND a.id > COALESCE((SELECT n.id FROM attempt n \
         WHERE n.machine_id = given.machine ORDER BY n.id DESC LIMIT 1 OFFSET $2), '') ORDER BY a.id DESC"
    );
    let since: Vec<_> = machines.iter().map(|one| Since { machine: &one.id, since: one.trusted_since }).collect();
    // Twice the window, because those that gave way are not counted.
    let most = i64::from(rule.window) * 2;
    let rows: Vec<OutcomeRow> = on_tx!(tx, |c| sqlx::query_as(text).bind(Json(&since)).bind(most).fetch_all(c).await)?;
    let mut all: HashMap<MachineId, Vec<Outcome>> = HashMap::new();
    for row in rows {
        all.entry(row.machine_id).or_default().push(row.outcome);
    }
    Ok(all)
}

/// Machines whose quarantine is over.
pub async fn forgiven(db: &Db, now: Timestamp, limit: i64) -> DbResult<Vec<MachineId>> {
    Ok(on!(db.read(), |c| sqlx::query_scalar(
        "SELECT id FROM machine WHERE quarantined_until IS NOT NULL AND quarantined_until <= $1 \
         ORDER BY quarantined_until, id LIMIT $2",
    )
    .bind(now)
    .bind(limit)
    .fetch_all(c)
    .await)?)
}

/// When the next quarantine is over.
pub async fn next_forgiven(db: &Db) -> DbResult<Option<Timestamp>> {
    Ok(on!(db.read(), |c| sqlx::query_scalar(
        "SELECT MIN(quarantined_until) FROM machine WHERE quarantined_until IS NOT NULL",
    )
    .fetch_one(c)
    .await)?)
}

/// Takes a machine back on probation; `false` if its quarantine is not over, or was changed by a person.
pub async fn forgive(tx: &mut Tx, machine: &MachineId, now: Timestamp) -> DbResult<bool> {
    let back = on_tx!(tx, |c| sqlx::query(
        "UPDATE machine SET state = 'enrolled', reason = NULL, state_since = $2, quarantined_until = NULL, \
         trusted_since = $2 WHERE id = $1 AND state = 'quarantined' AND quarantined_until <= $2",
    )
    .bind(machine)
    .bind(now)
    .execute(c)
    .await
    .map(|done| done.rows_affected()))?;
    if back == 1 {
        let change = ChangeRow {
            at: now,
            state: MachineState::Enrolled,
            reason: Some("Back on probation: its next attempt decides".to_owned()),
            decided_by: SERVER.to_owned(),
            attempt_id: None,
        };
        note(tx, machine, &change).await?;
    }
    Ok(back == 1)
}

/// An attempt as the history of its machine shows it.
#[derive(Clone, Debug, PartialEq, FromRow)]
pub struct PastAttempt {
    /// The attempt.
    pub id: AttemptId,
    /// Where it is.
    pub state: AttemptState,
    /// What it showed.
    pub verdict: Status,
    /// When it got the machine.
    pub started_at: Timestamp,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// Its scenario, as stored.
    pub scenario: Json<crashyard_protocol::Scenario>,
}

/// The newest attempts of a machine.
pub async fn attempts(db: &Db, machine: &MachineId, limit: i64) -> DbResult<Vec<PastAttempt>> {
    Ok(on!(db.read(), |c| sqlx::query_as(
        "SELECT a.id, a.state, a.verdict, a.started_at, a.finished_at, j.scenario FROM attempt a \
         JOIN job j ON j.id = a.job_id WHERE a.machine_id = $1 ORDER BY a.id DESC LIMIT $2",
    )
    .bind(machine)
    .bind(limit)
    .fetch_all(c)
    .await)?)
}
