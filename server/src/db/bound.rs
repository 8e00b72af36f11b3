//! Jobs whose next attempt is bound to machines: to one alone, or to any but one.

use super::settle::others;
use super::{Db, DbResult, Tx, on, on_tx};
use crashyard_protocol::{JobId, MachineId, MachineState, Purpose, SelectorId};
use sqlx::FromRow;

/// A job that waits for certain machines.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct Bound {
    /// The job.
    pub id: JobId,
    /// Its selector.
    pub selector_id: SelectorId,
    /// The only machine it may have.
    pub only_machine_id: Option<MachineId>,
    /// The name of that machine.
    pub only_name: Option<String>,
    /// The state of that machine.
    pub only_state: Option<MachineState>,
    /// Whether that machine's controller names it.
    pub only_announced: Option<bool>,
    /// The machine it must not have.
    pub not_machine_id: Option<MachineId>,
    /// What its next attempt is for.
    pub purpose: Purpose,
    /// Whether there is another one for it.
    pub elsewhere: bool,
}

/// Jobs that wait for certain machines which cannot come, or need not: those that wait rightly must not hide them.
pub async fn hopeless(db: &Db, limit: i64) -> DbResult<Vec<Bound>> {
    Ok(on!(db.read(), |c| {
        sqlx::query_as(
        "SELECT j.id, j.selector_id, j.only_machine_id, m.name AS only_name, m.state AS only_state, \
         m.announced AS only_announced, j.not_machine_id, j.purpose, EXISTS (SELECT 1 FROM machine_selector ms \
         JOIN machine o ON o.id = ms.machine_id WHERE ms.selector_id = j.selector_id AND o.id <> j.not_machine_id \
         AND o.announced AND o.state NOT IN ('quarantined', 'retired')) AS elsewhere FROM job j LEFT JOIN machine m ON m.id = j.only_machine_id \
         WHERE j.state = 'queued' AND (j.only_machine_id IS NOT NULL OR j.not_machine_id IS NOT NULL) \
         AND CASE WHEN j.only_machine_id IS NOT NULL THEN NOT m.announced OR m.state IN ('quarantined', 'retired') \
         ELSE NOT EXISTS (SELECT 1 FROM machine_selector ms JOIN machine o ON o.id = ms.machine_id \
         WHERE ms.selector_id = j.selector_id AND o.id <> j.not_machine_id AND o.announced \
         AND o.state NOT IN ('quarantined', 'retired')) END ORDER BY j.id LIMIT $1",
    )
    .bind(limit)
    .fetch_all(c)
    .await
    })?)
}

/// Lets a job that must not have a certain machine have it after all, if there is no other; `true` if it may now.
pub async fn unbind(tx: &mut Tx, job: &Bound) -> DbResult<bool> {
    let Some(not) = &job.not_machine_id else { return Ok(false) };
    if others(tx, &job.selector_id, not).await? {
        return Ok(false);
    }
    let freed = on_tx!(tx, |c| sqlx::query(
        "UPDATE job SET not_machine_id = NULL WHERE id = $1 AND state = 'queued' AND not_machine_id IS NOT NULL",
    )
    .bind(&job.id)
    .execute(c)
    .await
    .map(|done| done.rows_affected()))?;
    Ok(freed == 1)
}
