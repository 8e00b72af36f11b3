//! Connections, lent for one statement or one transaction.
//!
//! sqlx's pool asks a connection how it is each time it comes back, which is a round trip more for every statement and every
//! transaction: a quarter of all there were under load. Whether it is well is known here without asking: its work was done to the
//! end. Such a connection is kept and lent again as it is; any other goes back to sqlx's pool, which rolls back what is open, reads
//! what nobody waited for, or closes it.
//!
//! What it must never do: keep a connection of which anything is still expected.

use super::ACQUIRE_TIMEOUT;
use sqlx::pool::{PoolConnection, PoolOptions};
use sqlx::{Connection, Database, Error, Pool, SqlSafeStr as _};
use sqlx_core::transaction::TransactionManager as _;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// A connection that nobody used for longer is asked whether it is still there.
const TRUSTED: Duration = Duration::from_secs(1);
/// A connection that is older is given up; what a database keeps for it grows with its age.
const LIFETIME: Duration = Duration::from_secs(30 * 60);

/// Lends the connections of a pool. Cheap to clone.
pub struct Lender<DB: Database>(Arc<Shared<DB>>);

struct Shared<DB: Database> {
    pool: Pool<DB>,
    /// As many as the pool may have: who has a permit finds a connection kept, or room for another.
    room: Arc<Semaphore>,
    kept: Mutex<Vec<Kept<DB>>>,
}

struct Kept<DB: Database> {
    connection: PoolConnection<DB>,
    born: Instant,
    since: Instant,
}

impl<DB: Database> Clone for Lender<DB> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<DB: Database> fmt::Debug for Lender<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lender({:?})", self.0.pool)
    }
}

impl<DB: Database> Lender<DB> {
    /// Connects, and lends the connections of this pool.
    pub async fn connect(pool: PoolOptions<DB>, to: <DB::Connection as Connection>::Options) -> Result<Self, Error> {
        let most = usize::try_from(pool.get_max_connections()).unwrap_or(1);
        let pool = pool
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .test_before_acquire(false)
            .after_release(|connection, _| Box::pin(undo::<DB>(connection)))
            .connect_with(to)
            .await?;
        Ok(Self(Arc::new(Shared { pool, room: Arc::new(Semaphore::new(most)), kept: Mutex::default() })))
    }

    /// The pool, for what needs one for itself before anything is lent.
    pub fn pool(&self) -> &Pool<DB> {
        &self.0.pool
    }

    /// Lends a connection. Who waits for one comes in turn, and not for ever.
    pub async fn lend(&self) -> Result<Lent<DB>, Error> {
        let permit = timeout(ACQUIRE_TIMEOUT, Arc::clone(&self.0.room).acquire_owned()).await;
        let permit = permit.map_err(|_| Error::PoolTimedOut)?.map_err(|_| Error::PoolClosed)?;
        while let Some(mut kept) = self.pop() {
            if kept.since.elapsed() > TRUSTED && kept.connection.ping().await.is_err() {
                kept.connection.close_on_drop();
                continue;
            }
            return Ok(self.lent(kept.connection, kept.born, permit));
        }
        Ok(self.lent(self.0.pool.acquire().await?, Instant::now(), permit))
    }

    /// Begins a transaction, with this statement.
    pub async fn begin(&self, statement: &'static str) -> Result<Lent<DB>, Error> {
        let mut lent = self.lend().await?;
        DB::TransactionManager::begin(&mut lent, Some(statement.into_sql_str())).await?;
        Ok(lent)
    }

    /// Closes every connection; it waits for those that are lent.
    pub async fn close(&self) {
        self.0.room.close();
        while let Some(kept) = self.pop() {
            drop(kept);
        }
        self.0.pool.close().await;
    }

    fn lent(&self, connection: PoolConnection<DB>, born: Instant, permit: OwnedSemaphorePermit) -> Lent<DB> {
        Lent { connection, born, lender: self.clone(), permit }
    }

    fn pop(&self) -> Option<Kept<DB>> {
        self.0.kept.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }
}

/// A connection while it is lent. Dropped, it goes back to sqlx's pool, which looks after it ([`undo`]).
pub struct Lent<DB: Database> {
    connection: PoolConnection<DB>,
    born: Instant,
    lender: Lender<DB>,
    permit: OwnedSemaphorePermit,
}

impl<DB: Database> Lent<DB> {
    /// Hands it back: what it was lent for is done, and all of it was answered.
    pub fn done(self) {
        let Self { connection, born, lender, permit } = self;
        if born.elapsed() < LIFETIME && !lender.0.room.is_closed() {
            let kept = Kept { connection, born, since: Instant::now() };
            lender.0.kept.lock().unwrap_or_else(PoisonError::into_inner).push(kept);
        }
        drop(permit);
    }

    /// Commits the transaction.
    pub async fn commit(mut self) -> Result<(), Error> {
        DB::TransactionManager::commit(&mut self).await?;
        self.done();
        Ok(())
    }
}

/// What sqlx's pool does with a connection that comes back to it: nobody wants the transaction that it is in.
async fn undo<DB: Database>(connection: &mut DB::Connection) -> Result<bool, Error> {
    if connection.is_in_transaction() {
        DB::TransactionManager::rollback(connection).await?;
    }
    Ok(true)
}

impl<DB: Database> Deref for Lent<DB> {
    type Target = DB::Connection;

    fn deref(&self) -> &DB::Connection {
        &self.connection
    }
}

impl<DB: Database> DerefMut for Lent<DB> {
    fn deref_mut(&mut self) -> &mut DB::Connection {
        &mut self.connection
    }
}

impl<DB: Database> fmt::Debug for Lent<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lent")
    }
}
