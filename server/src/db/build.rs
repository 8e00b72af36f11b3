//! Builds: kernels under test. Their files are [`super::artifact`]s.

use super::given::listed;
use super::{Db, DbResult, Tx, before_or_end, on, on_tx};
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{BuildId, CheckoutId, RunId};
use sqlx::FromRow;
use sqlx::types::Json;
use std::collections::{BTreeSet, HashMap};

/// One kernel built from a checkout.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct BuildRow {
    /// Id.
    pub id: BuildId,
    /// What it was built from.
    pub checkout_id: Option<CheckoutId>,
    /// What its submitter calls this submission, so that it can be repeated.
    pub idempotency_key: Option<String>,
    /// Name for people.
    pub name: String,
    /// KCIDB's architecture name.
    pub architecture: String,
    /// `uname -r`.
    pub release: String,
    /// GNU build id of vmlinux.
    pub build_id: Option<String>,
    /// Name of its configuration.
    pub config_name: Option<String>,
    /// Added to the command line of every boot of this kernel.
    pub cmdline: String,
    /// When it was submitted.
    pub created_at: Timestamp,
}

/// Stores a build, or returns the one that was stored with the same key.
pub async fn create(tx: &mut Tx, build: &BuildRow) -> DbResult<BuildRow> {
    Ok(on_tx!(tx, |c| sqlx::query_as(
        "INSERT INTO build (id, checkout_id, idempotency_key, name, architecture, release, build_id, config_name, \
         cmdline, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) \
         ON CONFLICT (idempotency_key) DO UPDATE SET idempotency_key = excluded.idempotency_key RETURNING *",
    )
    .bind(&build.id)
    .bind(&build.checkout_id)
    .bind(&build.idempotency_key)
    .bind(&build.name)
    .bind(&build.architecture)
    .bind(&build.release)
    .bind(&build.build_id)
    .bind(&build.config_name)
    .bind(&build.cmdline)
    .bind(build.created_at)
    .fetch_one(c)
    .await)?)
}

/// One build.
pub async fn get(db: &Db, id: &BuildId) -> DbResult<BuildRow> {
    Ok(on!(db.read(), |c| sqlx::query_as("SELECT * FROM build WHERE id = $1").bind(id).fetch_one(c).await)?)
}

/// One build, as a transaction sees it.
pub async fn get_in(tx: &mut Tx, id: &BuildId) -> DbResult<BuildRow> {
    Ok(on_tx!(tx, |c| sqlx::query_as("SELECT * FROM build WHERE id = $1").bind(id).fetch_one(c).await)?)
}

/// The builds of these runs, by run.
pub async fn of_runs(tx: &mut Tx, runs: &BTreeSet<&RunId>) -> DbResult<HashMap<RunId, BuildRow>> {
    #[derive(FromRow)]
    struct OfRun {
        of_run: RunId,
        #[sqlx(flatten)]
        build: BuildRow,
    }
    let text =
        listed!(tx, "SELECT r.id AS of_run, b.* FROM run r JOIN build b ON b.id = r.build_id WHERE ", "r.id", "");
    let rows: Vec<OfRun> = on_tx!(tx, |c| sqlx::query_as(text).bind(Json(runs)).fetch_all(c).await)?;
    Ok(rows.into_iter().map(|row| (row.of_run, row.build)).collect())
}

/// One page of builds, newest first.
pub async fn list(db: &Db, before: Option<&str>, limit: i64) -> DbResult<Vec<BuildRow>> {
    Ok(on!(db.read(), |c| sqlx::query_as("SELECT * FROM build WHERE id < $1 ORDER BY id DESC LIMIT $2")
        .bind(before_or_end(before))
        .bind(limit)
        .fetch_all(c)
        .await)?)
}
