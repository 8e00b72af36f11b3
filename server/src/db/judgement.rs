//! Writes judgements: stages, verdicts and events of several attempts in one transaction, idempotently.
//!
//! An attempt is judged in the transaction that holds its lock ([`super::attempt::lock`]), from evidence that was read under it:
//! whoever comes later has seen at least as much.

use super::attempt::AttemptRow;
use super::event::Told;
use super::given::{Kept, given, update_in_order};
use super::{DbResult, Tx, on_tx};
use crashyard_protocol::api::EventBody;
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{AttemptId, AttemptState, JobId, Purpose, RunId, Stage, StageName, StageState, Status};
use serde::Serialize;
use sqlx::types::Json;
use std::collections::BTreeMap;

/// What shall be written.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// The eight stages as they are now.
    pub stages: Vec<Stage>,
    /// Verdict, where the contract stopped, and why; `None` while the contract is being worked through.
    pub verdict: Option<(Status, Option<StageName>, Option<String>)>,
    /// Title of the crash that nobody asked for.
    pub signature: Option<String>,
    /// Whether the crash is judged and only the machine's return is owed.
    pub collecting: bool,
    /// When to judge again if nothing arrives until then.
    pub check_at: Option<Timestamp>,
}

/// A judgement to be written, on top of the attempt as the judge saw it.
#[derive(Clone, Copy, Debug)]
pub struct Judged<'a> {
    /// The attempt's row.
    pub before: &'a AttemptRow,
    /// Its stages.
    pub stages: &'a [Stage],
    /// What is so now.
    pub verdict: &'a Verdict,
}

impl Judged<'_> {
    /// Whether the verdict is given now; it is given once.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.before.judged_at.is_none() && self.verdict.verdict.is_some()
    }

    fn state(&self) -> AttemptState {
        match self.before.state {
            AttemptState::Running if self.verdict.collecting => AttemptState::Collecting,
            other => other,
        }
    }

    fn changed(&self) -> impl Iterator<Item = &Stage> {
        self.verdict.stages.iter().filter(|stage| !self.stages.contains(stage))
    }

    fn is_change(&self) -> bool {
        let before = self.before;
        self.changed().next().is_some()
            || self.state() != before.state
            || self.is_new()
            || self.verdict.check_at != before.check_at
    }

    /// Verdict, blamed stage and reason as they are from now on.
    fn given(&self) -> (Status, Option<StageName>, Option<&str>) {
        match &self.verdict.verdict {
            Some((verdict, blamed, reason)) if self.is_new() => (*verdict, *blamed, reason.as_deref()),
            _ => (self.before.verdict, self.before.blamed_stage, self.before.reason.as_deref()),
        }
    }
}

#[derive(Serialize)]
struct NewStage<'a> {
    attempt: &'a AttemptId,
    name: StageName,
    state: StageState,
    body: Kept<'a, Stage>,
}

/// Writes the first stages of attempts whose leases are given. A stage that is pending needs no row
/// ([`super::attempt::stages`]).
pub async fn open_all(tx: &mut Tx, attempts: &[(AttemptId, Vec<Stage>)]) -> DbResult<()> {
    let reached = |stage: &&Stage| stage.state != StageState::Pending;
    let stages: Vec<_> =
        attempts.iter().flat_map(|(id, stages)| stages.iter().filter(reached).map(move |stage| (id, stage))).collect();
    put_stages(tx, &stages).await
}

async fn put_stages(tx: &mut Tx, stages: &[(&AttemptId, &Stage)]) -> DbResult<()> {
    let kind = tx.kind();
    let rows: Vec<NewStage<'_>> = stages
        .iter()
        .map(|(attempt, stage)| NewStage { attempt, name: stage.name, state: stage.state, body: Kept(kind, stage) })
        .collect();
    if rows.is_empty() {
        return Ok(());
    }
    let text = given!(
        tx,
        insert "stage (attempt_id, name, state, body) SELECT attempt, name, state, body FROM ",
        [attempt text, name text, state text, body jsonb],
        " WHERE TRUE ON CONFLICT (attempt_id, name) DO UPDATE SET state = excluded.state, body = excluded.body"
    );
    on_tx!(tx, |c| sqlx::query(text).bind(Json(&rows)).execute(c).await.map(drop))?;
    Ok(())
}

/// Writes judgements: for each, whether it changed anything. [`tell`] tells of them.
pub async fn write_all(tx: &mut Tx, judged: &[Judged<'_>], now: Timestamp) -> DbResult<Vec<bool>> {
    let changed: Vec<bool> = judged.iter().map(Judged::is_change).collect();
    let changes: Vec<Judged<'_>> =
        judged.iter().zip(&changed).filter(|(_, changed)| **changed).map(|(one, _)| *one).collect();
    if !changes.is_empty() {
        write_attempts(tx, &changes, now).await?;
        let stages: Vec<_> =
            changes.iter().flat_map(|one| one.changed().map(|stage| (&one.before.id, stage))).collect();
        put_stages(tx, &stages).await?;
        show_in_jobs(tx, &changes).await?;
    }
    Ok(changed)
}

#[derive(Serialize)]
struct Rewritten<'a> {
    attempt: &'a AttemptId,
    state: AttemptState,
    verdict: Status,
    blamed: Option<StageName>,
    reason: Option<&'a str>,
    judged_at: Option<Timestamp>,
    check_at: Option<Timestamp>,
    signature: Option<&'a str>,
}

async fn write_attempts(tx: &mut Tx, changes: &[Judged<'_>], now: Timestamp) -> DbResult<()> {
    let rows: Vec<Rewritten<'_>> = changes
        .iter()
        .map(|one| {
            let (verdict, blamed, reason) = one.given();
            Rewritten {
                attempt: &one.before.id,
                state: one.state(),
                verdict,
                blamed,
                reason,
                judged_at: if one.is_new() { Some(now) } else { one.before.judged_at },
                check_at: one.verdict.check_at,
                signature: one.before.signature.as_deref().or(one.verdict.signature.as_deref()),
            }
        })
        .collect();
    let text = given!(
        tx,
        update "attempt SET state = given.state, verdict = given.verdict, blamed_stage = given.blamed, \
         reason = given.reason, judged_at = given.judged_at, check_at = given.check_at, signature = given.signature FROM ",
        [
            attempt text, state text, verdict text, blamed text, reason text, judged_at bigint, check_at bigint,
            signature text
        ],
        at "attempt.id" = "attempt",
        ""
    );
    on_tx!(tx, |c| sqlx::query(text).bind(Json(&rows)).execute(c).await.map(drop))?;
    Ok(())
}

#[derive(Serialize)]
struct Shown<'a> {
    job: &'a JobId,
    status: Status,
    blamed: Option<StageName>,
    reason: Option<&'a str>,
}

/// A verdict is shown on its job at once; the job is done when its machine is back.
async fn show_in_jobs(tx: &mut Tx, changes: &[Judged<'_>]) -> DbResult<()> {
    let shown: Vec<Shown<'_>> = changes
        .iter()
        .filter(|one| one.is_new() && one.before.purpose == Purpose::Test)
        .map(|one| {
            let (status, blamed, reason) = one.given();
            Shown { job: &one.before.job_id, status, blamed, reason }
        })
        .collect();
    if shown.is_empty() {
        return Ok(());
    }
    let text = update_in_order!(
        tx,
        "job" SET "status = given.status, blamed_stage = given.blamed, reason = given.reason",
        [job text, status text, blamed text, reason text],
        "job",
        " AND job.state = 'leased'"
    );
    on_tx!(tx, |c| sqlx::query(text).bind(Json(&shown)).execute(c).await.map(drop))?;
    Ok(())
}

/// Adds the events that tell of judgements.
pub fn tell<'a>(judged: &[Judged<'a>], of_run: &mut BTreeMap<&'a RunId, Vec<Told<'a>>>) {
    for one in judged.iter().filter(|one| one.is_change()) {
        let events = of_run.entry(&one.before.run_id).or_default();
        let told = |body| (Some(&one.before.job_id), Some(&one.before.id), body);
        events.extend(one.changed().map(|stage| told(EventBody::Stage { stage: stage.clone() })));
        if one.is_new() {
            let (verdict, blamed_stage, reason) = one.given();
            let reason = reason.map(ToOwned::to_owned);
            events.push(told(EventBody::AttemptJudged { verdict, blamed_stage, reason }));
        }
    }
}
