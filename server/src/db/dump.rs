//! Dumps that are kept, held and dropped, and what is known of those still arriving.
//!
//! A dump is an artifact like any other, and larger. Dropping one is two steps with a row in between: first the row says
//! that it is dropped and why, then its bytes go. Nothing here removes a byte.

use super::{Db, DbResult, Tx, on, on_tx, signed, unsigned};
use crate::db::artifact::ArtifactRow;
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{ArtifactId, TokenId};
use sqlx::FromRow;
use sqlx::types::Json;

/// Who may be dropped at all: complete dumps that nobody holds, of attempts that are over, settled, and read by readers
/// of at least version `$1`, so that everything that can be said of them has been said.
macro_rules! settled {
    ($before:literal, $after:literal) => {
        concat!(
            $before,
            " FROM artifact f JOIN attempt t ON t.id = f.attempt_id JOIN job j ON j.id = t.job_id \
             WHERE f.name = 'vmcore' AND f.state = 'complete' \
             AND t.state IN ('done', 'lost') AND t.check_at IS NULL AND t.read_by >= $1 ",
            $after
        )
    };
}

/// Dumps that are beyond the first `each` of everything they show, the oldest first. What they show are the signatures of their
/// attempts by version `rules` of the crash-log rules; where there is none, its scenario in its run. Only dumps with a
/// capsule count: of an unreadable one the dump itself is all there is. None of them is among the first of anything, so that one
/// stays beyond them when another is dropped.
pub async fn surplus(db: &Db, readers: i64, rules: i64, each: u32, limit: i64) -> DbResult<Vec<ArtifactRow>> {
    Ok(on!(db.read(), |c| {
        sqlx::query_as(settled!(
        "WITH kept AS (SELECT f.id, f.completed_at, t.id AS attempt_id, t.run_id || ' ' || CAST(j.scenario AS TEXT) AS story",
        "AND EXISTS (SELECT 1 FROM artifact k WHERE k.attempt_id = t.id AND k.state = 'complete' \
         AND substr(k.name, 1, 13) = 'found-capsule')), \
         shows AS (SELECT DISTINCT kept.id, kept.completed_at, COALESCE(seen.signature_id, kept.story) AS crash \
         FROM kept LEFT JOIN (signature_attempt seen JOIN signature s ON s.id = seen.signature_id \
         AND s.rule_version = $2) ON seen.attempt_id = kept.attempt_id), \
         placed AS (SELECT id, ROW_NUMBER() OVER (PARTITION BY crash ORDER BY completed_at, id) AS place FROM shows) \
         SELECT f.* FROM artifact f JOIN (SELECT id FROM placed GROUP BY id HAVING MIN(place) > $3) more ON more.id = f.id \
         WHERE f.held_at IS NULL ORDER BY f.completed_at, f.id LIMIT $4"
    ))
    .bind(readers)
    .bind(rules)
    .bind(i64::from(each))
    .bind(limit)
    .fetch_all(c)
    .await
    })?)
}

/// The oldest dump that nobody holds and that may be dropped, if it was complete by `until`.
pub async fn oldest(db: &Db, readers: i64, until: Timestamp) -> DbResult<Option<ArtifactRow>> {
    Ok(on!(db.read(), |c| sqlx::query_as(settled!(
        "SELECT f.*",
        "AND f.held_at IS NULL AND f.completed_at <= $2 ORDER BY f.completed_at, f.id LIMIT 1"
    ))
    .bind(readers)
    .bind(until)
    .fetch_optional(c)
    .await)?)
}

/// The dump that is missed least: of attempts that passed before all others, the oldest first.
pub async fn least(db: &Db, readers: i64) -> DbResult<Option<ArtifactRow>> {
    Ok(on!(db.read(), |c| sqlx::query_as(settled!(
        "SELECT f.*",
        "AND f.held_at IS NULL ORDER BY CASE WHEN t.verdict = 'PASS' THEN 0 ELSE 1 END, f.completed_at, f.id LIMIT 1"
    ))
    .bind(readers)
    .fetch_optional(c)
    .await)?)
}

/// Bytes of all dumps that are kept.
pub async fn kept_bytes(db: &Db) -> DbResult<u64> {
    let sum: Option<i64> = on!(db.read(), |c| sqlx::query_scalar(
        "SELECT CAST(SUM(size) AS BIGINT) FROM artifact WHERE name = 'vmcore' AND state = 'complete'",
    )
    .fetch_one(c)
    .await)?;
    Ok(unsigned(sum.unwrap_or(0)))
}

/// Writes down that a dump is dropped; `false` if somebody holds it by now, or it is not there to be dropped.
pub async fn drop_one(tx: &mut Tx, id: &ArtifactId, reason: &str, now: Timestamp) -> DbResult<bool> {
    let done = on_tx!(tx, |c| sqlx::query(
        "UPDATE artifact SET state = 'dropped', dropped_at = $2, dropped_reason = $3 \
         WHERE id = $1 AND state = 'complete' AND held_at IS NULL",
    )
    .bind(id)
    .bind(now)
    .bind(reason)
    .execute(c)
    .await
    .map(|done| done.rows_affected()))?;
    Ok(done == 1)
}

/// Dropped dumps whose bytes may still be in the blob store.
pub async fn dropping(db: &Db, limit: i64) -> DbResult<Vec<ArtifactRow>> {
    Ok(on!(db.read(), |c| sqlx::query_as(
        "SELECT * FROM artifact WHERE state = 'dropped' AND emptied_at IS NULL ORDER BY id LIMIT $1",
    )
    .bind(limit)
    .fetch_all(c)
    .await)?)
}

/// Notes that every byte of a dropped dump is gone.
pub async fn set_emptied(tx: &mut Tx, id: &ArtifactId, now: Timestamp) -> DbResult<()> {
    let done = on_tx!(tx, |c| sqlx::query(
        "UPDATE artifact SET emptied_at = $2 WHERE id = $1 AND state = 'dropped' AND emptied_at IS NULL",
    )
    .bind(id)
    .bind(now)
    .execute(c)
    .await
    .map(|done| done.rows_affected()))?;
    if done == 1 {
        on_tx!(tx, |c| sqlx::query("DELETE FROM segment WHERE artifact_id = $1").bind(id).execute(c).await.map(drop))?;
    }
    Ok(())
}

/// Holds a dump; `None` if it is dropped already. Holding again replaces name and reason.
pub async fn hold(
    tx: &mut Tx,
    id: &ArtifactId,
    by: &TokenId,
    reason: &str,
    now: Timestamp,
) -> DbResult<Option<ArtifactRow>> {
    Ok(on_tx!(tx, |c| sqlx::query_as(
        "UPDATE artifact SET held_at = $2, held_by = (SELECT name FROM token WHERE id = $3), held_reason = $4 \
         WHERE id = $1 AND state <> 'dropped' RETURNING *",
    )
    .bind(id)
    .bind(now)
    .bind(by)
    .bind(reason)
    .fetch_optional(c)
    .await)?)
}

/// Lets go of a held dump.
pub async fn release(tx: &mut Tx, id: &ArtifactId) -> DbResult<ArtifactRow> {
    Ok(on_tx!(tx, |c| sqlx::query_as(
        "UPDATE artifact SET held_at = NULL, held_by = NULL, held_reason = NULL WHERE id = $1 RETURNING *",
    )
    .bind(id)
    .fetch_one(c)
    .await)?)
}

/// What could be read of a dump that was still arriving.
#[derive(Clone, Debug, PartialEq, FromRow)]
pub struct GlimpseRow {
    /// The dump.
    pub artifact_id: ArtifactId,
    /// Bytes from its start that were there.
    pub bytes: i64,
    /// What was read; `None` if nothing could be.
    pub body: Option<Json<serde_json::Value>>,
    /// The panic was seen: no further look is needed.
    pub settled: bool,
    /// When.
    pub read_at: Timestamp,
}

/// A dump that is arriving and has at least `first` bytes, half as many again as when it was last looked at, and whose
/// panic has not been seen.
pub async fn growing(db: &Db, first: u64) -> DbResult<Option<ArtifactRow>> {
    Ok(on!(db.read(), |c| sqlx::query_as(
        "SELECT a.* FROM artifact a JOIN attempt t ON t.id = a.attempt_id LEFT JOIN glimpse g ON g.artifact_id = a.id \
         WHERE a.state = 'open' AND a.name = 'vmcore' AND t.state IN ('running', 'collecting') \
         AND a.size >= $1 AND (g.bytes IS NULL OR (NOT g.settled AND 2 * a.size >= 3 * g.bytes)) ORDER BY a.id LIMIT 1",
    )
    .bind(signed(first))
    .fetch_optional(c)
    .await)?)
}

/// Stores what could be read; a reading of more bytes stays.
pub async fn set_glimpse(tx: &mut Tx, glimpse: &GlimpseRow) -> DbResult<()> {
    on_tx!(tx, |c| {
        sqlx::query(
        "INSERT INTO glimpse (artifact_id, bytes, body, settled, read_at) VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT (artifact_id) DO UPDATE SET bytes = $2, body = COALESCE($3, glimpse.body), settled = $4, read_at = $5 \
         WHERE glimpse.bytes < $2",
    )
    .bind(&glimpse.artifact_id)
    .bind(glimpse.bytes)
    .bind(&glimpse.body)
    .bind(glimpse.settled)
    .bind(glimpse.read_at)
    .execute(c)
    .await
    .map(drop)
    })?;
    Ok(())
}

/// What could be read of a dump while it was arriving.
pub async fn glimpse(db: &Db, id: &ArtifactId) -> DbResult<Option<GlimpseRow>> {
    Ok(on!(db.read(), |c| sqlx::query_as("SELECT * FROM glimpse WHERE artifact_id = $1")
        .bind(id)
        .fetch_optional(c)
        .await)?)
}
