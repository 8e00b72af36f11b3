//! Renewals of leases, many in one commit ([`crate::group`]): ten thousand machines in attempts are five hundred renewals a
//! second.

use crate::db::lease::{self, Renewal, Standing};
use crate::db::{Db, DbResult, Tx};
use crate::group::Together;
use std::time::Duration;

/// Renews leases.
#[derive(Debug)]
pub struct Renewer;

impl Together for Renewer {
    type Ask = Renewal;
    type Answer = Standing;
    const QUEUE: usize = 4096;
    const BATCH: usize = 256;
    // A lease is renewed long before it ends.
    const MOMENT: Duration = Duration::from_millis(20);

    async fn write(&self, _: &Db, mut tx: Tx, renewals: &[Renewal]) -> DbResult<Vec<DbResult<Standing>>> {
        let renewed = lease::renew(&mut tx, renewals).await?;
        tx.commit().await?;
        Ok(renewed)
    }
}
