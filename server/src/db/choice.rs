//! Who is next, for the claims of one transaction.
//!
//! What a submitter is charged for one claim counts for the next one at once, and is written when all are served
//! ([`Choice::finish`]).

use super::flow::{self, Charge, SubmitterRow};
use super::heads::Heads;
use super::run::JobRow;
use super::{DbResult, Tx};
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{FlowId, MachineId, SubmitterId};
use serde::Deserialize;
use sqlx::FromRow;
use std::collections::{BTreeSet, HashMap};

/// A flow that a machine could be served from.
#[derive(Clone, Debug, Deserialize, FromRow)]
pub struct Candidate {
    /// The machine.
    pub machine_id: MachineId,
    /// The flow.
    pub id: FlowId,
    /// Whose it is.
    pub submitter_id: SubmitterId,
    /// Place among the classes.
    pub class: i64,
    /// How long its attempts take.
    pub mean_ms: i64,
}

/// The state of the choice.
#[derive(Default)]
pub struct Choice {
    shares: HashMap<SubmitterId, Share>,
    /// Virtual time that nobody may be pushed beyond.
    limit: i64,
    /// Flows that gave no job, and will not in this transaction.
    empty: BTreeSet<FlowId>,
    /// Flows whose jobs must not have a certain machine.
    closed: HashMap<MachineId, BTreeSet<FlowId>>,
}

#[derive(Clone)]
struct Share {
    row: SubmitterRow,
    /// Machines it may still get; `None` is no limit.
    room: Option<i64>,
    /// Virtual time added in this transaction.
    added: i64,
}

impl Choice {
    /// Between these flows.
    pub async fn new(tx: &mut Tx, flows: &HashMap<MachineId, Vec<Candidate>>) -> DbResult<Self> {
        if flows.is_empty() {
            return Ok(Self::default());
        }
        let competing: BTreeSet<&SubmitterId> = flows.values().flatten().map(|flow| &flow.submitter_id).collect();
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
        Ok(Self { shares, limit, ..Self::default() })
    }

    /// The same choice, to be tried out.
    #[must_use]
    pub fn rehearsal(&self) -> Self {
        Self { shares: self.shares.clone(), limit: self.limit, ..Self::default() }
    }

    /// The flow that is next for a machine among these.
    #[must_use]
    pub fn best<'a>(&self, machine: &MachineId, flows: &'a [Candidate]) -> Option<&'a Candidate> {
        let closed = self.closed.get(machine);
        let open = flows
            .iter()
            .filter(|flow| !self.empty.contains(&flow.id) && !closed.is_some_and(|closed| closed.contains(&flow.id)));
        let keyed = open.filter_map(|flow| {
            let share = self.shares.get(&flow.submitter_id)?;
            let room = share.room.is_none_or(|room| room > 0);
            room.then(|| ((flow.class, share.row.virtual_time.min(self.limit) + share.added, &flow.id), flow))
        });
        keyed.min_by(|(a, _), (b, _)| a.cmp(b)).map(|(_, flow)| flow)
    }

    /// The flow that is next for a machine among these, and the first of its jobs that may have it.
    pub async fn next(
        &mut self,
        tx: &mut Tx,
        heads: &mut Heads,
        machine: &MachineId,
        flows: &[Candidate],
    ) -> DbResult<Option<(JobRow, Candidate)>> {
        while let Some(flow) = self.best(machine, flows) {
            if let Some(job) = heads.take(tx, &flow.id, machine).await? {
                return Ok(Some((job, flow.clone())));
            }
            if heads.has_more(tx, &flow.id).await? {
                self.closed.entry(machine.clone()).or_default().insert(flow.id.clone());
            } else {
                self.empty.insert(flow.id.clone());
            }
        }
        Ok(None)
    }

    /// Charges the submitter of a flow for one attempt; returns the machine time, in milliseconds.
    pub fn charge(&mut self, flow: &Candidate) -> i64 {
        let charged = if flow.mean_ms > 0 { flow.mean_ms } else { flow::FIRST_CHARGE_MS };
        if let Some(share) = self.shares.get_mut(&flow.submitter_id) {
            share.added = share.added.saturating_add(charged.saturating_mul(1000) / share.row.weight.max(1));
            share.room = share.room.map(|room| room - 1);
        }
        charged
    }

    /// Writes down what was found out, in the order of locks.
    pub async fn finish(self, tx: &mut Tx, now: Option<Timestamp>) -> DbResult<()> {
        for flow in &self.empty {
            flow::retire(tx, flow).await?;
        }
        let charges: Vec<Charge<'_>> = self
            .shares
            .iter()
            .filter(|(_, share)| share.added > 0 || share.row.virtual_time > self.limit)
            .map(|(id, share)| Charge { id, added: share.added, now: now.filter(|_| share.added > 0) })
            .collect();
        flow::charge(tx, &charges, self.limit).await
    }
}
