//! When servers were up, and the times in which none was: leases do not run out in those.

use super::{DbResult, Tx, on_tx};
use crashyard_protocol::clock::Timestamp;

/// Records that this server is up; returns when any server was last seen before.
pub async fn record(tx: &mut Tx, server: &str, started_at: Timestamp, now: Timestamp) -> DbResult<Option<Timestamp>> {
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
pub async fn away_since(tx: &mut Tx, since: Timestamp) -> DbResult<Vec<(Timestamp, Timestamp)>> {
    Ok(on_tx!(tx, |c| sqlx::query_as(
        "SELECT from_at, to_at FROM server_away WHERE to_at >= $1 ORDER BY from_at LIMIT 1000",
    )
    .bind(since)
    .fetch_all(c)
    .await)?)
}
