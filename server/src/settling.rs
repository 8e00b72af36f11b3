//! Does what is owed after an attempt has ended; many jobs are settled in one commit ([`crate::group`]), as they are of few runs.

use crate::app::AppState;
use crate::db::artifact::Owner;
use crate::db::attempt::AttemptRow;
use crate::db::lease::{self, Care, Settled};
use crate::db::{self, Db, DbError, DbResult, Tx};
use crate::error::AppResult;
use crate::group::Together;
use crate::judging::judge_attempt;
use crate::wake::{Pass, Topic};
use crashyard_protocol::AttemptId;
use crashyard_protocol::clock::Timestamp;
use std::collections::{BTreeSet, HashMap};

/// Judges an attempt that has ended a last time and settles its job. `false` while the judge
/// still waits for a moment to pass (the pass for deadlines comes back then).
pub async fn finish(state: &AppState, id: &AttemptId) -> AppResult<bool> {
    let judgement = judge_attempt(state, id).await?;
    if judgement.verdict.is_none() && judgement.check_at.is_some() {
        return Ok(false);
    }
    let Some((ended, settled)) = state.settling.ask(ToSettle { attempt: id.clone(), at: state.now() }).await? else {
        return Ok(false);
    };
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

/// An attempt whose job is to be settled.
#[derive(Clone, Debug)]
pub struct ToSettle {
    /// Which.
    pub attempt: AttemptId,
    /// When.
    pub at: Timestamp,
}

/// Settles jobs; `None` for an attempt that has not ended.
#[derive(Debug)]
pub struct Settling(pub Care);

impl Together for Settling {
    type Ask = ToSettle;
    type Answer = Option<(AttemptRow, Settled)>;
    const QUEUE: usize = 4096;
    const BATCH: usize = 64;

    async fn write(&self, _: &Db, mut tx: Tx, asks: &[ToSettle]) -> DbResult<Vec<DbResult<Self::Answer>>> {
        let Some(now) = asks.iter().map(|ask| ask.at).max() else { return Ok(Vec::new()) };
        let ids: Vec<&AttemptId> = asks.iter().map(|ask| &ask.attempt).collect();
        let attempts = db::attempt::of_ids(&mut tx, &ids).await?;
        let ended: Vec<AttemptRow> = attempts.iter().filter(|one| !one.is_live()).cloned().collect();
        let settled = lease::settle(&mut tx, &ended, &self.0, now).await?;
        tx.commit().await?;
        let known: BTreeSet<&AttemptId> = attempts.iter().map(|one| &one.id).collect();
        let settled: HashMap<&AttemptId, (&AttemptRow, Settled)> =
            ended.iter().zip(settled).map(|(one, settled)| (&one.id, (one, settled))).collect();
        let answer = |id: &AttemptId| match settled.get(id) {
            Some((ended, settled)) => Ok(Some(((*ended).clone(), *settled))),
            None if known.contains(id) => Ok(None),
            None => Err(DbError::NotFound),
        };
        Ok(ids.into_iter().map(answer).collect())
    }
}
