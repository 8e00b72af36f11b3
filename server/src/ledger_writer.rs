//! Console writes, many in one commit ([`crate::group`]).

use crate::db::artifact::{self, Append, AppendOutcome};
use crate::db::{Db, DbResult, Tx};
use crate::group::Together;
use std::time::Duration;

/// Registers console bytes.
#[derive(Debug)]
pub struct LedgerWriter;

impl Together for LedgerWriter {
    type Ask = Append;
    type Answer = AppendOutcome;
    const QUEUE: usize = 1024;
    const BATCH: usize = 256;
    // Nobody waits for a line of a console as for a lease, and what a machine prints meanwhile comes with it.
    const MOMENT: Duration = Duration::from_millis(20);

    async fn write(&self, _: &Db, mut tx: Tx, batch: &[Append]) -> DbResult<Vec<DbResult<AppendOutcome>>> {
        let outcomes = artifact::append_all(&mut tx, batch).await?;
        tx.commit().await?;
        Ok(outcomes)
    }
}
