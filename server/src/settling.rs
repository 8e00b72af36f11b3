//! What follows when an attempt is over and its job settled, which is done in the transaction that judges it a last time
//! ([`crate::judging`]): readers of its consoles are let go, whoever waits for it is told, and what waits for machines is offered.
//!
//! Nothing here is owed: if it does not happen, those who wait look by themselves in time.

use crate::agent::claim;
use crate::app::AppState;
use crate::db::run::Changed;
use crate::error::AppResult;
use crate::wake::{Pass, Topic};
use crashyard_protocol::{ArtifactId, AttemptId, RunId, SubmitterId};

/// An attempt that is over.
#[derive(Clone, Debug)]
pub struct Over {
    /// Which.
    pub attempt: AttemptId,
    /// Its run.
    pub run: RunId,
    /// Its consoles.
    pub consoles: Vec<ArtifactId>,
    /// Whose machine time it took, if they are limited: there is room for another job of theirs on any machine.
    pub limited: Option<SubmitterId>,
    /// Its job, if that waits for another machine.
    pub again: Option<Changed>,
}

/// Tells whoever may want to know.
pub async fn follow(state: &AppState, over: &Over) -> AppResult<()> {
    state.consoles.forget_attempt(&over.attempt);
    state.terms.forget(&over.attempt);
    for console in &over.consoles {
        state.consoles.forget(console);
        state.wake.wake(&Topic::Console(console.clone()));
    }
    state.wake.wake(&Topic::Attempt(over.attempt.clone()));
    state.wake.wake(&Topic::Run(over.run.clone()));
    state.wake.wake(&Topic::Pass(Pass::Compact));
    state.wake.wake(&Topic::Pass(Pass::Dumps));
    if let Some(submitter) = &over.limited {
        claim::offer_for(state, submitter).await?;
    }
    if let Some(job) = &over.again {
        match &job.only_machine_id {
            Some(machine) => {
                state.wake.wake(&Topic::Machine(machine.clone()));
            }
            None => claim::offer(state, &job.selector_id, 1).await?,
        }
        state.wake.wake(&Topic::Pass(Pass::Machines));
    }
    Ok(())
}
