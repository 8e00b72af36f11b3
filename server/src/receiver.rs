//! Chunks of uploads whose bytes are durable, many registered in one commit ([`crate::group`]).

use crate::db::attempt;
use crate::db::chunk::{self, Arrived, ChunkOutcome, GrownDump};
use crate::db::event::{self, Told};
use crate::db::{Db, DbError, DbResult, Tx};
use crate::group::Together;
use crashyard_protocol::api::EventBody;
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{AttemptId, RunId};
use std::collections::BTreeMap;
use std::time::Duration;

/// The progress of a dump is told at most this often.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

/// What became of a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registered {
    /// Whether it is registered.
    pub outcome: ChunkOutcome,
    /// The run in which its progress is told.
    pub told: Option<RunId>,
}

/// Registers chunks.
#[derive(Debug)]
pub struct Receiver;

impl Together for Receiver {
    type Ask = Arrived;
    type Answer = Registered;
    const QUEUE: usize = 1024;
    const BATCH: usize = 64;

    async fn write(&self, db: &Db, tx: Tx, asks: &[Arrived]) -> DbResult<Vec<DbResult<Registered>>> {
        match (register(tx, asks).await, asks) {
            // Another server has registered this chunk since it was looked for: it is found now.
            (Err(DbError::Conflict(_)), [_]) => register(db.begin().await?, asks).await,
            (done, _) => done,
        }
    }
}

async fn register(mut tx: Tx, asks: &[Arrived]) -> DbResult<Vec<DbResult<Registered>>> {
    let registering = chunk::add_all(&mut tx, asks).await?;
    let now = asks.iter().map(|ask| ask.segment.received_at).max().unwrap_or(Timestamp(0));
    let told = tell(&mut tx, &registering.dumps, now).await?;
    tx.commit().await?;
    let registered = |(place, answer): (usize, DbResult<ChunkOutcome>)| {
        answer.map(|outcome| Registered { outcome, told: told.get(&place).cloned() })
    };
    Ok(registering.answers.into_iter().enumerate().map(registered).collect())
}

/// Tells of dumps that have grown, where that was not done a moment ago: at which place, and in which run.
async fn tell(tx: &mut Tx, dumps: &[GrownDump], now: Timestamp) -> DbResult<BTreeMap<usize, RunId>> {
    let is_due = |dump: &&GrownDump| dump.told_at.is_none_or(|at| now.since(at) >= PROGRESS_EVERY);
    let due: Vec<&AttemptId> = dumps.iter().filter(is_due).map(|dump| &dump.attempt).collect();
    let may = attempt::may_tell_progress(tx, &due, now, PROGRESS_EVERY).await?;
    // In the order of attempts and then of runs, as everybody locks them.
    let mut of_run: BTreeMap<&RunId, Vec<Told<'_>>> = BTreeMap::new();
    let mut told = BTreeMap::new();
    for dump in dumps.iter().filter(|dump| may.contains(&dump.attempt)) {
        let progress = EventBody::DumpProgress { bytes: dump.bytes };
        of_run.entry(&dump.run).or_default().push((Some(&dump.job), Some(&dump.attempt), progress));
        told.insert(dump.place, dump.run.clone());
    }
    event::append_all(tx, now, &of_run).await?;
    Ok(told)
}
