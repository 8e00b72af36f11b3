//! Stored scenarios and plans.

use super::{PageQuery, wire};
use crate::agent::enrol::check_labels;
use crate::app::AppState;
use crate::auth::{Reader, Submitter};
use crate::db::artifact::Owner;
use crate::db::plan::{self, PlanBody, PlanRow, ScenarioRow};
use crate::error::{AppError, AppResult};
use crate::extract::{Json, Path, Query, check_path_name};
use crate::selector::Selector;
use axum::extract::State;
use crashyard_protocol::api::{NewPlan, Page, Plan, Policy, StoredScenario};
use crashyard_protocol::{ArtifactState, PlanId, Scenario, ScenarioId};
use sqlx::types::Json as Document;

/// Jobs that one run may owe.
pub const JOBS_MAX: usize = 10_000;

/// Scenarios, newest first.
#[utoipa::path(get, path = "/api/v1/scenarios", tag = "plans", params(PageQuery), responses((status = 200, body = Page<StoredScenario>)))]
pub async fn list_scenarios(
    _: Reader,
    State(state): State<AppState>,
    Query(query): Query<PageQuery>,
) -> AppResult<Json<Page<StoredScenario>>> {
    let (before, limit) = query.checked()?;
    let rows = plan::list_scenarios(&state.db, before, limit).await?;
    Ok(Json(query.page(rows.into_iter().map(wire::scenario).collect(), |row: &StoredScenario| row.id.to_string())))
}

/// The scenario of this name.
#[utoipa::path(get, path = "/api/v1/scenarios/{name}", tag = "plans", params(("name" = String, Path)), responses((status = 200, body = StoredScenario)))]
pub async fn get_scenario(
    _: Reader,
    State(state): State<AppState>,
    Path(name): Path<String>,
) -> AppResult<Json<StoredScenario>> {
    let row = plan::scenario(&state.db, &name).await.map_err(|error| AppError::or_not_found(error, "scenario"))?;
    Ok(Json(wire::scenario(row)))
}

/// Stores a scenario under its name. Runs that were submitted before keep the one they had.
#[utoipa::path(put, path = "/api/v1/scenarios/{name}", tag = "plans", params(("name" = String, Path)),
    request_body = Scenario, responses((status = 200, body = StoredScenario)))]
pub async fn put_scenario(
    _: Submitter,
    State(state): State<AppState>,
    Path(name): Path<String>,
    Json(scenario): Json<Scenario>,
) -> AppResult<Json<StoredScenario>> {
    check_scenario(&name, &scenario)?;
    let id = ScenarioId::from_ulid(state.ids.next());
    let row = ScenarioRow { id, name, body: Document(scenario), updated_at: state.now() };
    let mut tx = state.db.begin().await?;
    let row = plan::put_scenario(&mut tx, &row).await?;
    tx.commit().await?;
    Ok(Json(wire::scenario(row)))
}

fn check_scenario(name: &str, scenario: &Scenario) -> AppResult<()> {
    check_path_name("scenario name", name)?;
    if scenario.name != name {
        let text = format!("the name in the path and in the body must be the same, not {:?}", scenario.name);
        return Err(AppError::Invalid(text));
    }
    scenario.check().map_err(AppError::Invalid)
}

/// Longest time for which a machine is kept, in minutes: four weeks.
pub const KEEP_MAX: u32 = 4 * 7 * 24 * 60;
/// Most tries of what the lab owes.
const TRIES_MAX: u32 = 20;

/// A policy that can be kept: its kernel is there, its numbers are sane.
pub async fn check_policy(state: &AppState, policy: &Policy) -> AppResult<()> {
    if policy.tries.is_some_and(|tries| !(1..=TRIES_MAX).contains(&tries)) {
        return Err(AppError::Invalid(format!("policy.tries must be 1 to {TRIES_MAX}")));
    }
    if policy.hold_minutes > KEEP_MAX {
        return Err(AppError::Invalid(format!("policy.hold_minutes may be at most {KEEP_MAX}")));
    }
    if let Some(build) = &policy.known_good {
        crate::db::build::get(&state.db, build)
            .await
            .map_err(|error| AppError::or_not_found(error, "build: policy.known_good"))?;
        let files = crate::db::artifact::list(&state.db, &Owner::Build(build.clone())).await?;
        if let Some(open) = files.iter().find(|file| file.state == ArtifactState::Open) {
            let text = format!("the upload of {:?} of the known-good build is not complete", open.name);
            return Err(AppError::Conflict(text));
        }
    }
    Ok(())
}

/// Plans, newest first.
#[utoipa::path(get, path = "/api/v1/plans", tag = "plans", params(PageQuery), responses((status = 200, body = Page<Plan>)))]
pub async fn list_plans(
    _: Reader,
    State(state): State<AppState>,
    Query(query): Query<PageQuery>,
) -> AppResult<Json<Page<Plan>>> {
    let (before, limit) = query.checked()?;
    let rows = plan::list_plans(&state.db, before, limit).await?;
    Ok(Json(query.page(rows.into_iter().map(wire::plan).collect(), |row: &Plan| row.id.to_string())))
}

/// The plan of this name.
#[utoipa::path(get, path = "/api/v1/plans/{name}", tag = "plans", params(("name" = String, Path)), responses((status = 200, body = Plan)))]
pub async fn get_plan(_: Reader, State(state): State<AppState>, Path(name): Path<String>) -> AppResult<Json<Plan>> {
    let row = plan::plan(&state.db, &name).await.map_err(|error| AppError::or_not_found(error, "plan"))?;
    Ok(Json(wire::plan(row)))
}

/// Stores a plan under its name; its scenarios must be stored already.
#[utoipa::path(put, path = "/api/v1/plans/{name}", tag = "plans", params(("name" = String, Path)),
    request_body = NewPlan, responses((status = 200, body = Plan)))]
pub async fn put_plan(
    _: Submitter,
    State(state): State<AppState>,
    Path(name): Path<String>,
    Json(new): Json<NewPlan>,
) -> AppResult<Json<Plan>> {
    check_path_name("plan name", &name)?;
    if new.name != name {
        return Err(AppError::Invalid("the name in the path and in the body must be the same".into()));
    }
    check_labels(&new.selector)?;
    Selector::new(&new.selector, &new.requires).map_err(AppError::Invalid)?;
    let jobs = new.scenarios.len().saturating_mul(new.repetitions as usize);
    if !(1..=JOBS_MAX).contains(&jobs) {
        return Err(AppError::Invalid(format!("scenarios times repetitions must be 1 to {JOBS_MAX}")));
    }
    check_policy(&state, &new.policy).await?;
    for scenario in &new.scenarios {
        plan::scenario(&state.db, scenario)
            .await
            .map_err(|error| AppError::or_not_found(error, &format!("scenario: {scenario:?}")))?;
    }
    let body = PlanBody {
        scenarios: new.scenarios,
        selector: new.selector,
        requires: new.requires,
        repetitions: new.repetitions,
        policy: new.policy,
    };
    let row = PlanRow { id: PlanId::from_ulid(state.ids.next()), name, body: Document(body), updated_at: state.now() };
    let mut tx = state.db.begin().await?;
    let row = plan::put_plan(&mut tx, &row).await?;
    tx.commit().await?;
    Ok(Json(wire::plan(row)))
}
