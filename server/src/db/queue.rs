//! The queue: which job a machine gets next.
//!
//! Jobs stand in flows ([`super::flow`]), and a machine knows the selectors it satisfies. A claim looks at the flows that
//! wait for the machine, chooses one by class and virtual time, and takes its first job by an index: the cost depends on
//! how many submitters compete for the machine, never on how many jobs are queued.
//!
//! Claims of one moment are served in one transaction ([`take`], then [`record`]): a durable commit costs a flush of the
//! disk, and a hundred claims need no more of them than one.

use super::event;
use super::flow::{self, SubmitterRow};
use super::machine::MachineRow;
use super::run::{self, JobChange, JobRow};
use super::{Db, DbError, DbResult, Tx, on, on_tx};
use crate::db::attempt::AttemptRow;
use crashyard_protocol::api::EventBody;
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{
    AttemptId, BuildId, ControllerId, FlowId, JobId, JobState, MachineId, Purpose, RunId, SelectorId, Status,
    SubmitterId,
};
use sqlx::{FromRow, QueryBuilder};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A lease to be written.
#[derive(Clone, Debug)]
pub struct NewLease {
    /// Id of the attempt.
    pub attempt: AttemptId,
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
    pub machine: MachineRow,
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
    /// The machine, as leased.
    pub machine: MachineRow,
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
    choice: Choice,
}

/// Free machines of a controller for which any job may wait. Reads only.
pub async fn with_work(db: &Db, controller: &ControllerId) -> DbResult<Vec<MachineId>> {
    Ok(on!(db.read(), |c| sqlx::query_scalar(
        "SELECT m.id FROM machine m WHERE m.controller_id = $1 AND m.announced \
         AND m.state IN ('enrolled', 'available') AND EXISTS (SELECT 1 FROM machine_selector ms \
         JOIN flow f ON f.selector_id = ms.selector_id AND f.waiting WHERE ms.machine_id = m.id)",
    )
    .bind(controller)
    .fetch_all(c)
    .await)?)
}

/// Machines that could take a job of this selector now.
pub async fn idle_machines(db: &Db, selector: &SelectorId) -> DbResult<Vec<MachineId>> {
    Ok(on!(db.read(), |c| sqlx::query_scalar(
        "SELECT m.id FROM machine_selector ms JOIN machine m ON m.id = ms.machine_id \
         WHERE ms.selector_id = $1 AND m.announced AND m.state IN ('enrolled', 'available')",
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
        run::change_job(tx, id, &change, now).await?;
    }
    Ok(waits == 1)
}

/// A flow that a machine could be served from.
#[derive(Clone, Debug, FromRow)]
struct Candidate {
    machine_id: MachineId,
    id: FlowId,
    submitter_id: SubmitterId,
    class: i64,
    mean_ms: i64,
}

/// Takes a job for each claim that can have one. [`record`] must follow in the same transaction.
pub async fn take(tx: &mut Tx, asks: &[Ask]) -> DbResult<Batch> {
    let wanted: BTreeSet<&MachineId> = asks.iter().flat_map(|ask| &ask.machines).collect();
    let mut free = free_machines(tx, &wanted).await?;
    let mut candidates: HashMap<MachineId, Vec<Candidate>> = HashMap::new();
    for candidate in candidates_of(tx, &free).await? {
        candidates.entry(candidate.machine_id.clone()).or_default().push(candidate);
    }
    let mut choice = Choice::new(tx, &candidates).await?;
    let mut taken = Vec::with_capacity(asks.len());
    for ask in asks {
        let mut found = None;
        for id in &ask.machines {
            if free.get(id).is_none_or(|machine| machine.controller_id != ask.lease.controller) {
                continue;
            }
            let flows = candidates.get(id).map_or(&[][..], Vec::as_slice);
            if let Some((job, flow)) = choice.next(tx, id, flows).await? {
                let machine = free.remove(id).expect("it was looked up above");
                found = Some((job, flow, machine));
                break;
            }
        }
        taken.push(found.map(|(job, flow, machine)| Taken {
            submitter: flow.submitter_id.clone(),
            charged_ms: choice.charge(&flow),
            lease: ask.lease.clone(),
            check_at: None,
            job,
            machine,
        }));
    }
    lease_machines(tx, &mut taken).await?;
    Ok(Batch { taken, choice })
}

/// Of these machines those that are free, locked until the transaction ends.
async fn free_machines(tx: &mut Tx, ids: &BTreeSet<&MachineId>) -> DbResult<BTreeMap<MachineId, MachineRow>> {
    if ids.is_empty() {
        return Ok(BTreeMap::new());
    }
    // Another server that has one of them locked is about to lease it.
    let lock = if matches!(tx, Tx::Postgres(_)) { " FOR UPDATE SKIP LOCKED" } else { "" };
    let rows: Vec<MachineRow> = on_tx!(tx, |c| {
        let mut query = QueryBuilder::new("SELECT * FROM machine WHERE id IN (");
        let mut list = query.separated(", ");
        for id in ids {
            list.push_bind((*id).clone());
        }
        query.push(") AND announced AND state IN ('enrolled', 'available') ORDER BY id").push(lock);
        query.build_query_as().fetch_all(c).await
    })?;
    Ok(rows.into_iter().map(|row| (row.id.clone(), row)).collect())
}

async fn candidates_of(tx: &mut Tx, machines: &BTreeMap<MachineId, MachineRow>) -> DbResult<Vec<Candidate>> {
    if machines.is_empty() {
        return Ok(Vec::new());
    }
    Ok(on_tx!(tx, |c| {
        let mut query = QueryBuilder::new(
            "SELECT ms.machine_id, f.id, f.submitter_id, f.class, f.mean_ms FROM machine_selector ms \
             JOIN flow f ON f.selector_id = ms.selector_id AND f.waiting WHERE ms.machine_id IN (",
        );
        let mut list = query.separated(", ");
        for id in machines.keys() {
            list.push_bind(id.clone());
        }
        query.push(")");
        query.build_query_as().fetch_all(c).await
    })?)
}

/// Who is next, for the claims of one transaction.
struct Choice {
    shares: HashMap<SubmitterId, Share>,
    /// Virtual time that nobody may be pushed beyond.
    limit: i64,
    /// Flows that gave no job, and will not in this transaction.
    empty: BTreeSet<FlowId>,
    /// Flows whose jobs must not have a certain machine.
    closed: BTreeSet<(FlowId, MachineId)>,
}

struct Share {
    row: SubmitterRow,
    /// Machines it may still get; `None` is no limit.
    room: Option<i64>,
    /// Virtual time added in this transaction.
    added: i64,
}

impl Choice {
    async fn new(tx: &mut Tx, candidates: &HashMap<MachineId, Vec<Candidate>>) -> DbResult<Self> {
        if candidates.is_empty() {
            return Ok(Self {
                shares: HashMap::new(),
                limit: i64::MAX,
                empty: BTreeSet::new(),
                closed: BTreeSet::new(),
            });
        }
        let competing: BTreeSet<&SubmitterId> = candidates.values().flatten().map(|flow| &flow.submitter_id).collect();
        let mut rows = flow::shares(tx).await?;
        rows.sort_by(|a, b| a.id.cmp(&b.id));
        rows.retain(|row| competing.contains(&row.id));
        let least = rows.iter().map(|row| row.virtual_time).min().unwrap_or(0);
        let limit = least.saturating_add(flow::DEBT_MAX);
        let mut shares = HashMap::new();
        for row in rows {
            let room = match row.max_machines {
                Some(most) => Some(most - flow::machines_held(tx, &row.id, most).await?),
                None => None,
            };
            shares.insert(row.id.clone(), Share { row, room, added: 0 });
        }
        Ok(Self { shares, limit, empty: BTreeSet::new(), closed: BTreeSet::new() })
    }

    /// The flow that is next for a machine among these, and the first of its jobs that may have it.
    async fn next(
        &mut self,
        tx: &mut Tx,
        machine: &MachineId,
        flows: &[Candidate],
    ) -> DbResult<Option<(JobRow, Candidate)>> {
        loop {
            let open = flows.iter().filter(|flow| {
                !self.empty.contains(&flow.id) && !self.closed.contains(&(flow.id.clone(), machine.clone()))
            });
            let keyed = open.filter_map(|flow| {
                let share = self.shares.get(&flow.submitter_id)?;
                let room = share.room.is_none_or(|room| room > 0);
                room.then(|| ((flow.class, share.row.virtual_time.min(self.limit) + share.added, &flow.id), flow))
            });
            let Some((_, flow)) = keyed.min_by(|(a, _), (b, _)| a.cmp(b)) else { return Ok(None) };
            if let Some(job) = take_head(tx, &flow.id, machine).await? {
                return Ok(Some((job, flow.clone())));
            }
            if has_queued(tx, &flow.id).await? {
                self.closed.insert((flow.id.clone(), machine.clone()));
            } else {
                self.empty.insert(flow.id.clone());
            }
        }
    }

    /// Charges the submitter of a flow for one attempt; returns the machine time, in milliseconds.
    fn charge(&mut self, flow: &Candidate) -> i64 {
        let charged = if flow.mean_ms > 0 { flow.mean_ms } else { flow::FIRST_CHARGE_MS };
        if let Some(share) = self.shares.get_mut(&flow.submitter_id) {
            share.added = share.added.saturating_add(charged.saturating_mul(1000) / share.row.weight.max(1));
            share.room = share.room.map(|room| room - 1);
        }
        charged
    }
}

impl Choice {
    /// Writes down what was found out, in the order of locks.
    async fn finish(self, tx: &mut Tx, now: Option<Timestamp>) -> DbResult<()> {
        for flow in &self.empty {
            flow::retire(tx, flow).await?;
        }
        let shares: BTreeMap<_, _> = self.shares.iter().collect();
        for (id, share) in shares {
            if share.added > 0 || share.row.virtual_time > self.limit {
                flow::charge(tx, id, share.added, self.limit, now.filter(|_| share.added > 0)).await?;
            }
        }
        Ok(())
    }
}

/// Takes the first job of a flow that may have this machine. One that another server is taking at this moment is passed
/// over. Few jobs are bound to machines (those of which an attempt failed), so few are looked at in vain.
async fn take_head(tx: &mut Tx, flow: &FlowId, machine: &MachineId) -> DbResult<Option<JobRow>> {
    macro_rules! head {
        ($lock:literal) => {
            concat!(
                "UPDATE job SET state = 'leased', attempt_count = attempt_count + 1 WHERE id = (SELECT id FROM job \
                 WHERE flow_id = $1 AND state = 'queued' AND (only_machine_id IS NULL OR only_machine_id = $2) \
                 AND (not_machine_id IS NULL OR not_machine_id <> $2) ORDER BY rank, id LIMIT 1",
                $lock,
                ") RETURNING *"
            )
        };
    }
    let text = match tx {
        Tx::Sqlite(_) => head!(""),
        Tx::Postgres(_) => head!(" FOR UPDATE SKIP LOCKED"),
    };
    Ok(on_tx!(tx, |c| sqlx::query_as(text).bind(flow).bind(machine).fetch_optional(c).await)?)
}

async fn has_queued(tx: &mut Tx, flow: &FlowId) -> DbResult<bool> {
    Ok(on_tx!(tx, |c| sqlx::query_scalar(
        "SELECT COUNT(*) FROM (SELECT 1 FROM job WHERE flow_id = $1 AND state = 'queued' LIMIT 1) AS first",
    )
    .bind(flow)
    .fetch_one(c)
    .await
    .map(|count: i64| count > 0))?)
}

/// Gives the machines to their new attempts. They are locked and were free, so each is there.
async fn lease_machines(tx: &mut Tx, taken: &mut [Option<Taken>]) -> DbResult<()> {
    let mut places: HashMap<MachineId, &mut Taken> =
        taken.iter_mut().flatten().map(|one| (one.machine.id.clone(), one)).collect();
    let Some(now) = places.values().next().map(|one| one.lease.now) else { return Ok(()) };
    let rows: Vec<MachineRow> = on_tx!(tx, |c| {
        let mut query = QueryBuilder::new("UPDATE machine SET state = 'leased', reason = NULL, state_since = ");
        query.push_bind(now).push(", last_seen_at = ").push_bind(now);
        query.push(", lease_epoch = lease_epoch + 1, attempt_id = given.column2 FROM (");
        query.push_values(places.values(), |mut row, one| {
            row.push_bind(one.machine.id.clone()).push_bind(one.lease.attempt.clone());
        });
        query.push(") AS given WHERE machine.id = given.column1 AND state IN ('enrolled', 'available') RETURNING *");
        query.build_query_as().fetch_all(c).await
    })?;
    if rows.len() != places.len() {
        return Err(DbError::Conflict("a machine was taken at the same moment".into()));
    }
    for row in rows {
        if let Some(one) = places.get_mut(&row.id) {
            one.machine = row;
        }
    }
    Ok(())
}

/// Writes down what was taken: attempts, their events, what they cost. One entry for each claim, in their order.
pub async fn record(tx: &mut Tx, batch: Batch) -> DbResult<Vec<Option<Leased>>> {
    let taken: Vec<&Taken> = batch.taken.iter().flatten().collect();
    let mut attempts = insert_attempts(tx, &taken).await?;
    let mut of_run: BTreeMap<&RunId, Vec<event::Told<'_>>> = BTreeMap::new();
    for one in &taken {
        let events = of_run.entry(&one.job.run_id).or_default();
        let told = |body| (Some(&one.job.id), Some(&one.lease.attempt), body);
        events.push(told(EventBody::Job { state: JobState::Leased, status: Status::Miss }));
        let number = u32::try_from(one.job.attempt_count).unwrap_or(u32::MAX);
        events.push(told(EventBody::AttemptStarted { machine: one.machine.name.clone(), number }));
    }
    if let Some(first) = taken.first() {
        for (run, events) in of_run {
            event::append_all(tx, run, first.lease.now, &events).await?;
        }
    }
    let now = taken.first().map(|one| one.lease.now);
    batch.choice.finish(tx, now).await?;
    let mut leased = |one: Taken| {
        let attempt = attempts.remove(&one.lease.attempt)?;
        Some(Leased { attempt, job: one.job, machine: one.machine })
    };
    Ok(batch.taken.into_iter().map(|one| one.and_then(&mut leased)).collect())
}

async fn insert_attempts(tx: &mut Tx, taken: &[&Taken]) -> DbResult<HashMap<AttemptId, AttemptRow>> {
    if taken.is_empty() {
        return Ok(HashMap::new());
    }
    let rows: Vec<AttemptRow> = on_tx!(tx, |c| {
        let mut query = QueryBuilder::new(
            "INSERT INTO attempt (id, job_id, run_id, number, machine_id, controller_id, epoch, state, verdict, \
             judgement_seq, check_at, lease_expires_at, started_at, submitter_id, charged_ms, purpose, boots_build_id) ",
        );
        query.push_values(taken, |mut row, taken| {
            row.push_bind(taken.lease.attempt.clone())
                .push_bind(taken.job.id.clone())
                .push_bind(taken.job.run_id.clone())
                .push_bind(taken.job.attempt_count)
                .push_bind(taken.machine.id.clone())
                .push_bind(taken.lease.controller.clone())
                .push_bind(taken.machine.lease_epoch)
                .push("'running', 'MISS', 0")
                .push_bind(taken.check_at)
                .push_bind(taken.lease.expires_at)
                .push_bind(taken.lease.now)
                .push_bind(taken.submitter.clone())
                .push_bind(taken.charged_ms)
                .push_bind(taken.job.purpose)
                .push_bind(taken.boots_build().cloned());
        });
        query.push(" RETURNING *");
        query.build_query_as().fetch_all(c).await
    })?;
    Ok(rows.into_iter().map(|row| (row.id.clone(), row)).collect())
}
