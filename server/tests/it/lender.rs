//! Connections are lent as they are, and never with something of their last borrower.

use crashyard_server::db::lender::{Lender, Lent};
use crashyard_testkit::Postgres as Cluster;
use sqlx::pool::PoolOptions;
use sqlx::{Postgres, Sqlite};
use std::time::Duration;
use tokio::time::timeout;

async fn one_of_sqlite(dir: &tempfile::TempDir) -> Lender<Sqlite> {
    let to = format!("sqlite:{}?mode=rwc", dir.path().join("one.db").display()).parse().unwrap();
    Lender::connect(PoolOptions::new().max_connections(1), to).await.unwrap()
}

async fn one_of_postgres(cluster: &Cluster) -> Lender<Postgres> {
    let to = cluster.database("one").unwrap().parse().unwrap();
    Lender::connect(PoolOptions::new().max_connections(1), to).await.unwrap()
}

#[tokio::test]
async fn whoever_waits_gets_the_connection_that_is_handed_back_and_nobody_one_of_a_closed_lender() {
    let dir = tempfile::tempdir().unwrap();
    let lender = one_of_sqlite(&dir).await;
    let first = lender.lend().await.unwrap();
    let (second, ()) = tokio::join!(lender.lend(), async { first.done() });
    second.unwrap().done();
    lender.close().await;
    assert!(lender.lend().await.is_err());
}

/// The same on both databases, whose connections are of different types.
macro_rules! undone {
    ($lender:expr) => {
        let lender = $lender;
        let mut lent = lender.lend().await.unwrap();
        sqlx::query("CREATE TABLE row (id BIGINT)").execute(&mut *lent).await.unwrap();
        lent.done();
        for commit in [false, true] {
            let mut tx = lender.begin("BEGIN").await.unwrap();
            sqlx::query("INSERT INTO row VALUES (1)").execute(&mut *tx).await.unwrap();
            if commit {
                tx.commit().await.unwrap();
            } else {
                drop(tx);
            }
            let mut lent = lender.lend().await.unwrap();
            let rows: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM row").fetch_one(&mut *lent).await.unwrap();
            assert_eq!(rows, i64::from(commit));
            lent.done();
        }
    };
}

#[tokio::test]
async fn what_was_not_committed_is_undone_before_the_connection_is_lent_again() {
    let dir = tempfile::tempdir().unwrap();
    undone!(one_of_sqlite(&dir).await);
    let cluster = Cluster::start().unwrap();
    undone!(one_of_postgres(&cluster).await);
}

#[tokio::test]
async fn an_answer_that_nobody_waited_for_does_not_answer_the_next() {
    let cluster = Cluster::start().unwrap();
    let lender = one_of_postgres(&cluster).await;
    let mut lent = lender.lend().await.unwrap();
    let given_up =
        timeout(Duration::ZERO, sqlx::query("SELECT 1 FROM generate_series(1, 100000)").fetch_all(&mut *lent));
    assert!(given_up.await.is_err());
    drop(lent);
    let mut lent = lender.lend().await.unwrap();
    let two: i32 = sqlx::query_scalar("SELECT 2").fetch_one(&mut *lent).await.unwrap();
    assert_eq!(two, 2);
}

#[tokio::test]
async fn a_connection_that_the_database_has_closed_fails_once_and_is_replaced() {
    let cluster = Cluster::start().unwrap();
    let lender = one_of_postgres(&cluster).await;
    let mut lent = lender.lend().await.unwrap();
    let ended = sqlx::query("SELECT pg_terminate_backend(pg_backend_pid())").execute(&mut *lent).await;
    assert!(ended.is_err());
    Lent::done(lent);
    let mut lent = lender.lend().await.unwrap();
    assert!(sqlx::query("SELECT 1").execute(&mut *lent).await.is_err(), "nobody could know");
    drop(lent);
    let mut lent = lender.lend().await.unwrap();
    sqlx::query("SELECT 1").execute(&mut *lent).await.unwrap();
}
