//! Controllers, machines, and which selectors each machine satisfies.

use super::given::{listed, update_in_order};
use super::life::{self, ChangeRow, SERVER};
use super::{Db, DbError, DbResult, Tx, before_or_end, on, on_tx};
use crate::selector::{Facts, Selector};
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{AttemptId, ControllerId, MachineId, MachineState, SelectorId};
use serde::Serialize;
use sqlx::FromRow;
use sqlx::types::Json;
use std::collections::BTreeSet;
use std::time::Duration;

pub use crate::selector::Labels;

/// A system under test.
#[derive(Clone, Debug, PartialEq, FromRow)]
pub struct MachineRow {
    /// Id.
    pub id: MachineId,
    /// Unique name.
    pub name: String,
    /// What drives it.
    pub driver: String,
    /// Its controller.
    pub controller_id: ControllerId,
    /// Properties that selectors can ask for.
    pub labels: Json<Labels>,
    /// Whether its controller named it when it last enrolled.
    pub announced: bool,
    /// Where it is in its life.
    pub state: MachineState,
    /// Why it is there.
    pub reason: Option<String>,
    /// Since when.
    pub state_since: Timestamp,
    /// The attempt that owns it.
    pub attempt_id: Option<AttemptId>,
    /// The epoch of its newest lease.
    pub lease_epoch: i64,
    /// When its controller last named it.
    pub last_seen_at: Timestamp,
    /// When it was first announced.
    pub created_at: Timestamp,
    /// When its quarantine ends by itself.
    pub quarantined_until: Option<Timestamp>,
    /// How often it was quarantined since it last proved itself.
    pub probation: i64,
    /// Labels that follow from its inventory.
    pub seen_labels: Json<Labels>,
    /// How its failures differ from those of its siblings.
    pub differs: Option<String>,
    /// Whether its controller has something else to do with it before its next job ([`super::errand`]).
    pub errand_owed: bool,
}

/// A machine with its controller's name, for people.
#[derive(Clone, Debug, PartialEq, FromRow)]
pub struct NamedMachine {
    /// The machine.
    #[sqlx(flatten)]
    pub machine: MachineRow,
    /// Its controller's name.
    pub controller_name: String,
    /// When its controller last asked for anything.
    pub controller_seen_at: Timestamp,
}

/// A lab-side process that drives machines.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct ControllerRow {
    /// Id.
    pub id: ControllerId,
    /// Unique name.
    pub name: String,
    /// Version of its software.
    pub version: String,
    /// When it first enrolled.
    pub created_at: Timestamp,
    /// When it last asked for anything.
    pub last_seen_at: Timestamp,
}

/// Labels that jobs ask for.
#[derive(Clone, Debug, FromRow)]
pub struct SelectorRow {
    /// Id.
    pub id: SelectorId,
    /// The labels.
    pub labels: Json<Labels>,
    /// The other constraints.
    pub requires: Json<Vec<String>>,
}

impl SelectorRow {
    /// What it asks for.
    pub fn selector(&self) -> DbResult<Selector> {
        Selector::stored(&self.labels, &self.requires)
            .map_err(|why| DbError::Other(sqlx::Error::Decode(format!("selector {}: {why}", self.id).into())))
    }
}

/// Who was seen in this time is not written down again.
const SEEN_LATELY_MS: i64 = 5_000;
/// A controller that has not asked for anything in this time is not there: it asks at least once a minute.
const SILENT: Duration = Duration::from_secs(180);

impl NamedMachine {
    /// When its controller was last heard of.
    #[must_use]
    pub fn heard_of_at(&self) -> Timestamp {
        self.controller_seen_at.max(self.machine.last_seen_at)
    }

    /// Whether its controller is there. If not, nobody knows what the machine does. What an attempt does, its lease says.
    #[must_use]
    pub fn is_reachable(&self, now: Timestamp) -> bool {
        self.machine.announced && (self.machine.attempt_id.is_some() || now.since(self.heard_of_at()) <= SILENT)
    }

    /// What selectors can ask of it.
    #[must_use]
    pub fn facts(&self) -> Facts<'_> {
        let machine = &self.machine;
        Facts {
            name: &machine.name,
            driver: &machine.driver,
            controller: &self.controller_name,
            labels: &machine.labels,
            seen: &machine.seen_labels,
        }
    }
}

/// Registers a controller, or returns the one of that name.
pub async fn put_controller(tx: &mut Tx, row: &ControllerRow) -> DbResult<ControllerRow> {
    Ok(on_tx!(tx, |c| sqlx::query_as(
        "INSERT INTO controller (id, name, version, created_at, last_seen_at) VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT (name) DO UPDATE SET version = excluded.version, last_seen_at = excluded.last_seen_at RETURNING *",
    )
    .bind(&row.id)
    .bind(&row.name)
    .bind(&row.version)
    .bind(row.created_at)
    .bind(row.last_seen_at)
    .fetch_one(c)
    .await)?)
}

/// Says that a controller no longer names any machine; those it names now are put back by [`put_machine`].
pub async fn withdraw_machines(tx: &mut Tx, controller: &ControllerId) -> DbResult<()> {
    on_tx!(tx, |c| sqlx::query("UPDATE machine SET announced = FALSE WHERE controller_id = $1")
        .bind(controller)
        .execute(c)
        .await
        .map(drop))?;
    Ok(())
}

/// Registers a machine for its controller. A machine that another controller still announces is a conflict, unless nothing
/// was heard of that one for long and no attempt has the machine: a lab replaces a host that died.
pub async fn put_machine(tx: &mut Tx, row: &MachineRow) -> DbResult<MachineRow> {
    let before: Option<(ControllerId, String)> = on_tx!(tx, |c| sqlx::query_as(
        "SELECT c.id, c.name FROM machine m JOIN controller c ON c.id = m.controller_id WHERE m.name = $1",
    )
    .bind(&row.name)
    .fetch_optional(c)
    .await)?;
    let put: Option<MachineRow> = on_tx!(tx, |c| sqlx::query_as(
        "INSERT INTO machine (id, name, driver, controller_id, labels, announced, state, state_since, lease_epoch, \
         last_seen_at, created_at) VALUES ($1, $2, $3, $4, $5, TRUE, 'enrolled', $6, 0, $6, $6) \
         ON CONFLICT (name) DO UPDATE SET driver = excluded.driver, controller_id = excluded.controller_id, \
         labels = excluded.labels, announced = TRUE, last_seen_at = excluded.last_seen_at \
         WHERE machine.controller_id = excluded.controller_id \
         OR (machine.attempt_id IS NULL AND (NOT machine.announced OR (machine.last_seen_at < $7 \
         AND (SELECT last_seen_at FROM controller c WHERE c.id = machine.controller_id) < $7))) RETURNING *",
    )
    .bind(&row.id)
    .bind(&row.name)
    .bind(&row.driver)
    .bind(&row.controller_id)
    .bind(&row.labels)
    .bind(row.created_at)
    .bind(Timestamp(row.created_at.0.saturating_sub(i64::try_from(SILENT.as_millis()).unwrap_or(0))))
    .fetch_optional(c)
    .await)?;
    let put = put.ok_or_else(|| {
        DbError::Conflict(format!(
            "machine {:?} belongs to another controller that names it and is there; take it out of that one's \
             configuration and restart it, or stop it and wait until nothing was heard of it for {} minutes",
            row.name,
            SILENT.as_secs() / 60
        ))
    })?;
    if let Some((_, name)) = before.filter(|(controller, _)| *controller != put.controller_id) {
        let change = ChangeRow {
            at: row.created_at,
            state: put.state,
            reason: Some(format!("Moved here from the controller {name}")),
            decided_by: SERVER.to_owned(),
            attempt_id: None,
        };
        life::note(tx, &put.id, &change).await?;
    }
    Ok(put)
}

/// Selectors and machines are compared in both directions, so whoever adds one of either must not miss the other.
async fn lock_matching(tx: &mut Tx) -> DbResult<()> {
    match tx {
        // The write lock is already ours.
        Tx::Sqlite(_) => {}
        Tx::Postgres(tx) => {
            sqlx::query("SELECT pg_advisory_xact_lock(7267325)").execute(&mut **tx).await?;
        }
    }
    Ok(())
}

/// Writes down which selectors a machine satisfies.
pub async fn match_machine(tx: &mut Tx, machine: &MachineRow) -> DbResult<()> {
    lock_matching(tx).await?;
    on_tx!(tx, |c| sqlx::query("DELETE FROM machine_selector WHERE machine_id = $1")
        .bind(&machine.id)
        .execute(c)
        .await
        .map(drop))?;
    let selectors: Vec<SelectorRow> =
        on_tx!(tx, |c| sqlx::query_as("SELECT id, labels, requires FROM selector").fetch_all(c).await)?;
    let named: NamedMachine = on_tx!(tx, |c| sqlx::query_as(NAMED).bind(&machine.id).fetch_one(c).await)?;
    for selector in &selectors {
        if selector.selector()?.holds(&named.facts()) {
            link(tx, &machine.id, &selector.id).await?;
        }
    }
    Ok(())
}

/// The row of a selector; a new one is compared with every machine.
pub async fn put_selector(tx: &mut Tx, id: &SelectorId, selector: &Selector) -> DbResult<SelectorId> {
    let key = selector.key();
    let find = "SELECT id FROM selector WHERE labels_key = $1";
    let old: Option<SelectorId> = on_tx!(tx, |c| sqlx::query_scalar(find).bind(&key).fetch_optional(c).await)?;
    if let Some(old) = old {
        return Ok(old);
    }
    lock_matching(tx).await?;
    let new: Option<SelectorId> = on_tx!(tx, |c| sqlx::query_scalar(
        "INSERT INTO selector (id, labels_key, labels, requires) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING \
         RETURNING id",
    )
    .bind(id)
    .bind(&key)
    .bind(Json(selector.labels()))
    .bind(Json(selector.requires()))
    .fetch_optional(c)
    .await)?;
    let Some(new) = new else {
        return Ok(on_tx!(tx, |c| sqlx::query_scalar(find).bind(&key).fetch_one(c).await)?);
    };
    let machines: Vec<NamedMachine> = on_tx!(tx, |c| {
        sqlx::query_as(
        "SELECT m.*, c.name AS controller_name, c.last_seen_at AS controller_seen_at FROM machine m JOIN controller c ON c.id = m.controller_id",
    )
    .fetch_all(c)
    .await
    })?;
    for machine in machines.iter().filter(|machine| selector.holds(&machine.facts())) {
        link(tx, &machine.machine.id, &new).await?;
    }
    Ok(new)
}

async fn link(tx: &mut Tx, machine: &MachineId, selector: &SelectorId) -> DbResult<()> {
    on_tx!(tx, |c| sqlx::query(
        "INSERT INTO machine_selector (machine_id, selector_id) VALUES ($1, $2) ON CONFLICT DO NOTHING",
    )
    .bind(machine)
    .bind(selector)
    .execute(c)
    .await
    .map(drop))?;
    Ok(())
}

const NAMED: &str = "SELECT m.*, c.name AS controller_name, c.last_seen_at AS controller_seen_at FROM machine m JOIN controller c ON c.id = m.controller_id \
                     WHERE m.id = $1";

/// One machine by its name.
pub async fn by_name(db: &Db, name: &str) -> DbResult<NamedMachine> {
    Ok(on!(db.read(), |c| sqlx::query_as(
        "SELECT m.*, c.name AS controller_name, c.last_seen_at AS controller_seen_at FROM machine m \
         JOIN controller c ON c.id = m.controller_id WHERE m.name = $1",
    )
    .bind(name)
    .fetch_one(c)
    .await)?)
}

/// One machine.
pub async fn get(db: &Db, id: &MachineId) -> DbResult<NamedMachine> {
    Ok(on!(db.read(), |c| sqlx::query_as(NAMED).bind(id).fetch_one(c).await)?)
}

/// One page of machines, newest first.
pub async fn list(db: &Db, before: Option<&str>, limit: i64) -> DbResult<Vec<NamedMachine>> {
    Ok(on!(db.read(), |c| {
        sqlx::query_as(
        "SELECT m.*, c.name AS controller_name, c.last_seen_at AS controller_seen_at FROM machine m JOIN controller c ON c.id = m.controller_id \
         WHERE m.id < $1 ORDER BY m.id DESC LIMIT $2",
    )
    .bind(before_or_end(before))
    .bind(limit)
    .fetch_all(c)
    .await
    })?)
}

/// What a claim that got no job wants to know of a machine.
#[derive(Clone, Debug, FromRow)]
pub struct Announced {
    /// The machine.
    pub id: MachineId,
    /// The attempt that owns it.
    pub attempt_id: Option<AttemptId>,
    /// Whether its controller has something else to do with it.
    pub errand_owed: bool,
}

/// Of these machines those that a controller announces.
pub async fn announced(db: &Db, controller: &ControllerId, machines: &[MachineId]) -> DbResult<Vec<Announced>> {
    let pool = db.read();
    let text = listed!(
        pool,
        "SELECT id, attempt_id, errand_owed FROM machine WHERE controller_id = $2 AND announced AND ",
        "id",
        ""
    );
    Ok(on!(pool, |c| sqlx::query_as(text).bind(Json(machines)).bind(controller).fetch_all(c).await)?)
}

/// Whether a controller is known.
pub async fn controller_exists(db: &Db, id: &ControllerId) -> DbResult<bool> {
    let count: i64 = on!(db.read(), |c| sqlx::query_scalar("SELECT COUNT(*) FROM controller WHERE id = $1")
        .bind(id)
        .fetch_one(c)
        .await)?;
    Ok(count > 0)
}

/// A machine that its controller calls idle.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, FromRow)]
pub struct Idle {
    /// Who says so.
    pub controller: ControllerId,
    /// Of what.
    pub machine: MachineId,
}

/// Records that controllers asked: they are seen now, and so are machines of theirs that they call idle; those never seen idle
/// are available, unless they have an errand first. Who was seen a moment ago is not written again, and who is being written by
/// others waits for the next time.
pub async fn seen(tx: &mut Tx, controllers: &BTreeSet<&ControllerId>, idle: &[Idle], now: Timestamp) -> DbResult<()> {
    let stale = Timestamp(now.0.saturating_sub(SEEN_LATELY_MS));
    seen_controllers(tx, controllers, stale, now).await?;
    if idle.is_empty() {
        return Ok(());
    }
    let text = listed!(
        tx,
        "SELECT controller_id AS controller, id AS machine FROM machine \
         WHERE ((state = 'enrolled' AND NOT errand_owed) OR last_seen_at < $2) AND ",
        "id",
        "",
        lock " FOR NO KEY UPDATE SKIP LOCKED"
    );
    let machines: BTreeSet<&MachineId> = idle.iter().map(|idle| &idle.machine).collect();
    let mut unseen: Vec<Idle> =
        on_tx!(tx, |c| sqlx::query_as(text).bind(Json(&machines)).bind(stale).fetch_all(c).await)?;
    // Nobody speaks for machines of others.
    unseen.retain(|one| idle.contains(one));
    if unseen.is_empty() {
        return Ok(());
    }
    let text = listed!(
        tx,
        update "machine SET last_seen_at = $2, \
         state_since = CASE WHEN state = 'enrolled' AND NOT errand_owed THEN $2 ELSE state_since END, \
         reason = CASE WHEN state = 'enrolled' AND NOT errand_owed THEN NULL ELSE reason END, \
         state = CASE WHEN state = 'enrolled' AND NOT errand_owed THEN 'available' ELSE state END WHERE ",
        "id",
        ""
    );
    let machines: Vec<MachineId> = unseen.into_iter().map(|one| one.machine).collect();
    on_tx!(tx, |c| sqlx::query(text).bind(Json(&machines)).bind(now).execute(c).await.map(drop))?;
    Ok(())
}

async fn seen_controllers(
    tx: &mut Tx,
    controllers: &BTreeSet<&ControllerId>,
    stale: Timestamp,
    now: Timestamp,
) -> DbResult<()> {
    let unseen: Vec<ControllerId> = match tx {
        // SQLite has one writer.
        Tx::Sqlite(_) => controllers.iter().map(|id| (*id).clone()).collect(),
        Tx::Postgres(tx) => {
            sqlx::query_scalar(
                "SELECT id FROM controller WHERE last_seen_at < $2 \
                 AND id = ANY (ARRAY(SELECT jsonb_array_elements_text($1))) FOR NO KEY UPDATE SKIP LOCKED",
            )
            .bind(Json(controllers))
            .bind(stale)
            .fetch_all(&mut **tx)
            .await?
        }
    };
    if unseen.is_empty() {
        return Ok(());
    }
    let text = listed!(tx, update "controller SET last_seen_at = $2 WHERE last_seen_at < $3 AND ", "id", "");
    on_tx!(tx, |c| sqlx::query(text).bind(Json(&unseen)).bind(now).bind(stale).execute(c).await.map(drop))?;
    Ok(())
}

/// How far a machine is trusted.
#[derive(Clone, Debug, FromRow)]
pub struct Trusted {
    /// The machine.
    pub id: MachineId,
    /// How often it was quarantined since it last proved itself.
    pub probation: i64,
    /// What it did before this moment does not count.
    pub trusted_since: Timestamp,
}

/// A machine that is to leave its attempt.
#[derive(Clone, Debug, Serialize)]
pub struct Leaving<'a> {
    /// The machine.
    pub machine: &'a MachineId,
    /// The attempt.
    pub from_attempt: &'a AttemptId,
    /// Where it is from now on.
    pub new_state: MachineState,
    /// Why.
    pub why: Option<String>,
    /// When its controller said so.
    pub seen_at: Option<Timestamp>,
}

/// Takes machines out of their attempts. Those that were not in them are left as they are, and out of the answer.
pub async fn leave_attempts(tx: &mut Tx, leaving: &[Leaving<'_>], now: Timestamp) -> DbResult<Vec<Trusted>> {
    let text = update_in_order!(
        tx,
        "machine" SET "state = given.new_state, reason = given.why, state_since = $2, attempt_id = NULL, \
         last_seen_at = COALESCE(given.seen_at, last_seen_at)",
        [machine text, from_attempt text, new_state text, why text, seen_at bigint],
        "machine",
        " AND attempt_id = given.from_attempt RETURNING machine.id, probation, trusted_since"
    );
    Ok(on_tx!(tx, |c| sqlx::query_as(text).bind(Json(leaving)).bind(now).fetch_all(c).await)?)
}
