//! What is owed and was not delivered.

use crate::app::AppState;
use crate::auth::Reader;
use crate::error::AppResult;
use crate::extract::Json;
use crate::passes::owed;
use axum::extract::State;
use crashyard_protocol::api::Owed;

/// What is owed now and was not delivered, at most a hundred of each kind; a healthy farm owes nothing.
#[utoipa::path(get, path = "/api/v1/owed", tag = "runs", responses((status = 200, body = Vec<Owed>)))]
pub async fn list_owed(_: Reader, State(state): State<AppState>) -> AppResult<Json<Vec<Owed>>> {
    Ok(Json(owed::look(&state).await?))
}
