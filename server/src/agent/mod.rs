//! The agent API (`/agent/v1`), see [`crashyard_protocol::agent`] for what agents may rely on.

pub mod attempt;
pub mod claim;
pub mod console;
pub mod enrol;
pub mod errands;
pub mod evidence;
pub mod keys;

use crate::app::AppState;
use axum::extract::DefaultBodyLimit;
use crashyard_protocol::agent::CONSOLE_WRITE_MAX;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// Every path of the agent API.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(enrol::enrol))
        .routes(routes!(claim::claim))
        .routes(routes!(errands::errand_done))
        .routes(routes!(attempt::get_brief))
        .routes(routes!(attempt::renew))
        .routes(routes!(attempt::release))
        .routes(routes!(evidence::add_reports))
        .routes(routes!(evidence::next_report))
        .routes(routes!(console::get_console, console::put_console))
        .routes(routes!(keys::get_keys))
        .routes(routes!(evidence::get_upload))
        .routes(routes!(evidence::put_chunk))
        .routes(routes!(evidence::complete_upload))
        // A chunk and a console write have the same limit.
        .layer(DefaultBodyLimit::max(CONSOLE_WRITE_MAX))
}
