//! Claims: a controller's idle machines wait here for jobs.
//!
//! Nothing polls. A claim listens for its machines, looks at the queue, and waits; whoever submits a run, requeues a
//! job or releases a machine wakes claims that could take it. A job is offered to a few more claims than it needs and
//! not to a thousand: whoever takes one passes the rest on ([`pass_on`]).

use crate::app::AppState;
use crate::auth::{Controller, secret_hash};
use crate::db::artifact::Owner;
use crate::db::attempt::FullAttempt;
use crate::db::queue::{self, NewLease};
use crate::db::token::TokenRow;
use crate::db::{self, DbError, lease, machine, unsigned};
use crate::error::{AppError, AppResult};
use crate::extract::Json;
use crate::judging;
use crate::wake::{Pass, SAFETY, Topic};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use crashyard_protocol::agent::{ArtifactBrief, Brief, BuildBrief, Claim, ClaimRequest};
use crashyard_protocol::{ArtifactState, AttemptId, MachineId, Scope, SelectorId, TokenId};
use futures::future::select_all;
use std::collections::{HashMap, HashSet};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// Longest time a claim is held open.
const WAIT_MAX: u32 = 60;
/// Claims woken beyond the number of jobs, because some of them may have found other work at the same moment.
const SPARE: usize = 8;

/// Asks for work for idle machines; answered when there is some, or `204` when the time is up.
#[utoipa::path(post, path = "/agent/v1/claim", tag = "agent", request_body = ClaimRequest,
    responses((status = 200, body = Claim), (status = 204, description = "no work in the time given")))]
pub async fn claim(
    _: Controller,
    State(state): State<AppState>,
    Json(request): Json<ClaimRequest>,
) -> AppResult<Response> {
    // Everything but waiting is boxed: thousands of claims wait at once, and a future is as large as its largest part.
    let busy = Box::pin(check_machines(&state, &request)).await?;
    // Listen first, look second: what is submitted in between wakes this claim.
    let mut waiters: Vec<_> =
        request.machines.iter().map(|id| state.wake.subscribe(Topic::Machine(id.clone()))).collect();
    Box::pin(seen_idle(&state, &request)).await?;
    if let Some(claim) = Box::pin(hand_out_again(&state, &request, &busy)).await? {
        return Ok(Json(claim).into_response());
    }
    let end = Instant::now() + Duration::from_secs(u64::from(request.wait_seconds.min(WAIT_MAX)));
    loop {
        // Reading first: with a thousand idle machines, only those with work ask for the write lock.
        let work = Box::pin(queue::with_work(&state.db, &request.controller)).await?;
        let work: HashSet<MachineId> = work.into_iter().collect();
        for id in request.machines.iter().filter(|id| work.contains(id)) {
            if let Some(claim) = Box::pin(try_machine(&state, &request, id)).await? {
                Box::pin(pass_on(&state, id)).await?;
                return Ok(Json(claim).into_response());
            }
        }
        if Instant::now() >= end || waiters.is_empty() {
            return Ok(StatusCode::NO_CONTENT.into_response());
        }
        let woken = select_all(waiters.iter_mut().map(|waiter| Box::pin(waiter.woken())));
        tokio::select! {
            _ = timeout_at(end.min(Instant::now() + SAFETY), woken) => {}
            () = state.stop.cancelled() => return Ok(StatusCode::NO_CONTENT.into_response()),
        }
    }
}

/// Refuses machines that are not the controller's; returns those that have an attempt.
async fn check_machines(state: &AppState, request: &ClaimRequest) -> AppResult<Vec<MachineId>> {
    if !machine::controller_exists(&state.db, &request.controller).await? {
        return Err(AppError::NotFound("this controller is not enrolled; enrol first".into()));
    }
    let own = machine::of_controller(&state.db, &request.controller).await?;
    let own: HashMap<_, _> = own.iter().filter(|own| own.announced).map(|own| (&own.id, &own.attempt_id)).collect();
    let mut busy = Vec::new();
    for id in &request.machines {
        match own.get(id) {
            Some(Some(_)) => busy.push(id.clone()),
            Some(None) => {}
            None => {
                let text = format!("machine {id} is not enrolled by this controller; enrol first");
                return Err(AppError::NotFound(text));
            }
        }
    }
    Ok(busy)
}

async fn seen_idle(state: &AppState, request: &ClaimRequest) -> AppResult<()> {
    let mut tx = state.db.begin().await?;
    machine::seen_idle(&mut tx, &request.controller, &request.machines, state.now()).await?;
    Ok(tx.commit().await?)
}

async fn hand_out_again(state: &AppState, request: &ClaimRequest, busy: &[MachineId]) -> AppResult<Option<Claim>> {
    for id in busy {
        let mut tx = state.db.begin().await?;
        let expires_at = state.now().plus(state.config.lease());
        let Some(attempt) = lease::hand_out_again(&mut tx, id, &request.controller, expires_at).await? else {
            continue;
        };
        let secret = state.ids.secret();
        db::token::replace_attempt_secret(&mut tx, &attempt.id, &secret_hash(&secret)).await?;
        tx.commit().await?;
        return claim_of(state, &attempt.id, secret).await.map(Some);
    }
    Ok(None)
}

async fn try_machine(state: &AppState, request: &ClaimRequest, id: &MachineId) -> AppResult<Option<Claim>> {
    let now = state.now();
    let lease = NewLease {
        attempt: AttemptId::from_ulid(state.ids.next()),
        controller: request.controller.clone(),
        now,
        expires_at: now.plus(state.config.lease()),
    };
    let mut tx = state.db.begin().await?;
    let leased = match queue::lease_next(&mut tx, id, &lease).await {
        Ok(Some(leased)) => leased,
        // The database itself refuses a second lease, if two servers were that close.
        Ok(None) | Err(DbError::Conflict(_)) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let build = db::run::build_facts_of(&mut tx, &leased.job.run_id).await?;
    let build = crate::triage::BuildFacts { release: build.0, build_id: build.1 };
    let judged = judging::first(&leased.attempt.id, &leased.job.scenario, &build, now);
    db::judgement::open_stages(&mut tx, &leased.attempt.id, &judged.stages, judged.check_at).await?;
    let secret = state.ids.secret();
    let token = TokenRow {
        id: TokenId::from_ulid(state.ids.next()),
        name: format!("attempt {}", leased.attempt.id),
        scope: Scope::Attempt,
        attempt_id: Some(leased.attempt.id.clone()),
        created_at: now,
        expires_at: None,
        revoked_at: None,
    };
    db::token::create(&mut tx, &token, &secret_hash(&secret)).await?;
    tx.commit().await?;
    state.metrics.add("crashyard_claims_total", Vec::new(), 1);
    state.wake.wake(&Topic::Run(leased.attempt.run_id.clone()));
    state.wake.wake(&Topic::Pass(Pass::Leases));
    state.wake.wake(&Topic::Pass(Pass::Deadlines));
    claim_of(state, &leased.attempt.id, secret).await.map(Some)
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
    let artifacts = db::artifact::list(&state.db, &Owner::Build(full.build_id.clone())).await?;
    let artifacts = artifacts
        .into_iter()
        .filter(|artifact| artifact.state == ArtifactState::Complete)
        .map(|artifact| ArtifactBrief {
            size: unsigned(artifact.size),
            blake3: artifact.blake3.unwrap_or_default(),
            name: artifact.name,
            id: artifact.id,
        })
        .collect();
    let attempt = &full.attempt;
    let mut scenario = full.scenario.0.clone();
    // A kernel may need words on its command line wherever it boots; the scenario's own come after them and win.
    scenario.boot.cmdline = format!("{} {}", full.build_cmdline, scenario.boot.cmdline).trim().to_owned();
    Ok(Brief {
        marker: format!("crashyard: trigger job={} attempt={} scenario={}", attempt.job_id, attempt.id, scenario.name),
        attempt: attempt.id.clone(),
        job: attempt.job_id.clone(),
        run: attempt.run_id.clone(),
        scenario,
        build: BuildBrief {
            id: full.build_id.clone(),
            release: full.build_release.clone(),
            build_id: full.build_gnu_id.clone(),
            artifacts,
        },
    })
}

/// Wakes claims for machines that could take `jobs` new jobs of a selector.
pub async fn offer(state: &AppState, selector: &SelectorId, jobs: usize) -> AppResult<()> {
    let mut left = jobs.saturating_add(SPARE);
    for machine in queue::idle_machines(&state.db, selector).await? {
        if left == 0 {
            break;
        }
        if state.wake.wake(&Topic::Machine(machine)) {
            left -= 1;
        }
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
