//! What people see: the dashboard, rendered on the server.
//!
//! Pages are plain HTML that is complete without scripts; scripts only keep an open page up to date through the same
//! event streams that the API documents. A page costs a fixed number of queries, whatever it shows. Everything that
//! comes from a machine, an agent or a submitter is hostile text: templates escape it, [`text`] makes its control
//! characters visible, and the content security policy allows no script but ours, in case both fail.
//!
//! `view` makes plain data from wire types and knows no server; `load` asks the ledger; this file joins them.

mod assets;
pub mod format;
mod lines;
mod load;
#[cfg(test)]
mod sample;
#[cfg(test)]
mod tests;
mod text;
mod view;

use crate::api::{PageQuery, attempts, checks, machines, signatures, wire};
use crate::app::AppState;
use crate::auth::Reader;
use crate::error::{AppError, AppResult, PendingProblem};
use crate::extract::{Path, Query};
use crate::findings;
use askama::Template;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use crashyard_crashlog::RULE_VERSION;
use crashyard_protocol::api::CAPSULE;
use crashyard_protocol::{AttemptId, JobId, RunId, SignatureId};
use crashyard_vmcore::Capsule;
use lines::LineIndex;
use serde::Deserialize;
use std::sync::Arc;
use view::attempt::{AttemptPage, Parts};
use view::beside::BesidePage;
use view::console::{ConsolePage, Pane};
use view::error::ErrorPage;
use view::findings::{ConsoleReports, FindingsPage, Found};
use view::machines::{MachinePage, MachinesPage};
use view::run::RunPage;
use view::runs::RunsPage;
use view::scenarios::{ScenarioPage, ScenariosPage};
use view::signatures::{SignaturePage, SignaturesPage};
use view::waiting::WaitingPage;

/// What a page may load and do: our own style sheet, scripts, images and event streams, and nothing else.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; \
                      img-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

/// Every page and the files they need.
pub fn router() -> Router<AppState> {
    Router::new()
        .route("/", get(list_runs))
        .route("/runs/{run}", get(get_run))
        .route("/jobs/{job}/waiting", get(get_waiting))
        .route("/attempts/{attempt}", get(get_attempt))
        .route("/attempts/{attempt}/console/{source}", get(get_console))
        .route("/attempts/{attempt}/console/{first}/beside/{second}", get(get_beside))
        .route("/attempts/{attempt}/findings", get(get_findings))
        .route("/scenarios", get(list_scenarios))
        .route("/scenarios/{name}", get(get_scenario))
        .route("/signatures", get(list_signatures))
        .route("/signatures/{signature}", get(get_signature))
        .route("/machines", get(list_machines))
        .route("/machines/{machine}", get(get_machine))
        .layer(from_fn(finish_page))
        .route("/static/{hash}/{name}", get(get_asset))
        .layer(Extension(Arc::new(LineIndex::default())))
}

/// The page for an address that leads nowhere.
pub async fn not_found() -> Response {
    with_page_headers(error_page(&ErrorPage::not_found()))
}

/// Turns errors into pages, and sets the headers that every page has.
async fn finish_page(request: Request, next: Next) -> Response {
    let request_id = request.headers().get("x-request-id").and_then(|value| value.to_str().ok()).map(ToOwned::to_owned);
    let mut response = next.run(request).await;
    if response.extensions_mut().remove::<PendingProblem>().is_some() {
        let page = match response.status() {
            StatusCode::NOT_FOUND => ErrorPage::not_found(),
            StatusCode::UNAUTHORIZED => ErrorPage::unauthorized(),
            StatusCode::FORBIDDEN => ErrorPage::forbidden(),
            StatusCode::SERVICE_UNAVAILABLE => ErrorPage::unavailable(request_id),
            status if status.is_client_error() => ErrorPage::invalid(),
            _ => ErrorPage::internal(request_id),
        };
        // The status and what goes with it (`WWW-Authenticate`, `Retry-After`) stay.
        let (parts, body) = error_page(&page).into_parts();
        response.headers_mut().extend(parts.headers);
        response.headers_mut().remove(header::CONTENT_LENGTH);
        *response.body_mut() = body;
    }
    with_page_headers(response)
}

fn with_page_headers(mut response: Response) -> Response {
    let headers: &mut HeaderMap = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("same-origin"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn error_page(page: &ErrorPage) -> Response {
    let status = StatusCode::from_u16(page.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    match page.render() {
        Ok(html) => (status, Html(html)).into_response(),
        Err(error) => {
            tracing::error!(%error, "the error page cannot be rendered");
            status.into_response()
        }
    }
}

fn show(page: &impl Template) -> AppResult<Html<String>> {
    page.render().map(Html).map_err(|error| AppError::Internal(error.into()))
}

/// Which part of a list.
#[derive(Debug, Deserialize)]
struct ListQuery {
    before: Option<String>,
}

async fn list_runs(
    _: Reader,
    State(state): State<AppState>,
    Query(query): Query<ListQuery>,
) -> AppResult<Html<String>> {
    let newest = query.before.is_none();
    let runs = load::runs(&state, query.before).await?;
    show(&RunsPage::new(&runs, newest, state.now()))
}

async fn get_waiting(_: Reader, State(state): State<AppState>, Path(id): Path<JobId>) -> AppResult<Html<String>> {
    let waiting = crate::waiting::of_job(&state, &id).await?;
    let job = wire::job(crate::db::run::job(&state.db, &id).await?, Vec::new());
    show(&WaitingPage::new(&job, &waiting, state.now()))
}

async fn get_run(_: Reader, State(state): State<AppState>, Path(id): Path<RunId>) -> AppResult<Html<String>> {
    let load::RunParts { run, build, jobs, attempts } = load::run(&state, &id).await?;
    show(&RunPage::new(&run, Some(&build), &jobs, &attempts, state.now()))
}

async fn get_attempt(
    _: Reader,
    State(state): State<AppState>,
    Extension(index): Extension<Arc<LineIndex>>,
    Path(id): Path<AttemptId>,
) -> AppResult<Html<String>> {
    let load::AttemptParts { attempt, job, run, events, evidence } = load::attempt(&state, &id).await?;
    let pane = match load::main_console(&attempt) {
        Some(console) => Some(Pane::tail(&attempt, console, &load::tail(&state, &index, console).await?)),
        None => None,
    };
    let glimpse = load::glimpse(&state, &attempt).await?;
    let glimpse = glimpse.as_ref().map(|(bytes, seen)| (*bytes, seen));
    let parts = Parts { attempt: &attempt, job: &job, run: &run, events: &events, evidence: &evidence, glimpse };
    show(&AttemptPage::new(parts, pane, state.now()))
}

/// Which part of a console.
#[derive(Debug, Deserialize)]
struct ConsoleQuery {
    at: Option<u64>,
}

async fn get_console(
    _: Reader,
    State(state): State<AppState>,
    Extension(index): Extension<Arc<LineIndex>>,
    Path((id, source)): Path<(AttemptId, String)>,
    Query(query): Query<ConsoleQuery>,
) -> AppResult<Html<String>> {
    let attempt = load::attempt_with_artifacts(&state, &id).await?;
    let console = load::console(&attempt, &source).ok_or_else(|| AppError::not_found("console"))?;
    let start = load::page_of(console, query.at.unwrap_or(0));
    let piece = load::page(&state, &index, console, start).await?;
    show(&ConsolePage::new(&attempt, console, start, &piece))
}

/// What to look for.
#[derive(Debug, Deserialize)]
struct SearchQuery {
    q: Option<String>,
}

/// Which part of two consoles.
#[derive(Debug, Deserialize)]
struct BesideQuery {
    #[serde(default)]
    from: usize,
    /// Only what differs.
    #[serde(default)]
    only: bool,
}

async fn get_beside(
    _: Reader,
    State(state): State<AppState>,
    Path((id, first, second)): Path<(AttemptId, String, String)>,
    Query(query): Query<BesideQuery>,
) -> AppResult<Html<String>> {
    let attempt = load::attempt_with_artifacts(&state, &id).await?;
    let compared = attempts::compared(&state, &id, &first, &second).await?;
    show(&BesidePage::new(&attempt, (&first, &second), &compared, query.from, query.only))
}

async fn get_findings(
    _: Reader,
    State(state): State<AppState>,
    Path(id): Path<AttemptId>,
    Query(query): Query<SearchQuery>,
) -> AppResult<Html<String>> {
    let attempt = load::attempt_with_artifacts(&state, &id).await?;
    let consoles: Option<Vec<ConsoleReports>> = load::finding(&state, &attempt, findings::REPORTS).await?;
    let in_dump: Option<Vec<ConsoleReports>> = load::finding(&state, &attempt, findings::DUMP_REPORTS).await?;
    let capsule: Option<Capsule> = load::finding(&state, &attempt, CAPSULE).await?;
    let found = Found { consoles: consoles.as_deref(), in_dump: in_dump.as_deref(), capsule: capsule.as_ref() };
    show(&FindingsPage::new(&attempt, found, query.q.as_deref(), state.now()))
}

async fn list_scenarios(_: Reader, State(state): State<AppState>) -> AppResult<Html<String>> {
    let (scenarios, cut) = load::scenarios(&state).await?;
    show(&ScenariosPage::new(&scenarios, cut, state.now()))
}

async fn get_scenario(_: Reader, State(state): State<AppState>, Path(name): Path<String>) -> AppResult<Html<String>> {
    let row = crate::db::plan::scenario(&state.db, &name).await;
    let row = row.map_err(|error| AppError::or_not_found(error, "scenario"))?;
    show(&ScenarioPage::new(&wire::scenario(row), state.now()))
}

/// Which part of the signatures.
#[derive(Debug, Deserialize)]
struct SignaturesQuery {
    before: Option<String>,
    rules: Option<u32>,
}

async fn list_signatures(
    _: Reader,
    State(state): State<AppState>,
    Query(query): Query<SignaturesQuery>,
) -> AppResult<Html<String>> {
    let newest = query.before.is_none();
    let part = PageQuery { before: query.before, limit: None };
    let page = signatures::page(&state, &part, query.rules).await?;
    let rules = query.rules.unwrap_or(RULE_VERSION);
    let next = page.next.as_deref();
    show(&SignaturesPage::new(&page.items, (rules, RULE_VERSION), newest, next, state.now()))
}

async fn get_signature(
    _: Reader,
    State(state): State<AppState>,
    Path(id): Path<SignatureId>,
) -> AppResult<Html<String>> {
    let signature = signatures::one(&state, &id).await?;
    show(&SignaturePage::new(&signature, RULE_VERSION, state.now()))
}

async fn list_machines(
    _: Reader,
    State(state): State<AppState>,
    Query(query): Query<ListQuery>,
) -> AppResult<Html<String>> {
    let newest = query.before.is_none();
    let machines = load::machines(&state, query.before).await?;
    show(&MachinesPage::new(&machines.items, newest, machines.next.as_deref(), state.now()))
}

async fn get_machine(_: Reader, State(state): State<AppState>, Path(name): Path<String>) -> AppResult<Html<String>> {
    let row = machines::find(&state, &name).await?.machine;
    let machine = machines::show(&state, &row.id).await?.0;
    let inventory = machines::inventory(&state, &row).await?;
    let check = checks::last(&state, &row.id).await?;
    let history = machines::history(&state, &row.id).await?;
    show(&MachinePage::new(&machine, &inventory, check.as_ref(), &history, state.now()))
}

async fn get_asset(Path((hash, name)): Path<(String, String)>) -> Response {
    let Some(asset) = assets::find(&name) else { return not_found().await };
    let cache = if hash == assets::hash() { "public, max-age=31536000, immutable" } else { "no-cache" };
    let headers = [
        (header::CONTENT_TYPE, asset.media_type),
        (header::CACHE_CONTROL, cache),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, asset.bytes).into_response()
}
