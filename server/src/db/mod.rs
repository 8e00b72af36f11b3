//! The ledger: every SQL text of the server.
//!
//! One text serves SQLite and PostgreSQL. A query is written once, inside [`on!`] (on a pool) or [`on_tx!`] (inside a
//! transaction), and type-checked once for each database; the contract suite (`tests/it/db_contract.rs`) runs each on
//! both. What keeps the text common: ids and words as TEXT, times as BIGINT handed in, JSON never queried inside, no
//! `NOW()`, no arrays, no triggers.
//!
//! SQLite has exactly one writer connection and many read-only readers (WAL); anything else shows "database is
//! locked" under load. `synchronous=FULL`: a committed row survives a power cut, because acknowledged evidence must.
//!
//! This module knows neither axum nor requests and answers; callers never see SQL. It must never wait for the network
//! or a file inside a transaction.

pub mod artifact;
pub mod attempt;
pub mod bound;
pub mod build;
mod choice;
pub mod chunk;
pub mod dump;
pub mod errand;
pub mod event;
pub mod flow;
mod given;
mod heads;
pub mod health;
pub mod inventory;
pub mod judgement;
pub mod lease;
pub mod lender;
pub mod life;
pub mod machine;
pub mod notice;
pub mod owed;
pub mod plan;
pub mod preemption;
pub mod presence;
pub mod queue;
pub mod report;
pub mod reservation;
pub mod run;
pub mod settle;
pub mod signature;
pub mod token;
pub mod tree;
pub mod waiting;

use lender::{Lender, Lent};
use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Postgres, Sqlite};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// Readers of a SQLite file; each is a thread with its page cache.
const SQLITE_READERS: u32 = 8;
/// Pages of SQLite's log (of 4 KiB) at which a commit folds it, because nobody else did ([`Db::fold_log`]); the log then begins
/// from its start again.
const LOG_PAGES: &str = "16384";
/// What SQLite's writer keeps of the file, in negative KiB as SQLite wants it: it alone changes the file, so what it keeps
/// stays true, while a reader begins anew after every commit.
///
/// Enough for the inner pages of a queue of a million jobs by estimate, and no more: SQLite renames pages by way of the one that lies at
/// 1 GiB (`balance_nonroot` of its btree.c), and after that a commit to a smaller file walks through all that is kept
/// (`pcache1TruncateUnsafe`).
const WRITER_CACHE: &str = "-16384";
/// What each of SQLite's readers keeps, in the same way.
const READER_CACHE: &str = "-1024";
/// How long a query may wait for a connection before the server says `unavailable`.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);

static SQLITE_MIGRATIONS: Migrator = sqlx::migrate!("../migrations/sqlite");
static POSTGRES_MIGRATIONS: Migrator = sqlx::migrate!("../migrations/postgres");

/// What went wrong with the ledger, by what the caller can do about it.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// There is no such row.
    #[error("no such row")]
    NotFound,
    /// The write contradicts what is there.
    #[error("{0}")]
    Conflict(String),
    /// The lease epoch is stale or the attempt is over.
    #[error("the lease is over: {0}")]
    LeaseLost(String),
    /// The database cannot be used right now; trying again later may work.
    #[error("the database is not available: {0}")]
    Unavailable(#[source] sqlx::Error),
    /// A fault of the server.
    #[error("database error: {0}")]
    Other(#[source] sqlx::Error),
}

/// Answer of a function of this module.
pub type DbResult<T> = Result<T, DbError>;

impl From<sqlx::Error> for DbError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::RowNotFound => Self::NotFound,
            sqlx::Error::Io(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed
            | sqlx::Error::Tls(_) => Self::Unavailable(error),
            sqlx::Error::Database(database) if database.is_unique_violation() => {
                Self::Conflict("it is there already".into())
            }
            sqlx::Error::Database(database) if may_pass(database.code().as_deref()) => Self::Unavailable(error),
            _ => Self::Other(error),
        }
    }
}

/// Codes of conditions that pass by themselves or by an operator's hand: PostgreSQL's connection, resource,
/// shutdown, deadlock and read-only classes; SQLite's busy, locked, I/O error, full and cannot-open.
fn may_pass(code: Option<&str>) -> bool {
    let Some(code) = code else { return false };
    if code.len() == 5 {
        return ["08", "53", "57", "58"].iter().any(|class| code.starts_with(class))
            || ["40001", "40P01", "25006"].contains(&code);
    }
    code.parse::<u32>().is_ok_and(|code| matches!(code & 0xff, 5 | 6 | 10 | 13 | 14))
}

/// A pool of one of the databases.
#[derive(Clone, Debug)]
pub enum Pool {
    /// SQLite.
    Sqlite(Lender<Sqlite>),
    /// PostgreSQL.
    Postgres(Lender<Postgres>),
}

/// Which database it is, for texts that differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Sqlite,
    Postgres,
}

impl Pool {
    pub(crate) const fn kind(&self) -> Kind {
        match self {
            Self::Sqlite(_) => Kind::Sqlite,
            Self::Postgres(_) => Kind::Postgres,
        }
    }
}

/// The open ledger. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Db {
    read: Pool,
    write: Pool,
    /// For SQLite: what folds its log into the file while others write.
    fold: Option<SqlitePool>,
}

/// A write transaction. Dropping it rolls it back.
#[derive(Debug)]
pub enum Tx {
    /// SQLite, begun with `BEGIN IMMEDIATE`: it has the write lock from the start.
    Sqlite(Lent<Sqlite>),
    /// PostgreSQL, read committed: what must not change is locked by the first `UPDATE` on it.
    Postgres(Lent<Postgres>),
}

/// The same expression on a connection of whichever pool it is: one statement, of which nothing is expected when it is done.
macro_rules! on {
    (@lent $lender:expr, |$c:ident| $body:expr) => {
        match $lender.lend().await {
            Ok(mut lent) => {
                let $c = &mut *lent;
                let done = $body;
                if done.is_ok() {
                    lent.done();
                }
                done
            }
            Err(error) => Err(error),
        }
    };
    ($pool:expr, |$c:ident| $body:expr) => {
        match $pool {
            $crate::db::Pool::Sqlite(lender) => $crate::db::on!(@lent lender, |$c| $body),
            $crate::db::Pool::Postgres(lender) => $crate::db::on!(@lent lender, |$c| $body),
        }
    };
}
pub(crate) use on;

/// The same expression on whichever connection the transaction has.
macro_rules! on_tx {
    ($tx:expr, |$c:ident| $body:expr) => {
        match $tx {
            $crate::db::Tx::Sqlite(tx) => {
                let $c = &mut **tx;
                $body
            }
            $crate::db::Tx::Postgres(tx) => {
                let $c = &mut **tx;
                $body
            }
        }
    };
}
pub(crate) use on_tx;

impl Db {
    /// Opens (for SQLite: creates) the database at `url` and brings its schema up to date.
    ///
    /// `url` is `sqlite:PATH` or `postgres://…`.
    pub async fn open(url: &str, postgres_connections: u32) -> anyhow::Result<Self> {
        if let Some(path) = sqlite_path(url) {
            Self::open_sqlite(path).await
        } else if url.starts_with("postgres:") || url.starts_with("postgresql:") {
            Self::open_postgres(url, postgres_connections).await
        } else {
            anyhow::bail!("the database URL must start with `sqlite:` or `postgres:`")
        }
    }

    async fn open_sqlite(path: &Path) -> anyhow::Result<Self> {
        use anyhow::Context as _;
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            std::fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        }
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(5))
            .pragma("temp_store", "memory")
            .statement_cache_capacity(256);
        let writer = options.clone().pragma("wal_autocheckpoint", LOG_PAGES).pragma("cache_size", WRITER_CACHE);
        let one = SqlitePoolOptions::new().max_connections(1).idle_timeout(None).max_lifetime(None);
        let write =
            Lender::connect(one.clone(), writer).await.with_context(|| format!("cannot open {}", path.display()))?;
        SQLITE_MIGRATIONS.run(write.pool()).await.context("cannot bring the database up to date")?;
        let options = options.create_if_missing(false);
        let reader = options.clone().read_only(true).pragma("cache_size", READER_CACHE);
        let read = Lender::connect(SqlitePoolOptions::new().max_connections(SQLITE_READERS), reader)
            .await
            .context("cannot open the database for reading")?;
        let fold = one.connect_with(options).await.context("cannot open the database to fold its log")?;
        Ok(Self { read: Pool::Sqlite(read), write: Pool::Sqlite(write), fold: Some(fold) })
    }

    async fn open_postgres(url: &str, connections: u32) -> anyhow::Result<Self> {
        use anyhow::Context as _;
        // What PostgreSQL expects of a queue of a million jobs makes it compile the statement that takes one of them: 18 ms for
        // each claim, of which the work itself is a tenth of a millisecond. Nothing here runs long enough to be worth that.
        let options = PgConnectOptions::from_str(url).context("the database URL cannot be read")?;
        // A connection keeps the plans that it made while a table was small, and those read the whole table; every statement
        // here that is made often has an index. None of them is worth a plan for its values alone: to look for the attempts of a
        // few minutes took five times as long to plan as to do.
        // And a look at many rows is nothing that anybody waits for: it has one processor, the others are for those who do.
        let options = options.options([
            ("jit", "off"),
            ("enable_seqscan", "off"),
            ("plan_cache_mode", "force_generic_plan"),
            ("max_parallel_workers_per_gather", "0"),
        ]);
        // One more listens.
        let pool = PgPoolOptions::new().max_connections(connections.saturating_sub(1).max(1));
        let lender = Lender::connect(pool, options).await.context("cannot reach PostgreSQL")?;
        POSTGRES_MIGRATIONS.run(lender.pool()).await.context("cannot bring the database up to date")?;
        let pool = Pool::Postgres(lender);
        Ok(Self { read: pool.clone(), write: pool, fold: None })
    }

    /// What listens for PostgreSQL's notifications, on a connection of its own; `None` for SQLite, which has none.
    pub async fn listener(&self) -> DbResult<Option<PgListener>> {
        let Pool::Postgres(lender) = &self.read else { return Ok(None) };
        let options = PgConnectOptions::clone(&lender.pool().connect_options());
        let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(options);
        Ok(Some(PgListener::connect_with(&pool).await?))
    }

    /// Tells every server that listens on this channel of PostgreSQL.
    pub async fn notify(&self, channel: &str, message: &str) -> DbResult<()> {
        let Pool::Postgres(lender) = &self.read else { return Ok(()) };
        let notify = sqlx::query("SELECT pg_notify($1, $2)").bind(channel).bind(message);
        Ok(on!(@lent lender, |c| notify.execute(c).await.map(drop))?)
    }

    /// The pool to read from.
    #[must_use]
    pub fn read(&self) -> &Pool {
        &self.read
    }

    /// Begins a write transaction.
    pub async fn begin(&self) -> DbResult<Tx> {
        Ok(match &self.write {
            Pool::Sqlite(pool) => Tx::Sqlite(pool.begin("BEGIN IMMEDIATE").await?),
            Pool::Postgres(pool) => Tx::Postgres(pool.begin("BEGIN").await?),
        })
    }

    /// Folds SQLite's log into its file, as far as nobody reads what is there; nothing to do for PostgreSQL. A commit that does
    /// it by itself is kept waiting for it, and with it everybody who shares that commit.
    pub async fn fold_log(&self) -> DbResult<()> {
        if let Some(fold) = &self.fold {
            sqlx::query("PRAGMA wal_checkpoint(PASSIVE)").execute(fold).await?;
        }
        Ok(())
    }

    /// Whether the database answers.
    pub async fn ping(&self) -> DbResult<()> {
        on!(&self.read, |c| sqlx::query("SELECT 1").execute(c).await.map(drop))?;
        Ok(())
    }

    /// Closes every connection; SQLite's log is folded into the file.
    pub async fn close(&self) {
        if let Some(fold) = &self.fold {
            fold.close().await;
        }
        for pool in [&self.read, &self.write] {
            match pool {
                Pool::Sqlite(lender) => lender.close().await,
                Pool::Postgres(lender) => lender.close().await,
            }
        }
    }
}

impl Tx {
    pub(crate) const fn kind(&self) -> Kind {
        match self {
            Self::Sqlite(_) => Kind::Sqlite,
            Self::Postgres(_) => Kind::Postgres,
        }
    }

    /// Makes what was written durable.
    pub async fn commit(self) -> DbResult<()> {
        match self {
            Self::Sqlite(tx) => tx.commit().await?,
            Self::Postgres(tx) => tx.commit().await?,
        }
        Ok(())
    }
}

fn sqlite_path(url: &str) -> Option<&Path> {
    url.strip_prefix("sqlite:").map(|path| Path::new(path.strip_prefix("//").unwrap_or(path)))
}

/// Keeps a second server away from a SQLite file, for as long as the returned file is open: the two would not wake
/// each other. Tools may still open the database. Nothing to do for PostgreSQL, which servers share.
pub fn lock_for_server(url: &str) -> anyhow::Result<Option<File>> {
    use anyhow::Context as _;
    let Some(path) = sqlite_path(url) else { return Ok(None) };
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    }
    let lock_path = PathBuf::from(format!("{}.lock", path.display()));
    let lock = File::create(&lock_path).with_context(|| format!("cannot write {}", lock_path.display()))?;
    if let Err(error) = lock.try_lock() {
        anyhow::bail!("{} is in use by another server ({error})", path.display());
    }
    Ok(Some(lock))
}

/// A stored number that is never negative (the schema and every writer hold it so).
pub(crate) fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// A number on its way into a BIGINT column; beyond it there is nothing the server could keep anyway.
pub(crate) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Where a page of a list starts: rows with an id below this one.
pub(crate) fn before_or_end(before: Option<&str>) -> &str {
    // No ULID is greater than this, in whichever way the database sorts text.
    before.unwrap_or("ZZZZZZZZZZZZZZZZZZZZZZZZZZ")
}

#[cfg(test)]
mod tests {
    use super::may_pass;

    #[test]
    fn conditions_that_pass_by_themselves_are_told_from_faults() {
        for code in ["57P01", "08006", "53100", "40P01", "5", "261", "13", "10"] {
            assert!(may_pass(Some(code)), "{code}");
        }
        for code in ["42601", "23505", "1", "2067", "19"] {
            assert!(!may_pass(Some(code)), "{code}");
        }
        assert!(!may_pass(None));
    }
}
