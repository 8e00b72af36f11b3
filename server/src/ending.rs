//! Leases that are handed back, many in one commit ([`crate::group`]). All of them correct what the same few submitters have
//! had: whoever waits for that waits here, and not with a connection in its hand.

use crate::db::attempt::AttemptRow;
use crate::db::lease::{self, End};
use crate::db::{Db, DbResult, Tx};
use crate::group::Together;
use crate::trust::Rule;
use crashyard_protocol::AttemptId;
use crashyard_protocol::clock::Timestamp;

/// A lease that is handed back.
#[derive(Clone, Debug)]
pub struct HandedBack {
    /// The attempt that ends with it.
    pub attempt: AttemptId,
    /// The epoch it was held under.
    pub epoch: u64,
    /// Whether the machine may take the next job.
    pub healthy: bool,
    /// What was checked, or what failed.
    pub detail: String,
    /// When.
    pub at: Timestamp,
}

/// Takes leases back.
#[derive(Debug)]
pub struct Ending(pub Rule);

impl Together for Ending {
    type Ask = HandedBack;
    type Answer = Option<AttemptRow>;
    const QUEUE: usize = 4096;
    const BATCH: usize = 64;

    async fn write(&self, _: &Db, mut tx: Tx, asks: &[HandedBack]) -> DbResult<Vec<DbResult<Option<AttemptRow>>>> {
        let Some(now) = asks.iter().map(|ask| ask.at).max() else { return Ok(Vec::new()) };
        let ends: Vec<_> = asks
            .iter()
            .map(|ask| {
                let end = End::Released { epoch: ask.epoch, healthy: ask.healthy, detail: &ask.detail };
                (&ask.attempt, end)
            })
            .collect();
        let answers = lease::end_all(&mut tx, &ends, &self.0, now).await?;
        tx.commit().await?;
        Ok(answers)
    }
}
