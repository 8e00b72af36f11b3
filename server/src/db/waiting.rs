//! What a waiting job waits for. Reads only, when somebody asks; what is counted is counted up to a bound.

use super::flow::FlowRow;
use super::machine::{NamedMachine, SelectorRow};
use super::run::JobRow;
use super::{Db, DbResult, on};
use crashyard_protocol::FlowId;
use sqlx::FromRow;

/// Jobs counted in one flow; beyond it, the answer says "at least".
pub const COUNTED: i64 = 10_000;

/// A flow with its submitter.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct Competitor {
    /// The flow.
    #[sqlx(flatten)]
    pub flow: FlowRow,
    /// Its submitter's name.
    pub submitter: String,
    /// The submitter's weight.
    pub weight: i64,
    /// The submitter's virtual time.
    pub virtual_time: i64,
    /// The submitter's limit.
    pub max_machines: Option<i64>,
    /// Jobs of it that wait, counted up to [`COUNTED`].
    pub jobs: i64,
}

/// Flows with their submitters; `$1` is [`COUNTED`].
macro_rules! competitors {
    ($which:literal) => {
        concat!(
            "SELECT f.*, s.name AS submitter, s.weight, s.virtual_time, s.max_machines, (SELECT COUNT(*) FROM \
             (SELECT 1 FROM job q WHERE q.flow_id = f.id AND q.state = 'queued' LIMIT $1) AS first) AS jobs \
             FROM flow f JOIN submitter s ON s.id = f.submitter_id WHERE ",
            $which
        )
    };
}

/// The flow a job stands in.
pub async fn flow(db: &Db, id: &FlowId) -> DbResult<Competitor> {
    Ok(on!(db.read(), |c| sqlx::query_as(competitors!("f.id = $2")).bind(COUNTED).bind(id).fetch_one(c).await)?)
}

/// Other waiting flows that want any of the machines this one wants.
pub async fn competitors(db: &Db, flow: &FlowRow) -> DbResult<Vec<Competitor>> {
    Ok(on!(db.read(), |c| {
        sqlx::query_as(competitors!(
            "f.waiting AND f.id <> $2 AND (f.selector_id = $3 OR EXISTS (SELECT 1 FROM machine_selector a \
             JOIN machine_selector b ON b.machine_id = a.machine_id WHERE a.selector_id = $3 \
             AND b.selector_id = f.selector_id)) ORDER BY f.class, s.virtual_time, f.id"
        ))
        .bind(COUNTED)
        .bind(&flow.id)
        .bind(&flow.selector_id)
        .fetch_all(c)
        .await
    })?)
}

/// Jobs of the same flow that come first, counted up to [`COUNTED`].
pub async fn before(db: &Db, job: &JobRow) -> DbResult<i64> {
    Ok(on!(db.read(), |c| sqlx::query_scalar(
        "SELECT COUNT(*) FROM (SELECT 1 FROM job q WHERE q.flow_id = $1 AND q.state = 'queued' \
         AND (q.rank < $2 OR (q.rank = $2 AND q.id < $3)) ORDER BY q.rank, q.id LIMIT $4) AS first",
    )
    .bind(&job.flow_id)
    .bind(job.rank)
    .bind(&job.id)
    .bind(COUNTED)
    .fetch_one(c)
    .await)?)
}

/// The selector of a job.
pub async fn selector(db: &Db, job: &JobRow) -> DbResult<SelectorRow> {
    Ok(on!(db.read(), |c| sqlx::query_as("SELECT id, labels, requires FROM selector WHERE id = $1")
        .bind(&job.selector_id)
        .fetch_one(c)
        .await)?)
}

/// Every machine, by name.
pub async fn machines(db: &Db) -> DbResult<Vec<NamedMachine>> {
    Ok(on!(db.read(), |c| {
        sqlx::query_as(
            "SELECT m.*, c.name AS controller_name, c.last_seen_at AS controller_seen_at FROM machine m \
         JOIN controller c ON c.id = m.controller_id ORDER BY m.name",
        )
        .fetch_all(c)
        .await
    })?)
}

/// Machines that a submitter's attempts have now.
pub async fn held(db: &Db, flow: &FlowRow) -> DbResult<i64> {
    Ok(on!(db.read(), |c| sqlx::query_scalar(
        "SELECT COUNT(*) FROM attempt WHERE submitter_id = $1 AND state IN ('running', 'collecting')",
    )
    .bind(&flow.submitter_id)
    .fetch_one(c)
    .await)?)
}
