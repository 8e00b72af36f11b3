//! Lets go of consoles that nobody asks for ([`crate::consoles::Consoles::forget_idle`]).

use super::Next;
use crate::app::AppState;
use crate::error::AppResult;
use std::time::Duration;
use tokio::time::Instant;

/// How often.
const EVERY: Duration = Duration::from_secs(60);

/// Does it now.
pub async fn tick(state: &AppState) -> AppResult<Next> {
    state.consoles.forget_idle(Instant::now());
    Ok(Next::At(state.now().plus(EVERY)))
}
