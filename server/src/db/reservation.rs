//! Machines taken by people, and machines kept for people after a failure.
//!
//! A machine has at most one open reservation (the database refuses a second). One on a machine that an attempt owns
//! waits for the attempt's end; one that *holds* an attempt's machine keeps the attempt from returning it.

use super::errand::{self, ErrandRow, Kind};
use super::given::listed;
use super::life::{self, ChangeRow, SERVER};
use super::notice;
use super::{Db, DbError, DbResult, Tx, on, on_tx};
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{AttemptId, ErrandId, MachineId, MachineState, NoticeEvent, ReservationId};
use sqlx::FromRow;
use sqlx::types::Json;
use std::collections::BTreeSet;

/// A machine somebody has, or gets next.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct ReservationRow {
    /// Id.
    pub id: ReservationId,
    /// The machine.
    pub machine_id: MachineId,
    /// Whose it is.
    pub owner: String,
    /// What for.
    pub reason: String,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When the machine was theirs.
    pub began_at: Option<Timestamp>,
    /// When it ends by itself.
    pub until_at: Timestamp,
    /// When its end was announced.
    pub warned_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// Who ended it.
    pub ended_by: Option<String>,
    /// The failed attempt that the machine is kept for.
    pub attempt_id: Option<AttemptId>,
    /// Why the machine is quarantined again afterwards, if it is.
    pub quarantine_reason: Option<String>,
    /// Until when it is.
    pub quarantine_until: Option<Timestamp>,
    /// Whom to tell when it ends, as its owner said it.
    pub notify: Option<String>,
}

impl ReservationRow {
    /// As a reason why nobody else gets the machine.
    fn reason_with_owner(&self) -> String {
        format!("{}: {}", self.owner, self.reason)
    }
}

/// The open reservation of a machine.
pub async fn open(db: &Db, machine: &MachineId) -> DbResult<Option<ReservationRow>> {
    Ok(on!(db.read(), |c| sqlx::query_as("SELECT * FROM reservation WHERE machine_id = $1 AND ended_at IS NULL")
        .bind(machine)
        .fetch_optional(c)
        .await)?)
}

/// Every open reservation.
pub async fn all_open(db: &Db) -> DbResult<Vec<ReservationRow>> {
    Ok(on!(db.read(), |c| sqlx::query_as("SELECT * FROM reservation WHERE ended_at IS NULL ORDER BY until_at, id")
        .fetch_all(c)
        .await)?)
}

async fn open_in(tx: &mut Tx, machine: &MachineId) -> DbResult<Option<ReservationRow>> {
    Ok(on_tx!(tx, |c| sqlx::query_as("SELECT * FROM reservation WHERE machine_id = $1 AND ended_at IS NULL")
        .bind(machine)
        .fetch_optional(c)
        .await)?)
}

async fn insert(tx: &mut Tx, row: &ReservationRow) -> DbResult<()> {
    on_tx!(tx, |c| sqlx::query(
        "INSERT INTO reservation (id, machine_id, owner, reason, created_at, began_at, until_at, attempt_id, notify) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(&row.id)
    .bind(&row.machine_id)
    .bind(&row.owner)
    .bind(&row.reason)
    .bind(row.created_at)
    .bind(row.began_at)
    .bind(row.until_at)
    .bind(&row.attempt_id)
    .bind(&row.notify)
    .execute(c)
    .await
    .map(drop))?;
    Ok(())
}

/// Reserves a machine: at once if no attempt owns it (`true`), else as soon as none does. `Conflict` if somebody has it.
pub async fn take(tx: &mut Tx, row: &ReservationRow, now: Timestamp) -> DbResult<bool> {
    insert(tx, row).await?;
    Ok(begin_all(tx, &[&row.machine_id], now).await?.contains(&row.machine_id))
}

/// Gives machines that are free to the reservations that wait for them. Returns which they are: not those for which none waits,
/// or that are not free.
pub async fn begin_all(tx: &mut Tx, machines: &[&MachineId], now: Timestamp) -> DbResult<BTreeSet<MachineId>> {
    let text = listed!(
        tx,
        "SELECT * FROM reservation WHERE ended_at IS NULL AND began_at IS NULL AND ",
        "machine_id",
        " ORDER BY machine_id"
    );
    let waiting: Vec<ReservationRow> = on_tx!(tx, |c| sqlx::query_as(text).bind(Json(machines)).fetch_all(c).await)?;
    let mut begun = BTreeSet::new();
    for row in waiting {
        if begin(tx, &row, now).await? {
            begun.insert(row.machine_id);
        }
    }
    Ok(begun)
}

/// Gives a machine to the reservation that waits for it; `false` if it is not free.
async fn begin(tx: &mut Tx, row: &ReservationRow, now: Timestamp) -> DbResult<bool> {
    let machine = &row.machine_id;
    if errand::under_way(tx, machine, now).await? {
        return Ok(false);
    }
    // Who takes a machine says nothing about whether it can be trusted.
    on_tx!(tx, |c| sqlx::query(
        "UPDATE reservation SET quarantine_reason = m.reason, quarantine_until = m.quarantined_until FROM machine m \
         WHERE reservation.id = $1 AND m.id = reservation.machine_id AND m.state = 'quarantined'",
    )
    .bind(&row.id)
    .execute(c)
    .await
    .map(drop))?;
    let got = on_tx!(tx, |c| sqlx::query(
        "UPDATE machine SET state = 'reserved', reason = $2, state_since = $3, quarantined_until = NULL \
         WHERE id = $1 AND attempt_id IS NULL AND state <> 'retired'",
    )
    .bind(machine)
    .bind(row.reason_with_owner())
    .bind(now)
    .execute(c)
    .await
    .map(|done| done.rows_affected()))?;
    if got == 0 {
        return Ok(false);
    }
    on_tx!(tx, |c| sqlx::query("UPDATE reservation SET began_at = $2 WHERE id = $1")
        .bind(&row.id)
        .bind(now)
        .execute(c)
        .await
        .map(drop))?;
    tell(tx, row, MachineState::Reserved, row.reason.clone(), &row.owner, now).await?;
    // What the person before left running is this one's to look at.
    errand::cancel(tx, machine, Kind::Off, &format!("{} took it before that", row.owner), now).await?;
    Ok(true)
}

/// Machines that are free, and that somebody waits for nevertheless: their controller was busy with them and never said that it
/// was done.
pub async fn unbegun(db: &Db, limit: i64) -> DbResult<Vec<MachineId>> {
    Ok(on!(db.read(), |c| sqlx::query_scalar(
        "SELECT r.machine_id FROM reservation r JOIN machine m ON m.id = r.machine_id WHERE r.ended_at IS NULL \
         AND r.began_at IS NULL AND m.attempt_id IS NULL AND m.state <> 'retired' ORDER BY r.id LIMIT $1",
    )
    .bind(limit)
    .fetch_all(c)
    .await)?)
}

/// Has a machine powered off that somebody had, before it is offered to jobs. Each reservation ends once, so its errand has its
/// id.
pub async fn owe_off(tx: &mut Tx, ended: &ReservationRow, now: Timestamp) -> DbResult<()> {
    let id: ErrandId = ended.id.as_str().parse().map_err(|_| DbError::NotFound)?;
    errand::want(tx, &ErrandRow::new(id, &ended.machine_id, Kind::Off, &ended.owner, now)).await.map(drop)
}

/// Remembers that a machine which somebody has just got is not trusted, for when they hand it back.
pub async fn distrust(tx: &mut Tx, machine: &MachineId, reason: &str, until: Timestamp) -> DbResult<()> {
    on_tx!(tx, |c| {
        sqlx::query(
        "UPDATE reservation SET quarantine_reason = $2, quarantine_until = $3 WHERE machine_id = $1 AND ended_at IS NULL",
    )
    .bind(machine)
    .bind(reason)
    .bind(until)
    .execute(c)
    .await
    .map(drop)
    })?;
    Ok(())
}

/// Keeps the machine of a live attempt as it is. `false` if somebody waits for the machine already: they come first.
pub async fn hold(tx: &mut Tx, row: &ReservationRow, now: Timestamp) -> DbResult<bool> {
    if open_in(tx, &row.machine_id).await?.is_some() {
        return Ok(false);
    }
    insert(tx, row).await?;
    on_tx!(tx, |c| sqlx::query("UPDATE attempt SET held_until = $2 WHERE id = $1")
        .bind(&row.attempt_id)
        .bind(row.until_at)
        .execute(c)
        .await
        .map(drop))?;
    on_tx!(tx, |c| sqlx::query(
        "UPDATE machine SET state = 'held', reason = $3, state_since = $4 WHERE id = $1 AND attempt_id = $2",
    )
    .bind(&row.machine_id)
    .bind(&row.attempt_id)
    .bind(row.reason_with_owner())
    .bind(now)
    .execute(c)
    .await
    .map(drop))?;
    tell(tx, row, MachineState::Held, row.reason.clone(), &row.owner, now).await?;
    Ok(true)
}

/// Moves the end of an open reservation; its end will be announced anew.
pub async fn extend(tx: &mut Tx, row: &ReservationRow, until: Timestamp) -> DbResult<()> {
    on_tx!(tx, |c| sqlx::query(
        "UPDATE reservation SET until_at = $2, warned_at = NULL WHERE id = $1 AND ended_at IS NULL",
    )
    .bind(&row.id)
    .bind(until)
    .execute(c)
    .await
    .map(drop))?;
    on_tx!(tx, |c| sqlx::query("UPDATE attempt SET held_until = $2 WHERE id = $1")
        .bind(&row.attempt_id)
        .bind(until)
        .execute(c)
        .await
        .map(drop))?;
    Ok(())
}

/// Ends the open reservation of a machine, if there is one, and says which it was; the machine's own state is the caller's.
pub async fn close(tx: &mut Tx, machine: &MachineId, by: &str, now: Timestamp) -> DbResult<Option<ReservationRow>> {
    let closed: Option<ReservationRow> = on_tx!(tx, |c| {
        sqlx::query_as(
        "UPDATE reservation SET ended_at = $2, ended_by = $3 WHERE machine_id = $1 AND ended_at IS NULL RETURNING *",
    )
    .bind(machine)
    .bind(now)
    .bind(by)
    .fetch_optional(c)
    .await
    })?;
    if let Some(attempt) = closed.as_ref().and_then(|row| row.attempt_id.as_ref()) {
        on_tx!(tx, |c| sqlx::query("UPDATE attempt SET held_until = $2 WHERE id = $1 AND held_until > $2")
            .bind(attempt)
            .bind(now)
            .execute(c)
            .await
            .map(drop))?;
    }
    // Who ends it themselves knows.
    if let Some(row) = closed.as_ref().filter(|row| row.notify.is_some() && row.owner != by) {
        notice::want(tx, &row.id, NoticeEvent::Ended, row.until_at, now).await?;
    }
    Ok(closed)
}

/// Ends the reservations that held the machines of attempts, because these are over.
pub async fn close_holds(tx: &mut Tx, attempts: &[&AttemptId], by: &str, now: Timestamp) -> DbResult<()> {
    if attempts.is_empty() {
        return Ok(());
    }
    let text = listed!(
        tx,
        update "reservation SET ended_at = $2, ended_by = $3 WHERE ended_at IS NULL AND ",
        "attempt_id",
        ""
    );
    on_tx!(tx, |c| sqlx::query(text).bind(Json(attempts)).bind(now).bind(by).execute(c).await.map(drop))?;
    Ok(())
}

/// Hands a machine back: one that was reserved is free again and as trusted as before, once its controller has powered it off; one
/// that was held returns as its attempt ends.
pub async fn end(tx: &mut Tx, machine: &MachineId, by: &str, now: Timestamp) -> DbResult<Option<ReservationRow>> {
    // The machine first: everybody takes these locks in this order.
    on_tx!(tx, |c| sqlx::query("UPDATE machine SET last_seen_at = last_seen_at WHERE id = $1")
        .bind(machine)
        .execute(c)
        .await
        .map(drop))?;
    let Some(closed) = close(tx, machine, by, now).await? else { return Ok(None) };
    let why = if by == SERVER { "Its time was over" } else { "Handed back" };
    if closed.attempt_id.is_some() {
        let back = on_tx!(tx, |c| sqlx::query(
            "UPDATE machine SET state = 'leased', reason = NULL, state_since = $3 \
             WHERE id = $1 AND state = 'held' AND attempt_id = $2",
        )
        .bind(machine)
        .bind(&closed.attempt_id)
        .bind(now)
        .execute(c)
        .await
        .map(|done| done.rows_affected()))?;
        if back == 1 {
            tell(tx, &closed, MachineState::Leased, format!("{why}; its attempt returns it"), by, now).await?;
        }
        return Ok(Some(closed));
    }
    if let Some(reason) = &closed.quarantine_reason {
        let back = on_tx!(tx, |c| sqlx::query(
            "UPDATE machine SET state = 'quarantined', reason = $2, quarantined_until = $3, state_since = $4 \
             WHERE id = $1 AND state = 'reserved'",
        )
        .bind(machine)
        .bind(reason)
        .bind(closed.quarantine_until)
        .bind(now)
        .execute(c)
        .await
        .map(|done| done.rows_affected()))?;
        if back == 1 {
            let text = format!("{why}, and quarantined as before: {reason}");
            tell(tx, &closed, MachineState::Quarantined, text, by, now).await?;
            owe_off(tx, &closed, now).await?;
        }
        return Ok(Some(closed));
    }
    let next = format!("{why}; its controller powers it off before its next job");
    let back = on_tx!(tx, |c| sqlx::query(
        "UPDATE machine SET state = 'enrolled', reason = $3, state_since = $2 \
         WHERE id = $1 AND state = 'reserved'",
    )
    .bind(machine)
    .bind(now)
    .bind(&next)
    .execute(c)
    .await
    .map(|done| done.rows_affected()))?;
    if back == 1 {
        tell(tx, &closed, MachineState::Enrolled, next, by, now).await?;
        owe_off(tx, &closed, now).await?;
    }
    Ok(Some(closed))
}

async fn tell(
    tx: &mut Tx,
    row: &ReservationRow,
    state: MachineState,
    reason: String,
    by: &str,
    now: Timestamp,
) -> DbResult<()> {
    let change = ChangeRow {
        at: now,
        state,
        reason: Some(reason),
        decided_by: by.to_owned(),
        attempt_id: row.attempt_id.clone(),
    };
    life::note(tx, &row.machine_id, &change).await
}

/// Reservations that have begun, end before a moment, and whose end nobody has announced. One that waits for an attempt has
/// nothing to lose yet.
pub async fn unannounced(db: &Db, before: Timestamp, limit: i64) -> DbResult<Vec<ReservationRow>> {
    Ok(on!(db.read(), |c| {
        sqlx::query_as(
        "SELECT * FROM reservation WHERE ended_at IS NULL AND began_at IS NOT NULL AND warned_at IS NULL AND until_at <= $1 \
         ORDER BY until_at, id LIMIT $2",
    )
    .bind(before)
    .bind(limit)
    .fetch_all(c)
    .await
    })?)
}

/// Announces the end of a reservation, once.
pub async fn warn(tx: &mut Tx, row: &ReservationRow, now: Timestamp) -> DbResult<()> {
    on_tx!(tx, |c| sqlx::query("UPDATE machine SET last_seen_at = last_seen_at WHERE id = $1")
        .bind(&row.machine_id)
        .execute(c)
        .await
        .map(drop))?;
    let first = on_tx!(tx, |c| {
        sqlx::query(
        "UPDATE reservation SET warned_at = $2 WHERE id = $1 AND ended_at IS NULL AND warned_at IS NULL AND until_at = $3",
    )
    .bind(&row.id)
    .bind(now)
    .bind(row.until_at)
    .execute(c)
    .await
    .map(|done| done.rows_affected())
    })?;
    if first == 1 {
        let state = if row.attempt_id.is_some() { MachineState::Held } else { MachineState::Reserved };
        let minutes = row.until_at.since(now).as_secs().div_ceil(60);
        let text = format!("{} loses it in {minutes} minutes unless it is extended", row.owner);
        tell(tx, row, state, text, SERVER, now).await?;
        if row.notify.is_some() {
            notice::want(tx, &row.id, NoticeEvent::EndsSoon, row.until_at, now).await?;
        }
    }
    Ok(())
}

/// Machines whose reservation is over.
pub async fn over(db: &Db, now: Timestamp, limit: i64) -> DbResult<Vec<MachineId>> {
    Ok(on!(db.read(), |c| sqlx::query_scalar(
        "SELECT machine_id FROM reservation WHERE ended_at IS NULL AND until_at <= $1 ORDER BY until_at, id LIMIT $2",
    )
    .bind(now)
    .bind(limit)
    .fetch_all(c)
    .await)?)
}

/// The ends of open reservations: the next, and the next of one that has begun and that nobody has announced.
pub async fn next_ends(db: &Db) -> DbResult<(Option<Timestamp>, Option<Timestamp>)> {
    Ok(on!(db.read(), |c| {
        sqlx::query_as(
            "SELECT MIN(until_at), MIN(CASE WHEN warned_at IS NULL AND began_at IS NOT NULL THEN until_at END) \
         FROM reservation WHERE ended_at IS NULL",
        )
        .fetch_one(c)
        .await
    })?)
}
