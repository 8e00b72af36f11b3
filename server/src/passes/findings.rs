//! Has the readers read every attempt that is over, and again when a reader has become better.
//!
//! One attempt whose evidence cannot be read (an object is missing, the store is away) must never keep the others
//! waiting: it steps aside for a while and is tried again.

use super::Next;
use crate::app::AppState;
use crate::db::attempt;
use crate::error::AppResult;
use crate::findings;
use crate::wake::{Pass, Topic};
use crashyard_protocol::AttemptId;
use crashyard_protocol::clock::Timestamp;
use std::collections::BTreeMap;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

/// How long an attempt that could not be read lets the others go first.
const ASIDE: Duration = Duration::from_secs(600);

/// Reads one attempt that nobody has read with the current readers.
pub async fn tick(state: &AppState) -> AppResult<Next> {
    let (version, now) = (findings::version(), state.now());
    let aside = {
        let mut aside = set_aside(state);
        aside.retain(|_, until| *until > now);
        aside.clone()
    };
    // Reading is slow, and others may have come meanwhile: one at a time, the first that is not set aside.
    let limit = i64::try_from(aside.len() + 1).unwrap_or(i64::MAX);
    let unread = attempt::unread_by(&state.db, version, limit).await?;
    let Some(id) = unread.iter().find(|id| !aside.contains_key(*id)) else {
        return Ok(aside.values().min().map_or(Next::Woken, |until| Next::At(*until)));
    };
    if let Err(error) = findings::read(state, id).await {
        tracing::error!(attempt.id = %id, error = format!("{error:#}"), "its evidence could not be read; later again");
        state.metrics.add("crashyard_findings_failures_total", Vec::new(), 1);
        set_aside(state).insert(id.clone(), now.plus(ASIDE));
        return Ok(Next::Now);
    }
    state.wake.wake(&Topic::Pass(Pass::Dumps));
    Ok(Next::Now)
}

fn set_aside(state: &AppState) -> MutexGuard<'_, BTreeMap<AttemptId, Timestamp>> {
    state.unreadable.lock().unwrap_or_else(PoisonError::into_inner)
}
