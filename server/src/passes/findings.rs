//! Has the readers read every attempt that is over, and again when a reader has become better.

use super::Next;
use crate::app::AppState;
use crate::db::attempt;
use crate::error::AppResult;
use crate::findings;
use crate::wake::{Pass, Topic};

/// Attempts read in one tick; reading is slow, and others may have come meanwhile.
const ATTEMPTS: i64 = 1;

/// Reads one attempt that nobody has read with the current readers.
pub async fn tick(state: &AppState) -> AppResult<Next> {
    let version = findings::version();
    let unread = attempt::unread_by(&state.db, version, ATTEMPTS).await?;
    let Some(id) = unread.first() else { return Ok(Next::Woken) };
    findings::read(state, id).await?;
    let mut tx = state.db.begin().await?;
    attempt::set_read_by(&mut tx, id, version).await?;
    tx.commit().await?;
    state.wake.wake(&Topic::Pass(Pass::Dumps));
    Ok(Next::Now)
}
