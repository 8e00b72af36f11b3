//! The queue: which job a machine gets next.
//!
//! A claim costs one index lookup for each selector the machine satisfies, with ten jobs or ten million: jobs carry
//! their selector and their rank, and the head of each selector's queue is the first entry of `job_queue`.

use super::event::{self, About};
use super::machine::MachineRow;
use super::run::JobRow;
use super::{Db, on};
use super::{DbResult, Tx, on_tx};
use crate::db::attempt::AttemptRow;
use crashyard_protocol::api::EventBody;
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{AttemptId, ControllerId, JobState, MachineId, SelectorId, Status};

/// A lease to be written.
#[derive(Clone, Debug)]
pub struct NewLease {
    /// Id of the attempt.
    pub attempt: AttemptId,
    /// Who asks.
    pub controller: ControllerId,
    /// When.
    pub now: Timestamp,
    /// Until when it holds without being renewed.
    pub expires_at: Timestamp,
}

/// A lease that was given.
#[derive(Clone, Debug)]
pub struct Leased {
    /// The attempt.
    pub attempt: AttemptRow,
    /// Its job.
    pub job: JobRow,
    /// The machine.
    pub machine: MachineRow,
}

/// Free machines of a controller for which any job waits. Reads only.
pub async fn with_work(db: &Db, controller: &ControllerId) -> DbResult<Vec<MachineId>> {
    Ok(on!(db.read(), |c| sqlx::query_scalar(
        "SELECT m.id FROM machine m WHERE m.controller_id = $1 AND m.announced \
         AND m.state IN ('enrolled', 'available') AND EXISTS (SELECT 1 FROM machine_selector ms \
         JOIN job q ON q.selector_id = ms.selector_id AND q.state = 'queued' WHERE ms.machine_id = m.id)",
    )
    .bind(controller)
    .fetch_all(c)
    .await)?)
}

/// Machines that could take a job of this selector now.
pub async fn idle_machines(db: &Db, selector: &SelectorId) -> DbResult<Vec<MachineId>> {
    Ok(on!(db.read(), |c| sqlx::query_scalar(
        "SELECT m.id FROM machine_selector ms JOIN machine m ON m.id = ms.machine_id \
         WHERE ms.selector_id = $1 AND m.announced AND m.state IN ('enrolled', 'available')",
    )
    .bind(selector)
    .fetch_all(c)
    .await)?)
}

/// Selectors of a machine that have jobs waiting, and how many (counted up to 100).
pub async fn waiting_for(db: &Db, machine: &MachineId) -> DbResult<Vec<(SelectorId, i64)>> {
    Ok(on!(db.read(), |c| sqlx::query_as(
        "SELECT ms.selector_id, (SELECT COUNT(*) FROM (SELECT 1 FROM job q WHERE q.selector_id = ms.selector_id \
         AND q.state = 'queued' LIMIT 100) AS first) AS waiting FROM machine_selector ms WHERE ms.machine_id = $1",
    )
    .bind(machine)
    .fetch_all(c)
    .await)?)
}

/// Gives the machine the job that is its turn; `None` if there is none or the machine is not free.
pub async fn lease_next(tx: &mut Tx, machine: &MachineId, lease: &NewLease) -> DbResult<Option<Leased>> {
    let free: Option<MachineRow> = on_tx!(tx, |c| sqlx::query_as(
        "SELECT * FROM machine WHERE id = $1 AND controller_id = $2 AND announced \
         AND state IN ('enrolled', 'available')",
    )
    .bind(machine)
    .bind(&lease.controller)
    .fetch_optional(c)
    .await)?;
    if free.is_none() {
        return Ok(None);
    }
    let Some(job) = take_head(tx, machine).await? else { return Ok(None) };
    let machine: Option<MachineRow> = on_tx!(tx, |c| sqlx::query_as(
        "UPDATE machine SET state = 'leased', reason = NULL, state_since = $2, attempt_id = $3, \
         lease_epoch = lease_epoch + 1, last_seen_at = $2 \
         WHERE id = $1 AND state IN ('enrolled', 'available') RETURNING *",
    )
    .bind(machine)
    .bind(lease.now)
    .bind(&lease.attempt)
    .fetch_optional(c)
    .await)?;
    // Lost against another server: the caller rolls back, and the job is as it was.
    let Some(machine) = machine else { return Ok(None) };
    let attempt: AttemptRow = on_tx!(tx, |c| sqlx::query_as(
        "INSERT INTO attempt (id, job_id, run_id, number, machine_id, controller_id, epoch, state, verdict, \
         judgement_seq, lease_expires_at, started_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, 'running', 'MISS', 0, $8, $9) RETURNING *",
    )
    .bind(&lease.attempt)
    .bind(&job.id)
    .bind(&job.run_id)
    .bind(job.attempt_count)
    .bind(&machine.id)
    .bind(&lease.controller)
    .bind(machine.lease_epoch)
    .bind(lease.expires_at)
    .bind(lease.now)
    .fetch_one(c)
    .await)?;
    let about = About { run: &job.run_id, job: Some(&job.id), attempt: Some(&attempt.id) };
    event::append(tx, about, lease.now, EventBody::Job { state: JobState::Leased, status: Status::Miss }).await?;
    let started = EventBody::AttemptStarted {
        machine: machine.name.clone(),
        number: u32::try_from(attempt.number).unwrap_or(u32::MAX),
    };
    event::append(tx, about, lease.now, started).await?;
    Ok(Some(Leased { attempt, job, machine }))
}

/// Takes the first waiting job of all selectors the machine satisfies.
async fn take_head(tx: &mut Tx, machine: &MachineId) -> DbResult<Option<JobRow>> {
    // Another server may take the head between the two statements (PostgreSQL only); then the next head is tried.
    for _ in 0..8 {
        let head: Option<(String,)> = on_tx!(tx, |c| sqlx::query_as(
            "SELECT j.id FROM machine_selector ms JOIN job j ON j.id = (SELECT q.id FROM job q \
             WHERE q.selector_id = ms.selector_id AND q.state = 'queued' ORDER BY q.rank, q.id LIMIT 1) \
             WHERE ms.machine_id = $1 ORDER BY j.rank, j.id LIMIT 1",
        )
        .bind(machine)
        .fetch_optional(c)
        .await)?;
        let Some((head,)) = head else { return Ok(None) };
        let taken: Option<JobRow> = on_tx!(tx, |c| sqlx::query_as(
            "UPDATE job SET state = 'leased', attempt_count = attempt_count + 1 \
             WHERE id = $1 AND state = 'queued' RETURNING *",
        )
        .bind(&head)
        .fetch_optional(c)
        .await)?;
        if taken.is_some() {
            return Ok(taken);
        }
    }
    Ok(None)
}
