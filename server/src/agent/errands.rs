//! Errands: what controllers shall do with idle machines and is no attempt. Given as the answer to a claim, given again until
//! the controller says what came of it.
//!
//! Nothing is kept anywhere but in the ledger, and a controller writes nothing down: whoever dies in between, the next claim
//! for the machine begins it anew. So an errand must be something that can be done twice.

use crate::app::AppState;
use crate::auth::Controller;
use crate::db::errand::{self, ErrandRow, Kind, Outcome};
use crate::error::{AppError, AppResult};
use crate::extract::{Json, Path};
use crate::wake::{Pass, Topic};
use axum::extract::State;
use axum::http::StatusCode;
use crashyard_protocol::agent::{ClaimRequest, Errand, ErrandDone, Order};
use crashyard_protocol::{ErrandId, MachineId};

/// Longest text in an answer, in bytes.
const TEXT_MAX: usize = 4096;
/// Most findings of a check: a machine has a handful of consoles.
const FINDINGS_MAX: usize = 64;

/// The first errand of these machines.
pub async fn give(state: &AppState, request: &ClaimRequest, machines: &[MachineId]) -> AppResult<Option<Errand>> {
    for machine in machines {
        let mut tx = state.db.begin().await?;
        let Some(row) = errand::give(&mut tx, machine, &request.controller, state.now()).await? else { continue };
        if !request.errands {
            // Waiting for a controller that will never do it would keep the machine from its jobs for ever.
            finish(state, tx, &row, &too_old(row.kind)).await?;
            continue;
        }
        tx.commit().await?;
        tracing::info!(errand.id = %row.id, kind = %row.kind, machine.id = %machine, "errand given");
        state.wake.wake(&Topic::Errand(machine.clone()));
        let order = match row.kind {
            Kind::Check => Order::Check { cycle: row.cycle },
            Kind::Off => Order::Off,
        };
        return Ok(Some(Errand { errand: row.id, machine: row.machine_id, order }));
    }
    Ok(None)
}

fn too_old(kind: Kind) -> Outcome<'static> {
    match kind {
        Kind::Check => Outcome { ok: false, detail: "its controller is too old for that; update it", findings: &[] },
        Kind::Off => {
            let detail = "not now, as its controller is too old for that; its next attempt does it";
            Outcome { ok: true, detail, findings: &[] }
        }
    }
}

/// Takes what came of an errand. Repeating it is harmless, and so is what comes after somebody took the errand back.
#[utoipa::path(post, path = "/agent/v1/errands/{errand}", tag = "agent", params(("errand" = String, Path)),
    request_body = ErrandDone, responses((status = 204)))]
pub async fn errand_done(
    _: Controller,
    State(state): State<AppState>,
    Path(id): Path<ErrandId>,
    Json(done): Json<ErrandDone>,
) -> AppResult<StatusCode> {
    check(&done)?;
    let row = errand::get(&state.db, &id).await.map_err(|error| AppError::or_not_found(error, "errand"))?;
    let tx = state.db.begin().await?;
    let outcome = Outcome { ok: done.ok, detail: &done.detail, findings: &done.findings };
    finish(&state, tx, &row, &outcome).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn finish(state: &AppState, mut tx: crate::db::Tx, row: &ErrandRow, outcome: &Outcome<'_>) -> AppResult<()> {
    errand::finish(&mut tx, row, outcome, &state.config.care().rule, state.now()).await?;
    tx.commit().await?;
    tracing::info!(errand.id = %row.id, kind = %row.kind, machine.id = %row.machine_id, ok = outcome.ok, "errand over");
    over(state, &row.machine_id);
    Ok(())
}

/// An errand of a machine is over: jobs and people who wait for the machine may have it.
pub fn over(state: &AppState, machine: &MachineId) {
    state.wake.wake(&Topic::Errand(machine.clone()));
    state.wake.wake(&Topic::Machine(machine.clone()));
    state.wake.wake(&Topic::Pass(Pass::Machines));
}

fn check(done: &ErrandDone) -> AppResult<()> {
    let texts = done.findings.iter().flat_map(|one| [&one.capability, &one.detail]).chain([&done.detail]);
    if done.findings.len() > FINDINGS_MAX || texts.into_iter().any(|text| text.len() > TEXT_MAX) {
        let text = format!("at most {FINDINGS_MAX} findings, and {TEXT_MAX} bytes in each text");
        return Err(AppError::Invalid(text));
    }
    Ok(())
}
