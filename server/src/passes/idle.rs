//! Lets go of consoles that nobody asks for ([`crate::consoles::Consoles::forget_idle`]).

use super::Next;
use crate::app::AppState;
use crate::error::AppResult;
use tokio::time::Instant;

/// Does it now; often enough by itself, and nobody has to wake it.
pub async fn tick(state: &AppState) -> AppResult<Next> {
    state.consoles.forget_idle(Instant::now());
    Ok(Next::Woken)
}
