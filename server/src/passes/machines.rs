//! What time does to machines: reservations end, quarantines end, and jobs that wait for a certain machine stop waiting
//! where that machine cannot come.

use super::{BATCH, Next};
use crate::agent::claim;
use crate::app::AppState;
use crate::db::bound::{self, Bound};
use crate::db::life::{self, SERVER};
use crate::db::reservation;
use crate::db::settle;
use crate::error::AppResult;
use crate::wake::{Pass, Topic};
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{MachineState, Purpose};
use std::time::Duration;

/// How long before its end a reservation's owner is told.
pub const NOTICE: Duration = Duration::from_secs(15 * 60);

/// Does what is due.
pub async fn tick(state: &AppState) -> AppResult<Next> {
    let now = state.now();
    for machine in reservation::over(&state.db, now, BATCH).await? {
        end_reservation(state, &machine, SERVER).await?;
    }
    for row in reservation::unannounced(&state.db, now.plus(NOTICE), BATCH).await? {
        let mut tx = state.db.begin().await?;
        reservation::warn(&mut tx, &row, now).await?;
        tx.commit().await?;
        state.wake.wake(&Topic::Pass(Pass::Notices));
    }
    for machine in reservation::unbegun(&state.db, BATCH).await? {
        let mut tx = state.db.begin().await?;
        reservation::begin_all(&mut tx, &[&machine], now).await?;
        tx.commit().await?;
    }
    for machine in life::forgiven(&state.db, now, BATCH).await? {
        let mut tx = state.db.begin().await?;
        let back = life::forgive(&mut tx, &machine, now).await?;
        tx.commit().await?;
        if back {
            state.wake.wake(&Topic::Machine(machine));
        }
    }
    for job in bound::hopeless(&state.db, BATCH).await? {
        look_after(state, &job).await?;
    }
    let (ends, to_announce) = reservation::next_ends(&state.db).await?;
    let announce = to_announce.map(|at| Timestamp(at.0.saturating_sub(i64::try_from(NOTICE.as_millis()).unwrap_or(0))));
    let next = [ends, announce, life::next_forgiven(&state.db).await?].into_iter().flatten().min();
    Ok(next.map_or(Next::Woken, Next::At))
}

/// Ends a machine's reservation and lets everybody know who waits for it; `false` if there was none.
pub async fn end_reservation(state: &AppState, machine: &crashyard_protocol::MachineId, by: &str) -> AppResult<bool> {
    let mut tx = state.db.begin().await?;
    let ended = reservation::end(&mut tx, machine, by, state.now()).await?;
    tx.commit().await?;
    let Some(ended) = ended else { return Ok(false) };
    state.wake.wake(&Topic::Pass(Pass::Notices));
    match &ended.attempt_id {
        Some(attempt) => state.wake.wake(&Topic::Attempt(attempt.clone())),
        None => state.wake.wake(&Topic::Machine(machine.clone())),
    };
    Ok(true)
}

/// A job that waits for one machine, or for any but one. Writes only where there is something to do.
async fn look_after(state: &AppState, job: &Bound) -> AppResult<()> {
    let Some(name) = &job.only_name else {
        if job.elsewhere {
            return Ok(());
        }
        let mut tx = state.db.begin().await?;
        if bound::unbind(&mut tx, job).await? {
            tx.commit().await?;
            claim::offer(state, &job.selector_id, 1).await?;
        }
        return Ok(());
    };
    let gone = match (job.only_state, job.only_announced) {
        (Some(machine @ (MachineState::Quarantined | MachineState::Retired)), _) => machine.as_str(),
        (_, Some(false)) => "not announced by its controller any more",
        _ => return Ok(()),
    };
    let what = match job.purpose {
        Purpose::KnownGood => "not compared with the known-good kernel",
        Purpose::Test | Purpose::Elsewhere => "not tried",
    };
    let why = format!("{what}, because {name} is {gone}");
    let mut tx = state.db.begin().await?;
    settle::conclude(&mut tx, &job.id, &why, &state.config.care(), state.now()).await?;
    tx.commit().await?;
    let run = crate::db::run::job(&state.db, &job.id).await?.job.run_id;
    state.wake.wake(&Topic::Run(run));
    Ok(())
}
