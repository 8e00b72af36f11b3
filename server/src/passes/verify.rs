//! Reads complete dumps, once, on a thread of their own, and has the attempt judged.
//!
//! Reading needs the server alone. So a dump that was whole when the lease was lost is read like any other, and the job of its
//! attempt, which has waited for that, is settled then.

use super::Next;
use crate::app::AppState;
use crate::db::artifact::{self, Owner};
use crate::db::{attempt, unsigned};
use crate::error::{AppError, AppResult};
use crate::extract::replace_nul;
use crate::judging;
use crate::ranges::Stored;
use crate::recorder::{HandedIn, What};
use crate::triage::{DumpReading, Intent, dump};
use crashyard_protocol::AttemptId;
use crashyard_protocol::api::DUMP;
use crashyard_vmcore::Options;

/// Dumps read in one tick; reading is slow, and others may have come meanwhile.
const DUMPS: i64 = 1;

/// Reads one dump that nobody has read.
pub async fn tick(state: &AppState) -> AppResult<Next> {
    let unread = attempt::unread_dumps(&state.db, DUMPS).await?;
    let Some(id) = unread.first() else { return Ok(Next::Woken) };
    let (epoch, reading) = read(state, id).await?;
    let mut facts = serde_json::to_value(&reading).map_err(|error| AppError::Internal(error.into()))?;
    // A kernel log may hold NULs, and PostgreSQL keeps none in texts.
    replace_nul(&mut facts);
    let what = What::Reading(facts);
    judging::keep(state, HandedIn { attempt: id.clone(), epoch, at: reading.at, what }).await?;
    Ok(Next::Now)
}

/// What is in the dump, and the epoch of its attempt.
async fn read(state: &AppState, id: &AttemptId) -> AppResult<(u64, DumpReading)> {
    let full = attempt::full(&state.db, id).await?;
    let artifact = artifact::find(&state.db, &Owner::Attempt(id.clone()), DUMP)
        .await?
        .ok_or_else(|| AppError::Internal(anyhow::anyhow!("attempt {id} has no dump")))?;
    let stored = Stored::open(state, &artifact.id).await?;
    let (intent, vmx) = (Intent::new(id, &full.scenario), full.scenario.vmx);
    let tables = state.tables.clone();
    let (outcome, failure) = tokio::task::spawn_blocking(move || {
        let outcome = dump::read(&stored, &intent, vmx, &Options { cache: Some(&tables), ..Options::default() });
        (outcome, stored.failure())
    })
    .await?;
    if let Some(failure) = failure {
        return Err(AppError::Unavailable(anyhow::Error::new(failure).context("reading a dump")));
    }
    let outcome =
        outcome.map_err(|error| AppError::Unavailable(anyhow::Error::new(error).context("reading a dump")))?;
    Ok((unsigned(full.attempt.epoch), DumpReading { at: state.now(), outcome }))
}
