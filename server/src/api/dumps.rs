//! Holding dumps: a person's word is above every rule that drops them.

use super::wire;
use crate::app::AppState;
use crate::auth::Submitter;
use crate::db::{artifact, dump};
use crate::error::{AppError, AppResult};
use crate::extract::{Json, Path, check_name};
use crate::wake::{Pass, Topic};
use axum::extract::State;
use crashyard_protocol::ArtifactId;
use crashyard_protocol::api::{Artifact, DUMP, NewHold};

/// Refuses what is no dump: nothing else is ever dropped.
async fn check(state: &AppState, id: &ArtifactId) -> AppResult<()> {
    let found = artifact::get(&state.db, id).await.map_err(|error| AppError::or_not_found(error, "artifact"))?;
    if found.attempt_id.is_none() || found.name != DUMP {
        return Err(AppError::Invalid(format!(
            "only dumps (`{DUMP}` of an attempt) are ever dropped, so only they can be held"
        )));
    }
    Ok(())
}

/// Holds a dump, so that no rule drops it. Holding it again replaces the reason.
#[utoipa::path(put, path = "/api/v1/artifacts/{id}/hold", tag = "artifacts", params(("id" = ArtifactId, Path)),
    request_body = NewHold, responses((status = 200, body = Artifact)))]
pub async fn hold_dump(
    Submitter(credential): Submitter,
    State(state): State<AppState>,
    Path(id): Path<ArtifactId>,
    Json(new): Json<NewHold>,
) -> AppResult<Json<Artifact>> {
    check_name("reason", &new.reason)?;
    check(&state, &id).await?;
    let mut tx = state.db.begin().await?;
    let held = dump::hold(&mut tx, &id, &credential.id, &new.reason, state.now()).await?;
    tx.commit().await?;
    let held =
        held.ok_or_else(|| AppError::Conflict("the dump is dropped already; its capsule is still there".into()))?;
    Ok(Json(wire::artifact(held)))
}

/// Lets go of a dump: the rules count for it again.
#[utoipa::path(delete, path = "/api/v1/artifacts/{id}/hold", tag = "artifacts", params(("id" = ArtifactId, Path)),
    responses((status = 200, body = Artifact)))]
pub async fn release_dump(
    _: Submitter,
    State(state): State<AppState>,
    Path(id): Path<ArtifactId>,
) -> AppResult<Json<Artifact>> {
    check(&state, &id).await?;
    let mut tx = state.db.begin().await?;
    let released = dump::release(&mut tx, &id).await?;
    tx.commit().await?;
    state.wake.wake(&Topic::Pass(Pass::Dumps));
    Ok(Json(wire::artifact(released)))
}
