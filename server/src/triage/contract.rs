//! The judge: from evidence to stages, verdict and directives.
//!
//! A stage is settled by whatever came first: its proof, conclusive evidence against it, or its deadline. Because
//! every piece of evidence carries the moment the server had it, this can be answered at any later moment as well,
//! and the answer is the one that a judge who looked after every write would have given. That is what makes the
//! judgement safe to repeat, to make late, and to make twice.
//!
//! What it must never do: prove a stage because nothing bad was heard, count time in which the server was away, or
//! change a stage that was settled before (see [`EvidenceView::stages`]).

use super::evidence::{BuildFacts, EvidenceView};
use super::rules::{Failure, Proven, assess, signature, waits_for};
use super::scene::Scene;
use crashyard_protocol::agent::Directive;
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{Scenario, Stage, StageName, StageState, Status};
use std::time::Duration;

/// What the evidence means.
#[derive(Clone, Debug, PartialEq)]
pub struct Judgement {
    /// The eight stages, in order.
    pub stages: Vec<Stage>,
    /// The verdict; `None` while the contract is open, which everybody reads as `MISS`.
    pub verdict: Option<Status>,
    /// When the verdict was decided.
    pub judged_at: Option<Timestamp>,
    /// The stage where the contract stopped. Never `returned`: the verdict stands whatever becomes of the machine.
    pub blamed_stage: Option<StageName>,
    /// Why, in one line: what was seen, and what a person can do.
    pub reason: Option<String>,
    /// Title of the crash that nobody asked for, where the contract stopped at one.
    pub signature: Option<String>,
    /// For the target agent. `Continue` means that there is nothing to say yet: hold its request.
    pub target: Directive,
    /// For the capture agent.
    pub capture: Directive,
    /// For the controller.
    pub controller: Directive,
    /// Why the machine cannot be trusted any more, once that is known.
    pub quarantine: Option<String>,
    /// When to judge again if nothing arrives until then; `None` when everything is settled.
    pub check_at: Option<Timestamp>,
}

/// Judges an attempt. Pure and total: the same evidence gives the same judgement, and no evidence makes it fail.
///
/// `now` only decides which deadlines have passed; evidence that the server had later than `now` is not looked at.
#[must_use]
pub fn judge(scenario: &Scenario, build: &BuildFacts, evidence: &EvidenceView, now: Timestamp) -> Judgement {
    let scene = Scene::new(scenario, build, evidence, now);
    let mut walk = Walk { scene: &scene, now, check_at: scene.next_evidence(), stages: Vec::new() };

    let mut started = evidence.started_at;
    let mut stop: Option<(StageName, Status, Timestamp, String)> = None;
    let mut open = false;
    for name in StageName::ALL.iter().copied().filter(|name| *name != StageName::Returned) {
        let stage = if open {
            Stage::pending(name)
        } else if let Some((blamed, _, at, _)) = &stop {
            skipped(name, *blamed, *at)
        } else {
            walk.settle(name, started)
        };
        let settled_at = stage.settled_at.unwrap_or(started);
        match stage.state {
            StageState::Proven => started = settled_at,
            StageState::Failed if stop.is_none() => {
                // A stored stage that contradicts itself must not turn into a pass.
                let blames = |status: &Status| matches!(status, Status::Fail | Status::Error | Status::Miss);
                let status = stage.status.filter(blames).unwrap_or(Status::Error);
                stop = Some((name, status, settled_at, stage.reason.clone().unwrap_or_default()));
            }
            StageState::Failed | StageState::Skipped => {}
            StageState::Pending | StageState::Active => open = true,
        }
        walk.stages.push(stage);
    }

    let (verdict, judged_at, blamed_stage, reason) = match stop {
        _ if open => (None, None, None, None),
        Some((name, status, at, reason)) => (Some(status), Some(at), Some(name), Some(reason)),
        None => (Some(Status::Pass), Some(started), None, None),
    };
    let returned = match judged_at {
        Some(at) => walk.settle(StageName::Returned, at),
        None => Stage::pending(StageName::Returned),
    };
    let quarantine = (returned.state == StageState::Failed).then(|| returned.reason.clone().unwrap_or_default());
    walk.stages.push(returned);

    let Walk { stages, check_at, .. } = walk;
    let proven = |name: StageName| stages.iter().any(|stage| stage.name == name && stage.state == StageState::Proven);
    let (target, capture) = match verdict {
        None if proven(StageName::Armed) && !proven(StageName::Triggered) => (Directive::Trigger, Directive::Continue),
        None => (Directive::Continue, Directive::Continue),
        Some(Status::Pass) => (Directive::Stop { reason: "The contract is kept.".to_owned() }, Directive::Continue),
        Some(_) => {
            let reason = reason.clone().unwrap_or_default();
            (Directive::Stop { reason: reason.clone() }, Directive::Stop { reason })
        }
    };
    let controller = if verdict.is_some() { Directive::Collect } else { Directive::Continue };
    let signature = blamed_stage.and_then(|blamed| signature(&scene, blamed));
    Judgement {
        stages,
        verdict,
        judged_at,
        blamed_stage,
        reason,
        signature,
        target,
        capture,
        controller,
        quarantine,
        check_at,
    }
}

/// A walk along the stages.
struct Walk<'a> {
    scene: &'a Scene<'a>,
    now: Timestamp,
    check_at: Option<Timestamp>,
    stages: Vec<Stage>,
}

impl Walk<'_> {
    /// Settles a stage that began at `started`, or says how long it is waited for.
    fn settle(&mut self, name: StageName, started: Timestamp) -> Stage {
        if let Some(known) = self.scene.evidence.stages.iter().find(|stage| stage.name == name && is_settled(stage)) {
            return known.clone();
        }
        let deadline = self.deadline(self.scene, name, started);
        let found = assess(name, self.scene, started);
        // Before the deadline, or not at all: what comes at the deadline comes too late, whoever asks and when.
        let proven_at = found.proven.map(|proven| proven.at.max(started)).filter(|at| *at < deadline);
        let failed_at = found.failures.iter().map(|failure| failure.at.max(started)).filter(|at| *at < deadline).min();
        let failed_now = failed_at.filter(|at| *at <= self.now);

        let open = Stage {
            name,
            state: StageState::Active,
            status: None,
            started_at: Some(started),
            deadline_at: Some(deadline),
            settled_at: None,
            reason: None,
            proofs: Vec::new(),
        };
        match (proven_at, failed_now) {
            (Some(at), None) => self.proven(open, at),
            (Some(at), Some(failed)) if at <= failed => self.proven(open, at),
            (_, Some(at)) => self.failed(open, at),
            (None, None) if self.now >= deadline => self.overdue(open, deadline),
            (None, None) => {
                let next = failed_at.unwrap_or(deadline);
                self.check_at = Some(self.check_at.map_or(next, |at| at.min(next)));
                open
            }
        }
    }

    // Each of these looks again at the evidence as it was at the moment of the decision, for its words and proofs.

    fn proven(&self, stage: Stage, at: Timestamp) -> Stage {
        let (then, started) = self.back_at(&stage, at);
        let found = assess(stage.name, &then, started).proven;
        let Proven { text, proofs, .. } = found.unwrap_or_else(|| Proven { at, text: String::new(), proofs: vec![] });
        let deadline_at = Some(self.deadline(&then, stage.name, started));
        let stage = Stage { deadline_at, proofs, ..stage };
        close(stage, StageState::Proven, Status::Pass, at, text)
    }

    fn failed(&self, stage: Stage, at: Timestamp) -> Stage {
        let (then, started) = self.back_at(&stage, at);
        let found = assess(stage.name, &then, started);
        let failure = found.failures.into_iter().find(|failure| failure.at.max(started) == at);
        let Failure { status, text, proofs, .. } = failure.unwrap_or(found.overdue);
        let deadline_at = Some(self.deadline(&then, stage.name, started));
        let stage = Stage { deadline_at, proofs, ..stage };
        close(stage, StageState::Failed, status, at, text)
    }

    fn overdue(&self, stage: Stage, deadline: Timestamp) -> Stage {
        let (then, started) = self.back_at(&stage, Timestamp(deadline.0.saturating_sub(1)));
        let Failure { status, text, proofs, .. } = assess(stage.name, &then, started).overdue;
        let text = format!("{text} (Waited {} s.)", self.limit(&then, stage.name, started).as_secs());
        close(Stage { proofs, ..stage }, StageState::Failed, status, deadline, text)
    }

    /// The scene as it was at a moment, and when the stage began.
    fn back_at(&self, stage: &Stage, at: Timestamp) -> (Scene<'_>, Timestamp) {
        (self.scene.until(at), stage.started_at.unwrap_or(at))
    }

    fn deadline(&self, scene: &Scene<'_>, stage: StageName, started: Timestamp) -> Timestamp {
        scene.after(started, self.limit(scene, stage, started))
    }

    /// How long a stage may take: its own time, and where it waits for others theirs, if they begin within it.
    fn limit(&self, scene: &Scene<'_>, stage: StageName, started: Timestamp) -> Duration {
        let deadlines = &scene.scenario.deadlines;
        let mut limit = deadlines.of(stage);
        for (other, since) in waits_for(stage, scene, started) {
            if since >= scene.after(started, limit) {
                break;
            }
            limit += deadlines.of(other);
        }
        limit
    }
}

fn close(stage: Stage, state: StageState, status: Status, at: Timestamp, text: String) -> Stage {
    Stage { state, status: Some(status), settled_at: Some(at), reason: Some(text), ..stage }
}

fn is_settled(stage: &Stage) -> bool {
    matches!(stage.state, StageState::Proven | StageState::Failed | StageState::Skipped)
}

fn skipped(name: StageName, blamed: StageName, at: Timestamp) -> Stage {
    let reason = format!("Not reached: the contract stopped at `{blamed}`.");
    Stage {
        state: StageState::Skipped,
        status: Some(Status::Skip),
        settled_at: Some(at),
        reason: Some(reason),
        ..Stage::pending(name)
    }
}
