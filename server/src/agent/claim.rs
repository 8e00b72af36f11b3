//! Claims: a controller's idle machines wait here for jobs.
//!
//! Nothing polls. A claim listens for its machines, looks at the queue, and waits; whoever submits a run, requeues a
//! job or releases a machine wakes claims that could take it. What is to be done with a machine and is no job
//! ([`super::errands`]) is told to a claim that got none. A job is offered to a few more claims than it needs and
//! not to a thousand: whoever takes one passes the rest on ([`pass_on`]).

use super::errands;
use crate::app::AppState;
use crate::auth::{Controller, secret_hash};
use crate::db::artifact::{ArtifactRow, Owner};
use crate::db::attempt::{AttemptRow, FullAttempt};
use crate::db::build::BuildRow;
use crate::db::flow;
use crate::db::queue::{self, Ask, NewLease};
use crate::db::{self, lease, machine, unsigned};
use crate::error::{AppError, AppResult};
use crate::extract::Json;
use crate::placer::{self, Placed};
use crate::wake::{Pass, SAFETY, Told, Topic};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use crashyard_protocol::agent::{ArtifactBrief, Brief, BuildBrief, Claim, ClaimRequest, Work};
use crashyard_protocol::{ArtifactState, AttemptId, MachineId, Scenario, SelectorId, SubmitterId};
use futures::future::select_all;
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// Longest time a claim is held open.
const WAIT_MAX: u32 = 60;
/// Claims woken beyond the number of jobs, because some of them may have found other work at the same moment.
const SPARE: usize = 8;
/// Machines of one claim that are tried in one transaction.
const MACHINES_AT_ONCE: usize = 32;

/// Asks for work for idle machines; answered when there is some, or `204` when the time is up.
#[utoipa::path(post, path = "/agent/v1/claim", tag = "agent", request_body = ClaimRequest,
    responses((status = 200, body = Work), (status = 204, description = "no work in the time given")))]
pub async fn claim(
    _: Controller,
    State(state): State<AppState>,
    Json(request): Json<ClaimRequest>,
) -> AppResult<Response> {
    // Everything but waiting is boxed: thousands of claims wait at once, and a future is as large as its largest part.
    // Listen first, look second: what is submitted in between wakes this claim.
    let mut waiters: Vec<_> =
        request.machines.iter().map(|id| state.wake.subscribe(Topic::Machine(id.clone()))).collect();
    if let Some(claim) = Box::pin(look(&state, &request)).await? {
        return Ok(Json(claim).into_response());
    }
    // Whatever is wrong with the request turns up when it gets nothing; and so does what is no job.
    let Checked { busy, errands } = Box::pin(check_machines(&state, &request)).await?;
    if let Some(claim) = Box::pin(hand_out_again(&state, &request, &busy)).await? {
        return Ok(Json(claim).into_response());
    }
    if let Some(errand) = Box::pin(errands::give(&state, &request, &errands)).await? {
        return Ok(Json(errand).into_response());
    }
    let end = Instant::now() + Duration::from_secs(u64::from(request.wait_seconds.min(WAIT_MAX)));
    while Instant::now() < end && !waiters.is_empty() {
        let woken = select_all(waiters.iter_mut().map(|waiter| Box::pin(waiter.woken())));
        tokio::select! {
            _ = timeout_at(end.min(Instant::now() + SAFETY), woken) => {}
            () = state.stop.cancelled() => break,
        }
        match Box::pin(look_again(&state, &request)).await? {
            Some(Work::Lease(claim)) => {
                Box::pin(pass_on(&state, &claim.machine)).await?;
                return Ok(Json(claim).into_response());
            }
            Some(Work::Errand(errand)) => return Ok(Json(errand).into_response()),
            None => {}
        }
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Looks for work for the first time: what is called idle is written down in the same transaction.
async fn look(state: &AppState, request: &ClaimRequest) -> AppResult<Option<Claim>> {
    let idle = request.machines.clone();
    if request.machines.len() <= MACHINES_AT_ONCE {
        return try_machines(state, request, &request.machines, idle).await;
    }
    // Reading first: of a thousand idle machines, only those with work are tried.
    let work = queue::with_work(&state.db, &request.machines).await?;
    try_machines(state, request, &work.jobs, idle).await
}

/// Looks again, reading first: most who are woken find that somebody else was faster.
async fn look_again(state: &AppState, request: &ClaimRequest) -> AppResult<Option<Work>> {
    let work = queue::with_work(&state.db, &request.machines).await?;
    if !work.jobs.is_empty()
        && let Some(claim) = try_machines(state, request, &work.jobs, Vec::new()).await?
    {
        return Ok(Some(Work::Lease(Box::new(claim))));
    }
    Ok(errands::give(state, request, &work.errands).await?.map(Work::Errand))
}

/// Machines of a claim that got no job.
struct Checked {
    /// Those that have an attempt.
    busy: Vec<MachineId>,
    /// Those that have an errand.
    errands: Vec<MachineId>,
}

/// Refuses machines that are not the controller's.
async fn check_machines(state: &AppState, request: &ClaimRequest) -> AppResult<Checked> {
    let own = machine::announced(&state.db, &request.controller, &request.machines).await?;
    let own: HashMap<_, _> = own.into_iter().map(|one| (one.id.clone(), one)).collect();
    if own.is_empty() && !machine::controller_exists(&state.db, &request.controller).await? {
        return Err(AppError::NotFound("this controller is not enrolled; enrol first".into()));
    }
    let mut checked = Checked { busy: Vec::new(), errands: Vec::new() };
    for id in &request.machines {
        match own.get(id) {
            Some(one) if one.attempt_id.is_some() => checked.busy.push(id.clone()),
            Some(one) if one.errand_owed => checked.errands.push(id.clone()),
            Some(_) => {}
            None => {
                let text = format!("machine {id} is not enrolled by this controller; enrol first");
                return Err(AppError::NotFound(text));
            }
        }
    }
    Ok(checked)
}

async fn hand_out_again(state: &AppState, request: &ClaimRequest, busy: &[MachineId]) -> AppResult<Option<Claim>> {
    for id in busy {
        let mut tx = state.db.begin().await?;
        let expires_at = state.now().plus(state.config.lease());
        let Some(attempt) = lease::hand_out_again(&mut tx, id, &request.controller, expires_at).await? else {
            continue;
        };
        let secret = state.ids.attempt_secret(&attempt.id);
        db::attempt::replace_secret(&mut tx, &attempt.id, &secret_hash(&secret)).await?;
        tx.commit().await?;
        state.credentials.forget_attempt(&attempt.id);
        return claim_of(state, &attempt.id, secret).await.map(Some);
    }
    Ok(None)
}

/// A job for the first of these machines that one waits for; `idle` are those to be written down as seen.
async fn try_machines(
    state: &AppState,
    request: &ClaimRequest,
    machines: &[MachineId],
    mut idle: Vec<MachineId>,
) -> AppResult<Option<Claim>> {
    // At least once, for what is written down.
    let none: &[MachineId] = &[];
    let parts = machines.chunks(MACHINES_AT_ONCE).chain(std::iter::once(none).filter(|_| machines.is_empty()));
    for part in parts {
        if part.is_empty() && idle.is_empty() {
            continue;
        }
        let now = state.now();
        let attempt = AttemptId::from_ulid(state.ids.next());
        let secret = state.ids.attempt_secret(&attempt);
        let lease = NewLease {
            attempt,
            secret_hash: secret_hash(&secret),
            controller: request.controller.clone(),
            now,
            expires_at: now.plus(state.config.lease()),
        };
        let placed = state
            .placer
            .ask(placer::Claim { ask: Ask { lease, machines: part.to_vec() }, idle: std::mem::take(&mut idle) });
        let Some(Placed { leased, build, files, passed_over }) = placed.await? else { continue };
        for selector in passed_over {
            state.wake.tell(|| Told::Offer(selector, SPARE));
        }
        state.metrics.add("crashyard_claims_total", Vec::new(), 1);
        state.wake.wake(&Topic::Run(leased.attempt.run_id.clone()));
        // Passes look by themselves in time for everything that is not due sooner.
        let soon = now.plus(SAFETY);
        if leased.attempt.lease_expires_at <= soon {
            state.wake.wake(&Topic::Pass(Pass::Leases));
        }
        if leased.attempt.check_at.is_some_and(|at| at <= soon) {
            state.wake.wake(&Topic::Pass(Pass::Deadlines));
        }
        let attempt = &leased.attempt;
        return Ok(Some(Claim {
            attempt: attempt.id.clone(),
            machine: attempt.machine_id.clone(),
            epoch: unsigned(attempt.epoch),
            lease_seconds: state.config.lease_seconds,
            attempt_token: secret,
            brief: brief(attempt, leased.job.scenario.0.clone(), &build, &files),
        }));
    }
    Ok(None)
}

async fn claim_of(state: &AppState, id: &AttemptId, secret: String) -> AppResult<Claim> {
    let full = db::attempt::full(&state.db, id).await?;
    Ok(Claim {
        attempt: full.attempt.id.clone(),
        machine: full.attempt.machine_id.clone(),
        epoch: unsigned(full.attempt.epoch),
        lease_seconds: state.config.lease_seconds,
        attempt_token: secret,
        brief: brief_of(state, &full).await?,
    })
}

/// What an attempt is to do.
pub async fn brief_of(state: &AppState, full: &FullAttempt) -> AppResult<Brief> {
    let build = db::build::get(&state.db, &full.build_id).await?;
    let files = db::artifact::list(&state.db, &Owner::Build(full.build_id.clone())).await?;
    Ok(brief(&full.attempt, full.scenario.0.clone(), &build, &files))
}

fn brief(attempt: &AttemptRow, mut scenario: Scenario, build: &BuildRow, files: &[ArtifactRow]) -> Brief {
    let artifacts = files
        .iter()
        .filter(|file| file.state == ArtifactState::Complete)
        .map(|file| ArtifactBrief {
            size: unsigned(file.size),
            blake3: file.blake3.clone().unwrap_or_default(),
            name: file.name.clone(),
            id: file.id.clone(),
        })
        .collect();
    // A kernel may need words on its command line wherever it boots; the scenario's own come after them and win.
    scenario.boot.cmdline = format!("{} {}", build.cmdline, scenario.boot.cmdline).trim().to_owned();
    Brief {
        marker: format!("crashyard: trigger job={} attempt={} scenario={}", attempt.job_id, attempt.id, scenario.name),
        attempt: attempt.id.clone(),
        job: attempt.job_id.clone(),
        run: attempt.run_id.clone(),
        scenario,
        build: BuildBrief {
            id: build.id.clone(),
            release: build.release.clone(),
            build_id: build.build_id.clone(),
            artifacts,
        },
    }
}

/// Wakes claims for machines that could take `jobs` new jobs of a selector; those that wait here first.
pub async fn offer(state: &AppState, selector: &SelectorId, jobs: usize) -> AppResult<()> {
    let left = offer_here(state, selector, jobs).await?;
    if left > 0 {
        state.wake.tell(|| Told::Offer(selector.clone(), left));
    }
    Ok(())
}

/// Wakes claims that wait at this server; how many more jobs there are than it had waiting.
pub async fn offer_here(state: &AppState, selector: &SelectorId, jobs: usize) -> AppResult<usize> {
    let mut left = jobs.saturating_add(SPARE);
    for machine in queue::idle_machines(&state.db, selector).await? {
        if left == 0 {
            break;
        }
        if state.wake.wake_here(&Topic::Machine(machine)) {
            left -= 1;
        }
    }
    Ok(left.min(jobs))
}

/// Wakes claims for machines that could take a job of this submitter.
pub async fn offer_for(state: &AppState, submitter: &SubmitterId) -> AppResult<()> {
    for selector in flow::selectors_of(&state.db, submitter).await? {
        offer(state, &selector, 1).await?;
    }
    Ok(())
}

/// A claim that was woken may have taken another job than the one it was woken for; the jobs it could have taken and
/// did not are offered to the others.
async fn pass_on(state: &AppState, machine: &MachineId) -> AppResult<()> {
    for (selector, waiting) in queue::waiting_for(&state.db, machine).await? {
        if waiting > 0 {
            offer(state, &selector, usize::try_from(waiting).unwrap_or(0)).await?;
        }
    }
    Ok(())
}
