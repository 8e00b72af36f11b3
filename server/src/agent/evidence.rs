//! Evidence that agents hand in: reports, and uploads in chunks.

use crate::api::wire;
use crate::app::AppState;
use crate::auth::{Acting, InAttempt};
use crate::db::report;
use crate::error::{AppError, AppResult};
use crate::extract::{Body, Json, Path, Query};
use crate::judging;
use crate::recorder::{HandedIn, What};
use crate::uploads::{self, ChunkQuery, Target};
use crate::wake::Topic;
use axum::extract::State;
use axum::http::StatusCode;
use crashyard_protocol::AttemptId;
use crashyard_protocol::agent::{CompleteRequest, Reports, ReportsReply, Role, Upload};
use crashyard_protocol::api::Artifact;

/// Reports in one request.
const REPORTS_MAX: usize = 1000;
/// Largest report, in bytes of its JSON.
const REPORT_BYTES_MAX: usize = 64 * 1024;

/// Hands in reports; repeating them is harmless. The answer says what to do next.
#[utoipa::path(post, path = "/agent/v1/attempts/{attempt}/reports", tag = "agent",
    params(("attempt" = String, Path)), request_body = Reports, responses((status = 200, body = ReportsReply)))]
pub async fn add_reports(
    caller: Acting,
    State(state): State<AppState>,
    Json(request): Json<Reports>,
) -> AppResult<Json<ReportsReply>> {
    if caller.by_attempt_token && request.by == Role::Controller {
        return Err(AppError::Forbidden("an attempt's token cannot speak for the controller".into()));
    }
    check_sizes(&request)?;
    let by = request.by;
    let what = What::Reports { by, reports: request.reports };
    let handed_in = HandedIn { attempt: caller.attempt, epoch: caller.epoch, at: state.now(), what };
    // Judged also when nothing was new: the server may have died between recording and judging.
    let (recorded, judgement) = judging::take(&state, handed_in).await?;
    if recorded.news {
        state.wake.wake(&Topic::Run(recorded.run));
    }
    if recorded.seen_otherwise {
        // Jobs that wait may want it now, as soon as it is free.
        state.wake.wake(&Topic::Machine(recorded.machine));
    }
    let directive = match by {
        Role::Controller => judgement.controller,
        Role::Target => judgement.target,
        Role::Capture => judgement.capture,
    };
    Ok(Json(ReportsReply { directive }))
}

fn check_sizes(request: &Reports) -> AppResult<()> {
    if request.reports.len() > REPORTS_MAX {
        return Err(AppError::TooLarge(format!("at most {REPORTS_MAX} reports in one request")));
    }
    for numbered in &request.reports {
        let bytes = serde_json::to_vec(&numbered.report).map_or(usize::MAX, |text| text.len());
        if bytes > REPORT_BYTES_MAX {
            return Err(AppError::TooLarge(format!("report {} is larger than {REPORT_BYTES_MAX} bytes", numbered.seq)));
        }
        if i64::try_from(numbered.seq).is_err() {
            return Err(AppError::Invalid(format!("{} is not a sequence number", numbered.seq)));
        }
    }
    Ok(())
}

/// The next sequence number of one agent.
#[utoipa::path(get, path = "/agent/v1/attempts/{attempt}/reports/{by}/next", tag = "agent",
    params(("attempt" = String, Path), ("by" = Role, Path)), responses((status = 200, body = u64)))]
pub async fn next_report(
    caller: Acting,
    State(state): State<AppState>,
    Path((_attempt, by)): Path<(AttemptId, Role)>,
) -> AppResult<Json<u64>> {
    let next = report::next_seq(&state.db, &caller.attempt, by).await;
    Ok(Json(next.map_err(|error| AppError::or_not_found(error, "attempt"))?))
}

fn target(caller: Acting) -> Target {
    Target::Attempt { attempt: caller.attempt, epoch: caller.epoch }
}

/// How far an upload is.
#[utoipa::path(get, path = "/agent/v1/attempts/{attempt}/artifacts/{name}", tag = "agent",
    params(("attempt" = String, Path), ("name" = String, Path)), responses((status = 200, body = Upload)))]
pub async fn get_upload(
    caller: InAttempt,
    State(state): State<AppState>,
    Path((_attempt, name)): Path<(AttemptId, String)>,
) -> AppResult<Json<Upload>> {
    let target = Target::Attempt { attempt: caller.attempt.id, epoch: caller.epoch };
    Ok(Json(uploads::progress(&state, &target, &name).await?))
}

/// Takes one chunk of an upload; repeating it is harmless.
#[utoipa::path(put, path = "/agent/v1/attempts/{attempt}/artifacts/{name}/chunks", tag = "agent",
    params(("attempt" = String, Path), ("name" = String, Path), ChunkQuery),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"), responses((status = 204)))]
pub async fn put_chunk(
    caller: Acting,
    State(state): State<AppState>,
    Path((_attempt, name)): Path<(AttemptId, String)>,
    Query(query): Query<ChunkQuery>,
    Body(bytes): Body,
) -> AppResult<StatusCode> {
    uploads::put_chunk(&state, &target(caller), &name, &query, bytes).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Closes an upload.
#[utoipa::path(post, path = "/agent/v1/attempts/{attempt}/artifacts/{name}/complete", tag = "agent",
    params(("attempt" = String, Path), ("name" = String, Path)),
    request_body = CompleteRequest, responses((status = 200, body = Artifact)))]
pub async fn complete_upload(
    caller: Acting,
    State(state): State<AppState>,
    Path((_attempt, name)): Path<(AttemptId, String)>,
    Json(request): Json<CompleteRequest>,
) -> AppResult<Json<Artifact>> {
    Ok(Json(wire::artifact(uploads::complete(&state, &target(caller), &name, &request).await?)))
}
