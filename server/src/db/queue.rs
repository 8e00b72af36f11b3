//! The queue: which job a machine gets next.
//!
//! Jobs stand in flows ([`super::flow`]), and a machine knows the selectors it satisfies. A claim looks at the flows that
//! wait for the machine, chooses one by class and virtual time, and takes its first job by an index: the cost depends on
//! how many submitters compete for the machine, never on how many jobs are queued.
//!
//! Claims of one moment are served in one transaction ([`take`], [`open`], [`record`]): a durable commit costs a flush of the
//! disk, and a hundred claims need no more of them than one. Nor do they need more statements than one: each here is for all
//! claims of the transaction. What every server wants (the rows of runs and submitters) is written last.

use super::attempt::AttemptRow;
use super::choice::{Candidate, Choice};
use super::given::{given, listed};
use super::heads::Heads;
use super::run::{self, JobChange, JobRow};
use super::{Db, DbError, DbResult, Tx, event, on, on_tx};
use crashyard_protocol::api::EventBody;
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{
    AttemptId, AttemptState, BuildId, ControllerId, FlowId, JobId, JobState, MachineId, Purpose, RunId, SelectorId,
    Status, SubmitterId,
};
use serde::Serialize;
use sqlx::FromRow;
use sqlx::types::Json;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A lease to be written.
#[derive(Clone, Debug)]
pub struct NewLease {
    /// Id of the attempt.
    pub attempt: AttemptId,
    /// The hash of the secret that its agents are given.
    pub secret_hash: String,
    /// Who asks.
    pub controller: ControllerId,
    /// When.
    pub now: Timestamp,
    /// Until when it holds without being renewed.
    pub expires_at: Timestamp,
}

/// A lease that was given.
#[derive(Clone, Debug)]
pub struct Leased {
    /// The attempt.
    pub attempt: AttemptRow,
    /// Its job.
    pub job: JobRow,
    /// The machine.
    pub machine: FreeMachine,
}

/// A machine that waits for a job.
#[derive(Clone, Debug, FromRow)]
pub struct FreeMachine {
    /// Id.
    pub id: MachineId,
    /// Unique name.
    pub name: String,
    /// Its controller.
    pub controller_id: ControllerId,
    /// The epoch of its newest lease.
    pub lease_epoch: i64,
}

/// A claim: one job for any of these machines.
#[derive(Clone, Debug)]
pub struct Ask {
    /// The lease that would be given.
    pub lease: NewLease,
    /// Machines of the controller; the first that a job waits for gets it.
    pub machines: Vec<MachineId>,
}

/// A job taken from the queue for a machine, not yet written down as an attempt.
#[derive(Clone, Debug)]
pub struct Taken {
    /// The lease.
    pub lease: NewLease,
    /// The job.
    pub job: JobRow,
    /// The machine, with the epoch of this lease.
    pub machine: FreeMachine,
    /// Who is charged for it.
    pub submitter: SubmitterId,
    /// With how much machine time.
    pub charged_ms: i64,
    /// When the judge wants to look first.
    pub check_at: Option<Timestamp>,
}

impl Taken {
    /// The kernel it boots, where that is not its run's.
    #[must_use]
    pub fn boots_build(&self) -> Option<&BuildId> {
        self.job.policy.known_good.as_ref().filter(|_| self.job.purpose == Purpose::KnownGood)
    }
}

/// What the claims of one transaction get.
pub struct Batch {
    /// One entry for each claim, in their order.
    pub taken: Vec<Option<Taken>>,
    /// Selectors of jobs that other servers may have passed over for nothing.
    pub passed_over: BTreeSet<SelectorId>,
    choice: Choice,
}

/// What there may be to do for machines.
#[derive(Clone, Debug, Default)]
pub struct WithWork {
    /// Those that are free and for which any job may wait.
    pub jobs: Vec<MachineId>,
    /// Those that have an errand first.
    pub errands: Vec<MachineId>,
}

/// Of these machines those for which there may be something to do. Reads only.
pub async fn with_work(db: &Db, machines: &[MachineId]) -> DbResult<WithWork> {
    let pool = db.read();
    let text = listed!(
        pool,
        "SELECT m.id, m.errand_owed FROM machine m WHERE m.announced AND (m.errand_owed OR (m.state IN ('enrolled', 'available') \
         AND EXISTS (SELECT 1 FROM machine_selector ms JOIN flow f ON f.selector_id = ms.selector_id AND f.waiting \
         WHERE ms.machine_id = m.id))) AND ",
        "m.id",
        ""
    );
    let rows: Vec<(MachineId, bool)> = on!(pool, |c| sqlx::query_as(text).bind(Json(machines)).fetch_all(c).await)?;
    let mut work = WithWork::default();
    for (machine, errand) in rows {
        if errand { work.errands.push(machine) } else { work.jobs.push(machine) }
    }
    Ok(work)
}

/// Machines that could take a job of this selector now.
pub async fn idle_machines(db: &Db, selector: &SelectorId) -> DbResult<Vec<MachineId>> {
    Ok(on!(db.read(), |c| sqlx::query_scalar(
        "SELECT m.id FROM machine_selector ms JOIN machine m ON m.id = ms.machine_id \
         WHERE ms.selector_id = $1 AND m.announced AND NOT m.errand_owed AND m.state IN ('enrolled', 'available')",
    )
    .bind(selector)
    .fetch_all(c)
    .await)?)
}

/// Selectors of a machine that have jobs waiting, and how many (counted up to 100 in each flow).
pub async fn waiting_for(db: &Db, machine: &MachineId) -> DbResult<Vec<(SelectorId, i64)>> {
    let flows: Vec<(SelectorId, i64)> = on!(db.read(), |c| sqlx::query_as(
        "SELECT ms.selector_id, (SELECT COUNT(*) FROM (SELECT 1 FROM job q WHERE q.flow_id = f.id \
         AND q.state = 'queued' LIMIT 100) AS first) AS waiting FROM machine_selector ms \
         JOIN flow f ON f.selector_id = ms.selector_id AND f.waiting WHERE ms.machine_id = $1",
    )
    .bind(machine)
    .fetch_all(c)
    .await)?;
    let mut selectors = BTreeMap::new();
    for (selector, waiting) in flows {
        *selectors.entry(selector).or_insert(0) += waiting;
    }
    Ok(selectors.into_iter().collect())
}

/// Queued jobs whose deadline has passed, the earliest first.
pub async fn overdue(db: &Db, now: Timestamp, limit: i64) -> DbResult<Vec<JobId>> {
    Ok(on!(db.read(), |c| sqlx::query_scalar(
        "SELECT id FROM job WHERE state = 'queued' AND deadline_at IS NOT NULL AND deadline_at <= $1 \
         ORDER BY deadline_at, id LIMIT $2",
    )
    .bind(now)
    .bind(limit)
    .fetch_all(c)
    .await)?)
}

/// When the next queued job is overdue.
pub async fn next_deadline(db: &Db) -> DbResult<Option<Timestamp>> {
    Ok(on!(db.read(), |c| sqlx::query_scalar(
        "SELECT MIN(deadline_at) FROM job WHERE state = 'queued' AND deadline_at IS NOT NULL",
    )
    .fetch_one(c)
    .await)?)
}

/// Ends a job that no machine has taken; `false` if one has.
pub async fn give_up(tx: &mut Tx, id: &JobId, why: &str, now: Timestamp) -> DbResult<bool> {
    let waits = on_tx!(tx, |c| sqlx::query("UPDATE job SET rank = rank WHERE id = $1 AND state = 'queued'")
        .bind(id)
        .execute(c)
        .await
        .map(|done| done.rows_affected()))?;
    if waits == 1 {
        let change = JobChange { state: JobState::Done, status: Status::Miss, reason: Some(why), blamed_stage: None };
        run::change_job(tx, id, change, now).await?;
    }
    Ok(waits == 1)
}

/// Takes a job for each claim that can have one. [`open`] and [`record`] must follow in the same transaction.
pub async fn take(tx: &mut Tx, asks: &[Ask]) -> DbResult<Batch> {
    let wanted: BTreeSet<&MachineId> = asks.iter().flat_map(|ask| &ask.machines).collect();
    let mut free = free_machines(tx, &wanted).await?;
    let flows = candidates_of(tx, &free).await?;
    let mut choice = Choice::new(tx, &flows).await?;
    let mut heads = Heads::fetch(tx, &expected(&choice, asks, &free, &flows)).await?;
    let mut taken = Vec::with_capacity(asks.len());
    for ask in asks {
        let mut found = None;
        for id in &ask.machines {
            if !may_serve(&free, ask, id) {
                continue;
            }
            if let Some((job, flow)) = choice.next(tx, &mut heads, id, flows_of(&flows, id)).await? {
                found = free.remove(id).map(|machine| (job, flow, machine));
                break;
            }
        }
        taken.push(found.map(|(job, flow, machine)| Taken {
            submitter: flow.submitter_id.clone(),
            charged_ms: choice.charge(&flow),
            lease: ask.lease.clone(),
            check_at: None,
            job,
            machine: FreeMachine { lease_epoch: machine.lease_epoch + 1, ..machine },
        }));
    }
    let passed_over = heads.lease(tx).await?;
    lease_machines(tx, &taken).await?;
    Ok(Batch { taken, passed_over, choice })
}

type Flows = HashMap<MachineId, Vec<Candidate>>;

fn flows_of<'a>(flows: &'a Flows, machine: &MachineId) -> &'a [Candidate] {
    flows.get(machine).map_or(&[], Vec::as_slice)
}

fn may_serve(free: &BTreeMap<MachineId, FreeMachine>, ask: &Ask, machine: &MachineId) -> bool {
    free.get(machine).is_some_and(|machine| machine.controller_id == ask.lease.controller)
}

/// How many jobs of each flow the claims will take, if none of them runs out.
fn expected<'a>(
    choice: &Choice,
    asks: &[Ask],
    free: &BTreeMap<MachineId, FreeMachine>,
    flows: &'a Flows,
) -> BTreeMap<&'a FlowId, usize> {
    let mut choice = choice.rehearsal();
    let (mut counts, mut gone) = (BTreeMap::new(), BTreeSet::new());
    for ask in asks {
        let served = ask.machines.iter().find_map(|id| {
            let may = may_serve(free, ask, id) && !gone.contains(id);
            Some((id, choice.best(id, flows_of(flows, id)).filter(|_| may)?))
        });
        if let Some((machine, flow)) = served {
            gone.insert(machine);
            *counts.entry(&flow.id).or_insert(0) += 1;
            choice.charge(flow);
        }
    }
    counts
}

/// Of these machines those that are free, locked until the transaction ends.
async fn free_machines(tx: &mut Tx, ids: &BTreeSet<&MachineId>) -> DbResult<BTreeMap<MachineId, FreeMachine>> {
    if ids.is_empty() {
        return Ok(BTreeMap::new());
    }
    // Another server that has one of them locked is about to lease it.
    let text = listed!(
        tx,
        "SELECT id, name, controller_id, lease_epoch FROM machine WHERE ",
        "id",
        " AND announced AND NOT errand_owed AND state IN ('enrolled', 'available') ORDER BY id",
        lock " FOR UPDATE SKIP LOCKED"
    );
    let rows: Vec<FreeMachine> = on_tx!(tx, |c| sqlx::query_as(text).bind(Json(ids)).fetch_all(c).await)?;
    Ok(rows.into_iter().map(|row| (row.id.clone(), row)).collect())
}

async fn candidates_of(tx: &mut Tx, machines: &BTreeMap<MachineId, FreeMachine>) -> DbResult<Flows> {
    let mut flows = Flows::new();
    if machines.is_empty() {
        return Ok(flows);
    }
    let ids: Vec<&MachineId> = machines.keys().collect();
    let rows: Vec<Candidate> = match tx {
        // Every value of every row is handed over from another thread: one text for all of them costs a quarter.
        Tx::Sqlite(tx) => {
            let Json(rows) = sqlx::query_scalar(
                "SELECT json_group_array(json_array(ms.machine_id, f.id, f.submitter_id, f.class, f.mean_ms)) \
                 FROM machine_selector ms JOIN flow f ON f.selector_id = ms.selector_id AND f.waiting \
                 WHERE ms.machine_id IN (SELECT value FROM json_each($1))",
            )
            .bind(Json(&ids))
            .fetch_one(&mut **tx)
            .await?;
            rows
        }
        Tx::Postgres(tx) => {
            sqlx::query_as(
                "SELECT ms.machine_id, f.id, f.submitter_id, f.class, f.mean_ms FROM machine_selector ms \
                 JOIN flow f ON f.selector_id = ms.selector_id AND f.waiting \
                 WHERE ms.machine_id = ANY (ARRAY(SELECT jsonb_array_elements_text($1)))",
            )
            .bind(Json(&ids))
            .fetch_all(&mut **tx)
            .await?
        }
    };
    for row in rows {
        flows.entry(row.machine_id.clone()).or_default().push(row);
    }
    Ok(flows)
}

#[derive(Serialize)]
struct Given<'a> {
    machine: &'a MachineId,
    attempt: &'a AttemptId,
}

/// Gives the machines to their new attempts. They are locked and were free, so each is there.
async fn lease_machines(tx: &mut Tx, taken: &[Option<Taken>]) -> DbResult<()> {
    let taken: Vec<&Taken> = taken.iter().flatten().collect();
    let Some(now) = taken.first().map(|one| one.lease.now) else { return Ok(()) };
    let given: Vec<Given<'_>> =
        taken.iter().map(|one| Given { machine: &one.machine.id, attempt: &one.lease.attempt }).collect();
    let text = given!(
        tx,
        update "machine SET state = 'leased', reason = NULL, state_since = $2, last_seen_at = $2, \
         lease_epoch = lease_epoch + 1, attempt_id = given.attempt FROM ",
        [machine text, attempt text],
        at "machine.id" = "machine",
        " AND state IN ('enrolled', 'available')"
    );
    let leased = on_tx!(tx, |c| sqlx::query(text)
        .bind(Json(&given))
        .bind(now)
        .execute(c)
        .await
        .map(|done| done.rows_affected()))?;
    if leased != given.len() as u64 {
        return Err(DbError::Conflict("a machine was taken at the same moment".into()));
    }
    Ok(())
}

/// Writes down the attempts of what was taken.
pub async fn open(tx: &mut Tx, batch: &Batch) -> DbResult<()> {
    let taken: Vec<&Taken> = batch.taken.iter().flatten().collect();
    insert_attempts(tx, &taken).await
}

/// Writes down what others want to know of it: events, what it cost. One entry for each claim, in their order.
pub async fn record(tx: &mut Tx, batch: Batch) -> DbResult<Vec<Option<Leased>>> {
    let taken: Vec<&Taken> = batch.taken.iter().flatten().collect();
    tell_runs(tx, &taken).await?;
    let now = taken.first().map(|one| one.lease.now);
    batch.choice.finish(tx, now).await?;
    let leased = |one: Taken| Leased { attempt: attempt(&one), job: one.job, machine: one.machine };
    Ok(batch.taken.into_iter().map(|one| one.map(leased)).collect())
}

async fn tell_runs(tx: &mut Tx, taken: &[&Taken]) -> DbResult<()> {
    let Some(now) = taken.first().map(|one| one.lease.now) else { return Ok(()) };
    let mut of_run: BTreeMap<&RunId, Vec<event::Told<'_>>> = BTreeMap::new();
    for one in taken {
        let events = of_run.entry(&one.job.run_id).or_default();
        let told = |body| (Some(&one.job.id), Some(&one.lease.attempt), body);
        events.push(told(EventBody::Job { state: JobState::Leased, status: Status::Miss }));
        let number = u32::try_from(one.job.attempt_count).unwrap_or(u32::MAX);
        events.push(told(EventBody::AttemptStarted { machine: one.machine.name.clone(), number }));
    }
    event::append_all(tx, now, &of_run).await
}

/// The attempt as it is written.
fn attempt(taken: &Taken) -> AttemptRow {
    AttemptRow {
        id: taken.lease.attempt.clone(),
        job_id: taken.job.id.clone(),
        run_id: taken.job.run_id.clone(),
        number: taken.job.attempt_count,
        machine_id: taken.machine.id.clone(),
        controller_id: taken.lease.controller.clone(),
        epoch: taken.machine.lease_epoch,
        state: AttemptState::Running,
        verdict: Status::Miss,
        reason: None,
        blamed_stage: None,
        signature: None,
        check_at: taken.check_at,
        lease_expires_at: taken.lease.expires_at,
        dump_facts: None,
        started_at: taken.lease.now,
        judged_at: None,
        finished_at: None,
        released_healthy: None,
        release_detail: None,
        progress_event_at: None,
        purpose: taken.job.purpose,
        boots_build_id: taken.boots_build().cloned(),
        gave_way: false,
        held_until: None,
    }
}

#[derive(Serialize)]
struct NewAttempt<'a> {
    id: &'a AttemptId,
    job_id: &'a JobId,
    run_id: &'a RunId,
    number: i64,
    machine_id: &'a MachineId,
    controller_id: &'a ControllerId,
    epoch: i64,
    check_at: Option<Timestamp>,
    lease_expires_at: Timestamp,
    started_at: Timestamp,
    submitter_id: &'a SubmitterId,
    charged_ms: i64,
    purpose: Purpose,
    boots_build_id: Option<&'a BuildId>,
    secret_hash: &'a str,
}

async fn insert_attempts(tx: &mut Tx, taken: &[&Taken]) -> DbResult<()> {
    if taken.is_empty() {
        return Ok(());
    }
    let rows: Vec<NewAttempt<'_>> = taken
        .iter()
        .map(|one| NewAttempt {
            id: &one.lease.attempt,
            job_id: &one.job.id,
            run_id: &one.job.run_id,
            number: one.job.attempt_count,
            machine_id: &one.machine.id,
            controller_id: &one.lease.controller,
            epoch: one.machine.lease_epoch,
            check_at: one.check_at,
            lease_expires_at: one.lease.expires_at,
            started_at: one.lease.now,
            submitter_id: &one.submitter,
            charged_ms: one.charged_ms,
            purpose: one.job.purpose,
            boots_build_id: one.boots_build(),
            secret_hash: &one.lease.secret_hash,
        })
        .collect();
    let text = given!(
        tx,
        insert "attempt (id, job_id, run_id, number, machine_id, controller_id, epoch, state, verdict, \
         check_at, lease_expires_at, started_at, submitter_id, charged_ms, purpose, boots_build_id, secret_hash) \
         SELECT id, job_id, run_id, number, machine_id, controller_id, epoch, 'running', 'MISS', \
         check_at, lease_expires_at, started_at, submitter_id, charged_ms, purpose, boots_build_id, secret_hash FROM ",
        [
            id text, job_id text, run_id text, number bigint, machine_id text, controller_id text, epoch bigint,
            check_at bigint, lease_expires_at bigint, started_at bigint, submitter_id text, charged_ms bigint,
            purpose text, boots_build_id text, secret_hash text
        ],
        ""
    );
    on_tx!(tx, |c| sqlx::query(text).bind(Json(&rows)).execute(c).await.map(drop))?;
    Ok(())
}
