//! Runs, their jobs, and their events.

use super::plans::{JOBS_MAX, check_policy};
use super::{PageQuery, WaitQuery, wire};
use crate::agent::claim::offer;
use crate::app::AppState;
use crate::auth::{Reader, Submitter};
use crate::db::artifact::Owner;
use crate::db::build::BuildRow;
use crate::db::flow;
use crate::db::plan::PlanBody;
use crate::db::run::{self, JobChange, JobRow, RunRow};
use crate::db::token::Credential;
use crate::db::{self, build};
use crate::error::{AppError, AppResult};
use crate::extract::{Json, Path, Query, check_name};
use crate::preempt;
use crate::selector::Selector;
use crate::sse::{self, After};
use crate::wake::{Pass, SAFETY, Topic};
use axum::extract::State;
use axum::response::Response;
use crashyard_protocol::api::{Job, NewRun, Page, Policy, Run, Waiting};
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{
    ArtifactState, FlowId, JobId, JobState, Priority, Purpose, RunId, RunState, Scenario, SelectorId, Status,
    SubmitterId,
};
use sqlx::types::Json as Document;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// Each further job of a run stands this much further back in the queue, so that a run of a thousand jobs does not
/// keep a run of one job waiting that was submitted a minute later.
const RANK_STEP_MS: i64 = 60_000;

/// Runs, newest first.
#[utoipa::path(get, path = "/api/v1/runs", tag = "runs", params(PageQuery), responses((status = 200, body = Page<Run>)))]
pub async fn list_runs(
    _: Reader,
    State(state): State<AppState>,
    Query(query): Query<PageQuery>,
) -> AppResult<Json<Page<Run>>> {
    let (before, limit) = query.checked()?;
    let rows = run::list(&state.db, before, limit).await?;
    let counts = run::counts(&state.db, before, limit).await?;
    let runs = rows.into_iter().map(|row| wire::run(row, &counts)).collect();
    Ok(Json(query.page(runs, |run: &Run| run.id.to_string())))
}

/// Submits a build against a plan. With a `key`, repeating it returns the first run.
#[utoipa::path(post, path = "/api/v1/runs", tag = "runs", request_body = NewRun, responses((status = 200, body = Run)))]
pub async fn create_run(
    submitter: Submitter,
    State(state): State<AppState>,
    Json(new): Json<NewRun>,
) -> AppResult<Json<Run>> {
    if let Some(key) = &new.key {
        check_name("key", key)?;
    }
    let build = build::get(&state.db, &new.build).await.map_err(|error| AppError::or_not_found(error, "build"))?;
    let files = db::artifact::list(&state.db, &Owner::Build(new.build.clone())).await?;
    if let Some(open) = files.iter().find(|file| file.state == ArtifactState::Open) {
        return Err(AppError::Conflict(format!("the upload of {:?} of this build is not complete", open.name)));
    }
    let plan = db::plan::plan(&state.db, &new.plan).await.map_err(|error| AppError::or_not_found(error, "plan"))?;
    if let Some(policy) = &new.policy {
        check_policy(&state, policy).await?;
    }
    let now = state.now();
    let row = RunRow {
        id: RunId::from_ulid(state.ids.next()),
        name: format!("{} · {}", build.name, plan.name),
        build_id: new.build,
        plan: plan.name,
        idempotency_key: new.key,
        state: RunState::Open,
        status: Status::Miss,
        created_at: now,
        finished_at: None,
        last_event: 0,
    };
    let scenarios = scenarios(&state, &plan.body).await?;
    let selector = Selector::new(&plan.body.selector, &plan.body.requires).map_err(AppError::Invalid)?;
    let submitter = submitter_name(&state, &build, &submitter.0).await?;
    let deadline = deadline(now, new.start_within_seconds, new.deadline)?;
    let mut tx = state.db.begin().await?;
    let selector = db::machine::put_selector(&mut tx, &SelectorId::from_ulid(state.ids.next()), &selector).await?;
    let id = SubmitterId::from_ulid(state.ids.next());
    let submitter = flow::put_submitter(&mut tx, &id, &submitter, now).await?;
    let priority = new.priority.unwrap_or(Priority::Normal);
    let id = FlowId::from_ulid(state.ids.next());
    let flow = flow::put_flow(&mut tx, &id, &selector, &submitter, priority).await?;
    let policy = new.policy.unwrap_or_else(|| plan.body.policy.clone());
    let place = Place { selector: selector.clone(), flow, deadline, policy };
    let jobs = jobs(&state, &row, &place, &scenarios, plan.body.repetitions, now);
    let (row, made) = run::create(&mut tx, &row, &jobs).await?;
    tx.commit().await?;
    if made {
        if deadline.is_some() {
            state.wake.wake(&Topic::Pass(Pass::Queue));
        }
        offer(&state, &selector, jobs.len()).await?;
        preempt::make_room(&state, &selector, priority, jobs.len()).await?;
    } else if row.build_id != build.id || row.plan != new.plan {
        return Err(AppError::Conflict(format!("run {} was submitted with this key and is another one", row.id)));
    }
    show(&state, row).await
}

/// Whose machine time it is: the tree's, or the token's where the build belongs to no tree.
async fn submitter_name(state: &AppState, build: &BuildRow, token: &Credential) -> AppResult<String> {
    let Some(checkout) = &build.checkout_id else { return Ok(format!("token:{}", token.name)) };
    let checkout = db::tree::checkout(&state.db, checkout).await?;
    Ok(format!("tree:{}", db::tree::tree(&state.db, &checkout.tree_id).await?.name))
}

/// The earlier of the two ways to say it; one that is over already is a mistake.
fn deadline(now: Timestamp, within: Option<u32>, at: Option<Timestamp>) -> AppResult<Option<Timestamp>> {
    if at.is_some_and(|at| at <= now) || within == Some(0) {
        return Err(AppError::Invalid("the deadline has passed already: no machine could start before it".into()));
    }
    let within = within.map(|seconds| now.plus(Duration::from_secs(u64::from(seconds))));
    Ok(within.into_iter().chain(at).min())
}

/// Where the jobs of a run stand.
pub struct Place {
    /// What they ask of a machine.
    pub selector: SelectorId,
    /// In which queue.
    pub flow: FlowId,
    /// When they give up.
    pub deadline: Option<Timestamp>,
    /// What becomes of failures.
    pub policy: Policy,
}

/// The scenarios of a plan.
pub async fn scenarios(state: &AppState, plan: &PlanBody) -> AppResult<Vec<Scenario>> {
    let mut scenarios = Vec::new();
    for name in &plan.scenarios {
        let row = db::plan::scenario(&state.db, name)
            .await
            .map_err(|error| AppError::or_not_found(error, &format!("scenario: {name:?}")))?;
        scenarios.push(row.body.0);
    }
    Ok(scenarios)
}

/// Everything the run owes, as rows: repetition by repetition, so that every scenario has a first result early.
pub fn jobs(
    state: &AppState,
    run: &RunRow,
    place: &Place,
    scenarios: &[Scenario],
    repetitions: u32,
    now: Timestamp,
) -> Vec<JobRow> {
    let owed = (0..repetitions).flat_map(|_| scenarios).take(JOBS_MAX);
    owed.zip(0_i64..)
        .map(|(scenario, ordinal)| JobRow {
            id: JobId::from_ulid(state.ids.next()),
            run_id: run.id.clone(),
            ordinal,
            scenario: Document(scenario.clone()),
            selector_id: place.selector.clone(),
            flow_id: place.flow.clone(),
            deadline_at: place.deadline,
            rank: now.0.saturating_add(ordinal.saturating_mul(RANK_STEP_MS)),
            state: JobState::Queued,
            status: Status::Miss,
            reason: None,
            blamed_stage: None,
            attempt_count: 0,
            created_at: now,
            finished_at: None,
            policy: Document(place.policy.clone()),
            purpose: Purpose::Test,
            only_machine_id: None,
            not_machine_id: None,
        })
        .collect()
}

async fn show(state: &AppState, row: RunRow) -> AppResult<Json<Run>> {
    let counts = run::counts_of(&state.db, &row.id).await?;
    Ok(Json(wire::run(row, &counts)))
}

async fn find(state: &AppState, id: &RunId) -> AppResult<RunRow> {
    run::get(&state.db, id).await.map_err(|error| AppError::or_not_found(error, "run"))
}

/// One run.
#[utoipa::path(get, path = "/api/v1/runs/{id}", tag = "runs", params(("id" = RunId, Path)), responses((status = 200, body = Run)))]
pub async fn get_run(_: Reader, State(state): State<AppState>, Path(id): Path<RunId>) -> AppResult<Json<Run>> {
    show(&state, find(&state, &id).await?).await
}

/// The jobs of a run, in order.
#[utoipa::path(get, path = "/api/v1/runs/{id}/jobs", tag = "runs", params(("id" = RunId, Path)), responses((status = 200, body = Vec<Job>)))]
pub async fn list_run_jobs(
    _: Reader,
    State(state): State<AppState>,
    Path(id): Path<RunId>,
) -> AppResult<Json<Vec<Job>>> {
    find(&state, &id).await?;
    Ok(Json(jobs_of(&state, &id).await?))
}

/// The jobs of a run with their attempts, in order.
pub async fn jobs_of(state: &AppState, id: &RunId) -> AppResult<Vec<Job>> {
    let mut attempts: std::collections::HashMap<JobId, Vec<_>> = std::collections::HashMap::new();
    for (job, attempt) in run::attempts_by_job(&state.db, id).await? {
        attempts.entry(job).or_default().push(attempt);
    }
    let rows = run::jobs(&state.db, id).await?;
    Ok(rows
        .into_iter()
        .map(|row| {
            let tried = attempts.remove(&row.job.id).unwrap_or_default();
            wire::job(row, tried)
        })
        .collect())
}

/// Events of a run as they happen; ends with a `complete` event when the run is done.
#[utoipa::path(get, path = "/api/v1/runs/{id}/events", tag = "runs",
    params(("id" = RunId, Path), ("after" = Option<u64>, Query, description = "events behind this number"),
        ("Last-Event-ID" = Option<u64>, Header)),
    responses((status = 200, content_type = "text/event-stream", body = crashyard_protocol::api::Event)))]
pub async fn run_events(
    _: Reader,
    State(state): State<AppState>,
    Path(id): Path<RunId>,
    After(after): After,
) -> AppResult<Response> {
    find(&state, &id).await?;
    Ok(sse::run_events(state, id, None, after))
}

async fn find_job(state: &AppState, id: &JobId) -> AppResult<run::SelectedJob> {
    run::job(&state.db, id).await.map_err(|error| AppError::or_not_found(error, "job"))
}

/// One job.
#[utoipa::path(get, path = "/api/v1/jobs/{id}", tag = "runs", params(("id" = JobId, Path)), responses((status = 200, body = Job)))]
pub async fn get_job(_: Reader, State(state): State<AppState>, Path(id): Path<JobId>) -> AppResult<Json<Job>> {
    let row = find_job(&state, &id).await?;
    let attempts = run::attempts_of(&state.db, &id).await?;
    Ok(Json(wire::job(row, attempts)))
}

/// Events of a job as they happen; ends with a `complete` event when the job is done.
#[utoipa::path(get, path = "/api/v1/jobs/{id}/events", tag = "runs",
    params(("id" = JobId, Path), ("after" = Option<u64>, Query, description = "events behind this number"),
        ("Last-Event-ID" = Option<u64>, Header)),
    responses((status = 200, content_type = "text/event-stream", body = crashyard_protocol::api::Event)))]
pub async fn job_events(
    _: Reader,
    State(state): State<AppState>,
    Path(id): Path<JobId>,
    After(after): After,
) -> AppResult<Response> {
    let job = find_job(&state, &id).await?;
    Ok(sse::run_events(state, job.job.run_id, Some(id), after))
}

/// Why a job is waiting: constraints, machines, who comes first, expected start.
#[utoipa::path(get, path = "/api/v1/jobs/{id}/waiting", tag = "runs", params(("id" = JobId, Path), WaitQuery),
    responses((status = 200, body = Waiting)))]
pub async fn job_waiting(
    _: Reader,
    State(state): State<AppState>,
    Path(id): Path<JobId>,
    Query(query): Query<WaitQuery>,
) -> AppResult<Json<Waiting>> {
    let run = find_job(&state, &id).await?.job.run_id;
    let mut waiter = state.wake.subscribe(Topic::Run(run));
    let before = crate::waiting::of_job(&state, &id).await?;
    let end = query.end();
    let mut now = before.clone();
    while now.state == JobState::Queued && now.says_the_same_as(&before) && Instant::now() < end {
        tokio::select! {
            // That it is placed, it is told; machines and other queues change without a word to whoever waits here.
            _ = timeout_at(end.min(Instant::now() + SAFETY), waiter.woken()) => {}
            () = state.stop.cancelled() => break,
        }
        now = crate::waiting::of_job(&state, &id).await?;
    }
    Ok(Json(now))
}

/// Withdraws a job that no machine has yet.
#[utoipa::path(post, path = "/api/v1/jobs/{id}/cancel", tag = "runs", params(("id" = JobId, Path)), responses((status = 200, body = Job)))]
pub async fn cancel_job(_: Submitter, State(state): State<AppState>, Path(id): Path<JobId>) -> AppResult<Json<Job>> {
    let job = find_job(&state, &id).await?;
    let mut tx = state.db.begin().await?;
    let change = JobChange {
        state: JobState::Cancelled,
        status: Status::Skip,
        reason: Some("cancelled before a machine was placed"),
        blamed_stage: None,
    };
    run::cancel(&mut tx, &id, change, state.now()).await?;
    tx.commit().await?;
    state.wake.wake(&Topic::Run(job.job.run_id));
    let row = find_job(&state, &id).await?;
    if row.job.state != JobState::Cancelled {
        return Err(AppError::Conflict(format!("the job is {} and cannot be withdrawn any more", row.job.state)));
    }
    Ok(Json(wire::job(row, run::attempts_of(&state.db, &id).await?)))
}
