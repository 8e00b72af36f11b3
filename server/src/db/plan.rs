//! Stored scenarios and plans: documents under a name.

use super::{Db, DbResult, Tx, before_or_end, on, on_tx};
use crashyard_protocol::api::Policy;
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{PlanId, Scenario, ScenarioId};
use serde::{Deserialize, Serialize};
use sqlx::FromRow;
use sqlx::types::Json;
use std::collections::BTreeMap;

/// A stored scenario.
#[derive(Clone, Debug, FromRow)]
pub struct ScenarioRow {
    /// Id.
    pub id: ScenarioId,
    /// Unique name, the same as in the body.
    pub name: String,
    /// The scenario.
    pub body: Json<Scenario>,
    /// When it was stored or last changed.
    pub updated_at: Timestamp,
}

/// What a plan says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanBody {
    /// Names of stored scenarios.
    pub scenarios: Vec<String>,
    /// Labels that a machine must have.
    pub selector: BTreeMap<String, String>,
    /// What else it must satisfy.
    #[serde(default)]
    pub requires: Vec<String>,
    /// How often each scenario runs.
    pub repetitions: u32,
    /// What is done about failures.
    #[serde(default)]
    pub policy: Policy,
}

/// A stored plan.
#[derive(Clone, Debug, FromRow)]
pub struct PlanRow {
    /// Id.
    pub id: PlanId,
    /// Unique name.
    pub name: String,
    /// What it says.
    pub body: Json<PlanBody>,
    /// When it was stored or last changed.
    pub updated_at: Timestamp,
}

/// Stores a scenario under its name; equal content keeps the time of the last change.
pub async fn put_scenario(tx: &mut Tx, row: &ScenarioRow) -> DbResult<ScenarioRow> {
    let old: Option<ScenarioRow> = on_tx!(tx, |c| sqlx::query_as("SELECT * FROM scenario WHERE name = $1")
        .bind(&row.name)
        .fetch_optional(c)
        .await)?;
    if let Some(old) = old.filter(|old| old.body == row.body) {
        return Ok(old);
    }
    Ok(on_tx!(tx, |c| sqlx::query_as(
        "INSERT INTO scenario (id, name, body, updated_at) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (name) DO UPDATE SET body = excluded.body, updated_at = excluded.updated_at RETURNING *",
    )
    .bind(&row.id)
    .bind(&row.name)
    .bind(&row.body)
    .bind(row.updated_at)
    .fetch_one(c)
    .await)?)
}

/// The scenario of this name.
pub async fn scenario(db: &Db, name: &str) -> DbResult<ScenarioRow> {
    Ok(on!(db.read(), |c| sqlx::query_as("SELECT * FROM scenario WHERE name = $1").bind(name).fetch_one(c).await)?)
}

/// One page of scenarios, newest first.
pub async fn list_scenarios(db: &Db, before: Option<&str>, limit: i64) -> DbResult<Vec<ScenarioRow>> {
    Ok(on!(db.read(), |c| sqlx::query_as("SELECT * FROM scenario WHERE id < $1 ORDER BY id DESC LIMIT $2")
        .bind(before_or_end(before))
        .bind(limit)
        .fetch_all(c)
        .await)?)
}

/// Stores a plan under its name; equal content keeps the time of the last change.
pub async fn put_plan(tx: &mut Tx, row: &PlanRow) -> DbResult<PlanRow> {
    let old: Option<PlanRow> =
        on_tx!(tx, |c| sqlx::query_as("SELECT * FROM plan WHERE name = $1").bind(&row.name).fetch_optional(c).await)?;
    if let Some(old) = old.filter(|old| old.body == row.body) {
        return Ok(old);
    }
    Ok(on_tx!(tx, |c| sqlx::query_as(
        "INSERT INTO plan (id, name, body, updated_at) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (name) DO UPDATE SET body = excluded.body, updated_at = excluded.updated_at RETURNING *",
    )
    .bind(&row.id)
    .bind(&row.name)
    .bind(&row.body)
    .bind(row.updated_at)
    .fetch_one(c)
    .await)?)
}

/// The plan of this name.
pub async fn plan(db: &Db, name: &str) -> DbResult<PlanRow> {
    Ok(on!(db.read(), |c| sqlx::query_as("SELECT * FROM plan WHERE name = $1").bind(name).fetch_one(c).await)?)
}

/// One page of plans, newest first.
pub async fn list_plans(db: &Db, before: Option<&str>, limit: i64) -> DbResult<Vec<PlanRow>> {
    Ok(on!(db.read(), |c| sqlx::query_as("SELECT * FROM plan WHERE id < $1 ORDER BY id DESC LIMIT $2")
        .bind(before_or_end(before))
        .bind(limit)
        .fetch_all(c)
        .await)?)
}
