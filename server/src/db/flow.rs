//! Flows and submitters: the state that fair share keeps, and how it moves.
//!
//! A flow is the queue of one submitter's jobs of one priority for one selector. A submitter's virtual time is the machine
//! time it has had divided by its weight; who has the least comes next. It is charged with an estimate when a lease is
//! given, so that a thousand claims at once are shared too, and corrected when the attempt ends.
//!
//! Locks on PostgreSQL are taken in the order job, machine, run, flow, submitter, and inside each by id, so that no two
//! transactions wait for each other.

use super::attempt::Locked;
use super::given::update_in_order;
use super::{Db, DbResult, Tx, on, on_tx};
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{AttemptId, FlowId, Priority, SelectorId, SubmitterId};
use serde::Serialize;
use sqlx::FromRow;
use sqlx::types::Json;
use std::collections::BTreeMap;
use std::time::Duration;

/// Charged for an attempt of a flow that has had none yet, in milliseconds.
pub const FIRST_CHARGE_MS: i64 = 60_000;
/// How far a submitter may be ahead of the one that is next, in virtual time: who was alone on machines that nobody
/// else wanted does not pay for it for ever.
pub const DEBT_MAX: i64 = 4 * 3600 * 1_000_000;
/// Who has waited for longer than this and got nothing waits for machines that others do not get either.
const SERVED_LATELY_MS: i64 = 3_600_000;

/// Whoever's jobs share one part of the farm.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct SubmitterRow {
    /// Id.
    pub id: SubmitterId,
    /// `tree:NAME` or `token:NAME`.
    pub name: String,
    /// Its part.
    pub weight: i64,
    /// Most machines at once.
    pub max_machines: Option<i64>,
    /// Microseconds of machine time divided by the weight.
    pub virtual_time: i64,
    /// Machine time it has had.
    pub machine_ms: i64,
    /// When it first submitted.
    pub created_at: Timestamp,
}

/// A submitter with what it has at the moment.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct SubmitterNow {
    /// The submitter.
    #[sqlx(flatten)]
    pub submitter: SubmitterRow,
    /// Machines it has.
    pub machines: i64,
    /// Whether it may have jobs waiting.
    pub waiting: bool,
}

/// The queue of one submitter, priority and selector.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct FlowRow {
    /// Id.
    pub id: FlowId,
    /// Which machines its jobs may have.
    pub selector_id: SelectorId,
    /// Whose they are.
    pub submitter_id: SubmitterId,
    /// How soon they are wanted.
    pub priority: Priority,
    /// Place among the classes as it is now, with age.
    pub class: i64,
    /// Whether there may be a queued job.
    pub waiting: bool,
    /// How long its attempts take; 0 is not known.
    pub mean_ms: i64,
}

/// The submitter of this name; made with weight 1 if there is none.
pub async fn put_submitter(tx: &mut Tx, id: &SubmitterId, name: &str, now: Timestamp) -> DbResult<SubmitterId> {
    on_tx!(tx, |c| sqlx::query(
        "INSERT INTO submitter (id, name, weight, virtual_time, machine_ms, served_at, created_at) \
         VALUES ($1, $2, 1, 0, 0, 0, $3) ON CONFLICT (name) DO NOTHING",
    )
    .bind(id)
    .bind(name)
    .bind(now)
    .execute(c)
    .await
    .map(drop))?;
    Ok(on_tx!(tx, |c| sqlx::query_scalar("SELECT id FROM submitter WHERE name = $1").bind(name).fetch_one(c).await)?)
}

/// The flow of a selector, submitter and priority; made if there is none.
pub async fn put_flow(
    tx: &mut Tx,
    id: &FlowId,
    selector: &SelectorId,
    submitter: &SubmitterId,
    priority: Priority,
) -> DbResult<FlowId> {
    on_tx!(tx, |c| sqlx::query(
        "INSERT INTO flow (id, selector_id, submitter_id, priority, class, waiting, mean_ms) \
         VALUES ($1, $2, $3, $4, $5, FALSE, 0) ON CONFLICT DO NOTHING",
    )
    .bind(id)
    .bind(selector)
    .bind(submitter)
    .bind(priority)
    .bind(priority.class())
    .execute(c)
    .await
    .map(drop))?;
    Ok(on_tx!(tx, |c| sqlx::query_scalar(
        "SELECT id FROM flow WHERE selector_id = $1 AND submitter_id = $2 AND priority = $3",
    )
    .bind(selector)
    .bind(submitter)
    .bind(priority)
    .fetch_one(c)
    .await)?)
}

/// Says that a flow has a queued job. Called after the job is written; its row lock is what [`retire`] waits for.
pub async fn fill(tx: &mut Tx, id: &FlowId, now: Timestamp) -> DbResult<()> {
    let flow: Option<FlowRow> =
        on_tx!(tx, |c| sqlx::query_as("SELECT * FROM flow WHERE id = $1").bind(id).fetch_optional(c).await)?;
    let Some(flow) = flow else { return Ok(()) };
    let active: i64 =
        on_tx!(tx, |c| sqlx::query_scalar("SELECT COUNT(*) FROM flow WHERE submitter_id = $1 AND waiting")
            .bind(&flow.submitter_id)
            .fetch_one(c)
            .await)?;
    // Always written, even where nothing changes: for the lock.
    on_tx!(tx, |c| sqlx::query(
        "UPDATE flow SET class = CASE WHEN waiting THEN class ELSE $2 END, waiting = TRUE WHERE id = $1",
    )
    .bind(id)
    .bind(flow.priority.class())
    .execute(c)
    .await
    .map(drop))?;
    if active == 0 { arrive(tx, &flow, now).await } else { Ok(()) }
}

/// A submitter that had nothing waiting gets no credit for the time: it starts where those are with whom it competes for
/// machines. Somebody who waits for machines that do not exist competes with nobody.
async fn arrive(tx: &mut Tx, flow: &FlowRow, now: Timestamp) -> DbResult<()> {
    let competitor: Option<i64> = on_tx!(tx, |c| {
        sqlx::query_scalar(
        "SELECT s.virtual_time FROM submitter s WHERE s.id <> $1 AND s.served_at > $2 AND EXISTS (SELECT 1 FROM flow f \
         WHERE f.submitter_id = s.id AND f.waiting AND (f.selector_id = $3 OR EXISTS (SELECT 1 FROM machine_selector a \
         JOIN machine_selector b ON b.machine_id = a.machine_id \
         WHERE a.selector_id = $3 AND b.selector_id = f.selector_id))) ORDER BY s.virtual_time LIMIT 1",
    )
    .bind(&flow.submitter_id)
    .bind(now.0.saturating_sub(SERVED_LATELY_MS))
    .bind(&flow.selector_id)
    .fetch_optional(c)
    .await
    })?;
    let start: Option<i64> = match competitor {
        Some(start) => Some(start),
        // Nobody waits, so nobody is owed anything: all are level.
        None => on_tx!(tx, |c| sqlx::query_scalar(
            "SELECT MAX(s.virtual_time) FROM flow f JOIN submitter s ON s.id = f.submitter_id \
                 WHERE f.selector_id = $1",
        )
        .bind(&flow.selector_id)
        .fetch_one(c)
        .await)?,
    };
    on_tx!(tx, |c| sqlx::query("UPDATE submitter SET virtual_time = $2 WHERE id = $1 AND virtual_time < $2")
        .bind(&flow.submitter_id)
        .bind(start.unwrap_or(0))
        .execute(c)
        .await
        .map(drop))?;
    Ok(())
}

/// Says that a flow has no queued job, if that is so.
pub async fn retire(tx: &mut Tx, id: &FlowId) -> DbResult<()> {
    if let Tx::Postgres(tx) = tx {
        // Whoever adds a job holds this lock until its commit; what comes after sees the job.
        sqlx::query("SELECT 1 FROM flow WHERE id = $1 FOR UPDATE").bind(id).execute(&mut **tx).await?;
    }
    on_tx!(tx, |c| sqlx::query(
        "UPDATE flow SET waiting = FALSE WHERE id = $1 \
         AND NOT EXISTS (SELECT 1 FROM job WHERE flow_id = $1 AND state = 'queued')",
    )
    .bind(id)
    .execute(c)
    .await
    .map(drop))?;
    Ok(())
}

/// Submitters that may have jobs waiting.
pub async fn shares(tx: &mut Tx) -> DbResult<Vec<SubmitterRow>> {
    Ok(on_tx!(tx, |c| sqlx::query_as(
        "SELECT s.* FROM submitter s WHERE EXISTS (SELECT 1 FROM flow f WHERE f.submitter_id = s.id AND f.waiting)",
    )
    .fetch_all(c)
    .await)?)
}

/// Machines a submitter has, counted up to `most`. Until the transaction ends no other one is told, so that two servers
/// do not both find room. It is a lock that only claims take, each in the order of ids.
pub async fn machines_held(tx: &mut Tx, id: &SubmitterId, most: i64) -> DbResult<i64> {
    if let Tx::Postgres(tx) = tx {
        let lock = "SELECT pg_advisory_xact_lock(7267326, hashtext($1))";
        sqlx::query(lock).bind(id).execute(&mut **tx).await?;
    }
    Ok(on_tx!(tx, |c| sqlx::query_scalar(
        "SELECT COUNT(*) FROM (SELECT 1 FROM attempt WHERE submitter_id = $1 \
         AND state IN ('running', 'collecting') LIMIT $2) AS held",
    )
    .bind(id)
    .bind(most)
    .fetch_one(c)
    .await)?)
}

/// What a submitter is charged with.
#[derive(Debug, Serialize)]
pub struct Charge<'a> {
    /// Who.
    pub id: &'a SubmitterId,
    /// Virtual time.
    pub added: i64,
    /// The time, if it has got a machine.
    pub now: Option<Timestamp>,
}

/// Charges submitters with virtual time, but none beyond `limit`.
pub async fn charge(tx: &mut Tx, charges: &[Charge<'_>], limit: i64) -> DbResult<()> {
    if charges.is_empty() {
        return Ok(());
    }
    let text = update_in_order!(
        tx,
        "submitter" SET "virtual_time = CASE WHEN virtual_time + given.added < $2 THEN virtual_time + given.added \
         ELSE $2 END, served_at = COALESCE(given.now, served_at)",
        [id text, added bigint, now bigint],
        "id",
        ""
    );
    on_tx!(tx, |c| sqlx::query(text).bind(Json(charges)).bind(limit).execute(c).await.map(drop))?;
    Ok(())
}

/// What a submitter has had: the machine time of an attempt that has ended.
#[derive(Clone, Debug)]
pub struct Had {
    submitter: SubmitterId,
    flow: FlowId,
    charged_ms: i64,
    took_ms: i64,
}

impl Had {
    /// Of an attempt; one from before there was fair share was nobody's, and was not charged.
    #[must_use]
    pub fn of(locked: &Locked) -> Option<Self> {
        let attempt = &locked.attempt;
        let took = attempt.finished_at.unwrap_or(attempt.started_at).since(attempt.started_at);
        Some(Self {
            submitter: locked.submitter_id.clone()?,
            flow: locked.flow_id.clone(),
            charged_ms: locked.charged_ms.unwrap_or(0),
            took_ms: i64::try_from(took.as_millis()).unwrap_or(i64::MAX / 2000),
        })
    }
}

#[derive(Serialize)]
struct Took<'a> {
    flow: &'a FlowId,
    took: i64,
}

#[derive(Serialize)]
struct Correction<'a> {
    submitter: &'a SubmitterId,
    more: i64,
    took: i64,
}

/// Puts the real machine time of attempts that have ended in the place of the estimates. Those of one flow that end together
/// count there with their mean.
pub async fn correct(tx: &mut Tx, ended: &[Had]) -> DbResult<()> {
    if ended.is_empty() {
        return Ok(());
    }
    let mut flows: BTreeMap<&FlowId, Vec<i64>> = BTreeMap::new();
    let mut submitters: BTreeMap<&SubmitterId, (i64, i64)> = BTreeMap::new();
    for one in ended {
        flows.entry(&one.flow).or_default().push(one.took_ms.max(1));
        let (more, all) = submitters.entry(&one.submitter).or_default();
        *more += one.took_ms - one.charged_ms;
        *all += one.took_ms;
    }
    let mean = |all: &[i64]| all.iter().sum::<i64>() / i64::try_from(all.len()).unwrap_or(i64::MAX);
    let flows: Vec<Took<'_>> = flows.iter().map(|(flow, all)| Took { flow, took: mean(all) }).collect();
    let submitters: Vec<Correction<'_>> =
        submitters.iter().map(|(submitter, (more, took))| Correction { submitter, more: *more, took: *took }).collect();
    write_means(tx, &flows).await?;
    write_times(tx, &submitters).await
}

async fn write_means(tx: &mut Tx, flows: &[Took<'_>]) -> DbResult<()> {
    let text = update_in_order!(
        tx,
        "flow" SET "mean_ms = CASE WHEN mean_ms = 0 THEN given.took ELSE (mean_ms * 7 + given.took) / 8 END",
        [flow text, took bigint],
        "flow",
        ""
    );
    on_tx!(tx, |c| sqlx::query(text).bind(Json(flows)).execute(c).await.map(drop))?;
    Ok(())
}

async fn write_times(tx: &mut Tx, submitters: &[Correction<'_>]) -> DbResult<()> {
    let text = update_in_order!(
        tx,
        "submitter" SET "virtual_time = virtual_time + given.more * 1000 / weight, machine_ms = machine_ms + given.took",
        [submitter text, more bigint, took bigint],
        "submitter",
        ""
    );
    on_tx!(tx, |c| sqlx::query(text).bind(Json(submitters)).execute(c).await.map(drop))?;
    Ok(())
}

#[derive(FromRow)]
struct Head {
    #[sqlx(flatten)]
    flow: FlowRow,
    oldest: Option<Timestamp>,
}

/// Flows whose class is not what the age of their first job says, and what it should be: one class forward for each
/// `step` it has waited. Costs one look at an index for each waiting flow.
pub async fn aged(db: &Db, now: Timestamp, step: Duration) -> DbResult<Vec<(FlowId, i64)>> {
    let heads: Vec<Head> = on!(db.read(), |c| sqlx::query_as(
        "SELECT f.*, (SELECT j.created_at FROM job j WHERE j.flow_id = f.id AND j.state = 'queued' \
         ORDER BY j.rank, j.id LIMIT 1) AS oldest FROM flow f WHERE f.waiting ORDER BY f.id",
    )
    .fetch_all(c)
    .await)?;
    let step = step.as_millis().max(1);
    let class = |head: &Head| {
        let steps = now.since(head.oldest?).as_millis() / step;
        let class = (head.flow.priority.class() - i64::try_from(steps).unwrap_or(i64::MAX)).max(0);
        (class != head.flow.class).then(|| (head.flow.id.clone(), class))
    };
    Ok(heads.iter().filter_map(class).collect())
}

/// Sets classes, in the order given (by id, for the locks).
pub async fn set_classes(tx: &mut Tx, classes: &[(FlowId, i64)]) -> DbResult<()> {
    for (flow, class) in classes {
        on_tx!(tx, |c| sqlx::query("UPDATE flow SET class = $2 WHERE id = $1")
            .bind(flow)
            .bind(class)
            .execute(c)
            .await
            .map(drop))?;
    }
    Ok(())
}

/// Every submitter with what it has now, by name.
pub async fn submitters(db: &Db) -> DbResult<Vec<SubmitterNow>> {
    Ok(on!(db.read(), |c| sqlx::query_as(
        "SELECT s.*, (SELECT COUNT(*) FROM attempt a WHERE a.submitter_id = s.id \
         AND a.state IN ('running', 'collecting')) AS machines, \
         EXISTS (SELECT 1 FROM flow f WHERE f.submitter_id = s.id AND f.waiting) AS waiting \
         FROM submitter s ORDER BY s.name",
    )
    .fetch_all(c)
    .await)?)
}

/// Sets what an administrator may set; `NotFound` if there is no such submitter.
pub async fn set_submitter(tx: &mut Tx, id: &SubmitterId, weight: i64, max_machines: Option<i64>) -> DbResult<()> {
    let _: SubmitterRow = on_tx!(tx, |c| sqlx::query_as(
        "UPDATE submitter SET weight = $2, max_machines = $3 WHERE id = $1 RETURNING *",
    )
    .bind(id)
    .bind(weight)
    .bind(max_machines)
    .fetch_one(c)
    .await)?;
    Ok(())
}

/// Selectors for which a submitter may have jobs waiting.
pub async fn selectors_of(db: &Db, id: &SubmitterId) -> DbResult<Vec<SelectorId>> {
    Ok(on!(db.read(), |c| sqlx::query_scalar(
        "SELECT DISTINCT selector_id FROM flow WHERE submitter_id = $1 AND waiting",
    )
    .bind(id)
    .fetch_all(c)
    .await)?)
}

/// The name of the submitter whose machine time an attempt takes.
pub async fn submitter_of(tx: &mut Tx, attempt: &AttemptId) -> DbResult<Option<String>> {
    Ok(on_tx!(tx, |c| sqlx::query_scalar(
        "SELECT s.name FROM attempt a JOIN submitter s ON s.id = a.submitter_id WHERE a.id = $1",
    )
    .bind(attempt)
    .fetch_optional(c)
    .await)?)
}
