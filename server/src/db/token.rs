//! Tokens. Only hashes are kept; see [`crate::auth`] for why a plain hash is enough.

use super::{Db, DbResult, Tx, before_or_end, on, on_tx};
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{AttemptId, AttemptState, Scope, TokenId};
use sqlx::FromRow;

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
    /// The token's id; of an attempt's secret, which is no token, that of the attempt.
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
