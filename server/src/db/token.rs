//! Tokens. Only hashes are kept; see [`crate::auth`] for why a plain hash is enough.

use super::given::given;
use super::{Db, DbError, DbResult, Tx, before_or_end, on, on_tx};
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{AttemptId, AttemptState, Scope, TokenId};
use serde::Serialize;
use sqlx::FromRow;
use sqlx::types::Json;

/// A token without its secret.
#[derive(Clone, Debug, FromRow)]
pub struct TokenRow {
    /// Id.
    pub id: TokenId,
    /// For people.
    pub name: String,
    /// What it may do.
    pub scope: Scope,
    /// The attempt it is for, if its scope is that.
    pub attempt_id: Option<AttemptId>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it stops working.
    pub expires_at: Option<Timestamp>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

/// What a secret stands for.
#[derive(Clone, Debug, FromRow)]
pub struct Credential {
    /// The token's id.
    pub id: TokenId,
    /// Its name.
    pub name: String,
    /// What it may do.
    pub scope: Scope,
    /// The attempt it is for.
    pub attempt_id: Option<AttemptId>,
    /// Where that attempt is.
    pub attempt_state: Option<AttemptState>,
    /// When it stops working.
    pub expires_at: Option<Timestamp>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

/// Finds what a secret stands for, by its hash.
pub async fn by_secret_hash(db: &Db, secret_hash: &str) -> DbResult<Option<Credential>> {
    Ok(on!(db.read(), |c| sqlx::query_as(
        "SELECT t.id, t.name, t.scope, t.attempt_id, a.state AS attempt_state, t.expires_at, t.revoked_at \
         FROM token t LEFT JOIN attempt a ON a.id = t.attempt_id WHERE t.secret_hash = $1",
    )
    .bind(secret_hash)
    .fetch_optional(c)
    .await)?)
}

/// Stores a token.
pub async fn create(tx: &mut Tx, token: &TokenRow, secret_hash: &str) -> DbResult<()> {
    on_tx!(tx, |c| sqlx::query(
        "INSERT INTO token (id, name, scope, secret_hash, attempt_id, created_at, expires_at, revoked_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(&token.id)
    .bind(&token.name)
    .bind(token.scope)
    .bind(secret_hash)
    .bind(&token.attempt_id)
    .bind(token.created_at)
    .bind(token.expires_at)
    .bind(token.revoked_at)
    .execute(c)
    .await
    .map(drop))?;
    Ok(())
}

/// The token of an attempt.
#[derive(Clone, Debug, Serialize)]
pub struct AttemptToken {
    /// Id.
    pub id: TokenId,
    /// For people.
    pub name: String,
    /// The hash of its secret.
    pub secret_hash: String,
    /// The attempt.
    pub attempt: AttemptId,
    /// When it was made.
    pub at: Timestamp,
}

/// Stores the tokens of several attempts.
pub async fn create_all(tx: &mut Tx, tokens: &[AttemptToken]) -> DbResult<()> {
    if tokens.is_empty() {
        return Ok(());
    }
    let text = given!(
        tx,
        insert "token (id, name, scope, secret_hash, attempt_id, created_at) \
         SELECT id, name, 'attempt', secret_hash, attempt, at FROM ",
        [id text, name text, secret_hash text, attempt text, at bigint],
        ""
    );
    on_tx!(tx, |c| sqlx::query(text).bind(Json(tokens)).execute(c).await.map(drop))?;
    Ok(())
}

/// Replaces the secret of an attempt's token: a lease handed out again makes the first copy worthless.
pub async fn replace_attempt_secret(tx: &mut Tx, attempt: &AttemptId, secret_hash: &str) -> DbResult<()> {
    let changed = on_tx!(tx, |c| sqlx::query("UPDATE token SET secret_hash = $2 WHERE attempt_id = $1")
        .bind(attempt)
        .bind(secret_hash)
        .execute(c)
        .await
        .map(|done| done.rows_affected()))?;
    if changed == 0 { Err(DbError::NotFound) } else { Ok(()) }
}

/// One page of the tokens that people made.
pub async fn list(db: &Db, before: Option<&str>, limit: i64) -> DbResult<Vec<TokenRow>> {
    Ok(on!(db.read(), |c| sqlx::query_as(
        "SELECT id, name, scope, attempt_id, created_at, expires_at, revoked_at FROM token \
         WHERE attempt_id IS NULL AND id < $1 ORDER BY id DESC LIMIT $2",
    )
    .bind(before_or_end(before))
    .bind(limit)
    .fetch_all(c)
    .await)?)
}

/// Whether any token for people exists.
pub async fn any_admin(db: &Db) -> DbResult<bool> {
    Ok(on!(db.read(), |c| sqlx::query_scalar::<_, i64>(
        "SELECT COUNT(*) FROM token WHERE scope = 'admin' AND revoked_at IS NULL",
    )
    .fetch_one(c)
    .await)?
        > 0)
}

/// Revokes a token; doing it again keeps the first time.
pub async fn revoke(tx: &mut Tx, id: &TokenId, now: Timestamp) -> DbResult<TokenRow> {
    Ok(on_tx!(tx, |c| sqlx::query_as(
        "UPDATE token SET revoked_at = COALESCE(revoked_at, $2) WHERE id = $1 AND attempt_id IS NULL \
         RETURNING id, name, scope, attempt_id, created_at, expires_at, revoked_at",
    )
    .bind(id)
    .bind(now)
    .fetch_one(c)
    .await)?)
}
