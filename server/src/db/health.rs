//! Health of machines: whose check is due, and what their attempts look like beside those of others.

use super::{Db, DbResult, Tx, on, on_tx};
use crate::siblings::Count;
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{AttemptId, MachineId, RunId, SelectorId};
use sqlx::FromRow;
use std::collections::BTreeMap;

/// A machine whose health is to be checked.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct Due {
    /// The machine.
    pub id: MachineId,
    /// Its name.
    pub name: String,
    /// When it was checked last.
    pub health_at: Option<Timestamp>,
    /// Whether its last attempt, its return from quarantine or a person's time with it asks for it; else it is just time.
    pub suspicious: bool,
}

/// Machines in service that satisfy a selector and were not checked since `before`, or have given reason since. The suspicious
/// first. A busy one counts as well: its check comes when it is free, where otherwise a farm that is never idle would never
/// check. A machine with a check that is not over is not due.
pub async fn due(db: &Db, selector: &SelectorId, before: Timestamp, limit: i64) -> DbResult<Vec<Due>> {
    Ok(on!(db.read(), |c| {
        sqlx::query_as(
            "SELECT * FROM (SELECT m.id, m.name, m.health_at, \
         (m.probation > 0 AND COALESCE(m.health_at, 0) < m.trusted_since) \
         OR COALESCE(p.ended_at, 0) > COALESCE(m.health_at, 0) OR EXISTS (SELECT 1 FROM attempt a \
         WHERE a.id = (SELECT MAX(n.id) FROM attempt n WHERE n.machine_id = m.id AND n.state IN ('done', 'lost')) \
         AND a.finished_at > COALESCE(m.health_at, 0) \
         AND NOT a.gave_way AND (a.verdict = 'MISS' OR (a.verdict = 'ERROR' \
         AND a.blamed_stage IN ('provisioned', 'triggered', 'dumped')))) AS suspicious \
         FROM machine_selector ms JOIN machine m ON m.id = ms.machine_id \
         LEFT JOIN (SELECT machine_id, MAX(ended_at) AS ended_at FROM reservation WHERE began_at IS NOT NULL \
         AND attempt_id IS NULL GROUP BY machine_id) AS p ON p.machine_id = m.id \
         WHERE ms.selector_id = $1 AND m.announced AND m.state IN ('available', 'leased') \
         AND NOT EXISTS (SELECT 1 FROM run r WHERE r.health_machine_id = m.id AND r.state = 'open')) AS d \
         WHERE suspicious OR health_at IS NULL OR health_at <= $2 ORDER BY suspicious DESC, id LIMIT $3",
        )
        .bind(selector)
        .bind(before)
        .bind(limit)
        .fetch_all(c)
        .await
    })?)
}

/// Takes the check of a machine on; `false` if another server was quicker, or the machine is not in service any more.
pub async fn begin(tx: &mut Tx, due: &Due, now: Timestamp) -> DbResult<bool> {
    let begun = on_tx!(tx, |c| {
        sqlx::query(
        "UPDATE machine SET health_at = $2 WHERE id = $1 AND state IN ('available', 'leased') AND COALESCE(health_at, 0) = $3",
    )
    .bind(&due.id)
    .bind(now)
    .bind(due.health_at.unwrap_or(Timestamp(0)))
    .execute(c)
    .await
    .map(|done| done.rows_affected())
    })?;
    Ok(begun == 1)
}

/// Says whose health a run checks: no other machine may have its jobs.
pub async fn mark(tx: &mut Tx, run: &RunId, machine: &MachineId) -> DbResult<()> {
    on_tx!(tx, |c| sqlx::query("UPDATE job SET only_machine_id = $2 WHERE run_id = $1")
        .bind(run)
        .bind(machine)
        .execute(c)
        .await
        .map(drop))?;
    on_tx!(tx, |c| sqlx::query("UPDATE run SET health_machine_id = $2 WHERE id = $1")
        .bind(run)
        .bind(machine)
        .execute(c)
        .await
        .map(drop))?;
    Ok(())
}

/// What came of the attempts that began with or after this one.
pub async fn counts(db: &Db, since: &AttemptId) -> DbResult<Vec<Count>> {
    Ok(on!(db.read(), |c| {
        sqlx::query_as(
        "SELECT a.machine_id, COALESCE(a.boots_build_id, r.build_id) AS build_id, j.scenario ->> 'name' AS scenario, \
         a.verdict, a.blamed_stage, COUNT(*) AS times FROM attempt a JOIN job j ON j.id = a.job_id \
         JOIN run r ON r.id = a.run_id WHERE a.id >= $1 AND a.state IN ('done', 'lost') AND NOT a.gave_way \
         GROUP BY a.machine_id, COALESCE(a.boots_build_id, r.build_id), j.scenario ->> 'name', a.verdict, a.blamed_stage",
    )
    .bind(since)
    .fetch_all(c)
    .await
    })?)
}

/// Writes down which machines stand out; the others do not any more. Returns those that did not before.
pub async fn point_out(tx: &mut Tx, found: &BTreeMap<MachineId, String>) -> DbResult<Vec<MachineId>> {
    let marked: Vec<(MachineId, String)> =
        on_tx!(tx, |c| sqlx::query_as("SELECT id, differs FROM machine WHERE differs IS NOT NULL ORDER BY id")
            .fetch_all(c)
            .await)?;
    let marked: BTreeMap<MachineId, String> = marked.into_iter().collect();
    let mut new = Vec::new();
    let all: std::collections::BTreeSet<&MachineId> = marked.keys().chain(found.keys()).collect();
    for machine in all {
        let (was, is) = (marked.get(machine), found.get(machine));
        if was == is {
            continue;
        }
        on_tx!(tx, |c| sqlx::query("UPDATE machine SET differs = $2 WHERE id = $1")
            .bind(machine)
            .bind(is)
            .execute(c)
            .await
            .map(drop))?;
        if was.is_none() {
            new.push(machine.clone());
        }
    }
    Ok(new)
}
