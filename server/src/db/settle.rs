//! What becomes of jobs whose attempts have ended: a verdict, or another try. The first to come settles a job, once.

use super::attempt::AttemptRow;
use super::event;
use super::given::{given, listed, update_in_order};
use super::life;
use super::run::{self, Changed, JobChange, JobRow};
use super::{Db, DbResult, Tx, artifact, on, on_tx};
use crate::retries::{self, Next, Tried};
use crate::trust::Rule;
use crashyard_protocol::api::EventBody;
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{AttemptId, JobId, JobState, MachineId, Purpose, RunId, SelectorId, StageName, Status};
use serde::Serialize;
use sqlx::FromRow;
use sqlx::types::Json;
use std::collections::{BTreeMap, HashMap};

/// What becomes of a job when its attempt has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// It has its verdict.
    Done,
    /// It waits for another machine.
    Queued,
    /// It was settled before.
    Before,
}

/// How failures are dealt with, as the server is configured.
#[derive(Clone, Copy, Debug)]
pub struct Care {
    /// Tries where the policy of a job does not say.
    pub tries: u32,
    /// When a machine is quarantined.
    pub rule: Rule,
}

#[derive(FromRow)]
struct TriedRow {
    job_id: JobId,
    purpose: Purpose,
    machine_id: MachineId,
    machine_name: String,
    verdict: Status,
    blamed_stage: Option<StageName>,
    reason: Option<String>,
    gave_way: bool,
}

/// The attempts of each of these jobs, the oldest first.
async fn tried(tx: &mut Tx, jobs: &[&JobId]) -> DbResult<HashMap<JobId, Vec<Tried>>> {
    let text = listed!(
        tx,
        "SELECT a.job_id, a.purpose, a.machine_id, m.name AS machine_name, a.verdict, a.blamed_stage, a.reason, a.gave_way \
         FROM attempt a JOIN machine m ON m.id = a.machine_id WHERE ",
        "a.job_id",
        " ORDER BY a.number"
    );
    let rows: Vec<TriedRow> = on_tx!(tx, |c| sqlx::query_as(text).bind(Json(jobs)).fetch_all(c).await)?;
    let mut all: HashMap<JobId, Vec<Tried>> = HashMap::new();
    for row in rows {
        all.entry(row.job_id).or_default().push(Tried {
            purpose: row.purpose,
            machine: row.machine_id,
            machine_name: row.machine_name,
            verdict: row.verdict,
            blamed: row.blamed_stage,
            reason: row.reason,
            gave_way: row.gave_way,
        });
    }
    Ok(all)
}

async fn tried_for(tx: &mut Tx, job: &JobId) -> DbResult<Vec<Tried>> {
    Ok(tried(tx, &[job]).await?.remove(job).unwrap_or_default())
}

/// Whether jobs of a selector may get any machine but this one.
pub(super) async fn others(tx: &mut Tx, selector: &SelectorId, machine: &MachineId) -> DbResult<bool> {
    let found: i64 = on_tx!(tx, |c| sqlx::query_scalar(
        "SELECT COUNT(*) FROM (SELECT 1 FROM machine_selector ms JOIN machine m ON m.id = ms.machine_id \
         WHERE ms.selector_id = $1 AND m.id <> $2 AND m.announced AND m.state NOT IN ('quarantined', 'retired') \
         LIMIT 1) AS first",
    )
    .bind(selector)
    .bind(machine)
    .fetch_one(c)
    .await)?;
    Ok(found > 0)
}

#[derive(Serialize)]
struct Try<'a> {
    job: &'a JobId,
    try_number: i64,
}

#[derive(FromRow)]
struct Owed {
    #[sqlx(flatten)]
    job: JobRow,
    /// The machine whose health it checks.
    health_machine_id: Option<MachineId>,
}

/// The jobs of these attempts, locked, as far as they are these attempts' to settle: the first to come settles a job, others wait
/// and then find it settled.
async fn owed(tx: &mut Tx, ended: &[&AttemptRow]) -> DbResult<HashMap<JobId, Owed>> {
    let tries: Vec<Try<'_>> = ended.iter().map(|one| Try { job: &one.job_id, try_number: one.number }).collect();
    let text = update_in_order!(
        tx,
        "job" SET "attempt_count = attempt_count",
        [job text, try_number bigint],
        "job",
        " AND state = 'leased' AND attempt_count = given.try_number \
         RETURNING *, (SELECT health_machine_id FROM run WHERE run.id = run_id) AS health_machine_id"
    );
    let rows: Vec<Owed> = on_tx!(tx, |c| sqlx::query_as(text).bind(Json(&tries)).fetch_all(c).await)?;
    Ok(rows.into_iter().map(|owed| (owed.job.id.clone(), owed)).collect())
}

/// What becomes of the jobs of attempts that have ended.
#[derive(Debug, Default)]
pub struct Settling {
    /// An answer for each, in their order.
    pub settled: Vec<Settled>,
    changed: HashMap<AttemptId, Changed>,
}

impl Settling {
    /// The job of an attempt, if it waits for another machine now.
    #[must_use]
    pub fn again(&self, attempt: &AttemptId) -> Option<&Changed> {
        self.changed.get(attempt).filter(|job| job.state == JobState::Queued)
    }

    /// Adds the events that tell of it; a run without any is named, so that its row is locked with the others.
    pub fn tell<'a>(&'a self, ended: &[&'a AttemptRow], of_run: &mut BTreeMap<&'a RunId, Vec<event::Told<'a>>>) {
        for one in ended {
            let events = of_run.entry(&one.run_id).or_default();
            if let Some(job) = self.changed.get(&one.id) {
                events.push((Some(&one.job_id), Some(&one.id), EventBody::AttemptDone));
                events.push(job.told());
            }
        }
    }
}

/// Settles the jobs of attempts that have ended: with a verdict, or with another try, as [`retries`] says. The caller tells of it
/// ([`Settling::tell`]) and then does what follows ([`follow`]), so that locks are taken in the order of [`super::flow`].
pub async fn settle(tx: &mut Tx, ended: &[&AttemptRow], care: &Care, now: Timestamp) -> DbResult<Settling> {
    if ended.is_empty() {
        return Ok(Settling::default());
    }
    artifact::finish_consoles(tx, &ended.iter().map(|one| &one.id).collect::<Vec<_>>()).await?;
    let owed = owed(tx, ended).await?;
    let mut tried = tried(tx, &owed.keys().collect::<Vec<_>>()).await?;
    let mut decided = Vec::new();
    for one in ended {
        let Some(owed) = owed.get(&one.job_id).filter(|owed| owed.job.attempt_count == one.number) else { continue };
        let next = next(tx, &owed.job, &tried.remove(&owed.job.id).unwrap_or_default(), one, care).await?;
        set_aside(tx, &next, one, care, now).await?;
        if let Some(machine) = &owed.health_machine_id {
            unhealthy(tx, machine, &next, one, care, now).await?;
        }
        decided.push((*one, &owed.job, next));
    }
    let settled = |one: &&AttemptRow| match decided.iter().find(|(ended, ..)| ended.id == one.id) {
        Some((.., Next::Done { .. })) => Settled::Done,
        Some((.., Next::Again { .. })) => Settled::Queued,
        None => Settled::Before,
    };
    let settled = ended.iter().map(settled).collect();
    let mut changed: HashMap<JobId, Changed> =
        write(tx, &decided, now).await?.into_iter().map(|job| (job.id.clone(), job)).collect();
    let changed = decided.iter().filter_map(|(one, job, _)| Some((one.id.clone(), changed.remove(&job.id)?))).collect();
    Ok(Settling { settled, changed })
}

/// What follows when it was told.
pub async fn follow(tx: &mut Tx, settling: &Settling, now: Timestamp) -> DbResult<()> {
    let changed: Vec<Changed> = settling.changed.values().cloned().collect();
    run::follow(tx, &changed, now).await
}

/// Settles the job of an attempt whose machine is held, unless it needs another try: that waits for the machine's return.
pub async fn settle_held(tx: &mut Tx, held: &AttemptRow, care: &Care, now: Timestamp) -> DbResult<()> {
    let Some(Owed { job, .. }) = owed(tx, &[held]).await?.remove(&held.job_id) else { return Ok(()) };
    let tried = tried_for(tx, &job.id).await?;
    let next = next(tx, &job, &tried, held, care).await?;
    if matches!(next, Next::Done { .. }) {
        run::change_job(tx, &job.id, change(&next), now).await?;
    }
    Ok(())
}

/// Whether there is another machine is asked only where it makes a difference.
async fn next(tx: &mut Tx, job: &JobRow, tried: &[Tried], last: &AttemptRow, care: &Care) -> DbResult<Next> {
    let next = |elsewhere| retries::next(&job.policy, care.tries, tried, elsewhere);
    let (alone, with_others) = (next(false), next(true));
    if alone == with_others {
        return Ok(alone);
    }
    Ok(if others(tx, &job.selector_id, &last.machine_id).await? { with_others } else { alone })
}

/// Quarantines the machine that a comparison has found out, before anything of the run is locked.
async fn set_aside(tx: &mut Tx, next: &Next, last: &AttemptRow, care: &Care, now: Timestamp) -> DbResult<()> {
    if let Next::Done { suspect: Some((machine, why)), .. } = next {
        life::quarantine(tx, machine, why, Some(&last.id), &care.rule, now).await?;
    }
    Ok(())
}

/// Quarantines a machine whose health check did not pass.
async fn unhealthy(
    tx: &mut Tx,
    machine: &MachineId,
    next: &Next,
    last: &AttemptRow,
    care: &Care,
    now: Timestamp,
) -> DbResult<()> {
    let Next::Done { status, blamed, reason, .. } = next else { return Ok(()) };
    if *status == Status::Pass {
        return Ok(());
    }
    let at = blamed.map_or_else(String::new, |stage| format!(" at {stage}"));
    let why = reason.as_deref().map_or_else(String::new, |reason| format!(": {reason}"));
    life::quarantine(tx, machine, &format!("Its health check got {status}{at}{why}"), Some(&last.id), &care.rule, now)
        .await?;
    Ok(())
}

/// Gives up waiting for another try of a job that is bound to machines it cannot have; `false` if it does not wait.
pub async fn conclude(tx: &mut Tx, id: &JobId, why: &str, care: &Care, now: Timestamp) -> DbResult<bool> {
    let waits: Option<JobRow> =
        on_tx!(tx, |c| sqlx::query_as("UPDATE job SET rank = rank WHERE id = $1 AND state = 'queued' RETURNING *",)
            .bind(id)
            .fetch_optional(c)
            .await)?;
    let Some(job) = waits else { return Ok(false) };
    let last: Option<AttemptRow> =
        on_tx!(tx, |c| sqlx::query_as("SELECT * FROM attempt WHERE job_id = $1 ORDER BY number DESC LIMIT 1",)
            .bind(id)
            .fetch_optional(c)
            .await)?;
    let next = retries::give_up(&tried_for(tx, id).await?, why);
    // A health check's job is bound to its machine before it has any attempt.
    if let Some(last) = &last {
        set_aside(tx, &next, last, care, now).await?;
    }
    run::change_job(tx, &job.id, change(&next), now).await?;
    Ok(true)
}

fn change(next: &Next) -> JobChange<'_> {
    match next {
        Next::Done { status, blamed, reason, .. } => {
            JobChange { state: JobState::Done, status: *status, reason: reason.as_deref(), blamed_stage: *blamed }
        }
        Next::Again { reason, .. } => {
            JobChange { state: JobState::Queued, status: Status::Miss, reason: Some(reason), blamed_stage: None }
        }
    }
}

#[derive(Serialize)]
struct Again<'a> {
    job: &'a JobId,
    next_purpose: Purpose,
    only_there: Option<&'a MachineId>,
    not_there: Option<&'a MachineId>,
}

/// Writes what becomes of jobs.
async fn write(tx: &mut Tx, decided: &[(&AttemptRow, &JobRow, Next)], now: Timestamp) -> DbResult<Vec<Changed>> {
    let again: Vec<Again<'_>> = decided
        .iter()
        .filter_map(|(_, job, next)| match next {
            Next::Done { .. } => None,
            Next::Again { purpose, only, not, .. } => {
                Some(Again { job: &job.id, next_purpose: *purpose, only_there: only.as_ref(), not_there: not.as_ref() })
            }
        })
        .collect();
    if !again.is_empty() {
        let text = given!(
            tx,
            update "job SET purpose = given.next_purpose, only_machine_id = given.only_there, \
             not_machine_id = given.not_there FROM ",
            [job text, next_purpose text, only_there text, not_there text],
            at "job.id" = "job",
            ""
        );
        on_tx!(tx, |c| sqlx::query(text).bind(Json(&again)).execute(c).await.map(drop))?;
    }
    let changes: Vec<_> = decided.iter().map(|(_, job, next)| (&job.id, change(next))).collect();
    run::change_jobs(tx, &changes, now).await
}

/// Attempts that have ended and whose job is still theirs: the server died between the two steps.
pub async fn unsettled(db: &Db, limit: i64) -> DbResult<Vec<AttemptId>> {
    Ok(on!(db.read(), |c| sqlx::query_scalar(
        "SELECT a.id FROM job j JOIN attempt a ON a.job_id = j.id AND a.number = j.attempt_count \
         WHERE j.state = 'leased' AND a.state IN ('done', 'lost') ORDER BY a.id LIMIT $1",
    )
    .bind(limit)
    .fetch_all(c)
    .await)?)
}
