//! Folds SQLite's log into its file, so that no commit has to.

use super::Next;
use crate::app::AppState;
use crate::error::AppResult;
use std::time::Duration;

/// How often.
const EVERY: Duration = Duration::from_secs(1);

/// Does it now.
pub async fn tick(state: &AppState) -> AppResult<Next> {
    state.db.fold_log().await?;
    Ok(Next::At(state.now().plus(EVERY)))
}
