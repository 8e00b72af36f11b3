//! Checks of a machine's power and consoles: wanted by a person, done by the machine's controller when the machine is idle.
//!
//! What is wanted stays wanted until it was done or somebody takes it back, and says what it waits for. It comes before the
//! machine's next job: on a farm that is never idle it would never be done otherwise.

use super::WaitQuery;
use super::machines::find;
use crate::agent::errands::over;
use crate::app::AppState;
use crate::auth::{Admin, Reader};
use crate::db::errand::{self, ErrandRow, Kind};
use crate::db::machine::{self, NamedMachine};
use crate::db::reservation;
use crate::error::{AppError, AppResult};
use crate::extract::{Json, Path, Query};
use crate::wake::{SAFETY, Topic};
use axum::extract::State;
use crashyard_protocol::api::{Check, NewCheck};
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{ErrandId, MachineId, MachineState};
use tokio::time::{Instant, timeout_at};

/// Wants a machine's power and consoles tried by its controller, before its next job. One that is wanted already is not wanted
/// twice.
#[utoipa::path(post, path = "/api/v1/machines/{machine}/check", tag = "machines",
    params(("machine" = String, Path, description = "name or id")), request_body = NewCheck,
    responses((status = 200, body = Check)))]
pub async fn want_check(
    caller: Admin,
    State(state): State<AppState>,
    Path(machine): Path<String>,
    Json(new): Json<NewCheck>,
) -> AppResult<Json<Check>> {
    let named = find(&state, &machine).await?;
    let machine = &named.machine;
    if machine.state == MachineState::Retired {
        return Err(AppError::Conflict(format!("{} is retired", machine.name)));
    }
    let id = ErrandId::from_ulid(state.ids.next());
    let by = format!("token:{}", caller.0.name);
    let row = ErrandRow { cycle: new.cycle, ..ErrandRow::new(id, &machine.id, Kind::Check, &by, state.now()) };
    let mut tx = state.db.begin().await?;
    let wanted = errand::want(&mut tx, &row).await?;
    if wanted.cycle != new.cycle {
        let how = if wanted.cycle { "with" } else { "without" };
        let text = format!("{} wants a check {how} --cycle already; take that back first", wanted.wanted_by);
        return Err(AppError::Conflict(text));
    }
    tx.commit().await?;
    state.wake.wake(&Topic::Errand(machine.id.clone()));
    state.wake.wake(&Topic::Machine(machine.id.clone()));
    Ok(Json(shown(&state, wanted, &named).await?))
}

/// The newest check of a machine.
#[utoipa::path(get, path = "/api/v1/machines/{machine}/check", tag = "machines",
    params(("machine" = String, Path, description = "name or id"), WaitQuery),
    responses((status = 200, body = Check)))]
pub async fn get_check(
    _: Reader,
    State(state): State<AppState>,
    Path(machine): Path<String>,
    Query(query): Query<WaitQuery>,
) -> AppResult<Json<Check>> {
    let id = find(&state, &machine).await?.machine.id;
    let mut waiter = state.wake.subscribe(Topic::Errand(id.clone()));
    let missing = || AppError::not_found("check of this machine");
    let before = last(&state, &id).await?.ok_or_else(missing)?;
    let end = query.end();
    let mut now = before.clone();
    while now == before && now.ended_at.is_none() && Instant::now() < end {
        tokio::select! {
            // Machine and controller change without a word to whoever waits here.
            _ = timeout_at(end.min(Instant::now() + SAFETY), waiter.woken()) => {}
            () = state.stop.cancelled() => break,
        }
        now = last(&state, &id).await?.ok_or_else(missing)?;
    }
    Ok(Json(now))
}

/// Takes back that a check is wanted. One that its controller is at goes on, and nobody hears of it.
#[utoipa::path(delete, path = "/api/v1/machines/{machine}/check", tag = "machines",
    params(("machine" = String, Path, description = "name or id")), responses((status = 200, body = Check)))]
pub async fn cancel_check(
    caller: Admin,
    State(state): State<AppState>,
    Path(machine): Path<String>,
) -> AppResult<Json<Check>> {
    let machine = find(&state, &machine).await?.machine;
    let why = format!("token:{} took it back", caller.0.name);
    let mut tx = state.db.begin().await?;
    let was_open = errand::cancel(&mut tx, &machine.id, Kind::Check, &why, state.now()).await?;
    tx.commit().await?;
    if !was_open {
        return Err(AppError::NotFound(format!("no check of {} is wanted", machine.name)));
    }
    over(&state, &machine.id);
    let check = last(&state, &machine.id).await?;
    check.map(Json).ok_or_else(|| AppError::not_found("check of this machine"))
}

/// The newest check of a machine, as it is now.
pub async fn last(state: &AppState, id: &MachineId) -> AppResult<Option<Check>> {
    let Some(row) = errand::last_check(&state.db, id).await? else { return Ok(None) };
    let named = machine::get(&state.db, id).await?;
    Ok(Some(shown(state, row, &named).await?))
}

async fn shown(state: &AppState, row: ErrandRow, named: &NamedMachine) -> AppResult<Check> {
    let waits = match row.ended_at {
        Some(_) => None,
        None => Some(waits(state, &row, named).await?),
    };
    Ok(Check {
        id: row.id,
        machine: named.machine.name.clone(),
        cycle: row.cycle,
        wanted_by: row.wanted_by,
        wanted_at: row.wanted_at,
        begun_at: row.given_at,
        ended_at: row.ended_at,
        waits,
        failed: row.detail.filter(|_| row.ok == Some(false)),
        findings: row.findings.map(|findings| findings.0).unwrap_or_default(),
    })
}

/// What an open check waits for.
async fn waits(state: &AppState, row: &ErrandRow, named: &NamedMachine) -> AppResult<String> {
    let reserved = reservation::open(&state.db, &named.machine.id).await?.is_some_and(|row| row.began_at.is_some());
    let first = errand::open(&state.db, &named.machine.id).await?.into_iter().find(|one| one.kind == Kind::Off);
    Ok(why(row, named, reserved, first.is_some(), state.now()))
}

fn why(row: &ErrandRow, named: &NamedMachine, reserved: bool, off_first: bool, now: Timestamp) -> String {
    let (machine, controller) = (&named.machine, &named.controller_name);
    let is = match (&machine.attempt_id, machine.state) {
        (Some(attempt), MachineState::Held) => format!("the machine is held as attempt {attempt} left it"),
        (Some(attempt), _) => format!("the machine is leased by attempt {attempt}"),
        (None, MachineState::Retired) => "the machine is retired".to_owned(),
        (None, _) if reserved => {
            format!("somebody has the machine ({})", machine.reason.as_deref().unwrap_or_default())
        }
        (None, _) if !machine.announced => {
            return format!("controller {controller} does not name the machine any more");
        }
        (None, _) if !named.is_reachable(now) => {
            let minutes = now.since(named.heard_of_at()).as_secs() / 60;
            return format!("controller {controller} is silent: nothing was heard of it for {minutes} minutes");
        }
        (None, _) if off_first => "the machine is powered off first, as a person had it".to_owned(),
        (None, _) if row.given_at.is_some() => return format!("controller {controller} is at it"),
        (None, _) => "the machine is idle".to_owned(),
    };
    format!("waiting for controller {controller}; {is}")
}
