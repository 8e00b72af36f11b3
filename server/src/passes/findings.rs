//! Has the readers read every attempt that is over, and again when a reader has become better.
//!
//! Several at a time: what is written of each is little, and a statement costs the same for one as for many. One whose evidence
//! cannot be read steps aside ([`super::aside`]).

use super::Next;
use super::aside::together;
use crate::app::AppState;
use crate::db::attempt;
use crate::error::AppResult;
use crate::findings;
use crate::wake::{Pass, Topic};
use crashyard_protocol::AttemptId;

/// Attempts read in one tick.
const ATTEMPTS: usize = 16;

/// Reads some attempts that nobody has read with the current readers.
pub async fn tick(state: &AppState) -> AppResult<Next> {
    let now = state.now();
    let aside = state.unreadable.at(now);
    let limit = i64::try_from(aside.len() + ATTEMPTS).unwrap_or(i64::MAX);
    let unread = attempt::unread_by(&state.db, findings::version(), limit).await?;
    let group: Vec<AttemptId> = unread.into_iter().filter(|id| !aside.contains_key(id)).take(ATTEMPTS).collect();
    if group.is_empty() {
        return Ok(aside.values().min().map_or(Next::Woken, |until| Next::At(*until)));
    }
    let count = group.len();
    let failed = together(state, group, |state, group| async move { findings::read_all(&state, &group).await }).await;
    for (id, error) in &failed {
        tracing::error!(attempt.id = %id, %error, "its evidence could not be read; later again");
        state.metrics.add("crashyard_findings_failures_total", Vec::new(), 1);
        state.unreadable.put(id.clone(), now);
    }
    if failed.len() < count {
        state.wake.wake(&Topic::Pass(Pass::Dumps));
    }
    Ok(Next::Now)
}
