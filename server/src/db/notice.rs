//! Notices: what the owners of reservations are to be told, written down in the transaction of what they are told of.
//!
//! A notice that is taken is put off first, and then told: whoever dies in between, it is told again later, and of two servers
//! one tells it.

use super::{Db, DbResult, Tx, on, on_tx};
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{NoticeEvent, ReservationId};
use sqlx::FromRow;

/// A notice, with what it says.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct NoticeRow {
    /// The reservation.
    pub reservation_id: ReservationId,
    /// What happened.
    pub event: NoticeEvent,
    /// The end that is meant.
    pub until_at: Timestamp,
    /// How often it was tried.
    pub tries: i64,
    /// The machine's name.
    pub machine: String,
    /// Whose the reservation is.
    pub owner: String,
    /// What for.
    pub reason: String,
    /// Whom to tell, as the owner said it.
    pub address: String,
    /// Who ended it, if it is over.
    pub ended_by: Option<String>,
    /// Whether what it says is still so.
    pub holds: bool,
}

/// Wants something told; once for each end.
pub async fn want(
    tx: &mut Tx,
    reservation: &ReservationId,
    event: NoticeEvent,
    until: Timestamp,
    now: Timestamp,
) -> DbResult<()> {
    on_tx!(tx, |c| sqlx::query(
        "INSERT INTO notice (reservation_id, event, until_at, next_at, tries) VALUES ($1, $2, $3, $4, 0) \
         ON CONFLICT DO NOTHING",
    )
    .bind(reservation)
    .bind(event)
    .bind(until)
    .bind(now)
    .execute(c)
    .await
    .map(drop))?;
    Ok(())
}

/// What is to be told now. A warning that came too late, or whose end was put off, does not hold any more.
pub async fn due(db: &Db, now: Timestamp, limit: i64) -> DbResult<Vec<NoticeRow>> {
    Ok(on!(db.read(), |c| {
        sqlx::query_as(
            "SELECT n.reservation_id, n.event, n.until_at, n.tries, m.name AS machine, r.owner, r.reason, \
             COALESCE(r.notify, '') AS address, r.ended_by, \
             (n.event = 'ended' OR (r.ended_at IS NULL AND r.until_at = n.until_at)) AS holds \
             FROM notice n JOIN reservation r ON r.id = n.reservation_id JOIN machine m ON m.id = r.machine_id \
             WHERE n.next_at IS NOT NULL AND n.next_at <= $1 ORDER BY n.next_at, n.reservation_id LIMIT $2",
        )
        .bind(now)
        .bind(limit)
        .fetch_all(c)
        .await
    })?)
}

/// When there is something to tell next.
pub async fn next(db: &Db) -> DbResult<Option<Timestamp>> {
    Ok(on!(db.read(), |c| sqlx::query_scalar("SELECT MIN(next_at) FROM notice WHERE next_at IS NOT NULL")
        .fetch_one(c)
        .await)?)
}

/// Takes a notice, and puts it off until `next` in case this server dies at it; `false` if another server has it.
pub async fn take(tx: &mut Tx, row: &NoticeRow, next: Timestamp) -> DbResult<bool> {
    let taken = on_tx!(tx, |c| {
        sqlx::query(
        "UPDATE notice SET tries = tries + 1, next_at = $4 WHERE reservation_id = $1 AND event = $2 AND until_at = $3 \
         AND tries = $5 AND next_at IS NOT NULL",
    )
    .bind(&row.reservation_id)
    .bind(row.event)
    .bind(row.until_at)
    .bind(next)
    .bind(row.tries)
    .execute(c)
    .await
    .map(|done| done.rows_affected())
    })?;
    Ok(taken == 1)
}

/// Is done with a notice: it was told, or (without a time) nobody tells it any more.
pub async fn close(tx: &mut Tx, row: &NoticeRow, told: Option<Timestamp>) -> DbResult<()> {
    on_tx!(tx, |c| sqlx::query(
        "UPDATE notice SET next_at = NULL, told_at = $4 WHERE reservation_id = $1 AND event = $2 AND until_at = $3",
    )
    .bind(&row.reservation_id)
    .bind(row.event)
    .bind(row.until_at)
    .bind(told)
    .execute(c)
    .await
    .map(drop))?;
    Ok(())
}
