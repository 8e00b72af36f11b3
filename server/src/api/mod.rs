//! The REST API (`/api/v1`): what CI systems, the CLI and people's scripts use.

pub mod artifacts;
pub mod attempts;
pub mod builds;
pub mod checks;
pub mod dumps;
pub mod machines;
pub mod owed;
pub mod plans;
pub mod reservations;
pub mod runs;
pub mod signatures;
pub mod submitters;
pub mod tokens;
pub mod trees;
pub mod wire;

use crate::agent::keys;
use crate::app::AppState;
use crate::error::{AppError, AppResult};
use axum::extract::DefaultBodyLimit;
use crashyard_protocol::agent::CHUNK_BYTES;
use crashyard_protocol::api::Page;
use serde::Deserialize;
use std::time::Duration;
use tokio::time::Instant;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// Items on a page, if the client does not say.
const LIMIT_DEFAULT: u32 = 50;
/// Most items on a page.
const LIMIT_MAX: u32 = 200;

/// Which part of a list.
#[derive(Clone, Debug, Default, Deserialize, utoipa::IntoParams)]
pub struct PageQuery {
    /// Items older than the one with this id: the `next` of the page before.
    pub before: Option<String>,
    /// How many, at most 200; 50 if absent.
    pub limit: Option<u32>,
}

impl PageQuery {
    /// The part as the ledger wants it: one item more than shown, to see whether there is another page.
    pub fn checked(&self) -> AppResult<(Option<&str>, i64)> {
        if let Some(before) = &self.before
            && before.parse::<crashyard_protocol::RunId>().is_err()
        {
            return Err(AppError::Invalid("`before` must be the `next` of a page".into()));
        }
        Ok((self.before.as_deref(), i64::from(self.limit()) + 1))
    }

    fn limit(&self) -> u32 {
        self.limit.unwrap_or(LIMIT_DEFAULT).clamp(1, LIMIT_MAX)
    }

    /// A page of items, of which there may be one more than fits.
    pub fn page<T>(&self, mut items: Vec<T>, id: impl Fn(&T) -> String) -> Page<T> {
        let limit = self.limit() as usize;
        let more = items.len() > limit;
        items.truncate(limit);
        let next = if more { items.last().map(id) } else { None };
        Page { items, next }
    }
}

/// Longest time an answer is held back.
const WAIT_MAX: u32 = 60;

/// How long to wait for a change.
#[derive(Clone, Debug, Default, Deserialize, utoipa::IntoParams)]
pub struct WaitQuery {
    /// Seconds for which the answer may be held back while it is not over and nothing about it changes; at most 60.
    #[serde(default)]
    pub wait_seconds: u32,
}

impl WaitQuery {
    /// When the answer is due, whatever has changed.
    pub fn end(&self) -> Instant {
        Instant::now() + Duration::from_secs(u64::from(self.wait_seconds.min(WAIT_MAX)))
    }
}

/// Every path of the REST API.
pub fn router() -> OpenApiRouter<AppState> {
    let small = OpenApiRouter::new()
        .routes(routes!(trees::list_trees, trees::create_tree))
        .routes(routes!(trees::get_tree))
        .routes(routes!(trees::list_checkouts, trees::create_checkout))
        .routes(routes!(trees::get_checkout))
        .routes(routes!(builds::list_builds, builds::create_build))
        .routes(routes!(builds::get_build))
        .routes(routes!(plans::list_scenarios))
        .routes(routes!(plans::get_scenario, plans::put_scenario))
        .routes(routes!(plans::list_plans))
        .routes(routes!(plans::get_plan, plans::put_plan))
        .routes(routes!(runs::list_runs, runs::create_run))
        .routes(routes!(runs::get_run))
        .routes(routes!(runs::list_run_jobs))
        .routes(routes!(runs::run_events))
        .routes(routes!(runs::get_job))
        .routes(routes!(runs::job_events))
        .routes(routes!(runs::cancel_job))
        .routes(routes!(runs::job_waiting))
        .routes(routes!(attempts::get_attempt))
        .routes(routes!(attempts::get_repro))
        .routes(routes!(attempts::list_stages))
        .routes(routes!(attempts::list_evidence))
        .routes(routes!(attempts::list_attempt_artifacts))
        .routes(routes!(attempts::console_events))
        .routes(routes!(attempts::compare_consoles))
        .routes(routes!(keys::press_keys))
        .routes(routes!(keys::list_keys))
        .routes(routes!(machines::list_machines))
        .routes(routes!(machines::get_machine))
        .routes(routes!(machines::set_machine_state))
        .routes(routes!(machines::machine_history))
        .routes(routes!(machines::machine_inventory))
        .routes(routes!(checks::want_check, checks::get_check, checks::cancel_check))
        .routes(routes!(reservations::reserve, reservations::extend, reservations::hand_back))
        .routes(routes!(owed::list_owed))
        .routes(routes!(submitters::list_submitters))
        .routes(routes!(submitters::set_submitter))
        .routes(routes!(signatures::list_signatures))
        .routes(routes!(signatures::get_signature))
        .routes(routes!(artifacts::get_artifact))
        .routes(routes!(artifacts::get_artifact_content))
        .routes(routes!(dumps::hold_dump, dumps::release_dump))
        .routes(routes!(tokens::list_tokens, tokens::create_token))
        .routes(routes!(tokens::revoke_token));
    let chunked = OpenApiRouter::new()
        .routes(routes!(builds::get_build_upload))
        .routes(routes!(builds::put_build_chunk))
        .routes(routes!(builds::complete_build_upload))
        .layer(DefaultBodyLimit::max(usize::try_from(CHUNK_BYTES).unwrap_or(usize::MAX)));
    small.merge(chunked)
}
