//! Tokens. Secrets are shown once, when they are made.

use super::{PageQuery, wire};
use crate::app::AppState;
use crate::auth::{Admin, secret_hash};
use crate::db::token::{self, TokenRow};
use crate::error::{AppError, AppResult};
use crate::extract::{Json, Path, Query, check_name};
use axum::extract::State;
use crashyard_protocol::api::{NewToken, Page, Token, TokenWithSecret};
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{Scope, TokenId};

/// Tokens that people made, newest first.
#[utoipa::path(get, path = "/api/v1/tokens", tag = "tokens", params(PageQuery), responses((status = 200, body = Page<Token>)))]
pub async fn list_tokens(
    _: Admin,
    State(state): State<AppState>,
    Query(query): Query<PageQuery>,
) -> AppResult<Json<Page<Token>>> {
    let (before, limit) = query.checked()?;
    let rows = token::list(&state.db, before, limit).await?;
    Ok(Json(query.page(rows.into_iter().map(wire::token).collect(), |token: &Token| token.id.to_string())))
}

/// Makes a token.
#[utoipa::path(post, path = "/api/v1/tokens", tag = "tokens", request_body = NewToken, responses((status = 200, body = TokenWithSecret)))]
pub async fn create_token(
    _: Admin,
    State(state): State<AppState>,
    Json(new): Json<NewToken>,
) -> AppResult<Json<TokenWithSecret>> {
    check_name("name", &new.name)?;
    if new.scope == Scope::Attempt {
        return Err(AppError::Invalid("tokens of attempts are made by claims".into()));
    }
    let (row, secret) = make(&state, new.name, new.scope, new.expires_at).await?;
    Ok(Json(TokenWithSecret { token: wire::token(row), secret }))
}

/// Makes and stores a token; the secret is returned and not kept.
pub async fn make(
    state: &AppState,
    name: String,
    scope: Scope,
    expires_at: Option<Timestamp>,
) -> AppResult<(TokenRow, String)> {
    let secret = state.ids.secret();
    let row = TokenRow {
        id: TokenId::from_ulid(state.ids.next()),
        name,
        scope,
        attempt_id: None,
        created_at: state.now(),
        expires_at,
        revoked_at: None,
    };
    let mut tx = state.db.begin().await?;
    token::create(&mut tx, &row, &secret_hash(&secret)).await?;
    tx.commit().await?;
    Ok((row, secret))
}

/// Revokes a token; repeating it is harmless.
#[utoipa::path(post, path = "/api/v1/tokens/{id}/revoke", tag = "tokens", params(("id" = TokenId, Path)), responses((status = 200, body = Token)))]
pub async fn revoke_token(_: Admin, State(state): State<AppState>, Path(id): Path<TokenId>) -> AppResult<Json<Token>> {
    let mut tx = state.db.begin().await?;
    let row = token::revoke(&mut tx, &id, state.now()).await.map_err(|error| AppError::or_not_found(error, "token"))?;
    tx.commit().await?;
    state.credentials.forget(&id);
    Ok(Json(wire::token(row)))
}
