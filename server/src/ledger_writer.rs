//! Groups console writes into commits.
//!
//! Every console write must be durable before it is acknowledged, and a durable commit costs a flush of the disk.
//! Writes of many consoles that arrive while a commit is under way wait for the next one together: one flush for all
//! of them, no waiting where there is only one, no timer.

use crate::db::artifact::{self, AppendOutcome, SegmentRow};
use crate::db::{self, Db, DbError, DbResult, Tx};
use crashyard_protocol::AttemptId;
use tokio::sync::{mpsc, oneshot};

/// Writes waiting for the next commit; beyond it, writers wait for a place (backpressure, not memory).
const QUEUE: usize = 1024;
/// Writes in one commit.
const BATCH: usize = 256;

/// Console bytes that are durable in the blob store and shall be registered.
#[derive(Clone, Debug)]
pub struct Append {
    /// The attempt they are evidence of.
    pub attempt: AttemptId,
    /// The epoch they were sent with.
    pub epoch: u64,
    /// Where they are.
    pub segment: SegmentRow,
}

type Job = (Append, oneshot::Sender<DbResult<AppendOutcome>>);

/// Handle to the writer.
#[derive(Clone, Debug)]
pub struct LedgerWriter(mpsc::Sender<Job>);

impl LedgerWriter {
    /// Starts the writer; it ends when the last handle is gone.
    #[must_use]
    pub fn start(db: Db) -> Self {
        let (sender, mut jobs) = mpsc::channel::<Job>(QUEUE);
        tokio::spawn(async move {
            let mut batch = Vec::with_capacity(BATCH);
            while jobs.recv_many(&mut batch, BATCH).await > 0 {
                write(&db, std::mem::take(&mut batch)).await;
            }
        });
        Self(sender)
    }

    /// Registers console bytes; durable when this returns.
    pub async fn append(&self, append: Append) -> DbResult<AppendOutcome> {
        let gone = || DbError::Unavailable(sqlx::Error::PoolClosed);
        let (sender, answer) = oneshot::channel();
        self.0.send((append, sender)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

async fn write(db: &Db, batch: Vec<Job>) {
    match write_together(db, &batch).await {
        Ok(outcomes) => {
            for ((_, sender), outcome) in batch.into_iter().zip(outcomes) {
                // A writer that went away does not want its answer.
                let _ = sender.send(outcome);
            }
        }
        Err(error) => match <[Job; 1]>::try_from(batch) {
            Ok([(_, sender)]) => {
                let _ = sender.send(Err(error));
            }
            // One of them spoils the transaction: each for itself then.
            Err(batch) => {
                for job in batch {
                    Box::pin(write(db, vec![job])).await;
                }
            }
        },
    }
}

async fn write_together(db: &Db, batch: &[Job]) -> DbResult<Vec<DbResult<AppendOutcome>>> {
    let mut tx = db.begin().await?;
    let mut outcomes = Vec::with_capacity(batch.len());
    for (append, _) in batch {
        outcomes.push(match write_one(&mut tx, append).await {
            Err(error @ (DbError::LeaseLost(_) | DbError::NotFound)) => Err(error),
            other => Ok(other?),
        });
    }
    tx.commit().await?;
    Ok(outcomes)
}

async fn write_one(tx: &mut Tx, append: &Append) -> DbResult<AppendOutcome> {
    db::attempt::get_in(tx, &append.attempt).await?.check_epoch(append.epoch)?;
    artifact::append(tx, &append.segment).await
}
