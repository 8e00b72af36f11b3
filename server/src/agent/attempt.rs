//! An attempt's lease: what it is to do, renewed, handed back.

use super::claim::brief_of;
use crate::app::AppState;
use crate::auth::{Acting, InAttempt};
use crate::db::attempt::AttemptRow;
use crate::db::lease::{self, Renewal, Standing};
use crate::db::{self, DbError, unsigned};
use crate::error::{AppError, AppResult};
use crate::extract::Json;
use crate::judging;
use crate::recorder::{HandedIn, What};
use crate::wake::Topic;
use axum::extract::State;
use axum::http::StatusCode;
use crashyard_protocol::agent::{Brief, Directive, ReleaseRequest, RenewReply, RenewRequest};
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{AttemptState, MachineState};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// Longest text that says what was checked, in bytes.
const DETAIL_MAX: usize = 4096;

/// What the attempt is to do.
#[utoipa::path(get, path = "/agent/v1/attempts/{attempt}/brief", tag = "agent",
    params(("attempt" = String, Path)), responses((status = 200, body = Brief)))]
pub async fn get_brief(caller: InAttempt, State(state): State<AppState>) -> AppResult<Json<Brief>> {
    let full = db::attempt::full(&state.db, &caller.attempt.id).await?;
    Ok(Json(brief_of(&state, &full).await?))
}

/// Renews the lease; held open until there is something new for the controller, or its time is up.
#[utoipa::path(post, path = "/agent/v1/attempts/{attempt}/renew", tag = "agent", params(("attempt" = String, Path)),
    request_body = RenewRequest, responses((status = 200, body = RenewReply)))]
pub async fn renew(
    caller: Acting,
    State(state): State<AppState>,
    Json(request): Json<RenewRequest>,
) -> AppResult<Json<RenewReply>> {
    caller.controller_only()?;
    let Acting { attempt: id, epoch, .. } = caller;
    let mut waiter = state.wake.subscribe(Topic::Attempt(id.clone()));
    let wait = Duration::from_secs(u64::from(request.wait_seconds.min(state.config.lease_seconds / 3)));
    // The answer may come `wait` later, and the lease lasts from then.
    let until = state.now().plus(state.config.lease() + wait);
    let renewal = Renewal { attempt: id.clone(), epoch, until };
    let mut standing = match state.renewer.ask(renewal).await {
        Ok(standing) => standing,
        Err(error @ DbError::LeaseLost(_)) => {
            let attempt = db::attempt::get(&state.db, &id).await?;
            return Err(whose(&state, &attempt).await?.map_or_else(|| error.into(), AppError::MachineTaken));
        }
        Err(error) => return Err(AppError::or_not_found(error, "attempt")),
    };
    let end = Instant::now() + wait;
    let typed = |standing: &Standing| request.keys.is_some_and(|known| unsigned(standing.keys) > known);
    while directive(&standing, state.now()) == Directive::Continue && !typed(&standing) && Instant::now() < end {
        tokio::select! {
            // If a wake-up is lost, the next renewal sees what it would have said.
            woken = timeout_at(end, waiter.woken()) => if woken.is_err() { break },
            () = state.stop.cancelled() => break,
        }
        standing = lease::standing(&state.db, &id, epoch).await?;
    }
    Ok(Json(RenewReply {
        lease_seconds: state.config.lease_seconds,
        directive: directive(&standing, state.now()),
        keys: unsigned(standing.keys),
    }))
}

/// Who has the machine of an attempt whose lease is lost, if somebody has: its old controller must not power it off.
async fn whose(state: &AppState, attempt: &AttemptRow) -> AppResult<Option<String>> {
    let machine = db::machine::get(&state.db, &attempt.machine_id).await?;
    let (name, row) = (&machine.machine.name, &machine.machine);
    if row.controller_id != attempt.controller_id {
        return Ok(Some(format!("{name} belongs to the controller {} now", machine.controller_name)));
    }
    if row.state == MachineState::Reserved {
        return Ok(Some(format!("{name} is {}", row.reason.as_deref().unwrap_or("reserved"))));
    }
    Ok(None)
}

fn directive(lease: &Standing, now: Timestamp) -> Directive {
    match lease.state {
        AttemptState::Running => Directive::Continue,
        // Somebody wants to look at the machine as it is.
        AttemptState::Collecting if lease.held_until.is_some_and(|until| now < until) => Directive::Continue,
        AttemptState::Collecting | AttemptState::Done | AttemptState::Lost => Directive::Collect,
    }
}

/// Hands the lease back; the attempt is over. Repeating it is harmless.
#[utoipa::path(post, path = "/agent/v1/attempts/{attempt}/release", tag = "agent", params(("attempt" = String, Path)),
    request_body = ReleaseRequest, responses((status = 204)))]
pub async fn release(
    caller: Acting,
    State(state): State<AppState>,
    Json(request): Json<ReleaseRequest>,
) -> AppResult<StatusCode> {
    caller.controller_only()?;
    check_detail(&request.detail)?;
    let what = What::Lease { healthy: request.healthy, detail: request.detail };
    let handed_in = HandedIn { attempt: caller.attempt, epoch: caller.epoch, at: state.now(), what };
    let recorded = judging::keep(&state, handed_in).await?;
    if recorded.news {
        // The machine is free: a claim of its controller that already waits looks again.
        state.wake.wake(&Topic::Machine(recorded.machine));
    }
    Ok(StatusCode::NO_CONTENT)
}

fn check_detail(detail: &str) -> AppResult<()> {
    if detail.len() > DETAIL_MAX {
        return Err(AppError::Invalid(format!("`detail` may have at most {DETAIL_MAX} bytes")));
    }
    Ok(())
}
