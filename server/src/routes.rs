//! Every path of the server, and what is done around each request.

use crate::app::AppState;
use crate::auth::Reader;
use crate::error::{self, AppError, AppResult};
use crate::{agent, api};
use axum::Router;
use axum::extract::{FromRequestParts, MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::FutureExt as _;
use metrics::Label;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use tokio::time::Instant;
use tracing::Instrument as _;
use utoipa::OpenApi as _;
use utoipa::openapi::OpenApi;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa_axum::router::OpenApiRouter;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Crashyard",
        description = "A test farm for crash dumps. Every error is \
    `application/problem+json` with a stable `type`, and says what to do next."
    ),
    components(schemas(crashyard_protocol::problem::Problem))
)]
struct Document;

/// The API's description.
#[must_use]
pub fn openapi() -> OpenApi {
    split().1
}

fn split() -> (Router<AppState>, OpenApi) {
    let mut document = Document::openapi();
    let bearer = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
    document.components.get_or_insert_default().add_security_scheme("token", bearer);
    document.security = Some(vec![SecurityRequirement::new("token", Vec::<String>::new())]);
    OpenApiRouter::with_openapi(document).merge(api::router()).merge(agent::router()).split_for_parts()
}

/// The whole server.
pub fn router(state: AppState) -> Router {
    let (api, document) = split();
    let document: Arc<str> = document.to_json().unwrap_or_default().into();
    let described = move || async move {
        ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], document.to_string())
    };
    Router::new()
        .merge(api)
        .merge(crate::pages::router().route_layer(from_fn_with_state(state.clone(), readers_only)))
        .route("/api/v1/openapi.json", get(described))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(from_fn_with_state(state.clone(), around))
        .with_state(state)
}

async fn not_found() -> AppError {
    AppError::not_found("path")
}

async fn method_not_allowed() -> AppError {
    AppError::MethodNotAllowed
}

/// The process is there.
async fn healthz() -> &'static str {
    "ok\n"
}

/// The process can do its work: database and blob store answer.
async fn readyz(State(state): State<AppState>) -> AppResult<&'static str> {
    state.db.ping().await?;
    state.blobs.probe(&state.instance).await?;
    Ok("ready\n")
}

async fn metrics(_: Reader, State(state): State<AppState>) -> Response {
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    ([(header::CONTENT_TYPE, kind)], state.metrics.render()).into_response()
}

/// Pages ask the same of their readers as the API does.
async fn readers_only(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    match Reader::from_request_parts(&mut parts, &state).await {
        Ok(Reader) => next.run(Request::from_parts(parts, body)).await,
        Err(error) => error.into_response(),
    }
}

/// Around every request: an id, a span, a time, a boundary for panics, and the body of problems.
async fn around(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let id = request_id(&request).unwrap_or_else(|| state.ids.next().to_string());
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    let span = tracing::info_span!("request", id, method = %request.method(), path = request.uri().path());
    let start = Instant::now();
    let answered = AssertUnwindSafe(next.run(request)).catch_unwind().instrument(span.clone()).await;
    let response = answered.unwrap_or_else(|_| {
        span.in_scope(|| AppError::Internal(anyhow::anyhow!("a handler panicked")).into_response())
    });
    let mut response = error::finish(response, Some(&id));
    let status = response.status();
    let took = start.elapsed();
    state.metrics.time("crashyard_http_seconds", vec![Label::new("route", route)], took);
    let label = vec![Label::new("status", status.as_str().to_owned())];
    state.metrics.add("crashyard_http_requests_total", label, 1);
    span.in_scope(|| tracing::debug!(status = status.as_u16(), took_ms = took.as_millis(), "answered"));
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    if status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::VARY, HeaderValue::from_static("authorization"));
    }
    response
}

/// An id that a proxy gave the request, if it is a plain word.
fn request_id(request: &Request) -> Option<String> {
    let id = request.headers().get(REQUEST_ID)?.to_str().ok()?;
    let plain = (1..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    plain.then(|| id.to_owned())
}
