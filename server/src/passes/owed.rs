//! Once a day, and after a start: is anything owed and not delivered? What is found goes to the log and to `/metrics`; the
//! same can be asked at any time (`GET /api/v1/owed`, `crashyard owed`).
//!
//! It mends nothing. Whatever it finds, another part of the server should have dealt with, so it is a fault to be looked
//! at, or a farm without machines for what it is asked to do.

use super::Next;
use crate::app::AppState;
use crate::db::owed::{self, OwedRow};
use crate::error::AppResult;
use crashyard_protocol::api::{Owed, OwedKind};
use crashyard_protocol::clock::Timestamp;
use metrics::Label;
use std::sync::PoisonError;
use std::time::Duration;

/// How often it is looked for.
const EVERY: Duration = Duration::from_secs(24 * 3600);

/// How long what takes care of itself may take.
const GRACE: Duration = Duration::from_secs(3600);

/// How long a job may wait before that is worth a word.
const WAIT: Duration = Duration::from_secs(24 * 3600);

/// Looks, once a day.
pub async fn tick(state: &AppState) -> AppResult<Next> {
    let now = state.now();
    let last = *state.reconciled_at.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(last) = last.filter(|last| now.since(*last) < EVERY) {
        return Ok(Next::At(last.plus(EVERY)));
    }
    let found = look(state).await?;
    for one in &found {
        tracing::warn!(kind = %one.kind, id = one.id, name = one.name, since = one.since.0, "owed and not delivered");
    }
    for kind in OwedKind::ALL {
        let count = found.iter().filter(|one| one.kind == *kind).count();
        state.metrics.set("crashyard_owed", vec![Label::new("kind", kind.as_str())], count);
    }
    *state.reconciled_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
    Ok(Next::At(now.plus(EVERY)))
}

/// Everything that is owed now, at most a hundred of each kind, the oldest first.
pub async fn look(state: &AppState) -> AppResult<Vec<Owed>> {
    let now = state.now();
    let before = |span: Duration| Timestamp(now.0.saturating_sub(i64::try_from(span.as_millis()).unwrap_or(0)));
    let db = &state.db;
    let mut found = Vec::new();
    let mut add = |kind: OwedKind, rows: Vec<OwedRow>| {
        found.extend(rows.into_iter().map(|row| Owed { kind, id: row.id, name: row.name, since: row.since }));
    };
    add(OwedKind::JobWaits, owed::waiting_jobs(db, before(WAIT)).await?);
    add(OwedKind::JobWithoutAttempt, owed::jobs_without_attempt(db, before(GRACE)).await?);
    add(OwedKind::AttemptWithoutLease, owed::attempts_without_lease(db, before(GRACE)).await?);
    add(OwedKind::MachineWithoutAttempt, owed::machines_without_attempt(db, before(GRACE)).await?);
    add(OwedKind::RunWithoutJobs, owed::runs_without_jobs(db, before(GRACE)).await?);
    Ok(found)
}
