//! What people type into the consoles of an attempt: taken here, fetched by the attempt's controller, each once.
//!
//! Each renewal of the lease says how often people typed: a machine in an attempt holds that one request open, and no other. The
//! controller then asks from the number on that it has not dealt with, and says what came of each in a report. So what was
//! typed stays in the ledger with who did it, and whether the console took it is evidence like everything else.

use crate::app::AppState;
use crate::auth::{InAttempt, Submitter};
use crate::db::{self, inventory, signed};
use crate::error::{AppError, AppResult};
use crate::extract::{Json, Path, Query, check_path_name};
use crate::wake::Topic;
use axum::extract::State;
use crashyard_protocol::AttemptId;
use crashyard_protocol::agent::{KeyPress, Keys};
use serde::Deserialize;

/// Most that is handed out at once.
const AT_ONCE: i64 = 100;
/// Longest text that is typed at once, in bytes.
const TEXT_MAX: usize = 4096;

/// From where on.
#[derive(Clone, Debug, Deserialize, utoipa::IntoParams)]
pub struct KeysQuery {
    /// The first number that is wanted.
    pub from: u64,
}

/// What people typed into the attempt's consoles. That there is something, each renewal of the lease says.
#[utoipa::path(get, path = "/agent/v1/attempts/{attempt}/keys", tag = "agent",
    params(("attempt" = String, Path), KeysQuery), responses((status = 200, body = Vec<KeyPress>)))]
pub async fn get_keys(
    caller: InAttempt,
    State(state): State<AppState>,
    Query(query): Query<KeysQuery>,
) -> AppResult<Json<Vec<KeyPress>>> {
    caller.controller_only()?;
    caller.check_lease()?;
    let from = i64::try_from(query.from).map_err(|_| AppError::Invalid("`from` is too large".into()))?;
    Ok(Json(inventory::pressed(&state.db, &caller.attempt.id, from, AT_ONCE).await?))
}

/// Types into a console of a live attempt. What is sent twice is typed twice.
#[utoipa::path(post, path = "/api/v1/attempts/{id}/console/{source}/keys", tag = "attempts",
    params(("id" = AttemptId, Path), ("source" = String, Path)), request_body = Keys,
    responses((status = 200, body = KeyPress)))]
pub async fn press_keys(
    caller: Submitter,
    State(state): State<AppState>,
    Path((id, source)): Path<(AttemptId, String)>,
    Json(keys): Json<Keys>,
) -> AppResult<Json<KeyPress>> {
    check_path_name("console source", &source)?;
    check(&keys)?;
    db::attempt::get(&state.db, &id).await.map_err(|error| AppError::or_not_found(error, "attempt"))?;
    let by = format!("token:{}", caller.0.name);
    let mut tx = state.db.begin().await?;
    let number = inventory::press(&mut tx, &id, &source, &by, &keys, state.now()).await?;
    tx.commit().await?;
    tracing::info!(attempt.id = %id, source, by, number, "typed");
    state.wake.wake(&Topic::Attempt(id));
    Ok(Json(KeyPress { number, source, by, keys }))
}

/// What people typed into the consoles of an attempt; the controller's reports say what came of it.
#[utoipa::path(get, path = "/api/v1/attempts/{id}/keys", tag = "attempts", params(("id" = AttemptId, Path)),
    responses((status = 200, body = Vec<KeyPress>)))]
pub async fn list_keys(
    _: crate::auth::Reader,
    State(state): State<AppState>,
    Path(id): Path<AttemptId>,
) -> AppResult<Json<Vec<KeyPress>>> {
    db::attempt::get(&state.db, &id).await.map_err(|error| AppError::or_not_found(error, "attempt"))?;
    Ok(Json(inventory::pressed(&state.db, &id, signed(0), i64::MAX).await?))
}

fn check(keys: &Keys) -> AppResult<()> {
    match keys {
        Keys::Text(text) if text.is_empty() || text.len() > TEXT_MAX => {
            Err(AppError::Invalid(format!("a text has 1 to {TEXT_MAX} bytes")))
        }
        Keys::Sysrq(key) if !key.is_ascii_alphanumeric() => {
            Err(AppError::Invalid("a SysRq key is a letter or a digit (Documentation/admin-guide/sysrq.rst)".into()))
        }
        Keys::Text(_) | Keys::Break | Keys::Sysrq(_) => Ok(()),
    }
}
