//! From rows to the evidence that the judge wants to see.

use crate::consoles::Consoles;
use crate::db::artifact::{self, ArtifactRow};
use crate::db::attempt::{self, AttemptRow, Locked};
use crate::db::report::{self, ReportRow};
use crate::db::{DbError, DbResult, Tx, presence, unsigned};
use crate::triage::away::Span;
use crate::triage::{ConsoleEvidence, DumpEvidence, EvidenceView, Lease};
use crashyard_protocol::api::{DUMP, Evidence};
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{AttemptId, AttemptState};
use std::collections::HashMap;
use std::hash::Hash;

/// An attempt, and what is recorded of it.
#[derive(Debug)]
pub struct Seen {
    /// The attempt.
    pub locked: Locked,
    /// The evidence; `None` where a console has to be read first.
    pub evidence: Option<EvidenceView>,
}

/// Everything that is recorded about these attempts, which are locked.
pub async fn load(tx: &mut Tx, consoles: &Consoles, attempts: Vec<Locked>, now: Timestamp) -> DbResult<Vec<Seen>> {
    let ids: Vec<AttemptId> = attempts.iter().map(|locked| locked.attempt.id.clone()).collect();
    let ids = &ids.iter().collect::<Vec<_>>();
    let mut reports = grouped(report::of_attempts(tx, ids).await?, |row| Some(row.attempt_id.clone()));
    let mut artifacts = grouped(artifact::of_attempts(tx, ids).await?, |row| row.attempt_id.clone());
    let mut stages = attempt::stages_of(tx, ids).await?;
    let first = attempts.iter().map(|locked| locked.attempt.started_at).min().unwrap_or(now);
    let away = presence::away_since(tx, first).await?;
    let mut all = Vec::with_capacity(attempts.len());
    for locked in attempts {
        let id = &locked.attempt.id;
        let artifacts = artifacts.remove(id).unwrap_or_default();
        let evidence = match said(consoles, &artifacts) {
            None => None,
            Some(consoles) => Some(EvidenceView {
                attempt: id.clone(),
                started_at: locked.attempt.started_at,
                lease: lease_of(&locked.attempt),
                reports: reports.remove(id).unwrap_or_default().into_iter().map(reported).collect(),
                consoles,
                dump: artifacts.iter().find(|artifact| artifact.name == DUMP).map(dump_evidence),
                reading: reading(&locked.attempt)?,
                server_away: away_for(&locked.attempt, &away, now),
                stages: stages.remove(id).unwrap_or_default(),
            }),
        };
        all.push(Seen { locked, evidence });
    }
    Ok(all)
}

/// Rows by whose they are.
pub fn grouped<K: Hash + Eq, T>(rows: Vec<T>, whose: impl Fn(&T) -> Option<K>) -> HashMap<K, Vec<T>> {
    let mut all: HashMap<K, Vec<T>> = HashMap::new();
    for row in rows {
        if let Some(id) = whose(&row) {
            all.entry(id).or_default().push(row);
        }
    }
    all
}

/// What the consoles among these files say; `None` if one was not read to its end yet.
fn said(consoles: &Consoles, artifacts: &[ArtifactRow]) -> Option<Vec<ConsoleEvidence>> {
    let consoles_of = artifacts.iter().filter(|artifact| artifact.console_source().is_some());
    consoles_of
        .map(|console| {
            let facts = consoles.peek(&console.id, unsigned(console.size))?;
            Some(ConsoleEvidence { artifact: console.id.clone(), facts })
        })
        .collect()
}

fn reported(row: ReportRow) -> Evidence {
    Evidence { by: row.role, seq: unsigned(row.seq), report: row.body.0, received_at: row.received_at }
}

fn reading(attempt: &AttemptRow) -> DbResult<Option<crate::triage::DumpReading>> {
    let Some(facts) = &attempt.dump_facts else { return Ok(None) };
    let reading = serde_json::from_value(facts.0.clone());
    Ok(Some(reading.map_err(|error| DbError::Other(sqlx::Error::Decode(Box::new(error))))?))
}

/// When the server was away since the attempt began, and when its machine was kept for a person: it is not late then.
fn away_for(attempt: &AttemptRow, away: &[(Timestamp, Timestamp)], now: Timestamp) -> Vec<Span> {
    let held = attempt.judged_at.zip(attempt.held_until).map(|(from, until)| (from, until.min(now)));
    let since = away.iter().copied().filter(|(_, to)| *to >= attempt.started_at);
    let mut all: Vec<(Timestamp, Timestamp)> = since.chain(held).collect();
    all.sort();
    all.into_iter().map(|(from, to)| Span { from, to }).collect()
}

fn lease_of(attempt: &AttemptRow) -> Lease {
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
