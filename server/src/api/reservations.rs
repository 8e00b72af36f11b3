//! Reservations: people take machines for a time.
//!
//! A token of scope `submit` is enough: whoever may fill the farm with jobs may take a machine out of it. Handing back and
//! prolonging is for the one who has it, and for administrators.

use super::machines::{find, show};
use super::plans::KEEP_MAX;
use crate::app::AppState;
use crate::auth::Submitter;
use crate::db::reservation::{self, ReservationRow};
use crate::error::{AppError, AppResult};
use crate::extract::{Json, Path, check_name};
use crate::passes::machines::end_reservation;
use crate::preempt;
use crate::wake::{Pass, Topic};
use axum::extract::State;
use crashyard_protocol::api::{Extension, Machine, NewReservation};
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{MachineState, ReservationId, Scope};
use std::time::Duration;

/// Takes a machine for a person: at once if it is free, else as soon as its attempt is over.
#[utoipa::path(post, path = "/api/v1/machines/{machine}/reservation", tag = "machines",
    params(("machine" = String, Path, description = "name or id")), request_body = NewReservation,
    responses((status = 200, body = Machine)))]
pub async fn reserve(
    caller: Submitter,
    State(state): State<AppState>,
    Path(machine): Path<String>,
    Json(new): Json<NewReservation>,
) -> AppResult<Json<Machine>> {
    check_name("reason", &new.reason)?;
    if let Some(address) = &new.notify {
        check_name("notify", address)?;
        if state.config.notify_command.is_empty() {
            let text = "this server tells nobody: its configuration has no `notify_command`";
            return Err(AppError::Invalid(text.into()));
        }
    }
    let now = state.now();
    let until = until(now, new.minutes)?;
    let machine = find(&state, &machine).await?.machine;
    if machine.state == MachineState::Retired {
        return Err(AppError::Conflict(format!("{} is retired", machine.name)));
    }
    let row = ReservationRow {
        id: ReservationId::from_ulid(state.ids.next()),
        machine_id: machine.id.clone(),
        owner: owner(&caller),
        reason: new.reason,
        created_at: now,
        began_at: None,
        until_at: until,
        warned_at: None,
        ended_at: None,
        ended_by: None,
        attempt_id: None,
        quarantine_reason: None,
        quarantine_until: None,
        notify: new.notify,
    };
    if let Some(other) = reservation::open(&state.db, &machine.id).await? {
        return Err(taken(&machine.name, &other));
    }
    let mut tx = state.db.begin().await?;
    let began = reservation::take(&mut tx, &row, now).await?;
    tx.commit().await?;
    if let Some(attempt) = machine.attempt_id.as_ref().filter(|_| !began) {
        preempt::for_person(&state, attempt, &row.owner).await?;
    }
    state.wake.wake(&Topic::Pass(Pass::Machines));
    show(&state, &machine.id).await
}

fn taken(name: &str, other: &ReservationRow) -> AppError {
    AppError::Conflict(format!("{name} is taken by {} ({})", other.owner, other.reason))
}

/// Prolongs a reservation, from now.
#[utoipa::path(put, path = "/api/v1/machines/{machine}/reservation", tag = "machines",
    params(("machine" = String, Path, description = "name or id")), request_body = Extension,
    responses((status = 200, body = Machine)))]
pub async fn extend(
    caller: Submitter,
    State(state): State<AppState>,
    Path(machine): Path<String>,
    Json(extension): Json<Extension>,
) -> AppResult<Json<Machine>> {
    let until = until(state.now(), extension.minutes)?;
    let machine = find(&state, &machine).await?.machine;
    let row = own(&state, &caller, &machine.id, &machine.name).await?;
    let mut tx = state.db.begin().await?;
    reservation::extend(&mut tx, &row, until).await?;
    tx.commit().await?;
    state.wake.wake(&Topic::Pass(Pass::Machines));
    show(&state, &machine.id).await
}

/// Hands a machine back.
#[utoipa::path(delete, path = "/api/v1/machines/{machine}/reservation", tag = "machines",
    params(("machine" = String, Path, description = "name or id")), responses((status = 200, body = Machine)))]
pub async fn hand_back(
    caller: Submitter,
    State(state): State<AppState>,
    Path(machine): Path<String>,
) -> AppResult<Json<Machine>> {
    let machine = find(&state, &machine).await?.machine;
    own(&state, &caller, &machine.id, &machine.name).await?;
    end_reservation(&state, &machine.id, &owner(&caller)).await?;
    show(&state, &machine.id).await
}

fn owner(caller: &Submitter) -> String {
    format!("token:{}", caller.0.name)
}

fn until(now: Timestamp, minutes: u32) -> AppResult<Timestamp> {
    if !(1..=KEEP_MAX).contains(&minutes) {
        return Err(AppError::Invalid(format!("minutes must be 1 to {KEEP_MAX} (four weeks)")));
    }
    Ok(now.plus(Duration::from_secs(u64::from(minutes) * 60)))
}

/// The open reservation of a machine, if the caller may change it. One that holds a failed job's machine belongs to
/// whoever may submit.
async fn own(
    state: &AppState,
    caller: &Submitter,
    machine: &crashyard_protocol::MachineId,
    name: &str,
) -> AppResult<ReservationRow> {
    let row = reservation::open(&state.db, machine).await?.ok_or_else(|| {
        AppError::NotFound(format!("{name} is not reserved; `crashyard machine show {name}` says what it is"))
    })?;
    let may = caller.0.scope == Scope::Admin || row.attempt_id.is_some() || row.owner == owner(caller);
    if may { Ok(row) } else { Err(taken(name, &row)) }
}
