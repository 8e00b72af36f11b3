//! Artifacts and their bytes.
//!
//! What machines wrote is hostile until proven otherwise: bytes are always a download, never sniffed, and run in a
//! sandbox without scripts if a browser shows them after all.

use super::wire;
use crate::app::AppState;
use crate::auth::Caller;
use crate::db::artifact::ArtifactRow;
use crate::db::{self, unsigned};
use crate::error::{AppError, AppResult};
use crate::extract::{Json, Path};
use crate::ranges;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use crashyard_protocol::api::Artifact;
use crashyard_protocol::{ArtifactId, ArtifactState, Scope};
use std::ops::Range;

/// The artifact, if the caller may read it. An attempt's token reads its own attempt's and its build's.
async fn find(state: &AppState, caller: Caller, id: &ArtifactId) -> AppResult<ArtifactRow> {
    let artifact =
        || async { db::artifact::get(&state.db, id).await.map_err(|error| AppError::or_not_found(error, "artifact")) };
    if state.config.public_read {
        return artifact().await;
    }
    let Caller(Some(credential)) = caller else {
        return Err(AppError::Unauthorized("reading needs a token on this server".into()));
    };
    let artifact = artifact().await?;
    if credential.scope != Scope::Attempt {
        return Ok(artifact);
    }
    let Some(attempt) = credential.attempt_id else { return Err(AppError::Forbidden("no attempt's token".into())) };
    let own = artifact.attempt_id.as_ref() == Some(&attempt);
    let build = db::attempt::full(&state.db, &attempt).await?.build_id;
    if own || artifact.build_id == Some(build) {
        return Ok(artifact);
    }
    Err(AppError::Forbidden("an attempt's token reads only what belongs to the attempt".into()))
}

/// One artifact.
#[utoipa::path(get, path = "/api/v1/artifacts/{id}", tag = "artifacts", params(("id" = ArtifactId, Path)), responses((status = 200, body = Artifact)))]
pub async fn get_artifact(
    caller: Caller,
    State(state): State<AppState>,
    Path(id): Path<ArtifactId>,
) -> AppResult<Json<Artifact>> {
    Ok(Json(wire::artifact(find(&state, caller, &id).await?)))
}

/// The bytes of an artifact, whole or a range. A console can be read while it grows.
#[utoipa::path(get, path = "/api/v1/artifacts/{id}/content", tag = "artifacts",
    params(("id" = ArtifactId, Path), ("Range" = Option<String>, Header)),
    responses((status = 200, content_type = "application/octet-stream", body = Vec<u8>),
        (status = 206, content_type = "application/octet-stream", body = Vec<u8>)))]
pub async fn get_artifact_content(
    caller: Caller,
    State(state): State<AppState>,
    Path(id): Path<ArtifactId>,
    headers: HeaderMap,
) -> AppResult<Response> {
    let artifact = find(&state, caller, &id).await?;
    let console = artifact.console_source().is_some();
    match artifact.state {
        ArtifactState::Dropped => {
            let why = artifact.dropped_reason.as_deref().unwrap_or("by policy");
            return Err(AppError::NotFound(format!(
                "its content was dropped: {why}. Name, size, hash and the capsule stay"
            )));
        }
        ArtifactState::Open if !console => {
            return Err(AppError::Conflict("the upload is not complete; there is nothing whole to read yet".into()));
        }
        ArtifactState::Open | ArtifactState::Complete => {}
    }
    let size = unsigned(artifact.size);
    // What is complete is named by its hash; a console that grows is another thing with every byte.
    let etag = artifact.blake3.as_ref().map_or_else(|| format!("W/\"{id}-{size}\""), |hash| format!("\"{hash}\""));
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let mut response = if text(header::IF_NONE_MATCH).is_some_and(|tags| matches_any(tags, &etag)) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        let wanted = match (text(header::RANGE), text(header::IF_RANGE)) {
            (Some(range), if_range) if if_range.is_none_or(|tag| tag == etag) => parse_range(range, size),
            _ => Wanted::Whole,
        };
        send(&state, &artifact, size, wanted)
    };
    let out = response.headers_mut();
    let kind = if console { "text/plain; charset=utf-8" } else { "application/octet-stream" };
    out.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    out.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    out.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    out.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox; default-src 'none'"));
    let private = if state.config.public_read { "no-cache" } else { "private, no-cache" };
    out.insert(header::CACHE_CONTROL, HeaderValue::from_static(private));
    // Names were checked when they came in: no quotes, no control characters.
    let file = format!("attachment; filename=\"{}\"", artifact.name);
    let value = |text: String| HeaderValue::from_str(&text).map_err(|error| AppError::Internal(error.into()));
    out.insert(header::CONTENT_DISPOSITION, value(file)?);
    out.insert(header::ETAG, value(etag)?);
    Ok(response)
}

fn matches_any(tags: &str, etag: &str) -> bool {
    let plain = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    tags.trim() == "*" || tags.split(',').any(|tag| plain(tag) == plain(etag))
}

/// What part is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Wanted {
    Whole,
    Part(Range<u64>),
    /// A range that begins behind the end.
    Beyond,
}

/// Reads a `Range` header (RFC 9110 section 14). What is not understood, or asks for several ranges, gets the whole.
fn parse_range(text: &str, size: u64) -> Wanted {
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return Wanted::Whole;
    };
    let (first, last) = (first.trim(), last.trim());
    if first.is_empty() {
        return match last.parse::<u64>() {
            Ok(0) => Wanted::Beyond,
            Ok(_) if size == 0 => Wanted::Beyond,
            Ok(suffix) => Wanted::Part(size.saturating_sub(suffix)..size),
            Err(_) => Wanted::Whole,
        };
    }
    let Ok(first) = first.parse::<u64>() else { return Wanted::Whole };
    let end = match last {
        "" => size,
        last => match last.parse::<u64>() {
            Ok(last) if last >= first => last.saturating_add(1).min(size),
            _ => return Wanted::Whole,
        },
    };
    if first >= size { Wanted::Beyond } else { Wanted::Part(first..end) }
}

fn send(state: &AppState, artifact: &ArtifactRow, size: u64, wanted: Wanted) -> Response {
    let (status, range, content_range) = match wanted {
        Wanted::Beyond => {
            let mut response = StatusCode::RANGE_NOT_SATISFIABLE.into_response();
            let text = format!("bytes */{size}");
            if let Ok(value) = HeaderValue::from_str(&text) {
                response.headers_mut().insert(header::CONTENT_RANGE, value);
            }
            return response;
        }
        Wanted::Whole => (StatusCode::OK, 0..size, None),
        Wanted::Part(range) => {
            let text = format!("bytes {}-{}/{size}", range.start, range.end - 1);
            (StatusCode::PARTIAL_CONTENT, range, HeaderValue::from_str(&text).ok())
        }
    };
    let length = range.end - range.start;
    let body = Body::from_stream(ranges::stream(state.clone(), artifact.id.clone(), range));
    let mut response = (status, body).into_response();
    response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    if let Some(content_range) = content_range {
        response.headers_mut().insert(header::CONTENT_RANGE, content_range);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_the_rfc_says() {
        for (text, wanted) in [
            ("bytes=0-", Wanted::Part(0..100)),
            ("bytes=10-19", Wanted::Part(10..20)),
            ("bytes=90-1000", Wanted::Part(90..100)),
            ("bytes=-5", Wanted::Part(95..100)),
            ("bytes=-500", Wanted::Part(0..100)),
            ("bytes=100-", Wanted::Beyond),
            ("bytes=-0", Wanted::Beyond),
            ("bytes=5-4", Wanted::Whole),
            ("bytes=0-1,5-6", Wanted::Whole),
            ("lines=0-1", Wanted::Whole),
            ("bytes=x-y", Wanted::Whole),
            ("bytes=18446744073709551615-18446744073709551615", Wanted::Beyond),
        ] {
            assert_eq!(parse_range(text, 100), wanted, "{text}");
        }
    }
}
