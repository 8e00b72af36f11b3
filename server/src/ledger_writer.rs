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

    async fn write(&self, _: &Db, mut tx: Tx, batch: &[Append]) -> DbResult<Vec<DbResult<AppendOutcome>>> {
        let ids: Vec<&AttemptId> = batch.iter().map(|append| &append.attempt).collect();
        let attempts = db::attempt::whose(&mut tx, &ids).await?;
        let held: Vec<DbResult<()>> = batch
            .iter()
            .map(|append| attempts.get(&append.attempt).ok_or(DbError::NotFound)?.check_epoch(append.epoch))
            .collect();
        let segments: Vec<&SegmentRow> =
            batch.iter().zip(&held).filter(|(_, held)| held.is_ok()).map(|(append, _)| &append.segment).collect();
        let mut outcomes = artifact::append_all(&mut tx, &segments).await?.into_iter();
        tx.commit().await?;
        Ok(held.into_iter().map(|held| held.and_then(|()| outcomes.next().ok_or(DbError::NotFound))).collect())
    }
}
