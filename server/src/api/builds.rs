//! Builds and the upload of their files.

use super::trees::check_optional;
use super::{PageQuery, wire};
use crate::app::AppState;
use crate::auth::{Reader, Submitter};
use crate::db::build::{self, BuildRow};
use crate::db::tree;
use crate::error::{AppError, AppResult};
use crate::extract::{Body, Json, Path, Query, check_name};
use crate::uploads::{self, ChunkQuery, Target};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use crashyard_protocol::BuildId;
use crashyard_protocol::agent::{CompleteRequest, Upload};
use crashyard_protocol::api::{Artifact, Build, NewBuild, Page};

/// Longest addition to a kernel command line.
const CMDLINE_MAX: usize = 1024;

/// Builds, newest first.
#[utoipa::path(get, path = "/api/v1/builds", tag = "builds", params(PageQuery), responses((status = 200, body = Page<Build>)))]
pub async fn list_builds(
    _: Reader,
    State(state): State<AppState>,
    Query(query): Query<PageQuery>,
) -> AppResult<Json<Page<Build>>> {
    let (before, limit) = query.checked()?;
    let mut builds = Vec::new();
    for row in build::list(&state.db, before, limit).await? {
        builds.push(wire::build(&state, row).await?);
    }
    Ok(Json(query.page(builds, |build| build.id.to_string())))
}

/// Submits a build. With an `Idempotency-Key` header, repeating it returns the first one.
#[utoipa::path(post, path = "/api/v1/builds", tag = "builds", request_body = NewBuild,
    params(("Idempotency-Key" = Option<String>, Header, description = "what the submitter calls this submission")),
    responses((status = 200, body = Build)))]
pub async fn create_build(
    _: Submitter,
    State(state): State<AppState>,
    headers: HeaderMap,
    Json(new): Json<NewBuild>,
) -> AppResult<Json<Build>> {
    check(&new)?;
    let idempotency_key = match headers.get("idempotency-key") {
        Some(value) => {
            let key = value.to_str().map_err(|_| AppError::Invalid("Idempotency-Key is not plain text".into()))?;
            check_name("Idempotency-Key", key)?;
            Some(key.to_owned())
        }
        None => None,
    };
    if let Some(id) = &new.checkout {
        tree::checkout(&state.db, id).await.map_err(|error| AppError::or_not_found(error, "checkout"))?;
    }
    let wanted = BuildRow {
        id: BuildId::from_ulid(state.ids.next()),
        checkout_id: new.checkout,
        idempotency_key,
        name: new.name,
        architecture: new.architecture,
        release: new.release,
        build_id: new.build_id,
        config_name: new.config_name,
        cmdline: new.cmdline,
        created_at: state.now(),
    };
    let mut tx = state.db.begin().await?;
    let row = build::create(&mut tx, &wanted).await?;
    tx.commit().await?;
    let same = BuildRow { id: row.id.clone(), created_at: row.created_at, ..wanted };
    if row != same {
        return Err(AppError::Conflict(format!("build {} was submitted with this key and is another one", row.id)));
    }
    Ok(Json(wire::build(&state, row).await?))
}

fn check(new: &NewBuild) -> AppResult<()> {
    check_name("name", &new.name)?;
    check_name("architecture", &new.architecture)?;
    check_name("release", &new.release)?;
    check_optional("config_name", new.config_name.as_deref())?;
    if new.cmdline.len() > CMDLINE_MAX || new.cmdline.chars().any(char::is_control) {
        return Err(AppError::Invalid(format!("cmdline must be one line of at most {CMDLINE_MAX} bytes")));
    }
    if let Some(id) = &new.build_id {
        let hex = id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if !hex || !(8..=64).contains(&id.len()) {
            return Err(AppError::Invalid("build_id must be lower-case hex (`file vmlinux` shows it)".into()));
        }
    }
    Ok(())
}

/// One build.
#[utoipa::path(get, path = "/api/v1/builds/{id}", tag = "builds", params(("id" = BuildId, Path)), responses((status = 200, body = Build)))]
pub async fn get_build(_: Reader, State(state): State<AppState>, Path(id): Path<BuildId>) -> AppResult<Json<Build>> {
    let row = build::get(&state.db, &id).await.map_err(|error| AppError::or_not_found(error, "build"))?;
    Ok(Json(wire::build(&state, row).await?))
}

async fn target(state: &AppState, id: BuildId) -> AppResult<Target> {
    build::get(&state.db, &id).await.map_err(|error| AppError::or_not_found(error, "build"))?;
    Ok(Target::Build(id))
}

/// How far the upload of a build's file is.
#[utoipa::path(get, path = "/api/v1/builds/{id}/artifacts/{name}", tag = "builds",
    params(("id" = BuildId, Path), ("name" = String, Path)), responses((status = 200, body = Upload)))]
pub async fn get_build_upload(
    _: Submitter,
    State(state): State<AppState>,
    Path((id, name)): Path<(BuildId, String)>,
) -> AppResult<Json<Upload>> {
    Ok(Json(uploads::progress(&state, &target(&state, id).await?, &name).await?))
}

/// Takes one chunk of a build's file; repeating it is harmless.
#[utoipa::path(put, path = "/api/v1/builds/{id}/artifacts/{name}/chunks", tag = "builds",
    params(("id" = BuildId, Path), ("name" = String, Path), ChunkQuery),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"), responses((status = 204)))]
pub async fn put_build_chunk(
    _: Submitter,
    State(state): State<AppState>,
    Path((id, name)): Path<(BuildId, String)>,
    Query(query): Query<ChunkQuery>,
    Body(bytes): Body,
) -> AppResult<StatusCode> {
    uploads::put_chunk(&state, &target(&state, id).await?, &name, &query, bytes).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Closes the upload of a build's file.
#[utoipa::path(post, path = "/api/v1/builds/{id}/artifacts/{name}/complete", tag = "builds",
    params(("id" = BuildId, Path), ("name" = String, Path)), request_body = CompleteRequest,
    responses((status = 200, body = Artifact)))]
pub async fn complete_build_upload(
    _: Submitter,
    State(state): State<AppState>,
    Path((id, name)): Path<(BuildId, String)>,
    Json(request): Json<CompleteRequest>,
) -> AppResult<Json<Artifact>> {
    Ok(Json(wire::artifact(uploads::complete(&state, &target(&state, id).await?, &name, &request).await?)))
}
