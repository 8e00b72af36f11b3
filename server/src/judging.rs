//! From recorded evidence to a written judgement: loads what is recorded, asks [`crate::triage::judge`], writes.
//!
//! Called after every write of evidence, at the moments the judge asked for, and after a restart. All of that is
//! harmless to repeat: the judgement is a function of what is recorded, and writing the same one again changes
//! nothing. If a server dies between a write and its judgement, the next one that looks makes it.

use crate::app::AppState;
use crate::consoles;
use crate::db::artifact::{ArtifactRow, Owner};
use crate::db::attempt::FullAttempt;
use crate::db::judgement::{Applied, Verdict};
use crate::db::lease::{self, Settled};
use crate::db::life::SERVER;
use crate::db::reservation::{self, ReservationRow};
use crate::db::{self, Tx, unsigned};
use crate::error::{AppError, AppResult};
use crate::triage::away::Span;
use crate::triage::{BuildFacts, ConsoleEvidence, DumpEvidence, EvidenceView, Intent, Judgement, Lease, judge};
use crate::wake::{Pass, Topic};
use crashyard_protocol::agent::Directive;
use crashyard_protocol::api::{DUMP, Evidence};
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{AttemptId, AttemptState, Purpose, ReservationId, Stage, Status};
use std::sync::PoisonError;
use std::time::Duration;

/// How often a judgement is made again because another came between, before the server says that it is overloaded.
const TRIES: usize = 16;

/// The kernel under test, as the judge needs it.
#[must_use]
pub fn build_facts(attempt: &FullAttempt) -> BuildFacts {
    BuildFacts { release: attempt.build_release.clone(), build_id: attempt.build_gnu_id.clone() }
}

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

/// Judges an attempt from what is recorded now, writes what changed and wakes who waits for it.
pub async fn judge_attempt(state: &AppState, id: &AttemptId) -> AppResult<Judgement> {
    for _ in 0..TRIES {
        let full = db::attempt::full(&state.db, id).await.map_err(|error| AppError::or_not_found(error, "attempt"))?;
        let evidence = load(state, &full).await?;
        let now = state.now();
        let mut judgement = judge(&full.scenario, &build_facts(&full), &evidence, now);
        if full.attempt.gave_way {
            // Somebody waits for the machine, whatever the evidence says of this attempt.
            (judgement.controller, judgement.target, judgement.capture) =
                (Directive::Collect, Directive::Collect, Directive::Collect);
        }
        match write(state, &full, &evidence.stages, &judgement, now).await? {
            Applied::Stale => {}
            Applied::Same => return Ok(judgement),
            Applied::Changed => {
                state.metrics.add("crashyard_judgements_total", Vec::new(), 1);
                announce(state, &full);
                return Ok(judgement);
            }
        }
    }
    Err(AppError::Unavailable(anyhow::anyhow!("attempt {id} changes faster than it can be judged")))
}

fn announce(state: &AppState, attempt: &FullAttempt) {
    state.wake.wake(&Topic::Attempt(attempt.attempt.id.clone()));
    state.wake.wake(&Topic::Run(attempt.attempt.run_id.clone()));
    state.wake.wake(&Topic::Pass(Pass::Deadlines));
}

async fn write(
    state: &AppState,
    full: &FullAttempt,
    stages_before: &[Stage],
    judgement: &Judgement,
    now: Timestamp,
) -> AppResult<Applied> {
    let verdict = Verdict {
        stages: judgement.stages.clone(),
        verdict: judgement.verdict.map(|verdict| (verdict, judgement.blamed_stage, judgement.reason.clone())),
        signature: judgement.signature.clone(),
        collecting: judgement.verdict.is_some(),
        check_at: judgement.check_at,
    };
    let mut tx = state.db.begin().await?;
    let applied = db::judgement::apply(&mut tx, &full.attempt, stages_before, &verdict, now).await?;
    if applied == Applied::Changed {
        if full.attempt.judged_at.is_none() && judgement.verdict == Some(Status::Fail) {
            hold(state, &mut tx, full, judgement, now).await?;
        }
        tx.commit().await?;
    }
    Ok(applied)
}

/// Keeps the machine as the failure left it, where the plan wants that; its verdict does not wait for its return.
async fn hold(
    state: &AppState,
    tx: &mut Tx,
    full: &FullAttempt,
    judgement: &Judgement,
    now: Timestamp,
) -> AppResult<()> {
    let attempt = &full.attempt;
    let minutes = full.policy.hold_minutes;
    if minutes == 0 || attempt.purpose != Purpose::Test || !attempt.is_live() {
        return Ok(());
    }
    let owner = db::flow::submitter_of(tx, &attempt.id).await?.unwrap_or_else(|| SERVER.to_owned());
    let at = judgement.blamed_stage.map_or_else(String::new, |stage| format!(" at {stage}"));
    let row = ReservationRow {
        id: ReservationId::from_ulid(state.ids.next()),
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
    };
    if reservation::hold(tx, &row, now).await? {
        let held = db::attempt::get_in(tx, &attempt.id).await?;
        lease::settle_held(tx, &held, &state.config.care(), now).await?;
        state.wake.wake(&Topic::Pass(Pass::Machines));
    }
    Ok(())
}

/// Everything that is recorded about an attempt, as the judge wants to see it.
async fn load(state: &AppState, full: &FullAttempt) -> AppResult<EvidenceView> {
    let attempt = &full.attempt;
    let reports = db::report::of_attempt(&state.db, &attempt.id).await?;
    let artifacts = db::artifact::list(&state.db, &Owner::Attempt(attempt.id.clone())).await?;
    let intent = Intent::new(&attempt.id, &full.scenario);
    let mut console_evidence = Vec::new();
    for console in artifacts.iter().filter(|artifact| artifact.console_source().is_some()) {
        let facts = consoles::facts(state, console, &intent).await?;
        console_evidence.push(ConsoleEvidence { artifact: console.id.clone(), facts });
    }
    let mut away = lease::away_since(&state.db, attempt.started_at).await?;
    if let (Some(from), Some(to)) = (attempt.judged_at, attempt.held_until) {
        // A machine that is kept for a person is not late.
        away.push((from, to.min(state.now())));
        away.sort();
    }
    let reading = match &attempt.dump_facts {
        Some(facts) => Some(
            serde_json::from_value(facts.0.clone())
                .map_err(|error| AppError::Internal(anyhow::Error::new(error).context("stored dump facts")))?,
        ),
        None => None,
    };
    Ok(EvidenceView {
        attempt: attempt.id.clone(),
        started_at: attempt.started_at,
        lease: lease_of(attempt),
        reports: reports
            .into_iter()
            .map(|row| Evidence {
                by: row.role,
                seq: unsigned(row.seq),
                report: row.body.0,
                received_at: row.received_at,
            })
            .collect(),
        consoles: console_evidence,
        dump: artifacts.iter().find(|artifact| artifact.name == DUMP).map(dump_evidence),
        reading,
        server_away: away.into_iter().map(|(from, to)| Span { from, to }).collect(),
        stages: db::attempt::stages(&state.db, &attempt.id).await?,
    })
}

fn lease_of(attempt: &db::attempt::AttemptRow) -> Lease {
    let at = attempt.finished_at.unwrap_or(attempt.lease_expires_at);
    match attempt.state {
        AttemptState::Running | AttemptState::Collecting => Lease::Held,
        AttemptState::Lost => Lease::Lost { at },
        AttemptState::Done => Lease::Released {
            at,
            healthy: attempt.released_healthy.unwrap_or(false),
            detail: attempt.release_detail.clone().unwrap_or_default(),
        },
    }
}

fn dump_evidence(artifact: &ArtifactRow) -> DumpEvidence {
    DumpEvidence {
        bytes: unsigned(artifact.size),
        completed_at: artifact.completed_at,
        blake3: artifact.blake3.clone(),
        mismatch: artifact.mismatch_at.zip(artifact.mismatch.clone()),
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

/// Does what is owed after an attempt has ended: judges it a last time and settles its job. `false` while the judge
/// still waits for a moment to pass (the pass for deadlines comes back then).
pub async fn finish(state: &AppState, id: &AttemptId) -> AppResult<bool> {
    let judgement = judge_attempt(state, id).await?;
    if judgement.verdict.is_none() && judgement.check_at.is_some() {
        return Ok(false);
    }
    let mut tx = state.db.begin().await?;
    let ended = db::attempt::get_in(&mut tx, id).await?;
    if ended.is_live() {
        return Ok(false);
    }
    let settled = lease::settle(&mut tx, &ended, &state.config.care(), state.now()).await?;
    tx.commit().await?;
    for artifact in db::artifact::list(&state.db, &Owner::Attempt(id.clone())).await? {
        state.consoles.forget(&artifact.id);
        state.wake.wake(&Topic::Console(artifact.id));
    }
    state.wake.wake(&Topic::Attempt(id.clone()));
    state.wake.wake(&Topic::Run(ended.run_id.clone()));
    state.wake.wake(&Topic::Pass(Pass::Compact));
    state.wake.wake(&Topic::Pass(Pass::Dumps));
    crate::agent::claim::offer_room(state, id).await?;
    if settled == Settled::Queued {
        let job = db::run::job(&state.db, &ended.job_id).await?.job;
        match &job.only_machine_id {
            Some(machine) => {
                state.wake.wake(&Topic::Machine(machine.clone()));
            }
            None => crate::agent::claim::offer(state, &job.selector_id, 1).await?,
        }
        state.wake.wake(&Topic::Pass(Pass::Machines));
    }
    Ok(true)
}
