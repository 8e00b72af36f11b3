//! Ends attempts whose lease has run out, and settles jobs of attempts that have ended.
//!
//! A controller that cannot reach the server is not a dead one. So no lease is declared lost until this server has
//! itself been up for one lease period: whoever is alive has renewed by then.

use super::{BATCH, Next};
use crate::app::AppState;
use crate::db::lease::{self, End};
use crate::db::settle;
use crate::error::AppResult;
use crate::judging;
use crate::wake::Topic;
use crashyard_protocol::AttemptId;

/// Ends what has run out.
pub async fn tick(state: &AppState) -> AppResult<Next> {
    judge(state, &settle::unsettled(&state.db, BATCH).await?).await?;
    let now = state.now();
    let trusted_from = state.started_at.plus(state.config.lease());
    if now < trusted_from {
        return Ok(Next::At(trusted_from));
    }
    let expired = lease::expired(&state.db, now, BATCH).await?;
    let more = i64::try_from(expired.len()).unwrap_or(i64::MAX) >= BATCH;
    if !expired.is_empty() {
        let ends: Vec<(&AttemptId, End<'_>)> = expired.iter().map(|id| (id, End::Lost)).collect();
        let mut tx = state.db.begin().await?;
        let lost = lease::end(&mut tx, &ends, &state.config.care().rule, now).await?;
        tx.commit().await?;
        for lost in &lost {
            tracing::warn!(attempt.id = %lost.id, machine.id = %lost.machine_id, "lease ran out");
            state.metrics.add("crashyard_leases_lost_total", Vec::new(), 1);
            state.wake.wake(&Topic::Attempt(lost.id.clone()));
        }
        judge(state, &lost.iter().map(|lost| lost.id.clone()).collect::<Vec<_>>()).await?;
        for lost in lost {
            state.wake.wake(&Topic::Machine(lost.machine_id));
        }
    }
    if more {
        return Ok(Next::Now);
    }
    Ok(lease::next_expiry(&state.db).await?.map_or(Next::Woken, Next::At))
}

/// Judges these; what failed for one is told when all others are judged.
async fn judge(state: &AppState, ids: &[AttemptId]) -> AppResult<()> {
    judging::judge_all(state, ids).await.into_iter().next().map_or(Ok(()), |(_, error)| Err(error))
}
