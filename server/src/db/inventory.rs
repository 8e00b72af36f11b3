//! What machines are made of, and what people typed into their consoles.

use super::life::{self, ChangeRow, SERVER};
use super::machine::{self, Labels, MachineRow};
use super::{Db, DbError, DbResult, Tx, on, on_tx, unsigned};
use crate::inventory::{self, Facts};
use crashyard_protocol::agent::{KeyPress, Keys};
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{AttemptId, MachineId};
use sqlx::FromRow;
use sqlx::types::Json;

/// An inventory as it was found last.
#[derive(Clone, Debug, PartialEq, FromRow)]
pub struct InventoryRow {
    /// Who found it.
    pub attempt_id: AttemptId,
    /// When.
    pub seen_at: Timestamp,
    /// What.
    pub facts: Json<Facts>,
}

/// The inventory of a machine.
pub async fn get(db: &Db, machine: &MachineId) -> DbResult<Option<InventoryRow>> {
    Ok(on!(db.read(), |c| sqlx::query_as(
        "SELECT attempt_id, seen_at, facts FROM machine_inventory WHERE machine_id = $1",
    )
    .bind(machine)
    .fetch_optional(c)
    .await)?)
}

/// Writes down what an attempt found on its machine; what is not as it was goes into the machine's history. `true` if
/// selectors may see it differently now.
///
/// What an attempt says that does not have the machine any more, or that began before the one that spoke last, is old.
pub async fn learn(
    tx: &mut Tx,
    machine: &MachineId,
    attempt: &AttemptId,
    facts: &Facts,
    now: Timestamp,
) -> DbResult<bool> {
    // Locks the machine, so that two reports come one after the other.
    let row: Option<MachineRow> = on_tx!(tx, |c| sqlx::query_as(
        "UPDATE machine SET lease_epoch = lease_epoch WHERE id = $1 AND attempt_id = $2 RETURNING *",
    )
    .bind(machine)
    .bind(attempt)
    .fetch_optional(c)
    .await)?;
    let Some(row) = row else { return Ok(false) };
    let old: Option<Json<Facts>> =
        on_tx!(tx, |c| sqlx::query_scalar("SELECT facts FROM machine_inventory WHERE machine_id = $1",)
            .bind(machine)
            .fetch_optional(c)
            .await)?;
    let before = old.map(|old| old.0).unwrap_or_default();
    let drift = inventory::drift(&row.driver, &before, facts);
    // What this kernel did not find is what it was; an agent that invents names does not add up.
    let mut all = before;
    all.extend(facts.clone());
    let all = if all.len() > inventory::FACTS_MAX { facts.clone() } else { all };
    on_tx!(tx, |c| sqlx::query(
        "INSERT INTO machine_inventory (machine_id, attempt_id, seen_at, facts) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (machine_id) DO UPDATE SET attempt_id = excluded.attempt_id, seen_at = excluded.seen_at, \
         facts = excluded.facts",
    )
    .bind(machine)
    .bind(attempt)
    .bind(now)
    .bind(Json(&all))
    .execute(c)
    .await
    .map(drop))?;
    if !drift.is_empty() {
        let change = ChangeRow {
            at: now,
            state: row.state,
            reason: Some(format!("Not as it was: {}", drift.join("; "))),
            decided_by: SERVER.to_owned(),
            attempt_id: Some(attempt.clone()),
        };
        life::note(tx, machine, &change).await?;
    }
    let labels: Labels = inventory::labels(&row.driver, &all);
    if labels == row.seen_labels.0 {
        return Ok(false);
    }
    let row: MachineRow =
        on_tx!(tx, |c| sqlx::query_as("UPDATE machine SET seen_labels = $2 WHERE id = $1 RETURNING *",)
            .bind(machine)
            .bind(Json(&labels))
            .fetch_one(c)
            .await)?;
    machine::match_machine(tx, &row).await?;
    Ok(true)
}

#[derive(FromRow)]
struct KeyPressRow {
    number: i64,
    source: String,
    typed_by: String,
    keys: Json<Keys>,
}

/// Takes what a person types, for the controller of an attempt that is not over; `Conflict` if it is.
pub async fn press(
    tx: &mut Tx,
    attempt: &AttemptId,
    source: &str,
    by: &str,
    keys: &Keys,
    now: Timestamp,
) -> DbResult<u64> {
    let count: Option<i64> = on_tx!(tx, |c| sqlx::query_scalar(
        "UPDATE attempt SET keys = keys + 1 WHERE id = $1 AND state IN ('running', 'collecting') RETURNING keys",
    )
    .bind(attempt)
    .fetch_optional(c)
    .await)?;
    let Some(count) = count else {
        return Err(DbError::Conflict("the attempt is over; nobody listens at its consoles any more".into()));
    };
    let number = count - 1;
    on_tx!(tx, |c| sqlx::query(
        "INSERT INTO key_press (attempt_id, number, source, typed_by, keys, at) VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(attempt)
    .bind(number)
    .bind(source)
    .bind(by)
    .bind(Json(keys))
    .bind(now)
    .execute(c)
    .await
    .map(drop))?;
    Ok(unsigned(number))
}

/// What was typed from this number on.
pub async fn pressed(db: &Db, attempt: &AttemptId, from: i64, limit: i64) -> DbResult<Vec<KeyPress>> {
    let rows: Vec<KeyPressRow> = on!(db.read(), |c| sqlx::query_as(
        "SELECT number, source, typed_by, keys FROM key_press WHERE attempt_id = $1 AND number >= $2 \
         ORDER BY number LIMIT $3",
    )
    .bind(attempt)
    .bind(from)
    .bind(limit)
    .fetch_all(c)
    .await)?;
    let shown = |row: KeyPressRow| KeyPress {
        number: unsigned(row.number),
        source: row.source,
        by: row.typed_by,
        keys: row.keys.0,
    };
    Ok(rows.into_iter().map(shown).collect())
}
