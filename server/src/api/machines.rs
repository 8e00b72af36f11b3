//! Machines.

use super::{PageQuery, wire};
use crate::app::AppState;
use crate::auth::{Admin, Reader};
use crate::db::machine;
use crate::error::{AppError, AppResult};
use crate::extract::{Json, Path, Query, check_name};
use crate::wake::Topic;
use axum::extract::State;
use crashyard_protocol::api::{Machine, Page};
use crashyard_protocol::{MachineId, MachineState};
use serde::{Deserialize, Serialize};

/// Machines, newest first.
#[utoipa::path(get, path = "/api/v1/machines", tag = "machines", params(PageQuery), responses((status = 200, body = Page<Machine>)))]
pub async fn list_machines(
    _: Reader,
    State(state): State<AppState>,
    Query(query): Query<PageQuery>,
) -> AppResult<Json<Page<Machine>>> {
    let (before, limit) = query.checked()?;
    let rows = machine::list(&state.db, before, limit).await?;
    Ok(Json(query.page(rows.into_iter().map(wire::machine).collect(), |machine: &Machine| machine.id.to_string())))
}

/// One machine.
#[utoipa::path(get, path = "/api/v1/machines/{id}", tag = "machines", params(("id" = MachineId, Path)), responses((status = 200, body = Machine)))]
pub async fn get_machine(
    _: Reader,
    State(state): State<AppState>,
    Path(id): Path<MachineId>,
) -> AppResult<Json<Machine>> {
    let row = machine::get(&state.db, &id).await.map_err(|error| AppError::or_not_found(error, "machine"))?;
    Ok(Json(wire::machine(row)))
}

/// What a person decides about a machine.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewMachineState {
    /// `available` gives it back, `reserved`, `held`, `quarantined` and `retired` keep jobs away from it.
    pub state: MachineState,
    /// Why, for everybody who sees it.
    #[serde(default)]
    pub reason: Option<String>,
}

/// Puts a machine that no attempt owns into another state.
#[utoipa::path(put, path = "/api/v1/machines/{id}/state", tag = "machines", params(("id" = MachineId, Path)),
    request_body = NewMachineState, responses((status = 200, body = Machine)))]
pub async fn set_machine_state(
    _: Admin,
    State(state): State<AppState>,
    Path(id): Path<MachineId>,
    Json(new): Json<NewMachineState>,
) -> AppResult<Json<Machine>> {
    if matches!(new.state, MachineState::Leased | MachineState::Enrolled) {
        return Err(AppError::Invalid(format!("only the server makes a machine {}", new.state)));
    }
    if let Some(reason) = &new.reason {
        check_name("reason", reason)?;
    }
    machine::get(&state.db, &id).await.map_err(|error| AppError::or_not_found(error, "machine"))?;
    let mut tx = state.db.begin().await?;
    let changed = machine::set_state(&mut tx, &id, new.state, new.reason.as_deref(), state.now()).await?;
    tx.commit().await?;
    if changed.is_none() {
        return Err(AppError::Conflict("an attempt owns this machine; wait until it is over".into()));
    }
    state.wake.wake(&Topic::Machine(id.clone()));
    let row = machine::get(&state.db, &id).await?;
    Ok(Json(wire::machine(row)))
}
