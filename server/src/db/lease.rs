//! Leases: renewed, handed out again, handed back, run out.

use super::attempt::{self, AttemptRow, Locked};
use super::flow::{self, Had};
use super::given::{given, update_in_order};
use super::life::{self, SERVER};
use super::machine::{self, Leaving};
use super::{Db, DbError, DbResult, Tx, on, on_tx, reservation, signed};
use crate::trust::Rule;
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{AttemptId, AttemptState, ControllerId, MachineId, MachineState};
use serde::Serialize;
use sqlx::FromRow;
use sqlx::types::Json;
use std::collections::{BTreeSet, HashMap};

/// A lease to be prolonged.
#[derive(Clone, Debug, Serialize)]
pub struct Renewal {
    /// Of which attempt.
    pub attempt: AttemptId,
    /// Under which epoch.
    pub epoch: u64,
    /// Until when.
    pub until: Timestamp,
}

/// How a lease stands.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct Standing {
    /// The attempt.
    pub id: AttemptId,
    /// Its epoch.
    pub epoch: i64,
    /// Where the attempt is.
    pub state: AttemptState,
    /// Until when its machine is kept as it is.
    pub held_until: Option<Timestamp>,
    /// How often people typed into its consoles.
    pub keys: i64,
}

/// Prolongs leases. Time alone does not end one: as long as nobody has declared it lost, its holder may go on.
pub async fn renew(tx: &mut Tx, renewals: &[Renewal]) -> DbResult<Vec<DbResult<Standing>>> {
    // A request that was repeated may be at two servers.
    let text = update_in_order!(
        tx,
        "attempt" SET "lease_expires_at = given.until",
        [attempt text, epoch bigint, until bigint],
        "attempt",
        " AND attempt.epoch = given.epoch AND state IN ('running', 'collecting') \
         RETURNING attempt.id, attempt.epoch, state, held_until, keys"
    );
    let rows: Vec<Standing> = on_tx!(tx, |c| sqlx::query_as(text).bind(Json(renewals)).fetch_all(c).await)?;
    let renewed: HashMap<AttemptId, Standing> = rows.into_iter().map(|row| (row.id.clone(), row)).collect();
    let mut answers = Vec::with_capacity(renewals.len());
    for renewal in renewals {
        answers.push(match renewed.get(&renewal.attempt) {
            Some(standing) if standing.epoch == signed(renewal.epoch) => Ok(standing.clone()),
            _ => Err(why_not(tx, renewal).await?),
        });
    }
    Ok(answers)
}

/// Why a lease was not prolonged.
async fn why_not(tx: &mut Tx, renewal: &Renewal) -> DbResult<DbError> {
    Ok(match attempt::get_in(tx, &renewal.attempt).await {
        Ok(row) => match row.check_epoch(renewal.epoch) {
            Ok(()) => DbError::LeaseLost("the lease changed hands".into()),
            Err(why) => why,
        },
        Err(DbError::NotFound) => DbError::NotFound,
        Err(error) => return Err(error),
    })
}

/// How a lease stands under this epoch; an error if it is over.
pub async fn standing(db: &Db, id: &AttemptId, epoch: u64) -> DbResult<Standing> {
    let standing: Standing =
        on!(db.read(), |c| sqlx::query_as("SELECT id, epoch, state, held_until, keys FROM attempt WHERE id = $1",)
            .bind(id)
            .fetch_one(c)
            .await)?;
    attempt::check(standing.state, standing.epoch, epoch)?;
    Ok(standing)
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

impl End<'_> {
    /// Whether an attempt, which is locked, ends with it now: not, if it has ended like this before, or if a lost lease was renewed
    /// in the meantime.
    fn is_due(&self, attempt: &AttemptRow, now: Timestamp) -> DbResult<bool> {
        match self {
            Self::Lost => Ok(attempt.is_live() && attempt.lease_expires_at <= now),
            Self::Released { epoch, .. } if attempt.state == AttemptState::Done && attempt.epoch == signed(*epoch) => {
                Ok(false)
            }
            Self::Released { epoch, .. } => attempt.check_epoch(*epoch).map(|()| true),
        }
    }

    /// Makes of an attempt what it is after it.
    fn apply(&self, attempt: &mut AttemptRow, now: Timestamp) {
        attempt.finished_at = Some(now);
        match self {
            Self::Lost => attempt.state = AttemptState::Lost,
            Self::Released { healthy, detail, .. } => {
                attempt.state = AttemptState::Done;
                attempt.released_healthy = Some(*healthy);
                attempt.release_detail = Some((*detail).to_owned());
            }
        }
    }
}

/// Ends attempts: those that ended now. Their evidence is closed with it; the caller has them judged a last time, which settles
/// their jobs. Their machines are free, unless somebody waits for one or it is not trusted any more. A lost lease that was renewed
/// in the meantime stays; ending one twice in the same way is harmless.
pub async fn end(
    tx: &mut Tx,
    ends: &[(&AttemptId, End<'_>)],
    rule: &Rule,
    now: Timestamp,
) -> DbResult<Vec<AttemptRow>> {
    let ids: Vec<&AttemptId> = ends.iter().map(|(id, _)| *id).collect();
    let mut attempts = attempt::lock(tx, &ids).await?;
    let mut ended = BTreeSet::new();
    for ((id, _), now) in ends.iter().zip(end_all(tx, &mut attempts, ends, rule, now).await?) {
        if now? {
            ended.insert(*id);
        }
    }
    attempts.retain(|locked| ended.contains(&locked.attempt.id));
    flow::correct(tx, &attempts.iter().filter_map(Had::of).collect::<Vec<_>>()).await?;
    Ok(attempts.into_iter().map(|locked| locked.attempt).collect())
}

/// Ends several, which the caller has locked ([`attempt::lock`]) and which come to be what they are afterwards, as [`end`] does it,
/// but for what their submitters have had: the caller corrects that when nothing else needs a lock ([`flow::correct`]). For each, in
/// their order, whether it ended now and not before. Who is refused spoils nobody's end.
pub async fn end_all(
    tx: &mut Tx,
    attempts: &mut [Locked],
    ends: &[(&AttemptId, End<'_>)],
    rule: &Rule,
    now: Timestamp,
) -> DbResult<Vec<DbResult<bool>>> {
    let mut answers = Vec::with_capacity(ends.len());
    let mut ended = BTreeSet::new();
    for (id, end) in ends {
        let attempt = attempts.iter_mut().map(|locked| &mut locked.attempt).find(|attempt| attempt.id == **id);
        answers.push(attempt.ok_or(DbError::NotFound).and_then(|attempt| {
            let due = end.is_due(attempt, now)?;
            if due {
                end.apply(attempt, now);
                ended.insert(*id);
            }
            Ok(due)
        }));
    }
    let ended: Vec<&AttemptRow> =
        attempts.iter().map(|locked| &locked.attempt).filter(|attempt| ended.contains(&attempt.id)).collect();
    if !ended.is_empty() {
        write_ends(tx, &ended, now).await?;
        leave(tx, &ended, rule, now).await?;
    }
    Ok(answers)
}

#[derive(Serialize)]
struct Ended<'a> {
    attempt: &'a AttemptId,
    new_state: AttemptState,
    healthy: Option<bool>,
    detail: Option<&'a str>,
}

async fn write_ends(tx: &mut Tx, ended: &[&AttemptRow], now: Timestamp) -> DbResult<()> {
    let rows: Vec<Ended<'_>> = ended
        .iter()
        .map(|attempt| Ended {
            attempt: &attempt.id,
            new_state: attempt.state,
            healthy: attempt.released_healthy,
            detail: attempt.release_detail.as_deref(),
        })
        .collect();
    let text = given!(
        tx,
        update "attempt SET state = given.new_state, finished_at = $2, released_healthy = given.healthy, \
         release_detail = given.detail FROM ",
        [attempt text, new_state text, healthy boolean, detail text],
        at "attempt.id" = "attempt",
        ""
    );
    on_tx!(tx, |c| sqlx::query(text).bind(Json(&rows)).bind(now).execute(c).await.map(drop))?;
    Ok(())
}

/// Frees the machines of attempts that have ended.
async fn leave(tx: &mut Tx, ended: &[&AttemptRow], rule: &Rule, now: Timestamp) -> DbResult<()> {
    let leaving: Vec<Leaving<'_>> = ended.iter().map(|attempt| leaving(attempt, now)).collect();
    let left = machine::leave_attempts(tx, &leaving, now).await?;
    let held: Vec<&AttemptId> =
        ended.iter().filter(|attempt| attempt.held_until.is_some()).map(|attempt| &attempt.id).collect();
    reservation::close_holds(tx, &held, SERVER, now).await?;
    let of = |machine: &MachineId| left.iter().find(|one| one.id == *machine);
    let left: Vec<_> = ended.iter().filter_map(|attempt| Some((*attempt, of(&attempt.machine_id)?))).collect();
    life::after_attempts(tx, &left, rule, now).await
}

/// The machine of an attempt that has ended; its controller has it in its hand, or is not heard of.
fn leaving(attempt: &AttemptRow, now: Timestamp) -> Leaving<'_> {
    let (new_state, why, seen_at) = match attempt.state {
        AttemptState::Lost => {
            let id = &attempt.id;
            let why = format!("the lease of attempt {id} ran out; it waits until its controller calls it idle again");
            (MachineState::Enrolled, Some(why), None)
        }
        _ => (MachineState::Available, None, Some(now)),
    };
    Leaving { machine: &attempt.machine_id, from_attempt: &attempt.id, new_state, why, seen_at }
}
