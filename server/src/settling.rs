//! What follows when an attempt is over and its job settled, which is done in the transaction that judges it a last time
//! ([`crate::judging`]): readers of its consoles are let go, whoever waits for it is told, and what waits for machines is offered.
//!
//! Nothing here is owed: if it does not happen, those who wait look by themselves in time.

use crate::app::AppState;
use crate::db;
use crate::db::artifact::Owner;
use crate::db::attempt::AttemptRow;
use crate::db::lease::Settled;
use crate::error::AppResult;
use crate::wake::{Pass, Topic};
use crashyard_protocol::{AttemptId, JobId, RunId};

/// An attempt that is over.
#[derive(Clone, Debug)]
pub struct Over {
    /// Which.
    pub attempt: AttemptId,
    /// Its job.
    pub job: JobId,
    /// Its run.
    pub run: RunId,
    /// What became of the job.
    pub settled: Settled,
}

impl Over {
    /// Of an attempt that has ended.
    #[must_use]
    pub fn of(ended: &AttemptRow, settled: Settled) -> Self {
        Self { attempt: ended.id.clone(), job: ended.job_id.clone(), run: ended.run_id.clone(), settled }
    }
}

/// Tells whoever may want to know.
pub async fn follow(state: &AppState, over: &Over) -> AppResult<()> {
    state.consoles.forget_attempt(&over.attempt);
    for artifact in db::artifact::list(&state.db, &Owner::Attempt(over.attempt.clone())).await? {
        state.consoles.forget(&artifact.id);
        state.wake.wake(&Topic::Console(artifact.id));
    }
    state.wake.wake(&Topic::Attempt(over.attempt.clone()));
    state.wake.wake(&Topic::Run(over.run.clone()));
    state.wake.wake(&Topic::Pass(Pass::Compact));
    state.wake.wake(&Topic::Pass(Pass::Dumps));
    crate::agent::claim::offer_room(state, &over.attempt).await?;
    if over.settled == Settled::Queued {
        let job = db::run::job(&state.db, &over.job).await?.job;
        match &job.only_machine_id {
            Some(machine) => {
                state.wake.wake(&Topic::Machine(machine.clone()));
            }
            None => crate::agent::claim::offer(state, &job.selector_id, 1).await?,
        }
        state.wake.wake(&Topic::Pass(Pass::Machines));
    }
    Ok(())
}
