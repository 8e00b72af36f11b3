//! Jobs that give way: an attempt that may be preempted hands its machine to somebody who comes first, as long as it is not
//! armed. From then on the crash may come at any moment, and what it shows is worth more than the minutes it takes.
//!
//! Nothing is lost: the job waits for its turn again where it stood, and the try is not counted.

use crate::app::AppState;
use crate::db::{preemption, queue};
use crate::error::AppResult;
use crate::wake::Topic;
use crashyard_protocol::{AttemptId, Priority, SelectorId};

/// Makes room for new jobs of a priority, as far as no machine is idle for them.
pub async fn make_room(state: &AppState, selector: &SelectorId, priority: Priority, jobs: usize) -> AppResult<()> {
    if priority.class() == Priority::Bulk.class() {
        return Ok(());
    }
    let idle = queue::idle_machines(&state.db, selector).await?.len();
    let missing = i64::try_from(jobs.saturating_sub(idle)).unwrap_or(i64::MAX);
    if missing == 0 {
        return Ok(());
    }
    for attempt in preemption::preemptible(&state.db, selector, priority.class(), missing).await? {
        give_way(state, &attempt, &format!("Gave way to a job of priority {priority}")).await?;
    }
    Ok(())
}

/// Has an attempt hand its machine back, if it may be preempted and is not armed; `true` if it does.
pub async fn for_person(state: &AppState, attempt: &AttemptId, owner: &str) -> AppResult<bool> {
    if !preemption::is_preemptible(&state.db, attempt).await? {
        return Ok(false);
    }
    give_way(state, attempt, &format!("Gave way to {owner}, who reserved the machine")).await
}

async fn give_way(state: &AppState, attempt: &AttemptId, why: &str) -> AppResult<bool> {
    let mut tx = state.db.begin().await?;
    let gone = preemption::give_way(&mut tx, attempt, why, state.now()).await?;
    tx.commit().await?;
    if gone {
        state.metrics.add("crashyard_preemptions_total", Vec::new(), 1);
        state.wake.wake(&Topic::Attempt(attempt.clone()));
    }
    Ok(gone)
}
