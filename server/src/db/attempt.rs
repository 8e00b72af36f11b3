//! Attempts and their stages, for reading. Who may change them: [`super::queue`] makes, [`super::judgement`] judges,
//! [`super::lease`] ends.

use super::given::{Kept, given, listed, write_in_order};
use super::token::Credential;
use super::{Db, DbError, DbResult, Tx, on, on_tx, signed};
use crashyard_protocol::api::Policy;
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{
    AttemptId, AttemptState, BuildId, ControllerId, FlowId, JobId, MachineId, Purpose, RunId, Scenario, Stage,
    StageName, Status, SubmitterId,
};
use serde::Serialize;
use sqlx::FromRow;
use sqlx::types::Json;
use std::collections::{BTreeSet, HashMap};
use std::iter;
use std::time::Duration;

/// One try of a job.
#[derive(Clone, Debug, PartialEq, FromRow)]
pub struct AttemptRow {
    /// Id.
    pub id: AttemptId,
    /// Its job.
    pub job_id: JobId,
    /// Its run.
    pub run_id: RunId,
    /// Counts from 1 inside the job.
    pub number: i64,
    /// The machine.
    pub machine_id: MachineId,
    /// Who drives it.
    pub controller_id: ControllerId,
    /// The lease's epoch.
    pub epoch: i64,
    /// Where it is.
    pub state: AttemptState,
    /// What it showed; `MISS` until judged.
    pub verdict: Status,
    /// Why.
    pub reason: Option<String>,
    /// Where the contract stopped.
    pub blamed_stage: Option<StageName>,
    /// Title of the crash that nobody asked for, where the contract stopped at one.
    pub signature: Option<String>,
    /// When to judge again if nothing arrives until then.
    pub check_at: Option<Timestamp>,
    /// Until when the lease holds.
    pub lease_expires_at: Timestamp,
    /// What was read in the dump.
    pub dump_facts: Option<Json<serde_json::Value>>,
    /// When the lease was given.
    pub started_at: Timestamp,
    /// When the verdict was given.
    pub judged_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// What the controller said about the machine when it handed the lease back.
    pub released_healthy: Option<bool>,
    /// What was checked, or what failed.
    pub release_detail: Option<String>,
    /// When the last progress of the dump was told.
    pub progress_event_at: Option<Timestamp>,
    /// What it is for.
    pub purpose: Purpose,
    /// The kernel it boots, where that is not the run's.
    pub boots_build_id: Option<BuildId>,
    /// Whether its machine was given to somebody else before it armed.
    pub gave_way: bool,
    /// Until when its machine is kept as it is.
    pub held_until: Option<Timestamp>,
}

impl AttemptRow {
    /// Whether its agents may still write.
    #[must_use]
    pub fn is_live(&self) -> bool {
        !self.state.is_over()
    }

    /// Whether a write with this epoch belongs to the lease that holds now.
    pub fn check_epoch(&self, epoch: u64) -> DbResult<()> {
        check(self.state, self.epoch, epoch)
    }
}

/// Whether a write with an epoch belongs to the lease of an attempt in this state, with this one.
pub(super) fn check(state: AttemptState, has: i64, epoch: u64) -> DbResult<()> {
    if state.is_over() {
        return Err(DbError::LeaseLost(format!("the attempt is {state}")));
    }
    if has != signed(epoch) {
        return Err(DbError::LeaseLost(format!("the lease has epoch {has}, this write has {epoch}")));
    }
    Ok(())
}

/// An attempt with what its page and its agents need from the rows around it.
#[derive(Clone, Debug, PartialEq, FromRow)]
pub struct FullAttempt {
    /// The attempt.
    #[sqlx(flatten)]
    pub attempt: AttemptRow,
    /// The machine's name.
    pub machine_name: String,
    /// Its job's scenario.
    pub scenario: Json<Scenario>,
    /// The kernel under test.
    pub build_id: BuildId,
}

/// An attempt that a transaction has locked, and who pays for it.
#[derive(Clone, Debug, PartialEq, FromRow)]
pub struct Locked {
    /// The attempt.
    #[sqlx(flatten)]
    pub attempt: AttemptRow,
    /// The queue its job came from.
    pub flow_id: FlowId,
    /// Whose machine time it takes; nobody's, if it is from before there was fair share.
    pub submitter_id: Option<SubmitterId>,
    /// What they were charged with when it began.
    pub charged_ms: Option<i64>,
    /// Most machines they may have at once.
    pub max_machines: Option<i64>,
}

impl Locked {
    /// Whose machine time it takes, if they are limited: when it ends, there is room for another job of theirs.
    #[must_use]
    pub fn limited_submitter(&self) -> Option<&SubmitterId> {
        self.submitter_id.as_ref().filter(|_| self.max_machines.is_some())
    }
}

/// What an attempt is to show, and of which kernel. None of it ever changes.
#[derive(Clone, Debug, PartialEq, FromRow)]
pub struct Terms {
    /// The attempt.
    pub attempt_id: AttemptId,
    /// Its job's scenario.
    pub scenario: Json<Scenario>,
    /// What its job's plan does about failures.
    pub policy: Json<Policy>,
    /// `uname -r` of the kernel under test.
    pub release: String,
    /// GNU build id of the kernel under test.
    pub build_id: Option<String>,
}

/// One stage as judged.
#[derive(Clone, Debug, PartialEq, FromRow)]
struct StageRow {
    attempt_id: AttemptId,
    body: Option<Json<Stage>>,
}

/// One attempt.
pub async fn get(db: &Db, id: &AttemptId) -> DbResult<AttemptRow> {
    Ok(on!(db.read(), |c| sqlx::query_as("SELECT * FROM attempt WHERE id = $1").bind(id).fetch_one(c).await)?)
}

/// One attempt, as a transaction sees it.
pub async fn get_in(tx: &mut Tx, id: &AttemptId) -> DbResult<AttemptRow> {
    Ok(on_tx!(tx, |c| sqlx::query_as("SELECT * FROM attempt WHERE id = $1").bind(id).fetch_one(c).await)?)
}

/// What the secret of an attempt stands for, if its hash is this.
pub async fn credential(db: &Db, id: &AttemptId, secret_hash: &str) -> DbResult<Option<Credential>> {
    Ok(on!(db.read(), |c| {
        sqlx::query_as(
            "SELECT id, 'attempt ' || id AS name, 'attempt' AS scope, id AS attempt_id, state AS attempt_state, \
         CAST(NULL AS BIGINT) AS expires_at, CAST(NULL AS BIGINT) AS revoked_at \
         FROM attempt WHERE id = $1 AND secret_hash = $2",
        )
        .bind(id)
        .bind(secret_hash)
        .fetch_optional(c)
        .await
    })?)
}

/// Replaces the secret of an attempt: a lease handed out again makes the first copy worthless.
pub async fn replace_secret(tx: &mut Tx, id: &AttemptId, secret_hash: &str) -> DbResult<()> {
    let changed = on_tx!(tx, |c| sqlx::query("UPDATE attempt SET secret_hash = $2 WHERE id = $1")
        .bind(id)
        .bind(secret_hash)
        .execute(c)
        .await
        .map(|done| done.rows_affected()))?;
    // One that began before attempts had their secrets themselves has a token.
    on_tx!(tx, |c| sqlx::query("DELETE FROM token WHERE attempt_id = $1").bind(id).execute(c).await.map(drop))?;
    if changed == 0 { Err(DbError::NotFound) } else { Ok(()) }
}

/// How an attempt stands.
#[derive(Clone, Debug, FromRow)]
pub struct Standing {
    id: AttemptId,
    state: AttemptState,
    epoch: i64,
}

impl Standing {
    /// Whether a write with this epoch belongs to the lease that holds now.
    pub fn check_epoch(&self, epoch: u64) -> DbResult<()> {
        check(self.state, self.epoch, epoch)
    }
}

/// How these attempts stand, and go on standing until the transaction ends: for what would be forgotten if it came while one of
/// them ends.
pub async fn stay(tx: &mut Tx, ids: &[&AttemptId]) -> DbResult<HashMap<AttemptId, Standing>> {
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let text = listed!(tx, "SELECT id, state, epoch FROM attempt WHERE ", "id", " ORDER BY id", lock " FOR SHARE");
    let rows: Vec<Standing> = on_tx!(tx, |c| sqlx::query_as(text).bind(Json(ids)).fetch_all(c).await)?;
    Ok(rows.into_iter().map(|row| (row.id.clone(), row)).collect())
}

/// Attempts with what belongs to them.
macro_rules! full {
    () => {
        "SELECT a.*, m.name AS machine_name, j.scenario, COALESCE(a.boots_build_id, r.build_id) AS build_id \
         FROM attempt a JOIN machine m ON m.id = a.machine_id JOIN job j ON j.id = a.job_id JOIN run r ON r.id = a.run_id WHERE "
    };
}

/// One attempt with what belongs to it.
pub async fn full(db: &Db, id: &AttemptId) -> DbResult<FullAttempt> {
    Ok(on!(db.read(), |c| sqlx::query_as(concat!(full!(), "a.id = $1")).bind(id).fetch_one(c).await)?)
}

/// Several attempts with what belongs to them.
pub async fn full_all(db: &Db, ids: &[&AttemptId]) -> DbResult<Vec<FullAttempt>> {
    let text = listed!(db.read(), full!(), "a.id", "");
    Ok(on!(db.read(), |c| sqlx::query_as(text).bind(Json(ids)).fetch_all(c).await)?)
}

/// Attempts, locked: nobody else changes one before this transaction has ended.
pub async fn lock(tx: &mut Tx, ids: &[&AttemptId]) -> DbResult<Vec<Locked>> {
    let text = listed!(
        tx,
        "SELECT a.*, j.flow_id, s.max_machines FROM attempt a JOIN job j ON j.id = a.job_id \
         LEFT JOIN submitter s ON s.id = a.submitter_id WHERE ",
        "a.id",
        " ORDER BY a.id",
        lock " FOR NO KEY UPDATE OF a"
    );
    Ok(on_tx!(tx, |c| sqlx::query_as(text).bind(Json(ids)).fetch_all(c).await)?)
}

/// Attempts' terms.
macro_rules! terms {
    () => {
        "SELECT a.id AS attempt_id, j.scenario, j.policy, b.release, b.build_id FROM attempt a JOIN job j ON j.id = a.job_id \
         JOIN run r ON r.id = a.run_id JOIN build b ON b.id = COALESCE(a.boots_build_id, r.build_id) WHERE "
    };
}

/// The terms of one attempt.
pub async fn terms(db: &Db, id: &AttemptId) -> DbResult<Terms> {
    Ok(on!(db.read(), |c| sqlx::query_as(concat!(terms!(), "a.id = $1")).bind(id).fetch_one(c).await)?)
}

/// The terms of several attempts.
pub async fn terms_of(tx: &mut Tx, ids: &[&AttemptId]) -> DbResult<Vec<Terms>> {
    let text = listed!(tx, terms!(), "a.id", "");
    Ok(on_tx!(tx, |c| sqlx::query_as(text).bind(Json(ids)).fetch_all(c).await)?)
}

/// The eight stages of an attempt, in order. One without a row is pending: what an attempt never reaches is never written.
pub async fn stages(db: &Db, id: &AttemptId) -> DbResult<Vec<Stage>> {
    let rows: Vec<StageRow> =
        on!(db.read(), |c| sqlx::query_as("SELECT attempt_id, body FROM stage WHERE attempt_id = $1")
            .bind(id)
            .fetch_all(c)
            .await)?;
    Ok(all_eight(rows.into_iter().filter_map(|row| row.body)))
}

/// The eight stages of each of these attempts.
pub async fn stages_of(tx: &mut Tx, ids: &[&AttemptId]) -> DbResult<HashMap<AttemptId, Vec<Stage>>> {
    let text = listed!(tx, "SELECT attempt_id, body FROM stage WHERE ", "attempt_id", "");
    let rows: Vec<StageRow> = on_tx!(tx, |c| sqlx::query_as(text).bind(Json(ids)).fetch_all(c).await)?;
    let mut written = by_attempt(rows);
    Ok(ids.iter().map(|id| ((*id).clone(), written.remove(*id).unwrap_or_else(|| all_eight(iter::empty())))).collect())
}

/// The eight stages of every attempt of a run.
pub async fn stages_of_run(db: &Db, run: &RunId) -> DbResult<HashMap<AttemptId, Vec<Stage>>> {
    let rows: Vec<StageRow> = on!(db.read(), |c| {
        sqlx::query_as(
        "SELECT a.id AS attempt_id, s.body FROM attempt a LEFT JOIN stage s ON s.attempt_id = a.id WHERE a.run_id = $1",
    )
    .bind(run)
    .fetch_all(c)
    .await
    })?;
    Ok(by_attempt(rows))
}

fn by_attempt(rows: Vec<StageRow>) -> HashMap<AttemptId, Vec<Stage>> {
    let mut written: HashMap<AttemptId, Vec<Json<Stage>>> = HashMap::new();
    for row in rows {
        written.entry(row.attempt_id).or_default().extend(row.body);
    }
    written.into_iter().map(|(id, stages)| (id, all_eight(stages.into_iter()))).collect()
}

fn all_eight(written: impl Iterator<Item = Json<Stage>>) -> Vec<Stage> {
    let mut stages: Vec<Stage> = StageName::ALL.iter().copied().map(Stage::pending).collect();
    for Json(stage) in written {
        if let Some(place) = stages.iter_mut().find(|one| one.name == stage.name) {
            *place = stage;
        }
    }
    stages
}

/// Every attempt of a run, oldest first.
pub async fn of_run(db: &Db, run: &RunId) -> DbResult<Vec<AttemptRow>> {
    Ok(on!(db.read(), |c| sqlx::query_as("SELECT * FROM attempt WHERE run_id = $1 ORDER BY id")
        .bind(run)
        .fetch_all(c)
        .await)?)
}

/// The newest attempts of a machine.
pub async fn of_machine(db: &Db, machine: &MachineId, limit: i64) -> DbResult<Vec<AttemptRow>> {
    Ok(on!(db.read(), |c| sqlx::query_as("SELECT * FROM attempt WHERE machine_id = $1 ORDER BY id DESC LIMIT $2")
        .bind(machine)
        .bind(limit)
        .fetch_all(c)
        .await)?)
}

/// Attempts that are to be judged now even though nothing arrived.
pub async fn due(db: &Db, now: Timestamp, limit: i64) -> DbResult<Vec<AttemptId>> {
    Ok(on!(db.read(), |c| sqlx::query_scalar(
        "SELECT id FROM attempt WHERE check_at IS NOT NULL AND check_at <= $1 ORDER BY check_at LIMIT $2",
    )
    .bind(now)
    .bind(limit)
    .fetch_all(c)
    .await)?)
}

/// When the next attempt is to be judged even if nothing arrives.
pub async fn next_due(db: &Db) -> DbResult<Option<Timestamp>> {
    Ok(on!(db.read(), |c| sqlx::query_scalar("SELECT MIN(check_at) FROM attempt WHERE check_at IS NOT NULL")
        .fetch_one(c)
        .await)?)
}

/// Attempts whose complete dump nobody has read yet and may still count: live ones, and those that ended before their judge
/// knew what is in it.
pub async fn unread_dumps(db: &Db, limit: i64) -> DbResult<Vec<AttemptId>> {
    Ok(on!(db.read(), |c| {
        sqlx::query_scalar(
            "SELECT id FROM attempt WHERE dump_at IS NOT NULL AND dump_facts IS NULL \
         AND (state IN ('running', 'collecting') OR judged_at IS NULL) ORDER BY id LIMIT $1",
        )
        .bind(limit)
        .fetch_all(c)
        .await
    })?)
}

#[derive(Serialize)]
struct Read<'a> {
    attempt: &'a AttemptId,
    facts: Kept<'a, serde_json::Value>,
}

/// Stores what was read in dumps; of each the first reading stays.
pub async fn set_dump_facts(tx: &mut Tx, readings: &[(&AttemptId, &serde_json::Value)]) -> DbResult<()> {
    if readings.is_empty() {
        return Ok(());
    }
    let kind = tx.kind();
    let rows: Vec<Read<'_>> =
        readings.iter().map(|(attempt, facts)| Read { attempt, facts: Kept(kind, *facts) }).collect();
    let text = given!(
        tx,
        update "attempt SET dump_facts = given.facts FROM ",
        [attempt text, facts jsonb],
        at "attempt.id" = "attempt",
        " AND dump_facts IS NULL"
    );
    on_tx!(tx, |c| sqlx::query(text).bind(Json(&rows)).execute(c).await.map(drop))?;
    Ok(())
}

/// Attempts that are over and that readers of this version have not read, newest first.
pub async fn unread_by(db: &Db, version: i64, limit: i64) -> DbResult<Vec<AttemptId>> {
    Ok(on!(db.read(), |c| {
        sqlx::query_scalar(
        "SELECT id FROM attempt WHERE state IN ('done', 'lost') AND read_by < $1 ORDER BY read_by DESC, id DESC LIMIT $2",
    )
    .bind(version)
    .bind(limit)
    .fetch_all(c)
    .await
    })?)
}

/// Notes that readers of this version have read these attempts.
pub async fn set_read_by(tx: &mut Tx, ids: &[&AttemptId], version: i64) -> DbResult<()> {
    write_in_order!(tx, "attempt", ids);
    let text = listed!(tx, update "attempt SET read_by = $2 WHERE ", "id", " AND read_by < $2");
    on_tx!(tx, |c| sqlx::query(text).bind(Json(ids)).bind(version).execute(c).await.map(drop))?;
    Ok(())
}

/// Every live attempt's id (after a start, each is judged once: evidence may have been written just before a crash).
pub async fn live(db: &Db) -> DbResult<Vec<AttemptId>> {
    Ok(on!(db.read(), |c| sqlx::query_scalar(
        "SELECT id FROM attempt WHERE state IN ('running', 'collecting') ORDER BY id",
    )
    .fetch_all(c)
    .await)?)
}

/// Of these attempts those whose dump's progress may be told now, each at most once for each `every`.
pub async fn may_tell_progress(
    tx: &mut Tx,
    ids: &[&AttemptId],
    now: Timestamp,
    every: Duration,
) -> DbResult<BTreeSet<AttemptId>> {
    if ids.is_empty() {
        return Ok(BTreeSet::new());
    }
    write_in_order!(tx, "attempt", ids);
    let text = listed!(
        tx,
        update "attempt SET progress_event_at = $2 WHERE (progress_event_at IS NULL OR progress_event_at <= $3) AND ",
        "id",
        " RETURNING id"
    );
    let every = i64::try_from(every.as_millis()).unwrap_or(i64::MAX);
    let told: Vec<AttemptId> = on_tx!(tx, |c| sqlx::query_scalar(text)
        .bind(Json(ids))
        .bind(now)
        .bind(Timestamp(now.0.saturating_sub(every)))
        .fetch_all(c)
        .await)?;
    Ok(told.into_iter().collect())
}
