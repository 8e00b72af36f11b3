//! From recorded evidence to written judgements: loads what is recorded, asks [`crate::triage::judge`], writes; many attempts in
//! one commit ([`crate::group`]). What agents hand in is recorded in the same commit that judges it, because they wait for both; and
//! the job of an attempt that has ended is settled in the commit of its last judgement.
//!
//! Asked for after every write of evidence, at the moments the judge wanted, and after a restart. All of that is
//! harmless to repeat: the judgement is a function of what is recorded, and writing the same one again changes
//! nothing. If a server dies between a write and its judgement, the next one that looks makes it.
//!
//! What it must never do: wait for a file inside the transaction. What a console says is taken from its reader in memory; where
//! that is behind, the attempt is judged when it has caught up.

use crate::app::AppState;
use crate::consoles::{self, Consoles};
use crate::db::artifact::{self, Owner};
use crate::db::attempt::{AttemptRow, Locked, Terms};
use crate::db::judgement::{self, Judged, Verdict};
use crate::db::life::SERVER;
use crate::db::reservation::{self, ReservationRow};
use crate::db::settle::{self, Care, Settling};
use crate::db::{self, Db, DbError, DbResult, Tx};
use crate::error::{AppError, AppResult};
use crate::evidence;
use crate::group::Together;
use crate::metrics::Metrics;
use crate::recorder::{self, HandedIn, Recorded};
use crate::settling::{self, Over};
use crate::terms::KnownTerms;
use crate::triage::{BuildFacts, EvidenceView, Judgement, judge};
use crate::wake::{Pass, Topic, Wake};
use crashyard_protocol::agent::Directive;
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{AttemptId, Purpose, ReservationId, Status};
use futures::future::join_all;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// How often the consoles of an attempt are read on because they grew meanwhile, before the server says that it is overloaded.
const TRIES: usize = 16;
/// Attempts that a pass has judged at once; whoever hands something in waits for no more than these.
const AT_ONCE: usize = 64;

/// Judges an attempt of which nothing is recorded yet but its start.
#[must_use]
pub fn first(
    attempt: &AttemptId,
    scenario: &crashyard_protocol::Scenario,
    build: &BuildFacts,
    now: Timestamp,
) -> Judgement {
    judge(scenario, build, &EvidenceView::new(attempt.clone(), now), now)
}

/// Judges an attempt from what is recorded now, writes what changed and wakes who waits for it. Settles its job, if it has ended
/// and the judge waits for nothing more.
pub async fn judge_attempt(state: &AppState, id: &AttemptId) -> AppResult<Judgement> {
    for _ in 0..TRIES {
        match ask(state, id, None).await?.judgement {
            Some(judgement) => return Ok(judgement),
            None => catch_up(state, id).await?,
        }
    }
    Err(AppError::Unavailable(anyhow::anyhow!("the consoles of attempt {id} grow faster than they can be read")))
}

/// Judges these attempts, many in one commit: those that could not be judged, and why.
pub async fn judge_all(state: &AppState, ids: &[AttemptId]) -> Vec<(AttemptId, AppError)> {
    let mut failed = Vec::new();
    for part in ids.chunks(AT_ONCE) {
        let judged = join_all(part.iter().map(|id| judge_attempt(state, id))).await;
        failed.extend(part.iter().zip(judged).filter_map(|(id, judged)| Some((id.clone(), judged.err()?))));
    }
    failed
}

/// Records what an agent hands in and judges the attempt with it. An error does not mean that nothing was recorded.
pub async fn take(state: &AppState, handed_in: HandedIn) -> AppResult<(Recorded, Judgement)> {
    let id = handed_in.attempt.clone();
    let Found { recorded, judgement, .. } = ask(state, &id, Some(handed_in)).await?;
    let recorded = recorded.ok_or_else(|| AppError::not_found("attempt"))?;
    match judgement {
        Some(judgement) => Ok((recorded, judgement)),
        None => Ok((recorded, judge_attempt(state, &id).await?)),
    }
}

/// The same for an agent that does not ask what it means: what cannot be judged now is judged later.
pub async fn keep(state: &AppState, handed_in: HandedIn) -> AppResult<Recorded> {
    let id = handed_in.attempt.clone();
    let Found { recorded, judgement, .. } = ask(state, &id, Some(handed_in)).await?;
    if judgement.is_none() {
        judge_or_later(state, &id).await;
    }
    recorded.ok_or_else(|| AppError::not_found("attempt"))
}

async fn ask(state: &AppState, id: &AttemptId, handed_in: Option<HandedIn>) -> AppResult<Found> {
    let now = handed_in.as_ref().map_or_else(|| state.now(), |handed_in| handed_in.at);
    let hold = ReservationId::from_ulid(state.ids.next());
    let asked = ToJudge { attempt: id.clone(), now, hold, handed_in };
    let found = state.judging.ask(asked).await.map_err(|error| AppError::or_not_found(error, "attempt"))?;
    if let Some(over) = &found.over
        && let Err(error) = settling::follow(state, over).await
    {
        tracing::warn!(attempt.id = %id, %error, "settled, and nobody was told");
    }
    Ok(found)
}

/// Reads the consoles of an attempt up to what is recorded.
async fn catch_up(state: &AppState, id: &AttemptId) -> AppResult<()> {
    for console in artifact::list(&state.db, &Owner::Attempt(id.clone())).await? {
        if console.console_source().is_some() {
            consoles::catch_up(state, id, &console).await?;
        }
    }
    Ok(())
}

/// An attempt to be judged.
#[derive(Clone, Debug)]
pub struct ToJudge {
    /// Which.
    pub attempt: AttemptId,
    /// What time it is.
    pub now: Timestamp,
    /// Id of the reservation that keeps its machine, if there will be one.
    pub hold: ReservationId,
    /// Evidence that is to be recorded first.
    pub handed_in: Option<HandedIn>,
}

/// What was found.
#[derive(Clone, Debug)]
pub struct Found {
    /// What became of what was handed in.
    pub recorded: Option<Recorded>,
    /// The judgement; `None` where a console has to be read first, or where it failed.
    pub judgement: Option<Judgement>,
    /// Whether the attempt is over with it.
    pub over: Option<Over>,
}

/// Records what is handed in, judges attempts, settles jobs.
#[derive(Debug)]
pub struct Judging {
    /// What attempts are to show.
    pub terms: Arc<KnownTerms>,
    /// What consoles say.
    pub consoles: Arc<Consoles>,
    /// Who waits for judgements.
    pub wake: Wake,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// How failures are dealt with.
    pub care: Care,
}

impl Together for Judging {
    type Ask = ToJudge;
    type Answer = Found;
    const QUEUE: usize = 4096;
    const BATCH: usize = 256;
    // What is read and written for one attempt is for many at hardly more.
    const MOMENT: Duration = Duration::from_millis(10);

    async fn write(&self, db: &Db, tx: Tx, asks: &[ToJudge]) -> DbResult<Vec<DbResult<Found>>> {
        match (self.record_and_judge(tx, asks).await, asks) {
            // Evidence is kept whatever the judge makes of it. The judgement is asked for again, and says then what is wrong.
            (Err(_), [ask @ ToJudge { handed_in: Some(handed_in), .. }]) => {
                let mut tx = db.begin().await?;
                let mut attempts = db::attempt::lock(&mut tx, &[&ask.attempt]).await?;
                let rule = &self.care.rule;
                let recording = recorder::record(&mut tx, &mut attempts, &[handed_in], rule, ask.now).await?;
                db::event::append_all(&mut tx, ask.now, &recording.told()).await?;
                db::flow::correct(&mut tx, &recording.ended).await?;
                tx.commit().await?;
                let found = |recorded| Found { recorded: Some(recorded), judgement: None, over: None };
                Ok(recording.answers.into_iter().map(|answer| answer.map(found)).collect())
            }
            (done, _) => done,
        }
    }
}

impl Judging {
    async fn record_and_judge(&self, mut tx: Tx, asks: &[ToJudge]) -> DbResult<Vec<DbResult<Found>>> {
        // One that is asked for twice is judged once.
        let wanted: BTreeMap<&AttemptId, &ToJudge> = asks.iter().map(|ask| (&ask.attempt, ask)).collect();
        let ids: Vec<&AttemptId> = wanted.keys().copied().collect();
        let now = asks.iter().map(|ask| ask.now).max().unwrap_or(Timestamp(0));
        let mut attempts = db::attempt::lock(&mut tx, &ids).await?;
        let handed_in: Vec<&HandedIn> = asks.iter().filter_map(|ask| ask.handed_in.as_ref()).collect();
        let recording = recorder::record(&mut tx, &mut attempts, &handed_in, &self.care.rule, now).await?;
        let terms = self.terms.of_all(&mut tx, &ids).await?;
        let seen = evidence::load(&mut tx, &self.consoles, attempts, now).await?;
        let opinions: Vec<Opinion<'_>> = seen
            .iter()
            .filter_map(|one| {
                let terms = terms.get(&one.locked.attempt.id)?;
                Some(Opinion::of(&one.locked, terms, one.evidence.as_ref()?, now))
            })
            .collect();
        let judged: Vec<Judged<'_>> = opinions.iter().map(Opinion::judged).collect();
        // Locks are taken in the order of [`db::flow`]: jobs and machines, then runs, then submitters.
        let changed = judgement::write_all(&mut tx, &judged, now).await?;
        let last: Vec<&Opinion<'_>> = opinions.iter().filter(|one| one.is_last()).collect();
        let over: Vec<&AttemptRow> = last.iter().map(|one| &one.locked.attempt).collect();
        let settling = settle::settle(&mut tx, &over, &self.care, now).await?;
        let mut told = recording.told();
        judgement::tell(&judged, &mut told);
        settling.tell(&over, &mut told);
        db::event::append_all(&mut tx, now, &told).await?;
        settle::follow(&mut tx, &settling, now).await?;
        let mut held = false;
        for (opinion, judged) in opinions.iter().zip(&judged) {
            if let (true, Some(ask)) = (judged.is_new(), wanted.get(&opinion.locked.attempt.id)) {
                held |= self.hold(&mut tx, opinion, &ask.hold, now).await?;
            }
        }
        db::flow::correct(&mut tx, &recording.ended).await?;
        tx.commit().await?;
        self.announce(judged.iter().zip(changed).filter(|(_, changed)| *changed).map(|(one, _)| one), held);
        let found: BTreeSet<&AttemptId> = seen.iter().map(|one| &one.locked.attempt.id).collect();
        let known: HashMap<&AttemptId, &Judgement> =
            opinions.iter().map(|one| (&one.locked.attempt.id, &one.judgement)).collect();
        let over: HashMap<&AttemptId, Over> =
            last.iter().map(|one| (&one.locked.attempt.id, one.over(&settling))).collect();
        let mut recorded = recording.answers.into_iter();
        let answer = |ask: &ToJudge| {
            let recorded = match &ask.handed_in {
                Some(_) => Some(recorded.next().ok_or(DbError::NotFound)??),
                None if found.contains(&ask.attempt) => None,
                None => return Err(DbError::NotFound),
            };
            let judgement = known.get(&ask.attempt).map(|judgement| Judgement::clone(judgement));
            Ok(Found { recorded, judgement, over: over.get(&ask.attempt).cloned() })
        };
        Ok(asks.iter().map(answer).collect())
    }
}

/// What the judge says of an attempt.
struct Opinion<'a> {
    locked: &'a Locked,
    terms: &'a Terms,
    evidence: &'a EvidenceView,
    judgement: Judgement,
    verdict: Verdict,
}

impl<'a> Opinion<'a> {
    fn of(locked: &'a Locked, terms: &'a Terms, evidence: &'a EvidenceView, now: Timestamp) -> Self {
        let build = BuildFacts { release: terms.release.clone(), build_id: terms.build_id.clone() };
        let mut judgement = judge(&terms.scenario, &build, evidence, now);
        if locked.attempt.gave_way {
            // Somebody waits for the machine, whatever the evidence says of this attempt.
            (judgement.controller, judgement.target, judgement.capture) =
                (Directive::Collect, Directive::Collect, Directive::Collect);
        }
        let verdict = Verdict {
            stages: judgement.stages.clone(),
            verdict: judgement.verdict.map(|verdict| (verdict, judgement.blamed_stage, judgement.reason.clone())),
            signature: judgement.signature.clone(),
            collecting: judgement.verdict.is_some(),
            check_at: judgement.check_at,
        };
        Self { locked, terms, evidence, judgement, verdict }
    }

    /// Whether the attempt has ended and the judge waits for nothing more.
    fn is_last(&self) -> bool {
        !self.locked.attempt.is_live() && (self.verdict.verdict.is_some() || self.verdict.check_at.is_none())
    }

    /// What is to be told of it when its job is settled.
    fn over(&self, settling: &Settling) -> Over {
        let attempt = &self.locked.attempt;
        Over {
            attempt: attempt.id.clone(),
            run: attempt.run_id.clone(),
            consoles: self.evidence.consoles.iter().map(|console| console.artifact.clone()).collect(),
            limited: self.locked.limited_submitter().cloned(),
            again: settling.again(&attempt.id).cloned(),
        }
    }

    fn judged(&self) -> Judged<'_> {
        Judged { before: &self.locked.attempt, stages: &self.evidence.stages, verdict: &self.verdict }
    }
}

impl Judging {
    fn announce<'a>(&self, changed: impl Iterator<Item = &'a Judged<'a>>, held: bool) {
        let mut count = 0;
        for one in changed {
            count += 1;
            if one.is_new() {
                self.wake.wake(&Topic::Attempt(one.before.id.clone()));
            }
            self.wake.wake(&Topic::Run(one.before.run_id.clone()));
        }
        if count > 0 {
            self.metrics.add("crashyard_judgements_total", Vec::new(), count);
            self.wake.wake(&Topic::Pass(Pass::Deadlines));
        }
        if held {
            self.wake.wake(&Topic::Pass(Pass::Machines));
        }
    }

    /// Keeps the machine as the failure left it, where the plan wants that; its verdict does not wait for its return.
    async fn hold(&self, tx: &mut Tx, opinion: &Opinion<'_>, id: &ReservationId, now: Timestamp) -> DbResult<bool> {
        let (attempt, judgement) = (&opinion.locked.attempt, &opinion.judgement);
        let minutes = opinion.terms.policy.hold_minutes;
        let wanted = minutes > 0 && judgement.verdict == Some(Status::Fail) && attempt.purpose == Purpose::Test;
        if !wanted || !attempt.is_live() {
            return Ok(false);
        }
        let owner = db::flow::submitter_of(tx, &attempt.id).await?.unwrap_or_else(|| SERVER.to_owned());
        let at = judgement.blamed_stage.map_or_else(String::new, |stage| format!(" at {stage}"));
        let row = ReservationRow {
            id: id.clone(),
            machine_id: attempt.machine_id.clone(),
            owner,
            reason: format!("held after FAIL{at}, for a look"),
            created_at: now,
            began_at: Some(now),
            until_at: now.plus(Duration::from_secs(u64::from(minutes) * 60)),
            warned_at: None,
            ended_at: None,
            ended_by: None,
            attempt_id: Some(attempt.id.clone()),
            quarantine_reason: None,
            quarantine_until: None,
            notify: None,
        };
        if !reservation::hold(tx, &row, now).await? {
            return Ok(false);
        }
        let held = db::attempt::get_in(tx, &attempt.id).await?;
        settle::settle_held(tx, &held, &self.care, now).await?;
        Ok(true)
    }
}

/// Judges an attempt whose new evidence is safe already: what fails here is done again by a pass.
pub async fn judge_or_later(state: &AppState, id: &AttemptId) {
    if let Err(error) = judge_attempt(state, id).await {
        tracing::warn!(attempt.id = %id, %error, "evidence recorded, and left to the next pass to judge");
        later(state, id);
    }
}

/// Leaves an attempt to the next pass, because it could not be judged now.
pub fn later(state: &AppState, id: &AttemptId) {
    state.unjudged.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone());
    state.wake.wake(&Topic::Pass(Pass::Deadlines));
}
