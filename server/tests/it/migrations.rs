//! Both databases are brought to the same shape, by files of the same names.

use crashyard_server::db::{Db, Pool, Tx};
use std::collections::BTreeSet;
use std::path::Path;

fn files(database: &str) -> Vec<String> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../migrations").join(database);
    let mut names: Vec<String> =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn both_databases_have_migrations_of_the_same_names() {
    assert!(!files("sqlite").is_empty());
    assert_eq!(files("sqlite"), files("postgres"));
    let numbers: BTreeSet<String> = files("sqlite").iter().map(|name| name[..4].to_owned()).collect();
    assert_eq!(numbers.len(), files("sqlite").len(), "each number once: {:?}", files("sqlite"));
}

#[tokio::test]
async fn both_databases_have_the_same_tables_columns_and_indexes() {
    let dir = tempfile::tempdir().unwrap();
    let sqlite = Db::open(&format!("sqlite:{}", dir.path().join("farm.db").display()), 4).await.unwrap();
    let postgres = crashyard_testkit::Postgres::start().unwrap();
    let postgres_db = Db::open(&postgres.database("farm").unwrap(), 4).await.unwrap();
    let Pool::Sqlite(lender) = sqlite.read() else { panic!("not SQLite") };
    let of_sqlite: BTreeSet<(String, String)> = sqlx::query_as(
        "SELECT m.name, c.name FROM sqlite_master m JOIN pragma_table_info(m.name) c WHERE m.type = 'table' \
         AND m.name NOT LIKE 'sqlite_%' AND m.name NOT LIKE '_sqlx%'",
    )
    .fetch_all(&mut *lender.lend().await.unwrap())
    .await
    .unwrap()
    .into_iter()
    .collect();
    let indexes_of_sqlite: BTreeSet<String> =
        sqlx::query_scalar("SELECT name FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL")
            .fetch_all(&mut *lender.lend().await.unwrap())
            .await
            .unwrap()
            .into_iter()
            .collect();
    let Pool::Postgres(lender) = postgres_db.read() else { panic!("not PostgreSQL") };
    let of_postgres: BTreeSet<(String, String)> = sqlx::query_as(
        "SELECT table_name::text, column_name::text FROM information_schema.columns \
         WHERE table_schema = 'public' AND table_name NOT LIKE '\\_sqlx%'",
    )
    .fetch_all(&mut *lender.lend().await.unwrap())
    .await
    .unwrap()
    .into_iter()
    .collect();
    let indexes_of_postgres: BTreeSet<String> =
        sqlx::query_scalar("SELECT indexname::text FROM pg_indexes WHERE schemaname = 'public'")
            .fetch_all(&mut *lender.lend().await.unwrap())
            .await
            .unwrap()
            .into_iter()
            .collect();
    assert!(of_sqlite.len() > 100, "{} columns", of_sqlite.len());
    assert_eq!(of_sqlite, of_postgres);
    let missing: Vec<_> = indexes_of_sqlite.difference(&indexes_of_postgres).collect();
    assert!(missing.is_empty(), "not in PostgreSQL: {missing:?}");
    postgres_db.close().await;
}

/// PostgreSQL looks at a growing table every minute, and the column of which it wants to know most decides how much of it is read.
#[tokio::test]
async fn postgresql_reads_little_of_tables_that_grow_to_know_them() {
    let postgres = crashyard_testkit::Postgres::start().unwrap();
    let db = Db::open(&postgres.database("farm").unwrap(), 4).await.unwrap();
    let Pool::Postgres(lender) = db.read() else { panic!("not PostgreSQL") };
    let much: Vec<String> = sqlx::query_scalar(
        "SELECT attrelid::regclass || '.' || attname FROM pg_attribute WHERE attnum > 0 AND NOT attisdropped \
         AND COALESCE(attstattarget, -1) NOT IN (0, 10) AND attrelid = ANY (ARRAY['artifact', 'attempt', 'event', 'job', \
         'report', 'run', 'segment', 'stage']::regclass[])",
    )
    .fetch_all(&mut *lender.lend().await.unwrap())
    .await
    .unwrap();
    assert!(much.is_empty(), "SET STATISTICS, as in 0024: {much:?}");
    db.close().await;
}

#[tokio::test]
async fn opening_a_database_again_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", dir.path().join("farm.db").display());
    for _ in 0..2 {
        let db = Db::open(&url, 4).await.unwrap();
        db.ping().await.unwrap();
        db.close().await;
    }
}

#[test]
fn two_servers_do_not_share_a_sqlite_file() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", dir.path().join("farm.db").display());
    let first = crashyard_server::db::lock_for_server(&url).unwrap();
    let error = crashyard_server::db::lock_for_server(&url).unwrap_err().to_string();
    assert!(error.contains("in use by another server"), "{error}");
    drop(first);
    crashyard_server::db::lock_for_server(&url).unwrap();
}

/// SQLite's keys are checked when a transaction commits: later than elsewhere, and not less.
#[tokio::test]
async fn what_points_to_nothing_is_refused_by_sqlite_at_the_commit() {
    let dir = tempfile::tempdir().unwrap();
    let db = Db::open(&format!("sqlite:{}", dir.path().join("farm.db").display()), 4).await.unwrap();
    for (table, columns, values) in [
        ("stage", "attempt_id, name, state, body", "'nobody', 'armed', 'active', '{}'"),
        ("report", "attempt_id, role, seq, body, received_at", "'nobody', 'target', 1, '{}', 0"),
        ("segment", "artifact_id, start_at, length, hash, received_at", "'nothing', 0, 1, '', 0"),
        ("event", "run_id, seq, at, body", "'nowhere', 1, 0, '{}'"),
        ("token", "id, name, scope, secret_hash, attempt_id, created_at", "'t', 't', 'attempt', 'h', 'nobody', 0"),
    ] {
        let mut tx = db.begin().await.unwrap();
        let Tx::Sqlite(connection) = &mut tx else { panic!("not SQLite") };
        let text = format!("INSERT INTO {table} ({columns}) VALUES ({values})");
        sqlx::query(sqlx::AssertSqlSafe(text)).execute(&mut **connection).await.unwrap();
        assert!(tx.commit().await.is_err(), "{table} kept a row that points to nothing");
    }
    let Pool::Sqlite(lender) = db.read() else { panic!("not SQLite") };
    let kept: i64 = sqlx::query_scalar("SELECT (SELECT COUNT(*) FROM stage) + (SELECT COUNT(*) FROM token)")
        .fetch_one(&mut *lender.lend().await.unwrap())
        .await
        .unwrap();
    assert_eq!(kept, 0);
}
