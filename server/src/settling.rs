//! Does what is owed after an attempt has ended.

use crate::app::AppState;
use crate::db;
use crate::db::artifact::Owner;
use crate::db::lease::{self, Settled};
use crate::error::AppResult;
use crate::judging::judge_attempt;
use crate::wake::{Pass, Topic};
use crashyard_protocol::AttemptId;

/// Judges an attempt that has ended a last time and settles its job. `false` while the judge
/// still waits for a moment to pass (the pass for deadlines comes back then).
pub async fn finish(state: &AppState, id: &AttemptId) -> AppResult<bool> {
    let judgement = judge_attempt(state, id).await?;
    if judgement.verdict.is_none() && judgement.check_at.is_some() {
        return Ok(false);
    }
    let mut tx = state.db.begin().await?;
    let ended = db::attempt::get_in(&mut tx, id).await?;
    if ended.is_live() {
        return Ok(false);
    }
    let settled = lease::settle(&mut tx, &ended, &state.config.care(), state.now()).await?;
    tx.commit().await?;
    state.consoles.forget_attempt(id);
    for artifact in db::artifact::list(&state.db, &Owner::Attempt(id.clone())).await? {
        state.consoles.forget(&artifact.id);
        state.wake.wake(&Topic::Console(artifact.id));
    }
    state.wake.wake(&Topic::Attempt(id.clone()));
    state.wake.wake(&Topic::Run(ended.run_id.clone()));
    state.wake.wake(&Topic::Pass(Pass::Compact));
    state.wake.wake(&Topic::Pass(Pass::Dumps));
    crate::agent::claim::offer_room(state, id).await?;
    if settled == Settled::Queued {
        let job = db::run::job(&state.db, &ended.job_id).await?.job;
        match &job.only_machine_id {
            Some(machine) => {
                state.wake.wake(&Topic::Machine(machine.clone()));
            }
            None => crate::agent::claim::offer(state, &job.selector_id, 1).await?,
        }
        state.wake.wake(&Topic::Pass(Pass::Machines));
    }
    Ok(true)
}
