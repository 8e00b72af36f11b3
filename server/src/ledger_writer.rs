//! Console writes, many in one commit ([`crate::group`]).

use crate::db::artifact::{self, AppendOutcome, SegmentRow};
use crate::db::{self, Db, DbError, DbResult, Tx};
use crate::group::Together;
use crashyard_protocol::AttemptId;

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

/// Registers console bytes.
#[derive(Debug)]
pub struct LedgerWriter;

impl Together for LedgerWriter {
    type Ask = Append;
    type Answer = AppendOutcome;
    const QUEUE: usize = 1024;
    const BATCH: usize = 256;

    async fn write(_: &Db, mut tx: Tx, batch: &[Append]) -> DbResult<Vec<DbResult<AppendOutcome>>> {
        let mut outcomes = Vec::with_capacity(batch.len());
        for append in batch {
            outcomes.push(match write_one(&mut tx, append).await {
                Err(error @ (DbError::LeaseLost(_) | DbError::NotFound)) => Err(error),
                other => Ok(other?),
            });
        }
        tx.commit().await?;
        Ok(outcomes)
    }
}

async fn write_one(tx: &mut Tx, append: &Append) -> DbResult<AppendOutcome> {
    db::attempt::get_in(tx, &append.attempt).await?.check_epoch(append.epoch)?;
    artifact::append(tx, &append.segment).await
}
