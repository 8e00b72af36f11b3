//! Ends attempts whose lease has run out, and settles jobs of attempts that have ended.
//!
//! A controller that cannot reach the server is not a dead one. So no lease is declared lost until this server has
//! itself been up for one lease period: whoever is alive has renewed by then.

use super::{BATCH, Next};
use crate::app::AppState;
use crate::db::lease::{self, End};
use crate::error::AppResult;
use crate::judging;
use crate::wake::Topic;

/// Ends what has run out.
pub async fn tick(state: &AppState) -> AppResult<Next> {
    for id in lease::unsettled(&state.db, BATCH).await? {
        judging::judge_attempt(state, &id).await?;
    }
    let now = state.now();
    let trusted_from = state.started_at.plus(state.config.lease());
    if now < trusted_from {
        return Ok(Next::At(trusted_from));
    }
    let expired = lease::expired(&state.db, now, BATCH).await?;
    let more = i64::try_from(expired.len()).unwrap_or(i64::MAX) >= BATCH;
    for id in expired {
        let mut tx = state.db.begin().await?;
        let Some(lost) = lease::end(&mut tx, &id, &End::Lost, &state.config.care().rule, now).await? else { continue };
        tx.commit().await?;
        tracing::warn!(attempt.id = %id, machine.id = %lost.machine_id, "lease ran out");
        state.metrics.add("crashyard_leases_lost_total", Vec::new(), 1);
        state.wake.wake(&Topic::Attempt(id.clone()));
        judging::judge_attempt(state, &id).await?;
        state.wake.wake(&Topic::Machine(lost.machine_id));
    }
    if more {
        return Ok(Next::Now);
    }
    Ok(lease::next_expiry(&state.db).await?.map_or(Next::Woken, Next::At))
}
