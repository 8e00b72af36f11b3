//! Says that this server is up, and writes down when none was: stages do not age while nobody could hear of them.

use super::Next;
use crate::app::AppState;
use crate::db::presence;
use crate::error::AppResult;
use std::time::Duration;

/// How often a server says that it is up.
const EVERY: Duration = Duration::from_secs(5);
/// A silence of all servers longer than this was an absence.
const ABSENT: Duration = Duration::from_secs(15);

/// Says so now.
pub async fn tick(state: &AppState) -> AppResult<Next> {
    let now = state.now();
    let mut tx = state.db.begin().await?;
    let last = presence::record(&mut tx, &state.instance, state.started_at, now).await?;
    if let Some(last) = last.filter(|last| now.since(*last) > ABSENT) {
        tracing::info!(seconds = now.since(last).as_secs(), "no server was up");
        presence::record_away(&mut tx, last, now).await?;
    }
    tx.commit().await?;
    Ok(Next::At(now.plus(EVERY)))
}
