//! From rows to what goes over the wire. Rows and wire types change for different reasons, so this is written out.

use crate::app::AppState;
use crate::db::artifact::{ArtifactRow, Owner};
use crate::db::attempt::FullAttempt;
use crate::db::build::BuildRow;
use crate::db::errand::{ErrandRow, Kind};
use crate::db::event::EventRow;
use crate::db::flow::SubmitterNow;
use crate::db::machine::NamedMachine;
use crate::db::plan::{PlanBody, PlanRow, ScenarioRow};
use crate::db::report::ReportRow;
use crate::db::reservation::ReservationRow;
use crate::db::run::{CountRow, RunRow, SelectedJob};
use crate::db::signature::{PlaceRow, SignatureRow};
use crate::db::token::TokenRow;
use crate::db::tree::{CheckoutRow, TreeRow};
use crate::db::{self, unsigned};
use crate::error::AppResult;
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{AttemptId, MachineState, Status, api};
use std::collections::BTreeMap;

/// A stored count, as the wire has it.
fn count(value: i64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// A tree.
#[must_use]
pub fn tree(row: TreeRow) -> api::Tree {
    api::Tree { id: row.id, name: row.name, git_url: row.git_url, created_at: row.created_at }
}

/// A checkout.
#[must_use]
pub fn checkout(row: CheckoutRow) -> api::Checkout {
    api::Checkout {
        id: row.id,
        tree: row.tree_id,
        git_commit_hash: row.git_commit_hash,
        git_repository_branch: row.git_repository_branch,
        git_commit_name: row.git_commit_name,
        created_at: row.created_at,
    }
}

/// A signature with places where it was seen.
#[must_use]
pub fn signature(row: SignatureRow, places: Vec<PlaceRow>) -> api::Signature {
    api::Signature {
        id: row.id,
        title: row.title,
        kind: row.kind,
        frame: row.frame,
        module: row.module,
        frames: row.frames.0,
        rules: count(row.rule_version),
        first_seen_at: row.first_seen_at,
        last_seen_at: row.last_seen_at,
        attempts: unsigned(row.attempts),
        reports: unsigned(row.reports),
        seen: places
            .into_iter()
            .map(|place| api::SignatureAttempt {
                attempt: place.attempt_id,
                run: place.run_id,
                number: count(place.number),
                machine_name: place.machine_name,
                verdict: place.verdict,
                source: place.source,
                start: unsigned(place.start_at),
                line: unsigned(place.line),
                reports: unsigned(place.reports),
                seen_at: place.seen_at,
            })
            .collect(),
    }
}

/// An artifact.
#[must_use]
pub fn artifact(row: ArtifactRow) -> api::Artifact {
    api::Artifact {
        id: row.id,
        build: row.build_id,
        attempt: row.attempt_id,
        name: row.name,
        state: row.state,
        size: unsigned(row.size),
        blake3: row.blake3,
        created_at: row.created_at,
        held: row.held_at.map(|at| api::Hold {
            at,
            by: row.held_by.unwrap_or_default(),
            reason: row.held_reason.unwrap_or_default(),
        }),
        dropped: row.dropped_at.map(|at| api::Dropped { at, reason: row.dropped_reason.unwrap_or_default() }),
    }
}

/// A build with its files.
pub async fn build(state: &AppState, row: BuildRow) -> AppResult<api::Build> {
    let artifacts = db::artifact::list(&state.db, &Owner::Build(row.id.clone())).await?;
    Ok(api::Build {
        id: row.id,
        checkout: row.checkout_id,
        name: row.name,
        architecture: row.architecture,
        release: row.release,
        build_id: row.build_id,
        config_name: row.config_name,
        cmdline: row.cmdline,
        artifacts: artifacts.into_iter().map(artifact).collect(),
        created_at: row.created_at,
    })
}

/// A stored scenario.
#[must_use]
pub fn scenario(row: ScenarioRow) -> api::StoredScenario {
    api::StoredScenario { id: row.id, scenario: row.body.0, updated_at: row.updated_at }
}

/// A stored plan.
#[must_use]
pub fn plan(row: PlanRow) -> api::Plan {
    let PlanBody { scenarios, selector, requires, repetitions, policy } = row.body.0;
    api::Plan {
        id: row.id,
        plan: api::NewPlan { name: row.name, scenarios, selector, requires, repetitions, policy },
        updated_at: row.updated_at,
    }
}

/// A run with its jobs by verdict.
#[must_use]
pub fn run(row: RunRow, counts: &[CountRow]) -> api::Run {
    let counts: BTreeMap<Status, u32> =
        counts.iter().filter(|other| other.run_id == row.id).map(|other| (other.status, count(other.count))).collect();
    api::Run {
        id: row.id,
        build: row.build_id,
        name: row.name,
        plan: row.plan,
        state: row.state,
        status: row.status,
        counts,
        created_at: row.created_at,
        finished_at: row.finished_at,
        last_event: unsigned(row.last_event),
    }
}

/// A submitter with what it has now.
#[must_use]
pub fn submitter(row: SubmitterNow) -> api::Submitter {
    let SubmitterNow { submitter, machines, waiting } = row;
    api::Submitter {
        id: submitter.id,
        name: submitter.name,
        weight: count(submitter.weight),
        max_machines: submitter.max_machines.map(count),
        machines: count(machines),
        machine_seconds: unsigned(submitter.machine_ms) / 1000,
        waiting,
        created_at: submitter.created_at,
    }
}

/// A job.
#[must_use]
pub fn job(row: SelectedJob, attempts: Vec<AttemptId>) -> api::Job {
    let SelectedJob { job, labels, requires, priority } = row;
    api::Job {
        id: job.id,
        run: job.run_id,
        ordinal: count(job.ordinal),
        scenario: job.scenario.0,
        selector: labels.0,
        requires: requires.0,
        priority,
        deadline: job.deadline_at,
        state: job.state,
        status: job.status,
        reason: job.reason,
        blamed_stage: job.blamed_stage,
        attempts,
        created_at: job.created_at,
        finished_at: job.finished_at,
    }
}

/// An attempt with its stages and artifacts.
pub async fn attempt(state: &AppState, full: FullAttempt) -> AppResult<api::Attempt> {
    let row = full.attempt;
    let artifacts = db::artifact::list(&state.db, &Owner::Attempt(row.id.clone())).await?;
    Ok(api::Attempt {
        stages: db::attempt::stages(&state.db, &row.id).await?,
        artifacts: artifacts.into_iter().map(artifact).collect(),
        id: row.id,
        job: row.job_id,
        run: row.run_id,
        number: count(row.number),
        purpose: row.purpose,
        build: full.build_id,
        held_until: row.held_until,
        machine: row.machine_id,
        machine_name: full.machine_name,
        controller: row.controller_id,
        state: row.state,
        verdict: row.verdict,
        reason: row.reason,
        blamed_stage: row.blamed_stage,
        started_at: row.started_at,
        finished_at: row.finished_at,
    })
}

/// A report.
#[must_use]
pub fn evidence(row: ReportRow) -> api::Evidence {
    api::Evidence { by: row.role, seq: unsigned(row.seq), report: row.body.0, received_at: row.received_at }
}

/// A machine with the reservation and the errands that are open for it.
#[must_use]
pub fn machine(
    named: NamedMachine,
    reserved: Option<ReservationRow>,
    errands: &[ErrandRow],
    now: Timestamp,
) -> api::Machine {
    let reachable = named.is_reachable(now);
    let row = named.machine;
    api::Machine {
        reachable,
        quarantined_until: row.quarantined_until,
        differs: row.differs,
        on_probation: row.probation > 0 && row.state != MachineState::Quarantined,
        reservation: reserved.map(reservation),
        // That an enrolled machine is powered off first, its state says.
        errand: errands.iter().find(|one| one.kind == Kind::Check || row.state != MachineState::Enrolled).map(in_words),
        id: row.id,
        name: row.name,
        driver: row.driver,
        controller: row.controller_id,
        controller_name: named.controller_name,
        labels: crate::inventory::together(&row.labels, &row.seen_labels),
        state: row.state,
        reason: row.reason,
        state_since: row.state_since,
        attempt: row.attempt_id,
        lease_epoch: unsigned(row.lease_epoch),
        last_seen_at: row.last_seen_at,
    }
}

/// An open errand.
fn in_words(row: &ErrandRow) -> String {
    let what = match row.kind {
        Kind::Check => format!("before its next job, as {} wants it, power and consoles are checked", row.wanted_by),
        Kind::Off => format!("before its next job it is powered off, as {} had it", row.wanted_by),
    };
    if row.given_at.is_some() { format!("{what}; its controller is at it") } else { what }
}

/// A reservation.
#[must_use]
pub fn reservation(row: ReservationRow) -> api::Reservation {
    api::Reservation {
        id: row.id,
        owner: row.owner,
        reason: row.reason,
        created_at: row.created_at,
        began_at: row.began_at,
        until: row.until_at,
        warned: row.warned_at.is_some(),
        notifies: row.notify.is_some(),
        attempt: row.attempt_id,
    }
}

/// A token.
#[must_use]
pub fn token(row: TokenRow) -> api::Token {
    api::Token {
        id: row.id,
        name: row.name,
        scope: row.scope,
        created_at: row.created_at,
        expires_at: row.expires_at,
        revoked_at: row.revoked_at,
    }
}

/// An event.
#[must_use]
pub fn event(row: EventRow) -> api::Event {
    api::Event { seq: unsigned(row.seq), at: row.at, job: row.job_id, attempt: row.attempt_id, body: row.body.0 }
}
