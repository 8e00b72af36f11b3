//! Leases: renewed, handed out again, handed back, run out.

use super::attempt::{self, AttemptRow, Locked};
use super::event::{self, About};
use super::flow::{self, Had};
use super::given::{given, listed, update_in_order};
use super::life::{self, SERVER};
use super::machine::{self, Leaving};
use super::run::{self, Changed, JobChange, JobRow};
use super::{Db, DbError, DbResult, Tx, artifact, on, on_tx, reservation, signed};
use crate::retries::{self, Next, Tried};
use crate::trust::Rule;
use crashyard_protocol::api::EventBody;
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{
    AttemptId, AttemptState, ControllerId, JobId, JobState, MachineId, MachineState, Purpose, RunId, SelectorId,
    StageName, Status,
};
use serde::Serialize;
use sqlx::FromRow;
use sqlx::types::Json;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A lease to be prolonged.
#[derive(Clone, Debug, Serialize)]
pub struct Renewal {
    /// Of which attempt.
    pub attempt: AttemptId,
    /// Under which epoch.
    pub epoch: u64,
    /// Until when.
    pub until: Timestamp,
}

/// How a lease stands.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct Standing {
    /// The attempt.
    pub id: AttemptId,
    /// Its epoch.
    pub epoch: i64,
    /// Where the attempt is.
    pub state: AttemptState,
    /// Until when its machine is kept as it is.
    pub held_until: Option<Timestamp>,
    /// How often people typed into its consoles.
    pub keys: i64,
}

/// Prolongs leases. Time alone does not end one: as long as nobody has declared it lost, its holder may go on.
pub async fn renew(tx: &mut Tx, renewals: &[Renewal]) -> DbResult<Vec<DbResult<Standing>>> {
    // A request that was repeated may be at two servers.
    let text = update_in_order!(
        tx,
        "attempt" SET "lease_expires_at = given.until",
        [attempt text, epoch bigint, until bigint],
        "attempt",
        " AND attempt.epoch = given.epoch AND state IN ('running', 'collecting') \
         RETURNING attempt.id, attempt.epoch, state, held_until, keys"
    );
    let rows: Vec<Standing> = on_tx!(tx, |c| sqlx::query_as(text).bind(Json(renewals)).fetch_all(c).await)?;
    let renewed: HashMap<AttemptId, Standing> = rows.into_iter().map(|row| (row.id.clone(), row)).collect();
    let mut answers = Vec::with_capacity(renewals.len());
    for renewal in renewals {
        answers.push(match renewed.get(&renewal.attempt) {
            Some(standing) if standing.epoch == signed(renewal.epoch) => Ok(standing.clone()),
            _ => Err(why_not(tx, renewal).await?),
        });
    }
    Ok(answers)
}

/// Why a lease was not prolonged.
async fn why_not(tx: &mut Tx, renewal: &Renewal) -> DbResult<DbError> {
    Ok(match attempt::get_in(tx, &renewal.attempt).await {
        Ok(row) => match row.check_epoch(renewal.epoch) {
            Ok(()) => DbError::LeaseLost("the lease changed hands".into()),
            Err(why) => why,
        },
        Err(DbError::NotFound) => DbError::NotFound,
        Err(error) => return Err(error),
    })
}

/// How a lease stands under this epoch; an error if it is over.
pub async fn standing(db: &Db, id: &AttemptId, epoch: u64) -> DbResult<Standing> {
    let standing: Standing =
        on!(db.read(), |c| sqlx::query_as("SELECT id, epoch, state, held_until, keys FROM attempt WHERE id = $1",)
            .bind(id)
            .fetch_one(c)
            .await)?;
    attempt::check(standing.state, standing.epoch, epoch)?;
    Ok(standing)
}

/// A lease that this controller holds on a machine it calls idle, and of which nothing has come yet.
///
/// The answer to its claim was lost on the way, or it died before it wrote the lease down. Nothing was done to the
/// machine (an agent records before it acts, and sends what it recorded), so the lease is handed out again under a
/// new epoch, which fences off whoever may still have the first copy.
pub async fn hand_out_again(
    tx: &mut Tx,
    machine: &MachineId,
    controller: &ControllerId,
    expires_at: Timestamp,
) -> DbResult<Option<AttemptRow>> {
    let held: Option<AttemptRow> = on_tx!(tx, |c| sqlx::query_as(
        "SELECT * FROM attempt WHERE machine_id = $1 AND controller_id = $2 AND state = 'running'",
    )
    .bind(machine)
    .bind(controller)
    .fetch_optional(c)
    .await)?;
    let Some(held) = held else { return Ok(None) };
    if super::report::anything_came(tx, &held.id).await? {
        return Ok(None);
    }
    let epoch: i64 = on_tx!(tx, |c| sqlx::query_scalar(
        "UPDATE machine SET lease_epoch = lease_epoch + 1 WHERE id = $1 AND attempt_id = $2 RETURNING lease_epoch",
    )
    .bind(machine)
    .bind(&held.id)
    .fetch_one(c)
    .await)?;
    Ok(on_tx!(tx, |c| sqlx::query_as(
        "UPDATE attempt SET epoch = $2, lease_expires_at = $3 WHERE id = $1 AND state = 'running' RETURNING *",
    )
    .bind(&held.id)
    .bind(epoch)
    .bind(expires_at)
    .fetch_optional(c)
    .await)?)
}

/// Live attempts whose lease has run out.
pub async fn expired(db: &Db, now: Timestamp, limit: i64) -> DbResult<Vec<AttemptId>> {
    Ok(on!(db.read(), |c| sqlx::query_scalar(
        "SELECT id FROM attempt WHERE state IN ('running', 'collecting') AND lease_expires_at <= $1 \
         ORDER BY lease_expires_at LIMIT $2",
    )
    .bind(now)
    .bind(limit)
    .fetch_all(c)
    .await)?)
}

/// When the next lease runs out.
pub async fn next_expiry(db: &Db) -> DbResult<Option<Timestamp>> {
    Ok(on!(db.read(), |c| sqlx::query_scalar(
        "SELECT MIN(lease_expires_at) FROM attempt WHERE state IN ('running', 'collecting')",
    )
    .fetch_one(c)
    .await)?)
}

/// How an attempt ends.
#[derive(Clone, Debug)]
pub enum End<'a> {
    /// Its controller handed the lease back.
    Released {
        /// With which epoch.
        epoch: u64,
        /// Whether the machine may take the next job.
        healthy: bool,
        /// What was checked, or what failed.
        detail: &'a str,
    },
    /// Its lease ran out before this moment.
    Lost,
}

impl End<'_> {
    /// Whether an attempt, which is locked, ends with it now: not, if it has ended like this before, or if a lost lease was renewed
    /// in the meantime.
    fn is_due(&self, attempt: &AttemptRow, now: Timestamp) -> DbResult<bool> {
        match self {
            Self::Lost => Ok(attempt.is_live() && attempt.lease_expires_at <= now),
            Self::Released { epoch, .. } if attempt.state == AttemptState::Done && attempt.epoch == signed(*epoch) => {
                Ok(false)
            }
            Self::Released { epoch, .. } => attempt.check_epoch(*epoch).map(|()| true),
        }
    }

    /// Makes of an attempt what it is after it.
    fn apply(&self, attempt: &mut AttemptRow, now: Timestamp) {
        attempt.finished_at = Some(now);
        match self {
            Self::Lost => attempt.state = AttemptState::Lost,
            Self::Released { healthy, detail, .. } => {
                attempt.state = AttemptState::Done;
                attempt.released_healthy = Some(*healthy);
                attempt.release_detail = Some((*detail).to_owned());
            }
        }
    }
}

/// Ends attempts: those that ended now. Their evidence is closed with it; the caller has them judged a last time, which settles
/// their jobs. Their machines are free, unless somebody waits for one or it is not trusted any more. A lost lease that was renewed
/// in the meantime stays; ending one twice in the same way is harmless.
pub async fn end(
    tx: &mut Tx,
    ends: &[(&AttemptId, End<'_>)],
    rule: &Rule,
    now: Timestamp,
) -> DbResult<Vec<AttemptRow>> {
    let ids: Vec<&AttemptId> = ends.iter().map(|(id, _)| *id).collect();
    let mut attempts = attempt::lock(tx, &ids).await?;
    let mut ended = BTreeSet::new();
    for ((id, _), now) in ends.iter().zip(end_all(tx, &mut attempts, ends, rule, now).await?) {
        if now? {
            ended.insert(*id);
        }
    }
    attempts.retain(|locked| ended.contains(&locked.attempt.id));
    flow::correct(tx, &attempts.iter().filter_map(Had::of).collect::<Vec<_>>()).await?;
    Ok(attempts.into_iter().map(|locked| locked.attempt).collect())
}

/// Ends several, which the caller has locked ([`attempt::lock`]) and which come to be what they are afterwards, as [`end`] does it,
/// but for what their submitters have had: the caller corrects that when nothing else needs a lock ([`flow::correct`]). For each, in
/// their order, whether it ended now and not before. Who is refused spoils nobody's end.
pub async fn end_all(
    tx: &mut Tx,
    attempts: &mut [Locked],
    ends: &[(&AttemptId, End<'_>)],
    rule: &Rule,
    now: Timestamp,
) -> DbResult<Vec<DbResult<bool>>> {
    let mut answers = Vec::with_capacity(ends.len());
    let mut ended = BTreeSet::new();
    for (id, end) in ends {
        let attempt = attempts.iter_mut().map(|locked| &mut locked.attempt).find(|attempt| attempt.id == **id);
        answers.push(attempt.ok_or(DbError::NotFound).and_then(|attempt| {
            let due = end.is_due(attempt, now)?;
            if due {
                end.apply(attempt, now);
                ended.insert(*id);
            }
            Ok(due)
        }));
    }
    let ended: Vec<&AttemptRow> =
        attempts.iter().map(|locked| &locked.attempt).filter(|attempt| ended.contains(&attempt.id)).collect();
    if !ended.is_empty() {
        write_ends(tx, &ended, now).await?;
        leave(tx, &ended, rule, now).await?;
    }
    Ok(answers)
}

#[derive(Serialize)]
struct Ended<'a> {
    attempt: &'a AttemptId,
    new_state: AttemptState,
    healthy: Option<bool>,
    detail: Option<&'a str>,
}

async fn write_ends(tx: &mut Tx, ended: &[&AttemptRow], now: Timestamp) -> DbResult<()> {
    let rows: Vec<Ended<'_>> = ended
        .iter()
        .map(|attempt| Ended {
            attempt: &attempt.id,
            new_state: attempt.state,
            healthy: attempt.released_healthy,
            detail: attempt.release_detail.as_deref(),
        })
        .collect();
    let text = given!(
        tx,
        update "attempt SET state = given.new_state, finished_at = $2, released_healthy = given.healthy, \
         release_detail = given.detail FROM ",
        [attempt text, new_state text, healthy boolean, detail text],
        at "attempt.id" = "attempt",
        ""
    );
    on_tx!(tx, |c| sqlx::query(text).bind(Json(&rows)).bind(now).execute(c).await.map(drop))?;
    Ok(())
}

/// Frees the machines of attempts that have ended.
async fn leave(tx: &mut Tx, ended: &[&AttemptRow], rule: &Rule, now: Timestamp) -> DbResult<()> {
    let leaving: Vec<Leaving<'_>> = ended.iter().map(|attempt| leaving(attempt, now)).collect();
    let left = machine::leave_attempts(tx, &leaving, now).await?;
    let held: Vec<&AttemptId> =
        ended.iter().filter(|attempt| attempt.held_until.is_some()).map(|attempt| &attempt.id).collect();
    reservation::close_holds(tx, &held, SERVER, now).await?;
    let of = |machine: &MachineId| left.iter().find(|one| one.id == *machine);
    let left: Vec<_> = ended.iter().filter_map(|attempt| Some((*attempt, of(&attempt.machine_id)?))).collect();
    life::after_attempts(tx, &left, rule, now).await
}

/// The machine of an attempt that has ended; its controller has it in its hand, or is not heard of.
fn leaving(attempt: &AttemptRow, now: Timestamp) -> Leaving<'_> {
    let (new_state, why, seen_at) = match attempt.state {
        AttemptState::Lost => {
            let id = &attempt.id;
            let why = format!("the lease of attempt {id} ran out; it waits until its controller calls it idle again");
            (MachineState::Enrolled, Some(why), None)
        }
        _ => (MachineState::Available, None, Some(now)),
    };
    Leaving { machine: &attempt.machine_id, from_attempt: &attempt.id, new_state, why, seen_at }
}

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
async fn others(tx: &mut Tx, selector: &SelectorId, machine: &MachineId) -> DbResult<bool> {
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
/// ([`Settling::tell`]) and then does what follows ([`follow`]), so that locks are taken in the order of [`flow`].
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
pub async fn bound(db: &Db, limit: i64) -> DbResult<Vec<Bound>> {
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

/// Takes the machine of an attempt that is not armed yet for somebody who comes first; `false` if it is too late for that.
pub async fn give_way(tx: &mut Tx, id: &AttemptId, why: &str, now: Timestamp) -> DbResult<bool> {
    let gone: Option<AttemptRow> = on_tx!(tx, |c| {
        sqlx::query_as(
            "UPDATE attempt SET state = 'collecting', verdict = 'MISS', reason = $2, judged_at = $3, gave_way = TRUE WHERE id = $1 AND state = 'running' AND judged_at IS NULL AND NOT EXISTS \
         (SELECT 1 FROM stage WHERE attempt_id = $1 AND name = 'armed' AND state IN ('proven', 'failed')) RETURNING *",
        )
        .bind(id)
        .bind(why)
        .bind(now)
        .fetch_optional(c)
        .await
    })?;
    let Some(gone) = gone else { return Ok(false) };
    let about = About { run: &gone.run_id, job: Some(&gone.job_id), attempt: Some(&gone.id) };
    let told = EventBody::AttemptJudged { verdict: Status::Miss, blamed_stage: None, reason: Some(why.to_owned()) };
    event::append(tx, about, now, told).await?;
    Ok(true)
}

/// Attempts that would give way to jobs of a class on the machines of a selector, the newest first: they lose least.
pub async fn preemptible(db: &Db, selector: &SelectorId, class: i64, limit: i64) -> DbResult<Vec<AttemptId>> {
    Ok(on!(db.read(), |c| {
        sqlx::query_scalar(
            "SELECT a.id FROM machine_selector ms JOIN attempt a ON a.machine_id = ms.machine_id \
         JOIN job j ON j.id = a.job_id JOIN flow f ON f.id = j.flow_id WHERE ms.selector_id = $1 \
         AND a.state = 'running' AND j.state = 'leased' AND j.preemptible AND f.class > $2 \
         AND NOT EXISTS (SELECT 1 FROM stage s \
         WHERE s.attempt_id = a.id AND s.name = 'armed' AND s.state IN ('proven', 'failed')) \
         ORDER BY a.id DESC LIMIT $3",
        )
        .bind(selector)
        .bind(class)
        .bind(limit)
        .fetch_all(c)
        .await
    })?)
}

/// The job of an attempt, if it may be preempted.
pub async fn is_preemptible(db: &Db, id: &AttemptId) -> DbResult<bool> {
    Ok(on!(db.read(), |c| sqlx::query_scalar(
        "SELECT COUNT(*) FROM attempt a JOIN job j ON j.id = a.job_id WHERE a.id = $1 AND j.preemptible",
    )
    .bind(id)
    .fetch_one(c)
    .await
    .map(|count: i64| count > 0))?)
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

/// Records that this server is up; returns when any server was last seen before.
pub async fn presence(tx: &mut Tx, server: &str, started_at: Timestamp, now: Timestamp) -> DbResult<Option<Timestamp>> {
    let last: Option<Timestamp> =
        on_tx!(tx, |c| sqlx::query_scalar("SELECT MAX(seen_at) FROM server_seen").fetch_one(c).await)?;
    on_tx!(tx, |c| sqlx::query(
        "INSERT INTO server_seen (id, started_at, seen_at) VALUES ($1, $2, $3) \
         ON CONFLICT (id) DO UPDATE SET seen_at = excluded.seen_at",
    )
    .bind(server)
    .bind(started_at)
    .bind(now)
    .execute(c)
    .await
    .map(drop))?;
    Ok(last)
}

/// Records a time in which no server was up.
pub async fn record_away(tx: &mut Tx, from: Timestamp, to: Timestamp) -> DbResult<()> {
    on_tx!(tx, |c| sqlx::query("INSERT INTO server_away (from_at, to_at) VALUES ($1, $2) ON CONFLICT DO NOTHING")
        .bind(from)
        .bind(to)
        .execute(c)
        .await
        .map(drop))?;
    Ok(())
}

/// The times in which no server was up, as far as they reach behind `since`.
pub async fn away_since(tx: &mut Tx, since: Timestamp) -> DbResult<Vec<(Timestamp, Timestamp)>> {
    Ok(on_tx!(tx, |c| sqlx::query_as(
        "SELECT from_at, to_at FROM server_away WHERE to_at >= $1 ORDER BY from_at LIMIT 1000",
    )
    .bind(since)
    .fetch_all(c)
    .await)?)
}
