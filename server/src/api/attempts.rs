//! Attempts: stages, evidence, artifacts, consoles.

use super::wire;
use crate::app::AppState;
use crate::auth::Reader;
use crate::beside;
use crate::db::artifact::{CONSOLE_PREFIX, Owner};
use crate::db::attempt::{AttemptRow, FullAttempt};
use crate::db::{self, DbError};
use crate::error::{AppError, AppResult};
use crate::extract::{Json, Path, check_path_name};
use crate::ranges;
use crate::sse::{self, After};
use axum::extract::State;
use axum::response::Response;
use crashyard_protocol::agent::{Report, Role};
use crashyard_protocol::api::{Artifact, Attempt, Build, Compared, Evidence, Repro};
use crashyard_protocol::{AttemptId, Scenario, Stage};

/// How much of each console is compared, from its beginning.
const COMPARED_BYTES: u64 = 8 * 1024 * 1024;

async fn find(state: &AppState, id: &AttemptId) -> AppResult<AttemptRow> {
    db::attempt::get(&state.db, id).await.map_err(|error| AppError::or_not_found(error, "attempt"))
}

/// One attempt with its stages and artifacts.
#[utoipa::path(get, path = "/api/v1/attempts/{id}", tag = "attempts", params(("id" = AttemptId, Path)), responses((status = 200, body = Attempt)))]
pub async fn get_attempt(
    _: Reader,
    State(state): State<AppState>,
    Path(id): Path<AttemptId>,
) -> AppResult<Json<Attempt>> {
    let full: FullAttempt =
        db::attempt::full(&state.db, &id).await.map_err(|error| AppError::or_not_found(error, "attempt"))?;
    Ok(Json(wire::attempt(&state, full).await?))
}

/// The eight stages of an attempt, with their proofs.
#[utoipa::path(get, path = "/api/v1/attempts/{id}/stages", tag = "attempts", params(("id" = AttemptId, Path)), responses((status = 200, body = Vec<Stage>)))]
pub async fn list_stages(
    _: Reader,
    State(state): State<AppState>,
    Path(id): Path<AttemptId>,
) -> AppResult<Json<Vec<Stage>>> {
    find(&state, &id).await?;
    Ok(Json(db::attempt::stages(&state.db, &id).await?))
}

/// Everything the agents reported, in the order in which it came.
#[utoipa::path(get, path = "/api/v1/attempts/{id}/evidence", tag = "attempts", params(("id" = AttemptId, Path)), responses((status = 200, body = Vec<Evidence>)))]
pub async fn list_evidence(
    _: Reader,
    State(state): State<AppState>,
    Path(id): Path<AttemptId>,
) -> AppResult<Json<Vec<Evidence>>> {
    find(&state, &id).await?;
    let rows = db::report::of_attempt(&state.db, &id).await?;
    Ok(Json(rows.into_iter().map(wire::evidence).collect()))
}

/// What it takes to do an attempt again: kernel and modules, command line, machine with microcode and firmware, scenario.
#[utoipa::path(get, path = "/api/v1/attempts/{id}/repro", tag = "attempts", params(("id" = AttemptId, Path)), responses((status = 200, body = Repro)))]
pub async fn get_repro(_: Reader, State(state): State<AppState>, Path(id): Path<AttemptId>) -> AppResult<Json<Repro>> {
    let full: FullAttempt =
        db::attempt::full(&state.db, &id).await.map_err(|error| AppError::or_not_found(error, "attempt"))?;
    let reports = db::report::of_attempt(&state.db, &id).await?;
    let facts = reports.into_iter().rev().find_map(|row| match row.body.0 {
        Report::Inventory { facts } if row.role == Role::Target => Some(facts),
        _ => None,
    });
    let build = wire::build(&state, db::build::get(&state.db, &full.build_id).await?).await?;
    let (machine, scenario, facts) = (full.machine_name, full.scenario.0, facts.unwrap_or_default());
    let stored = match db::plan::scenario(&state.db, &scenario.name).await {
        Ok(row) => wire::scenario(row).scenario == scenario,
        Err(DbError::NotFound) => false,
        Err(error) => return Err(error.into()),
    };
    let commands = again(&id, &machine, &build, &scenario, stored);
    let left_open = scenario.left_open(facts.get("kernel.cmdline").map(String::as_str));
    let steps = scenario.does();
    Ok(Json(Repro {
        attempt: id,
        job: full.attempt.job_id,
        machine,
        facts,
        build,
        steps,
        left_open,
        scenario,
        commands,
    }))
}

/// The same scenario with the same kernel on the same machine, as commands; `stored`, if the scenario of its name is still the
/// same. All names in them are plain words.
fn again(id: &AttemptId, machine: &str, build: &Build, scenario: &Scenario, stored: bool) -> Vec<String> {
    let mut commands = vec![format!("crashyard build fetch {} --dir repro-{id}", build.id)];
    let name = if stored {
        scenario.name.clone()
    } else {
        // Not under its own name, which is another scenario's now.
        let name = format!("repro-{}", id.as_str().to_lowercase());
        commands.push(format!("crashyard repro {id} --scenario | crashyard scenario put /dev/stdin --as {name}"));
        name
    };
    let plan = format!(
        "'name = \"repro-{id}\"' 'scenarios = [\"{name}\"]' 'repetitions = 1' '[selector]' 'name = \"{machine}\"' \
         '[policy]' 'hold_minutes = 120'"
    );
    commands.extend([
        format!("printf '%s\\n' {plan} | crashyard plan put /dev/stdin"),
        format!("crashyard submit {} --plan repro-{id} --wait", build.id),
        format!("crashyard reserve {machine} --for 2h --reason \"repro of {id}\""),
    ]);
    commands
}

/// Two consoles beside each other, such as the serial one and netconsole: what one did not hear is filled in from the other.
#[utoipa::path(get, path = "/api/v1/attempts/{id}/console/{first}/beside/{second}", tag = "attempts",
    params(("id" = AttemptId, Path), ("first" = String, Path), ("second" = String, Path)),
    responses((status = 200, body = Compared)))]
pub async fn compare_consoles(
    _: Reader,
    State(state): State<AppState>,
    Path((id, first, second)): Path<(AttemptId, String, String)>,
) -> AppResult<Json<Compared>> {
    find(&state, &id).await?;
    Ok(Json(compared(&state, &id, &first, &second).await?))
}

/// Two consoles of an attempt, put beside each other.
pub async fn compared(state: &AppState, id: &AttemptId, first: &str, second: &str) -> AppResult<Compared> {
    let (first, second) = (console_text(state, id, first).await?, console_text(state, id, second).await?);
    Ok(tokio::task::spawn_blocking(move || beside::compare(&first, &second)).await?)
}

/// A console's text, as far as it is read here.
async fn console_text(state: &AppState, id: &AttemptId, source: &str) -> AppResult<String> {
    check_path_name("console source", source)?;
    let owner = Owner::Attempt(id.clone());
    let found = db::artifact::find(&state.db, &owner, &format!("{CONSOLE_PREFIX}{source}")).await?;
    let console = found.ok_or_else(|| AppError::not_found(&format!("console of this attempt: {source:?}")))?;
    let bytes = ranges::read(state, &console.id, 0..db::unsigned(console.size).min(COMPARED_BYTES)).await?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Consoles, the dump, and whatever was collected.
#[utoipa::path(get, path = "/api/v1/attempts/{id}/artifacts", tag = "attempts", params(("id" = AttemptId, Path)), responses((status = 200, body = Vec<Artifact>)))]
pub async fn list_attempt_artifacts(
    _: Reader,
    State(state): State<AppState>,
    Path(id): Path<AttemptId>,
) -> AppResult<Json<Vec<Artifact>>> {
    find(&state, &id).await?;
    let rows = db::artifact::list(&state.db, &Owner::Attempt(id)).await?;
    Ok(Json(rows.into_iter().map(wire::artifact).collect()))
}

/// The text of a console as it grows: `{"offset": …, "text": …}`, with invalid UTF-8 replaced. Event ids are byte
/// offsets; ends with a `complete` event when the attempt is over.
#[utoipa::path(get, path = "/api/v1/attempts/{id}/console/{source}/events", tag = "attempts",
    params(("id" = AttemptId, Path), ("source" = String, Path),
        ("after" = Option<u64>, Query, description = "bytes from this offset on"),
        ("Last-Event-ID" = Option<u64>, Header)),
    responses((status = 200, content_type = "text/event-stream", body = String)))]
pub async fn console_events(
    _: Reader,
    State(state): State<AppState>,
    Path((id, source)): Path<(AttemptId, String)>,
    After(after): After,
) -> AppResult<Response> {
    find(&state, &id).await?;
    check_path_name("console source", &source)?;
    Ok(sse::console_events(state, id, format!("{CONSOLE_PREFIX}{source}"), after))
}
