//! The first jobs of flows, fetched for many claims at once.
//!
//! What is fetched is locked until the transaction ends (on PostgreSQL; SQLite has one writer anyway), and is given out here
//! in the order of its flow. Fetching more than is given out would keep jobs from other servers, so a caller asks for what it
//! expects to need; what turns out to be missing is fetched by itself.

use super::given::listed;
use super::run::JobRow;
use super::{DbResult, Tx, on_tx};
use crashyard_protocol::{FlowId, JobId, MachineId, SelectorId};
use serde::Serialize;
use sqlx::types::Json;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

/// What was fetched of each flow.
#[derive(Default)]
pub struct Heads {
    flows: HashMap<FlowId, Head>,
    taken: Vec<JobId>,
}

#[derive(Default)]
struct Head {
    /// Not given out yet, in order.
    jobs: VecDeque<JobRow>,
    /// The place in the flow of the last one fetched.
    last: Option<(i64, JobId)>,
    /// Whether there are no more.
    all: bool,
}

impl Head {
    fn push(&mut self, job: JobRow) {
        self.last = Some((job.rank, job.id.clone()));
        self.jobs.push_back(job);
    }
}

#[derive(Serialize)]
struct Wanted<'a> {
    flow: &'a FlowId,
    most: usize,
}

impl Heads {
    /// Fetches the first jobs of several flows, so many of each. One that another server is taking is passed over.
    pub async fn fetch(tx: &mut Tx, counts: &BTreeMap<&FlowId, usize>) -> DbResult<Self> {
        let mut flows: HashMap<FlowId, Head> = HashMap::new();
        let Some(most) = counts.values().copied().max() else { return Ok(Self::default()) };
        let wanted: Vec<Wanted<'_>> = counts.iter().map(|(flow, most)| Wanted { flow, most: *most }).collect();
        let text = match tx {
            // SQLite's LIMIT knows nothing of the row around it; it locks nothing either, so more does no harm. A bare parameter
            // there would have the statement prepared anew each time.
            Tx::Sqlite(_) => {
                "SELECT job.* FROM json_each($1) AS given JOIN job ON job.id IN (SELECT id FROM job AS queued \
                 WHERE queued.flow_id = given.value ->> '$.flow' AND queued.state = 'queued' \
                 ORDER BY queued.rank, queued.id LIMIT $2 + 0)"
            }
            Tx::Postgres(_) => {
                "SELECT job.* FROM jsonb_to_recordset($1) AS given (flow text, most bigint) CROSS JOIN LATERAL \
                 (SELECT * FROM job AS queued WHERE queued.flow_id = given.flow AND queued.state = 'queued' \
                 ORDER BY queued.rank, queued.id LIMIT LEAST(given.most, $2) FOR UPDATE SKIP LOCKED) AS job"
            }
        };
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let mut rows: Vec<JobRow> =
            on_tx!(tx, |c| sqlx::query_as(text).bind(Json(&wanted)).bind(most).fetch_all(c).await)?;
        rows.sort_by(|a, b| (a.rank, &a.id).cmp(&(b.rank, &b.id)));
        for row in rows {
            flows.entry(row.flow_id.clone()).or_default().push(row);
        }
        for (flow, count) in counts {
            let head = flows.entry((*flow).clone()).or_default();
            head.all = head.jobs.len() < *count;
        }
        Ok(Self { flows, taken: Vec::new() })
    }

    /// The first job of a flow that may have this machine. Few jobs are bound to machines (those of which an attempt
    /// failed), so few are looked at in vain.
    pub async fn take(&mut self, tx: &mut Tx, flow: &FlowId, machine: &MachineId) -> DbResult<Option<JobRow>> {
        let head = self.flows.entry(flow.clone()).or_default();
        let mut most = 1;
        let mut job = loop {
            let place = head.jobs.iter().position(|job| may_have(job, machine));
            if let Some(job) = place.and_then(|place| head.jobs.remove(place)) {
                break job;
            }
            if head.all {
                return Ok(None);
            }
            let jobs = fetch_more(tx, flow, head.last.as_ref(), most).await?;
            head.all = jobs.len() < most;
            jobs.into_iter().for_each(|job| head.push(job));
            most *= 2;
        };
        self.taken.push(job.id.clone());
        job.state = crashyard_protocol::JobState::Leased;
        job.attempt_count += 1;
        Ok(Some(job))
    }

    /// Whether a flow has a queued job that was not given out here.
    pub async fn has_more(&self, tx: &mut Tx, flow: &FlowId) -> DbResult<bool> {
        if self.flows.get(flow).is_some_and(|head| !head.jobs.is_empty()) {
            return Ok(true);
        }
        let text = listed!(
            tx,
            "SELECT COUNT(*) FROM (SELECT 1 FROM job WHERE flow_id = $2 AND state = 'queued' AND NOT (",
            "id",
            ") LIMIT 1) AS first"
        );
        let count: i64 =
            on_tx!(tx, |c| sqlx::query_scalar(text).bind(Json(&self.taken)).bind(flow).fetch_one(c).await)?;
        Ok(count > 0)
    }

    /// Writes down what was given out; the selectors of jobs that were fetched and not given out. Other servers may have
    /// passed those over.
    pub async fn lease(self, tx: &mut Tx) -> DbResult<BTreeSet<SelectorId>> {
        if !self.taken.is_empty() {
            // They are locked and queued, so nothing but their ids is asked: for more PostgreSQL may walk through the queue.
            let text =
                listed!(tx, update "job SET state = 'leased', attempt_count = attempt_count + 1 WHERE ", "id", "");
            on_tx!(tx, |c| sqlx::query(text).bind(Json(&self.taken)).execute(c).await.map(drop))?;
        }
        let left = match tx {
            Tx::Sqlite(_) => BTreeSet::new(),
            Tx::Postgres(_) => self.flows.into_values().flat_map(|head| head.jobs).map(|job| job.selector_id).collect(),
        };
        Ok(left)
    }
}

/// The next jobs of a flow. Nothing is asked of them but their place: each further condition has PostgreSQL expect fewer of
/// them, until it finds it cheaper to fetch and sort the whole flow, which is what it did in the first minute of a long queue.
async fn fetch_more(tx: &mut Tx, flow: &FlowId, after: Option<&(i64, JobId)>, most: usize) -> DbResult<Vec<JobRow>> {
    let text = match tx {
        Tx::Sqlite(_) => {
            "SELECT * FROM job WHERE flow_id = $1 AND state = 'queued' AND (rank, id) > ($2, $3) ORDER BY rank, id \
             LIMIT $4 + 0"
        }
        Tx::Postgres(_) => {
            "SELECT * FROM job WHERE flow_id = $1 AND state = 'queued' AND (rank, id) > ($2, $3) ORDER BY rank, id LIMIT $4 \
             FOR UPDATE SKIP LOCKED"
        }
    };
    let (rank, id) = after.map_or((i64::MIN, ""), |(rank, id)| (*rank, id.as_str()));
    let most = i64::try_from(most).unwrap_or(i64::MAX);
    Ok(on_tx!(tx, |c| sqlx::query_as(text).bind(flow).bind(rank).bind(id).bind(most).fetch_all(c).await)?)
}

fn may_have(job: &JobRow, machine: &MachineId) -> bool {
    job.only_machine_id.as_ref().is_none_or(|only| only == machine)
        && job.not_machine_id.as_ref().is_none_or(|not| not != machine)
}
