//! What time does to jobs that wait: a deadline ends them, and age brings their flow forward.

use super::{BATCH, Next};
use crate::app::AppState;
use crate::db::{flow, queue, run};
use crate::error::AppResult;
use crate::wake::Topic;

/// Ends what is overdue and brings forward what has waited long.
pub async fn tick(state: &AppState) -> AppResult<Next> {
    let now = state.now();
    let overdue = queue::overdue(&state.db, now, BATCH).await?;
    let more = i64::try_from(overdue.len()).unwrap_or(i64::MAX) >= BATCH;
    for id in overdue {
        let job = run::job(&state.db, &id).await?.job;
        let waited = now.since(job.created_at).as_secs();
        let why = format!("no machine took it before its deadline: it waited {waited} s");
        let mut tx = state.db.begin().await?;
        let ended = queue::give_up(&mut tx, &id, &why, now).await?;
        tx.commit().await?;
        if ended {
            state.metrics.add("crashyard_jobs_overdue_total", Vec::new(), 1);
            state.wake.wake(&Topic::Run(job.run_id));
        }
    }
    let older = flow::aged(&state.db, now, state.config.promote_after()).await?;
    if !older.is_empty() {
        let mut tx = state.db.begin().await?;
        flow::set_classes(&mut tx, &older).await?;
        tx.commit().await?;
    }
    if more {
        return Ok(Next::Now);
    }
    Ok(queue::next_deadline(&state.db).await?.map_or(Next::Woken, Next::At))
}
