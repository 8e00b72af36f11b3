//! Machines: where each is in its life, what happened to it, and what a person decides about it.

use super::{PageQuery, wire};
use crate::app::AppState;
use crate::auth::{Admin, Reader};
use crate::db::machine::{self, MachineRow, NamedMachine};
use crate::db::{self, errand, life, reservation};
use crate::error::{AppError, AppResult};
use crate::extract::{Json, Path, Query, check_name};
use crate::wake::{Pass, Topic};
use axum::extract::State;
use crashyard_protocol::api::{Inventory, Machine, MachineEvent, NewMachineState, Page};
use crashyard_protocol::{AttemptState, MachineId, MachineState};
use std::collections::{BTreeMap, HashMap};

/// Events of a history at most, of each kind.
const HISTORY: i64 = 200;

/// Machines, newest first.
#[utoipa::path(get, path = "/api/v1/machines", tag = "machines", params(PageQuery), responses((status = 200, body = Page<Machine>)))]
pub async fn list_machines(
    _: Reader,
    State(state): State<AppState>,
    Query(query): Query<PageQuery>,
) -> AppResult<Json<Page<Machine>>> {
    let (before, limit) = query.checked()?;
    let machines = shown(&state, machine::list(&state.db, before, limit).await?).await?;
    Ok(Json(query.page(machines, |machine: &Machine| machine.id.to_string())))
}

/// Machines as they are shown, with the reservations that are open for them.
pub async fn shown(state: &AppState, rows: Vec<NamedMachine>) -> AppResult<Vec<Machine>> {
    let open = reservation::all_open(&state.db).await?;
    let mut open: HashMap<MachineId, _> = open.into_iter().map(|row| (row.machine_id.clone(), row)).collect();
    let mut errands: HashMap<MachineId, Vec<_>> = HashMap::new();
    for row in errand::all_open(&state.db).await? {
        errands.entry(row.machine_id.clone()).or_default().push(row);
    }
    let now = state.now();
    Ok(rows
        .into_iter()
        .map(|row| {
            let reserved = open.remove(&row.machine.id);
            let errands = errands.remove(&row.machine.id).unwrap_or_default();
            wire::machine(row, reserved, &errands, now)
        })
        .collect())
}

/// The machine of this name or id.
pub async fn find(state: &AppState, key: &str) -> AppResult<NamedMachine> {
    let found = match key.parse::<MachineId>() {
        Ok(id) => machine::get(&state.db, &id).await,
        Err(_) => machine::by_name(&state.db, key).await,
    };
    found.map_err(|error| AppError::or_not_found(error, "machine"))
}

/// One machine as it is now.
pub async fn show(state: &AppState, id: &MachineId) -> AppResult<Json<Machine>> {
    let row = machine::get(&state.db, id).await?;
    let reserved = reservation::open(&state.db, id).await?;
    let errands = errand::open(&state.db, id).await?;
    Ok(Json(wire::machine(row, reserved, &errands, state.now())))
}

/// One machine.
#[utoipa::path(get, path = "/api/v1/machines/{machine}", tag = "machines",
    params(("machine" = String, Path, description = "name or id")), responses((status = 200, body = Machine)))]
pub async fn get_machine(
    _: Reader,
    State(state): State<AppState>,
    Path(machine): Path<String>,
) -> AppResult<Json<Machine>> {
    let id = find(&state, &machine).await?.machine.id;
    show(&state, &id).await
}

/// What happened to a machine, newest first: what people and the server decided, and its attempts.
#[utoipa::path(get, path = "/api/v1/machines/{machine}/history", tag = "machines",
    params(("machine" = String, Path, description = "name or id")),
    responses((status = 200, body = Vec<MachineEvent>)))]
pub async fn machine_history(
    _: Reader,
    State(state): State<AppState>,
    Path(machine): Path<String>,
) -> AppResult<Json<Vec<MachineEvent>>> {
    let id = find(&state, &machine).await?.machine.id;
    Ok(Json(history(&state, &id).await?))
}

/// What a machine is made of, as the target agent found it last.
#[utoipa::path(get, path = "/api/v1/machines/{machine}/inventory", tag = "machines",
    params(("machine" = String, Path, description = "name or id")),
    responses((status = 200, body = Inventory)))]
pub async fn machine_inventory(
    _: Reader,
    State(state): State<AppState>,
    Path(machine): Path<String>,
) -> AppResult<Json<Inventory>> {
    let row = find(&state, &machine).await?.machine;
    Ok(Json(inventory(&state, &row).await?))
}

/// What a machine is made of.
pub async fn inventory(state: &AppState, row: &MachineRow) -> AppResult<Inventory> {
    let found = db::inventory::get(&state.db, &row.id).await?;
    let (attempt, seen_at, facts) = match found {
        Some(found) => (Some(found.attempt_id), Some(found.seen_at), found.facts.0),
        None => (None, None, BTreeMap::new()),
    };
    let contradictions = crate::inventory::contradictions(&row.labels, &row.seen_labels);
    Ok(Inventory { attempt, seen_at, facts, labels: row.seen_labels.0.clone(), contradictions })
}

/// What happened to a machine, newest first.
pub async fn history(state: &AppState, id: &MachineId) -> AppResult<Vec<MachineEvent>> {
    // What has the same time: an attempt's end, what follows from it, the next attempt.
    let (ended, followed, began) = (0, 1, 2);
    let mut events: Vec<(u8, MachineEvent)> = life::changes(&state.db, id, HISTORY)
        .await?
        .into_iter()
        .rev()
        .map(|row| MachineEvent {
            at: row.at,
            state: row.state,
            reason: row.reason,
            by: row.decided_by,
            attempt: row.attempt_id,
        })
        .map(|event| (followed, event))
        .collect();
    for past in life::attempts(&state.db, id, HISTORY).await? {
        let event = |at, machine, reason: String| MachineEvent {
            at,
            state: machine,
            reason: Some(reason),
            by: life::SERVER.to_owned(),
            attempt: Some(past.id.clone()),
        };
        let title = &past.scenario.title;
        events.push((began, event(past.started_at, MachineState::Leased, title.clone())));
        if let Some(at) = past.finished_at {
            let (machine, how) = match past.state {
                AttemptState::Lost => (MachineState::Enrolled, "its lease ran out"),
                _ => (MachineState::Available, "returned"),
            };
            events.push((ended, event(at, machine, format!("{title}: {}, {how}", past.verdict))));
        }
    }
    events.sort_by_key(|(order, event)| (event.at, *order));
    let newest = events.into_iter().rev().map(|(_, event)| event);
    Ok(newest.take(usize::try_from(HISTORY).unwrap_or(usize::MAX)).collect())
}

/// Puts a machine that no attempt owns into another state.
#[utoipa::path(put, path = "/api/v1/machines/{machine}/state", tag = "machines",
    params(("machine" = String, Path, description = "name or id")), request_body = NewMachineState,
    responses((status = 200, body = Machine)))]
pub async fn set_machine_state(
    caller: Admin,
    State(state): State<AppState>,
    Path(machine): Path<String>,
    Json(new): Json<NewMachineState>,
) -> AppResult<Json<Machine>> {
    match new.state {
        MachineState::Available | MachineState::Quarantined | MachineState::Retired => {}
        MachineState::Leased | MachineState::Enrolled | MachineState::Held => {
            return Err(AppError::Invalid(format!("only the server makes a machine {}", new.state)));
        }
        MachineState::Reserved => {
            let text = "a reservation has an end: POST /api/v1/machines/NAME/reservation, or `crashyard reserve NAME`";
            return Err(AppError::Invalid(text.into()));
        }
    }
    if let Some(reason) = &new.reason {
        check_name("reason", reason)?;
    }
    let id = find(&state, &machine).await?.machine.id;
    let by = format!("token:{}", caller.0.name);
    let mut tx = state.db.begin().await?;
    let changed = life::decide(&mut tx, &id, new.state, new.reason.as_deref(), &by, state.now()).await?;
    tx.commit().await?;
    if changed.is_none() {
        return Err(AppError::Conflict("an attempt owns this machine; wait until it is over, or reserve it".into()));
    }
    state.wake.wake(&Topic::Machine(id.clone()));
    state.wake.wake(&Topic::Pass(Pass::Notices));
    show(&state, &id).await
}
