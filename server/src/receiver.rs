//! Chunks of uploads whose bytes are durable, many registered in one commit ([`crate::group`]).

use crate::db::artifact::{self, ChunkOutcome, Owner, SegmentRow};
use crate::db::attempt::{self, Whose};
use crate::db::event::{self, Told};
use crate::db::{Db, DbError, DbResult, Tx, unsigned};
use crate::group::Together;
use crashyard_protocol::api::{DUMP, EventBody};
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{AttemptId, RunId};
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// The progress of a dump is told at most this often.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

/// A chunk to be registered.
#[derive(Clone, Debug)]
pub struct Arrived {
    /// Whose file it is of.
    pub owner: Owner,
    /// Of an attempt's: the epoch it was sent under.
    pub epoch: Option<u64>,
    /// The file's name.
    pub name: String,
    /// Where its bytes are.
    pub segment: SegmentRow,
    /// Bytes that all files of the owner may have together.
    pub quota: u64,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Registered {
    /// It is registered, or is not; its progress is told in the run given here.
    As(ChunkOutcome, Option<RunId>),
    /// The owner would have more bytes than it may.
    BeyondQuota,
}

/// Registers chunks.
#[derive(Debug)]
pub struct Receiver;

impl Together for Receiver {
    type Ask = Arrived;
    type Answer = Registered;
    const QUEUE: usize = 1024;
    const BATCH: usize = 64;

    async fn write(&self, _: &Db, mut tx: Tx, asks: &[Arrived]) -> DbResult<Vec<DbResult<Registered>>> {
        let ids: Vec<&AttemptId> = asks.iter().filter_map(|ask| ask.owner.attempt()).collect();
        let attempts = if ids.is_empty() { HashMap::new() } else { attempt::whose(&mut tx, &ids).await? };
        let mut answers = Vec::with_capacity(asks.len());
        let mut grown: BTreeMap<&AttemptId, (usize, u64)> = BTreeMap::new();
        for (place, ask) in asks.iter().enumerate() {
            let answer = match held(&attempts, ask) {
                Ok(()) => Ok(register(&mut tx, ask).await?),
                Err(refused) => Err(refused),
            };
            if let (Ok(Registered::As(ChunkOutcome::Added { size }, _)), Some(id), DUMP) =
                (&answer, ask.owner.attempt(), ask.name.as_str())
            {
                grown.insert(id, (place, *size));
            }
            answers.push(answer);
        }
        // In the order of attempts and then of runs, as everybody locks them.
        let mut of_run: BTreeMap<&RunId, Vec<Told<'_>>> = BTreeMap::new();
        let now = asks.iter().map(|ask| ask.segment.received_at).max().unwrap_or(Timestamp(0));
        for (id, (place, bytes)) in grown {
            let (Some(attempt), Some(Ok(Registered::As(_, told)))) = (attempts.get(id), answers.get_mut(place)) else {
                continue;
            };
            if attempt::may_tell_progress(&mut tx, id, now, PROGRESS_EVERY).await? {
                *told = Some(attempt.run_id.clone());
                let progress = (Some(&attempt.job_id), Some(&attempt.id), EventBody::DumpProgress { bytes });
                of_run.entry(&attempt.run_id).or_default().push(progress);
            }
        }
        event::append_all(&mut tx, now, &of_run).await?;
        tx.commit().await?;
        Ok(answers)
    }
}

/// Whether the lease under which a chunk was sent holds.
fn held(attempts: &HashMap<AttemptId, Whose>, ask: &Arrived) -> DbResult<()> {
    match (ask.owner.attempt(), ask.epoch) {
        (Some(id), Some(epoch)) => attempts.get(id).ok_or(DbError::NotFound)?.check_epoch(epoch),
        _ => Ok(()),
    }
}

async fn register(tx: &mut Tx, ask: &Arrived) -> DbResult<Registered> {
    let total = artifact::bytes_of(tx, &ask.owner).await?.saturating_add(unsigned(ask.segment.length));
    if total > ask.quota {
        return Ok(Registered::BeyondQuota);
    }
    Ok(Registered::As(artifact::add_chunk(tx, &ask.segment).await?, None))
}
