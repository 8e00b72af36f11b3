//! Runs and their jobs: everything a run owes is written down when it is created.

use super::event::{self, About};
use super::flow;
use super::given::{Kept, given, listed};
use super::{Db, DbResult, Kind, Tx, before_or_end, on, on_tx};
use crashyard_protocol::api::{EventBody, Policy};
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{
    AttemptId, BuildId, FlowId, JobId, JobState, MachineId, Priority, Purpose, RunId, RunState, Scenario, SelectorId,
    StageName, Status,
};
use serde::Serialize;
use sqlx::FromRow;
use sqlx::types::Json;
use std::collections::BTreeSet;

/// Jobs written by one statement.
const JOBS_AT_ONCE: usize = 200;

/// A build against a plan.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct RunRow {
    /// Id.
    pub id: RunId,
    /// The build.
    pub build_id: BuildId,
    /// Name for people.
    pub name: String,
    /// Name of the plan.
    pub plan: String,
    /// What its submitter calls this submission.
    pub idempotency_key: Option<String>,
    /// Where it is.
    pub state: RunState,
    /// The worst verdict so far.
    pub status: Status,
    /// When it was submitted.
    pub created_at: Timestamp,
    /// When its last job was done.
    pub finished_at: Option<Timestamp>,
    /// Number of its newest event.
    pub last_event: i64,
}

/// One scenario owed by a run.
#[derive(Clone, Debug, PartialEq, FromRow)]
pub struct JobRow {
    /// Id.
    pub id: JobId,
    /// Its run.
    pub run_id: RunId,
    /// Position in the run.
    pub ordinal: i64,
    /// The scenario as it was when the run was submitted.
    pub scenario: Json<Scenario>,
    /// Which machines it may have.
    pub selector_id: SelectorId,
    /// The queue it stands in.
    pub flow_id: FlowId,
    /// Place in the queue.
    pub rank: i64,
    /// When it ends without a result if no machine has taken it.
    pub deadline_at: Option<Timestamp>,
    /// Where it is.
    pub state: JobState,
    /// Its verdict.
    pub status: Status,
    /// Why.
    pub reason: Option<String>,
    /// Where the contract stopped.
    pub blamed_stage: Option<StageName>,
    /// How many attempts it has had.
    pub attempt_count: i64,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it got its verdict.
    pub finished_at: Option<Timestamp>,
    /// What is done about failures.
    pub policy: Json<Policy>,
    /// What its next attempt is for.
    pub purpose: Purpose,
    /// The only machine that the next attempt may have.
    pub only_machine_id: Option<MachineId>,
    /// The machine that the next attempt must not have.
    pub not_machine_id: Option<MachineId>,
}

/// A job with the labels of its selector.
#[derive(Clone, Debug, PartialEq, FromRow)]
pub struct SelectedJob {
    /// The job.
    #[sqlx(flatten)]
    pub job: JobRow,
    /// Labels its machine must have.
    pub labels: Json<super::machine::Labels>,
    /// What else its machine must satisfy.
    pub requires: Json<Vec<String>>,
    /// How soon it is wanted.
    pub priority: Option<Priority>,
}

/// Jobs of one run by verdict.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct CountRow {
    /// The run.
    pub run_id: RunId,
    /// The verdict.
    pub status: Status,
    /// How many.
    pub count: i64,
}

/// Stores a run with its jobs. A run with the same key is returned instead; then `false`, and nothing is written.
pub async fn create(tx: &mut Tx, run: &RunRow, jobs: &[JobRow]) -> DbResult<(RunRow, bool)> {
    let made: Option<RunRow> = on_tx!(tx, |c| sqlx::query_as(
        "INSERT INTO run (id, build_id, name, plan, idempotency_key, state, status, created_at, last_event) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 0) ON CONFLICT (idempotency_key) DO NOTHING RETURNING *",
    )
    .bind(&run.id)
    .bind(&run.build_id)
    .bind(&run.name)
    .bind(&run.plan)
    .bind(&run.idempotency_key)
    .bind(run.state)
    .bind(run.status)
    .bind(run.created_at)
    .fetch_optional(c)
    .await)?;
    let Some(mut made) = made else {
        let old = on_tx!(tx, |c| sqlx::query_as("SELECT * FROM run WHERE idempotency_key = $1")
            .bind(&run.idempotency_key)
            .fetch_one(c)
            .await)?;
        return Ok((old, false));
    };
    for part in jobs.chunks(JOBS_AT_ONCE) {
        insert_jobs(tx, &run.id, part).await?;
    }
    let about = About { run: &run.id, job: None, attempt: None };
    let owed = u32::try_from(jobs.len()).unwrap_or(u32::MAX);
    event::append(tx, about, run.created_at, EventBody::RunSubmitted { jobs: owed }).await?;
    made.last_event += 1;
    for flow in jobs.iter().map(|job| &job.flow_id).collect::<BTreeSet<_>>() {
        flow::fill(tx, flow, run.created_at).await?;
    }
    Ok((made, true))
}

/// A job as it is written when it is submitted.
#[derive(Serialize)]
struct NewJob<'a> {
    id: &'a JobId,
    ordinal: i64,
    scenario: Kept<'a, Scenario>,
    selector: &'a SelectorId,
    rank: i64,
    state: JobState,
    status: Status,
    flow: &'a FlowId,
    deadline: Option<Timestamp>,
    policy: Kept<'a, Policy>,
    preemptible: bool,
    created: Timestamp,
}

impl<'a> NewJob<'a> {
    fn new(kind: Kind, job: &'a JobRow) -> Self {
        Self {
            id: &job.id,
            ordinal: job.ordinal,
            scenario: Kept(kind, &job.scenario.0),
            selector: &job.selector_id,
            rank: job.rank,
            state: job.state,
            status: job.status,
            flow: &job.flow_id,
            deadline: job.deadline_at,
            policy: Kept(kind, &job.policy.0),
            preemptible: job.policy.preemptible,
            created: job.created_at,
        }
    }
}

async fn insert_jobs(tx: &mut Tx, run: &RunId, jobs: &[JobRow]) -> DbResult<()> {
    let text = given!(
        tx,
        insert "job (id, run_id, ordinal, scenario, selector_id, rank, state, status, attempt_count, created_at, \
         flow_id, deadline_at, policy, preemptible) SELECT id, $2, ordinal, scenario, selector, rank, state, status, 0, \
         created, flow, deadline, policy, preemptible FROM ",
        [
            id text, ordinal bigint, scenario jsonb, selector text, rank bigint, state text, status text, flow text,
            deadline bigint, policy jsonb, preemptible boolean, created bigint
        ],
        ""
    );
    let jobs: Vec<NewJob<'_>> = jobs.iter().map(|job| NewJob::new(tx.kind(), job)).collect();
    on_tx!(tx, |c| sqlx::query(text).bind(Json(&jobs)).bind(run).execute(c).await.map(drop))?;
    Ok(())
}

/// One run.
pub async fn get(db: &Db, id: &RunId) -> DbResult<RunRow> {
    Ok(on!(db.read(), |c| sqlx::query_as("SELECT * FROM run WHERE id = $1").bind(id).fetch_one(c).await)?)
}

/// One page of runs, newest first.
pub async fn list(db: &Db, before: Option<&str>, limit: i64) -> DbResult<Vec<RunRow>> {
    Ok(on!(db.read(), |c| sqlx::query_as("SELECT * FROM run WHERE id < $1 ORDER BY id DESC LIMIT $2")
        .bind(before_or_end(before))
        .bind(limit)
        .fetch_all(c)
        .await)?)
}

/// Jobs by verdict of one page of runs (the same page as [`list`] with the same arguments).
pub async fn counts(db: &Db, before: Option<&str>, limit: i64) -> DbResult<Vec<CountRow>> {
    Ok(on!(db.read(), |c| sqlx::query_as(
        "SELECT run_id, status, COUNT(*) AS count FROM job WHERE run_id IN \
         (SELECT id FROM run WHERE id < $1 ORDER BY id DESC LIMIT $2) GROUP BY run_id, status",
    )
    .bind(before_or_end(before))
    .bind(limit)
    .fetch_all(c)
    .await)?)
}

/// Jobs by verdict of one run.
pub async fn counts_of(db: &Db, id: &RunId) -> DbResult<Vec<CountRow>> {
    Ok(on!(db.read(), |c| sqlx::query_as(
        "SELECT run_id, status, COUNT(*) AS count FROM job WHERE run_id = $1 GROUP BY run_id, status",
    )
    .bind(id)
    .fetch_all(c)
    .await)?)
}

/// The jobs of a run, in order.
pub async fn jobs(db: &Db, run: &RunId) -> DbResult<Vec<SelectedJob>> {
    Ok(on!(db.read(), |c| {
        sqlx::query_as(
        "SELECT j.*, s.labels, s.requires, f.priority FROM job j \
         JOIN selector s ON s.id = j.selector_id LEFT JOIN flow f ON f.id = j.flow_id WHERE j.run_id = $1 ORDER BY j.ordinal",
    )
    .bind(run)
    .fetch_all(c)
    .await
    })?)
}

/// One job.
pub async fn job(db: &Db, id: &JobId) -> DbResult<SelectedJob> {
    Ok(on!(db.read(), |c| sqlx::query_as(
        "SELECT j.*, s.labels, s.requires, f.priority FROM job j \
         JOIN selector s ON s.id = j.selector_id LEFT JOIN flow f ON f.id = j.flow_id WHERE j.id = $1",
    )
    .bind(id)
    .fetch_one(c)
    .await)?)
}

/// Attempts of every job of a run: (job, attempt), oldest first.
pub async fn attempts_by_job(db: &Db, run: &RunId) -> DbResult<Vec<(JobId, AttemptId)>> {
    Ok(on!(db.read(), |c| sqlx::query_as("SELECT job_id, id FROM attempt WHERE run_id = $1 ORDER BY number")
        .bind(run)
        .fetch_all(c)
        .await)?)
}

/// Attempts of one job, oldest first.
pub async fn attempts_of(db: &Db, job: &JobId) -> DbResult<Vec<AttemptId>> {
    Ok(on!(db.read(), |c| sqlx::query_scalar("SELECT id FROM attempt WHERE job_id = $1 ORDER BY number")
        .bind(job)
        .fetch_all(c)
        .await)?)
}

fn is_last(state: JobState) -> bool {
    matches!(state, JobState::Done | JobState::Cancelled)
}

/// What a job shall become.
#[derive(Clone, Copy, Debug)]
pub struct JobChange<'a> {
    /// Where it is.
    pub state: JobState,
    /// Its verdict.
    pub status: Status,
    /// Why.
    pub reason: Option<&'a str>,
    /// Where the contract stopped.
    pub blamed_stage: Option<StageName>,
}

impl JobChange<'_> {
    fn is_last(&self) -> bool {
        is_last(self.state)
    }
}

/// A job that was changed.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct Changed {
    /// The job.
    pub id: JobId,
    /// Its run.
    pub run_id: RunId,
    /// Its flow.
    pub flow_id: FlowId,
    /// Where it is now.
    pub state: JobState,
    /// Its verdict.
    pub status: Status,
    /// Which machines it may have.
    pub selector_id: SelectorId,
    /// The only one that its next attempt may have.
    pub only_machine_id: Option<MachineId>,
}

impl Changed {
    /// The event that tells of it.
    #[must_use]
    pub fn told(&self) -> event::Told<'_> {
        (Some(&self.id), None, EventBody::Job { state: self.state, status: self.status })
    }
}

#[derive(Serialize)]
struct NewState<'a> {
    job: &'a JobId,
    new_state: JobState,
    new_status: Status,
    new_reason: Option<&'a str>,
    new_blamed: Option<StageName>,
    new_finished: Option<Timestamp>,
}

/// Changes leased and queued jobs; several are locked by the caller. One that is done or cancelled keeps what it has, and is left out of the answer. The caller
/// tells of it ([`Changed::told`]) and then does what follows from it ([`follow`]).
pub async fn change_jobs(tx: &mut Tx, changes: &[(&JobId, JobChange<'_>)], now: Timestamp) -> DbResult<Vec<Changed>> {
    if changes.is_empty() {
        return Ok(Vec::new());
    }
    let rows: Vec<NewState<'_>> = changes
        .iter()
        .map(|(job, change)| NewState {
            job,
            new_state: change.state,
            new_status: change.status,
            new_reason: change.reason,
            new_blamed: change.blamed_stage,
            new_finished: change.is_last().then_some(now),
        })
        .collect();
    let text = given!(
        tx,
        update "job SET state = given.new_state, status = given.new_status, reason = given.new_reason, \
         blamed_stage = given.new_blamed, finished_at = given.new_finished FROM ",
        [job text, new_state text, new_status text, new_reason text, new_blamed text, new_finished bigint],
        at "job.id" = "job",
        " AND state IN ('queued', 'leased') RETURNING id, run_id, flow_id, state, status, \
         selector_id, only_machine_id"
    );
    Ok(on_tx!(tx, |c| sqlx::query_as(text).bind(Json(&rows)).fetch_all(c).await)?)
}

/// What follows from changes of jobs: flows that wait again, and runs whose last job this was.
pub async fn follow(tx: &mut Tx, changed: &[Changed], now: Timestamp) -> DbResult<()> {
    let waiting = changed.iter().filter(|job| job.state == JobState::Queued).map(|job| &job.flow_id);
    for flow in waiting.collect::<BTreeSet<_>>() {
        flow::fill(tx, flow, now).await?;
    }
    let ended = changed.iter().filter(|job| is_last(job.state)).map(|job| &job.run_id);
    close_done(tx, &ended.collect(), now).await
}

/// Changes a leased or queued job, records the event, and closes the run when this was its last job.
///
/// A job that is already done or cancelled keeps what it has.
pub async fn change_job(tx: &mut Tx, id: &JobId, change: JobChange<'_>, now: Timestamp) -> DbResult<()> {
    let changed = change_jobs(tx, &[(id, change)], now).await?;
    let told = changed.iter().map(|job| (&job.run_id, vec![job.told()])).collect();
    event::append_all(tx, now, &told).await?;
    follow(tx, &changed, now).await
}

/// Withdraws a job that is still waiting; one that is not keeps what it has.
pub async fn cancel(tx: &mut Tx, id: &JobId, change: JobChange<'_>, now: Timestamp) -> DbResult<()> {
    let waiting = on_tx!(tx, |c| sqlx::query("UPDATE job SET rank = rank WHERE id = $1 AND state = 'queued'")
        .bind(id)
        .execute(c)
        .await
        .map(|done| done.rows_affected()))?;
    if waiting == 1 { change_job(tx, id, change, now).await } else { Ok(()) }
}

/// Closes those of these runs whose last job is done. Their rows are locked: of two who each end one of the last jobs, the second
/// sees what the first did.
async fn close_done(tx: &mut Tx, runs: &BTreeSet<&RunId>, now: Timestamp) -> DbResult<()> {
    if runs.is_empty() {
        return Ok(());
    }
    // Jobs are done about in their order: most runs are found unfinished at their last job.
    let text = listed!(
        tx,
        "SELECT id FROM run WHERE (SELECT ordinal FROM job WHERE run_id = run.id AND job.state IN ('queued', 'leased') \
         ORDER BY ordinal DESC LIMIT 1) IS NULL AND ",
        "id",
        " ORDER BY id"
    );
    let done: Vec<RunId> = on_tx!(tx, |c| sqlx::query_scalar(text).bind(Json(runs)).fetch_all(c).await)?;
    for run in done {
        close(tx, &run, now).await?;
    }
    Ok(())
}

async fn close(tx: &mut Tx, run: &RunId, now: Timestamp) -> DbResult<()> {
    let rows: Vec<Status> = on_tx!(tx, |c| sqlx::query_scalar("SELECT DISTINCT status FROM job WHERE run_id = $1")
        .bind(run)
        .fetch_all(c)
        .await)?;
    let status = worst(rows.into_iter());
    let closed = on_tx!(tx, |c| sqlx::query(
        "UPDATE run SET state = 'done', status = $2, finished_at = $3 WHERE id = $1 AND state = 'open'",
    )
    .bind(run)
    .bind(status)
    .bind(now)
    .execute(c)
    .await
    .map(|done| done.rows_affected()))?;
    if closed == 1 {
        event::append(tx, About { run, job: None, attempt: None }, now, EventBody::RunDone { status }).await?;
    }
    Ok(())
}

/// The verdict of several: the one that needs attention most.
#[must_use]
pub fn worst(all: impl Iterator<Item = Status>) -> Status {
    let order = |status| match status {
        Status::Fail => 0,
        Status::Error => 1,
        Status::Miss => 2,
        Status::Pass => 3,
        Status::Done => 4,
        Status::Skip => 5,
    };
    all.min_by_key(|status| order(*status)).unwrap_or(Status::Miss)
}
