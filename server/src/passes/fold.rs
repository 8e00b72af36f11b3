//! Folds SQLite's log into its file, so that no commit has to ([`crate::db::Db::fold_log`]).

use super::Next;
use crate::app::AppState;
use crate::error::AppResult;
use std::time::Duration;

/// How often it is looked whether nobody writes.
const EVERY: Duration = Duration::from_millis(250);

/// Does it now, if this is the moment.
pub async fn tick(state: &AppState) -> AppResult<Next> {
    let now = state.now();
    state.db.fold_log(now).await?;
    Ok(Next::At(now.plus(EVERY)))
}
