//! Submitters: who shares the farm, by which weights.

use super::wire;
use crate::app::AppState;
use crate::auth::{Admin, Reader};
use crate::db::flow;
use crate::error::{AppError, AppResult};
use crate::extract::{Json, Path};
use axum::extract::State;
use crashyard_protocol::SubmitterId;
use crashyard_protocol::api::{SetSubmitter, Submitter};

/// Largest weight.
const WEIGHT_MAX: u32 = 1000;

/// Submitters by name, each with what it has now.
#[utoipa::path(get, path = "/api/v1/submitters", tag = "submitters", responses((status = 200, body = Vec<Submitter>)))]
pub async fn list_submitters(_: Reader, State(state): State<AppState>) -> AppResult<Json<Vec<Submitter>>> {
    Ok(Json(flow::submitters(&state.db).await?.into_iter().map(wire::submitter).collect()))
}

/// Sets a submitter's weight and how many machines it may have at once.
#[utoipa::path(put, path = "/api/v1/submitters/{id}", tag = "submitters", params(("id" = SubmitterId, Path)),
    request_body = SetSubmitter, responses((status = 200, body = Submitter)))]
pub async fn set_submitter(
    _: Admin,
    State(state): State<AppState>,
    Path(id): Path<SubmitterId>,
    Json(set): Json<SetSubmitter>,
) -> AppResult<Json<Submitter>> {
    if !(1..=WEIGHT_MAX).contains(&set.weight) {
        return Err(AppError::Invalid(format!("weight must be 1 to {WEIGHT_MAX}")));
    }
    let mut tx = state.db.begin().await?;
    flow::set_submitter(&mut tx, &id, i64::from(set.weight), set.max_machines.map(i64::from))
        .await
        .map_err(|error| AppError::or_not_found(error, "submitter"))?;
    tx.commit().await?;
    // There may be room now.
    crate::agent::claim::offer_for(&state, &id).await?;
    let all = flow::submitters(&state.db).await?;
    let one = all.into_iter().find(|one| one.submitter.id == id).ok_or_else(|| AppError::not_found("submitter"))?;
    Ok(Json(wire::submitter(one)))
}
