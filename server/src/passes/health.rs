//! Are the machines healthy? A plan with a kernel that is known to be good, run on each machine once in a while, and as its next
//! job on those that gave reason: the lab failed on them last, they are back from quarantine, or a person had them. Whoever
//! does not pass is quarantined. And which machine fails differently from those that ran the same tests?

use super::Next;
use crate::api::runs::{self, Place};
use crate::app::AppState;
use crate::db::artifact::Owner;
use crate::db::health::{self, Due};
use crate::db::run::{self, RunRow};
use crate::db::{self, flow, machine};
use crate::error::{AppError, AppResult};
use crate::selector::Selector;
use crate::siblings;
use crate::wake::Topic;
use crashyard_protocol::api::Policy;
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{
    ArtifactState, AttemptId, FlowId, Priority, RunId, RunState, SelectorId, Status, SubmitterId,
};
use std::time::Duration;

/// How often it is looked, and not oftener: it is a look at two weeks of attempts.
pub const EVERY: Duration = Duration::from_secs(5 * 60);

/// Checks that begin at most each time, so that a farm is not busy with itself.
const AT_ONCE: i64 = 10;

/// How far back machines are compared.
const COMPARED: Duration = Duration::from_secs(14 * 24 * 3600);

/// In whose name.
const SUBMITTER: &str = "health";

/// Submits what is due, and compares.
pub async fn tick(state: &AppState) -> AppResult<Next> {
    let now = state.now();
    let next = Next::At(now.plus(EVERY));
    compare(state, now).await?;
    if state.config.health_plan.is_empty() {
        return Ok(next);
    }
    if let Err(error) = check(state, now).await {
        // Somebody has to store the plan or the build; until then there is nothing to be done again quickly.
        tracing::error!(%error, plan = state.config.health_plan, "no health checks");
    }
    Ok(next)
}

async fn check(state: &AppState, now: Timestamp) -> AppResult<()> {
    let config = &state.config;
    let no_kernel = || AppError::Invalid("the policy of the plan names no `known_good` build".into());
    let plan = db::plan::plan(&state.db, &config.health_plan).await;
    let plan = plan.map_err(|error| AppError::or_not_found(error, "plan"))?;
    let build = plan.body.policy.known_good.as_ref().ok_or_else(no_kernel)?;
    let build = db::build::get(&state.db, build).await.map_err(|error| AppError::or_not_found(error, "build"))?;
    let files = db::artifact::list(&state.db, &Owner::Build(build.id.clone())).await?;
    if files.iter().any(|file| file.state == ArtifactState::Open) {
        return Err(AppError::Conflict("the build's upload is not complete".into()));
    }
    let scenarios = runs::scenarios(state, &plan.body).await?;
    let selector = Selector::new(&plan.body.selector, &plan.body.requires).map_err(AppError::Invalid)?;
    let mut tx = state.db.begin().await?;
    let selector = machine::put_selector(&mut tx, &SelectorId::from_ulid(state.ids.next()), &selector).await?;
    tx.commit().await?;
    let before = Timestamp(now.0.saturating_sub(i64::from(config.health_hours) * 3_600_000));
    for due in health::due(&state.db, &selector, before, AT_ONCE).await? {
        let row = RunRow {
            id: RunId::from_ulid(state.ids.next()),
            name: format!("health of {}", due.name),
            build_id: build.id.clone(),
            plan: plan.name.clone(),
            idempotency_key: None,
            state: RunState::Open,
            status: Status::Miss,
            created_at: now,
            finished_at: None,
            last_event: 0,
        };
        submit(state, row, &due, &selector, &scenarios, now).await?;
    }
    Ok(())
}

/// The check of one machine: jobs that only this machine may have. All of it or nothing, and by one server.
async fn submit(
    state: &AppState,
    row: RunRow,
    due: &Due,
    selector: &SelectorId,
    scenarios: &[crashyard_protocol::Scenario],
    now: Timestamp,
) -> AppResult<()> {
    let mut tx = state.db.begin().await?;
    if !health::begin(&mut tx, due, now).await? {
        return Ok(());
    }
    let id = SubmitterId::from_ulid(state.ids.next());
    let submitter = flow::put_submitter(&mut tx, &id, SUBMITTER, now).await?;
    let priority = if due.suspicious { Priority::Urgent } else { Priority::Bulk };
    let id = FlowId::from_ulid(state.ids.next());
    let flow = flow::put_flow(&mut tx, &id, selector, &submitter, priority).await?;
    let place = Place { selector: selector.clone(), flow, deadline: None, policy: Policy::default() };
    let jobs = runs::jobs(state, &row, &place, scenarios, 1, now);
    let (row, _) = run::create(&mut tx, &row, &jobs).await?;
    health::mark(&mut tx, &row.id, &due.id).await?;
    tx.commit().await?;
    tracing::info!(machine = due.name, run.id = %row.id, suspicious = due.suspicious, "health is checked");
    state.wake.wake(&Topic::Machine(due.id.clone()));
    Ok(())
}

/// Points out machines that fail differently.
async fn compare(state: &AppState, now: Timestamp) -> AppResult<()> {
    let since = now.0.saturating_sub(i64::try_from(COMPARED.as_millis()).unwrap_or(0));
    // Ids begin with the time.
    let since = AttemptId::from_ulid(ulid::Ulid::from_parts(u64::try_from(since).unwrap_or(0), 0));
    let found = siblings::different(&health::counts(&state.db, &since).await?);
    let mut tx = state.db.begin().await?;
    let new = health::point_out(&mut tx, &found).await?;
    tx.commit().await?;
    for machine in new {
        tracing::warn!(machine.id = %machine, how = found[&machine], "a machine fails differently from its siblings");
    }
    Ok(())
}
