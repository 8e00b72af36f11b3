//! Judges attempts at the moments their judge asked for (a deadline, the end of a grace time), those whose evidence
//! could not be judged when it came, and once after a start every live one.

use super::{BATCH, Next};
use crate::app::AppState;
use crate::db::attempt;
use crate::error::AppResult;
use crate::judging;
use crashyard_protocol::AttemptId;
use std::sync::PoisonError;

/// Judges what is due.
pub async fn tick(state: &AppState) -> AppResult<Next> {
    let now = state.now();
    let due = attempt::due(&state.db, now, BATCH).await?;
    let more = i64::try_from(due.len()).unwrap_or(i64::MAX) >= BATCH;
    let unjudged = std::mem::take(&mut *state.unjudged.lock().unwrap_or_else(PoisonError::into_inner));
    let due: Vec<AttemptId> = due.into_iter().chain(unjudged).collect();
    let mut failure = None;
    for (id, error) in judging::judge_all(state, &due).await {
        // One that cannot be judged does not keep the others waiting.
        tracing::warn!(attempt.id = %id, %error, "cannot judge");
        judging_later(state, &id);
        failure = Some(error);
    }
    if let Some(error) = failure {
        return Err(error);
    }
    if more {
        return Ok(Next::Now);
    }
    Ok(attempt::next_due(&state.db).await?.map_or(Next::Woken, Next::At))
}

/// Puts it back without waking this pass, which is awake.
fn judging_later(state: &AppState, id: &AttemptId) {
    state.unjudged.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone());
}

/// Judges every live attempt: evidence may have been written right before the last server died.
pub async fn judge_live(state: &AppState) -> AppResult<()> {
    for id in attempt::live(&state.db).await? {
        judging_later(state, &id);
    }
    Ok(())
}
