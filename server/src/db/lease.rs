//! Leases: renewed, handed out again, handed back, run out.

use super::attempt::{self, AttemptRow};
use super::event::{self, About};
use super::run::{self, JobChange};
use super::{Db, DbError, DbResult, Tx, flow, machine, on, on_tx, signed};
use crashyard_protocol::api::EventBody;
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{AttemptId, AttemptState, ControllerId, JobState, MachineId, MachineState, Status};

/// Prolongs a lease. Time alone does not end it: as long as nobody has declared it lost, its holder may go on.
pub async fn renew(tx: &mut Tx, id: &AttemptId, epoch: u64, expires_at: Timestamp) -> DbResult<AttemptRow> {
    let renewed: Option<AttemptRow> = on_tx!(tx, |c| {
        sqlx::query_as(
        "UPDATE attempt SET lease_expires_at = $3 WHERE id = $1 AND epoch = $2 AND state IN ('running', 'collecting') \
         RETURNING *",
    )
    .bind(id)
    .bind(signed(epoch))
    .bind(expires_at)
    .fetch_optional(c)
    .await
    })?;
    match renewed {
        Some(renewed) => Ok(renewed),
        None => {
            attempt::get_in(tx, id).await?.check_epoch(epoch)?;
            Err(DbError::LeaseLost("the lease changed hands".into()))
        }
    }
}

/// A lease that this controller holds on a machine it calls idle, and of which nothing has come yet.
///
/// The answer to its claim was lost on the way, or it died before it wrote the lease down. Nothing was done to the
/// machine (an agent records before it acts, and sends what it recorded), so the lease is handed out again under a
/// new epoch, which fences off whoever may still have the first copy.
pub async fn hand_out_again(
    tx: &mut Tx,
    machine: &MachineId,
    controller: &ControllerId,
    expires_at: Timestamp,
) -> DbResult<Option<AttemptRow>> {
    let held: Option<AttemptRow> = on_tx!(tx, |c| sqlx::query_as(
        "SELECT * FROM attempt WHERE machine_id = $1 AND controller_id = $2 AND state = 'running'",
    )
    .bind(machine)
    .bind(controller)
    .fetch_optional(c)
    .await)?;
    let Some(held) = held else { return Ok(None) };
    if super::report::anything_came(tx, &held.id).await? {
        return Ok(None);
    }
    let epoch: i64 = on_tx!(tx, |c| sqlx::query_scalar(
        "UPDATE machine SET lease_epoch = lease_epoch + 1 WHERE id = $1 AND attempt_id = $2 RETURNING lease_epoch",
    )
    .bind(machine)
    .bind(&held.id)
    .fetch_one(c)
    .await)?;
    Ok(on_tx!(tx, |c| sqlx::query_as(
        "UPDATE attempt SET epoch = $2, lease_expires_at = $3 WHERE id = $1 AND state = 'running' RETURNING *",
    )
    .bind(&held.id)
    .bind(epoch)
    .bind(expires_at)
    .fetch_optional(c)
    .await)?)
}

/// Live attempts whose lease has run out.
pub async fn expired(db: &Db, now: Timestamp, limit: i64) -> DbResult<Vec<AttemptId>> {
    Ok(on!(db.read(), |c| sqlx::query_scalar(
        "SELECT id FROM attempt WHERE state IN ('running', 'collecting') AND lease_expires_at <= $1 \
         ORDER BY lease_expires_at LIMIT $2",
    )
    .bind(now)
    .bind(limit)
    .fetch_all(c)
    .await)?)
}

/// When the next lease runs out.
pub async fn next_expiry(db: &Db) -> DbResult<Option<Timestamp>> {
    Ok(on!(db.read(), |c| sqlx::query_scalar(
        "SELECT MIN(lease_expires_at) FROM attempt WHERE state IN ('running', 'collecting')",
    )
    .fetch_one(c)
    .await)?)
}

/// How an attempt ends.
#[derive(Clone, Debug)]
pub enum End<'a> {
    /// Its controller handed the lease back.
    Released {
        /// With which epoch.
        epoch: u64,
        /// Whether the machine may take the next job.
        healthy: bool,
        /// What was checked, or what failed.
        detail: &'a str,
    },
    /// Its lease ran out before this moment.
    Lost,
}

/// Ends an attempt. Its evidence is closed with it; the caller judges it a last time and then settles the job with
/// [`settle`]. `Ok(None)` if a lost lease was renewed in the meantime; ending it twice in the same way is harmless.
pub async fn end(tx: &mut Tx, id: &AttemptId, end: &End<'_>, now: Timestamp) -> DbResult<Option<AttemptRow>> {
    let (state, expired_before, epoch, healthy, detail) = match end {
        End::Released { epoch, healthy, detail } => {
            (AttemptState::Done, Timestamp(i64::MAX), Some(signed(*epoch)), Some(*healthy), Some(*detail))
        }
        End::Lost => (AttemptState::Lost, now, None, None, None),
    };
    let ended: Option<AttemptRow> = on_tx!(tx, |c| sqlx::query_as(
        "UPDATE attempt SET state = $2, finished_at = $3, released_healthy = $6, release_detail = $7, \
         judgement_seq = judgement_seq + 1 \
         WHERE id = $1 AND state IN ('running', 'collecting') AND lease_expires_at <= $4 \
         AND epoch = COALESCE($5, epoch) RETURNING *",
    )
    .bind(id)
    .bind(state)
    .bind(now)
    .bind(expired_before)
    .bind(epoch)
    .bind(healthy)
    .bind(detail)
    .fetch_optional(c)
    .await)?;
    let Some(ended) = ended else {
        return match end {
            End::Lost => Ok(None),
            End::Released { epoch, .. } => {
                let row = attempt::get_in(tx, id).await?;
                if row.state == AttemptState::Done && row.epoch == signed(*epoch) {
                    return Ok(None);
                }
                row.check_epoch(*epoch)?;
                Err(DbError::LeaseLost("the lease changed hands".into()))
            }
        };
    };
    let lost = format!("the lease of attempt {id} ran out; it waits until its controller calls it idle again");
    let (machine_state, reason) = match end {
        End::Released { healthy: true, .. } => (MachineState::Available, None),
        End::Released { detail, .. } => (MachineState::Quarantined, Some(*detail)),
        End::Lost => (MachineState::Enrolled, Some(lost.as_str())),
    };
    machine::leave_attempt(tx, &ended.machine_id, id, machine_state, reason, now).await?;
    flow::correct(tx, id).await?;
    Ok(Some(ended))
}

/// What becomes of a job when its attempt has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// It has its verdict.
    Done,
    /// It waits for another machine.
    Queued,
    /// It was settled before.
    Before,
}

/// Settles the job of an attempt that has ended: with the attempt's verdict, or, where there is none (the lab did not
/// deliver), with another try as long as fewer than `max_attempts` were made.
pub async fn settle(tx: &mut Tx, ended: &AttemptRow, max_attempts: u32, now: Timestamp) -> DbResult<Settled> {
    // The first to come settles it; the row's lock makes others wait and then find it settled.
    let owed = on_tx!(tx, |c| sqlx::query(
        "UPDATE job SET attempt_count = attempt_count WHERE id = $1 AND state = 'leased' AND attempt_count = $2",
    )
    .bind(&ended.job_id)
    .bind(ended.number)
    .execute(c)
    .await
    .map(|done| done.rows_affected()))?;
    if owed == 0 {
        return Ok(Settled::Before);
    }
    let again = ended.verdict == Status::Miss && ended.number < i64::from(max_attempts);
    let about = About { run: &ended.run_id, job: Some(&ended.job_id), attempt: Some(&ended.id) };
    event::append(tx, about, now, EventBody::AttemptDone).await?;
    let change = JobChange {
        state: if again { JobState::Queued } else { JobState::Done },
        status: ended.verdict,
        reason: ended.reason.as_deref(),
        blamed_stage: ended.blamed_stage,
    };
    run::change_job(tx, &ended.job_id, &change, now).await?;
    Ok(if again { Settled::Queued } else { Settled::Done })
}

/// Attempts that have ended and whose job is still theirs: the server died between the two steps.
pub async fn unsettled(db: &Db, limit: i64) -> DbResult<Vec<AttemptId>> {
    Ok(on!(db.read(), |c| sqlx::query_scalar(
        "SELECT a.id FROM job j JOIN attempt a ON a.job_id = j.id AND a.number = j.attempt_count \
         WHERE j.state = 'leased' AND a.state IN ('done', 'lost') ORDER BY a.id LIMIT $1",
    )
    .bind(limit)
    .fetch_all(c)
    .await)?)
}

/// Records that this server is up; returns when any server was last seen before.
pub async fn presence(tx: &mut Tx, server: &str, started_at: Timestamp, now: Timestamp) -> DbResult<Option<Timestamp>> {
    let last: Option<Timestamp> =
        on_tx!(tx, |c| sqlx::query_scalar("SELECT MAX(seen_at) FROM server_seen").fetch_one(c).await)?;
    on_tx!(tx, |c| sqlx::query(
        "INSERT INTO server_seen (id, started_at, seen_at) VALUES ($1, $2, $3) \
         ON CONFLICT (id) DO UPDATE SET seen_at = excluded.seen_at",
    )
    .bind(server)
    .bind(started_at)
    .bind(now)
    .execute(c)
    .await
    .map(drop))?;
    Ok(last)
}

/// Records a time in which no server was up.
pub async fn record_away(tx: &mut Tx, from: Timestamp, to: Timestamp) -> DbResult<()> {
    on_tx!(tx, |c| sqlx::query("INSERT INTO server_away (from_at, to_at) VALUES ($1, $2) ON CONFLICT DO NOTHING")
        .bind(from)
        .bind(to)
        .execute(c)
        .await
        .map(drop))?;
    Ok(())
}

/// The times in which no server was up, as far as they reach behind `since`.
pub async fn away_since(db: &Db, since: Timestamp) -> DbResult<Vec<(Timestamp, Timestamp)>> {
    Ok(on!(db.read(), |c| sqlx::query_as(
        "SELECT from_at, to_at FROM server_away WHERE to_at >= $1 ORDER BY from_at LIMIT 1000",
    )
    .bind(since)
    .fetch_all(c)
    .await)?)
}
