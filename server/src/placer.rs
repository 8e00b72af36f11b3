//! Claims, many in one commit ([`crate::group`]). What decides who gets what is [`crate::db::queue`].
//!
//! A claim whose controller hangs up before its turn gets nothing; one that hangs up later gets the same lease again with
//! its next claim.

use crate::db::artifact::{ArtifactRow, Owner};
use crate::db::build::BuildRow;
use crate::db::machine::Idle;
use crate::db::queue::{self, Ask, Batch, Leased};
use crate::db::{self, Db, DbError, DbResult, Tx};
use crate::group::Together;
use crate::judging;
use crate::triage::BuildFacts;
use crashyard_protocol::{AttemptId, BuildId, MachineId, RunId, SelectorId};
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A claim.
#[derive(Clone, Debug)]
pub struct Claim {
    /// What is asked for.
    pub ask: Ask,
    /// Machines that the controller calls idle; written down with it.
    pub idle: Vec<MachineId>,
}

/// A lease that was given, with what its brief is made of.
#[derive(Clone, Debug)]
pub struct Placed {
    /// The lease.
    pub leased: Leased,
    /// The kernel under test.
    pub build: BuildRow,
    /// Its files.
    pub files: Arc<Vec<ArtifactRow>>,
    /// Selectors of jobs that other servers may have passed over meanwhile: to be offered again.
    pub passed_over: BTreeSet<SelectorId>,
}

/// Runs whose builds are known. One is a kilobyte.
const KNOWN: usize = 4096;

/// Gives out leases.
#[derive(Debug, Default)]
pub struct Placer {
    /// The kernel under test of runs that were served a moment ago. Neither a run's build nor what is written of it ever changes.
    builds: Mutex<HashMap<RunId, BuildRow>>,
}

impl Together for Placer {
    type Ask = Claim;
    type Answer = Option<Placed>;
    const QUEUE: usize = 4096;
    const BATCH: usize = 64;

    async fn write(&self, db: &Db, tx: Tx, claims: &[Claim]) -> DbResult<Vec<DbResult<Option<Placed>>>> {
        match self.place(db, tx, claims).await {
            // The database itself refuses a second lease, if two servers were that close.
            Err(DbError::Conflict(_)) if claims.len() == 1 => Ok(vec![Ok(None)]),
            placed => Ok(placed?.into_iter().map(Ok).collect()),
        }
    }
}

impl Placer {
    async fn place(&self, db: &Db, mut tx: Tx, claims: &[Claim]) -> DbResult<Vec<Option<Placed>>> {
        let asks: Vec<Ask> = claims.iter().map(|claim| claim.ask.clone()).collect();
        let mut batch = queue::take(&mut tx, &asks).await?;
        if let Some(first) = claims.first() {
            let controllers = claims.iter().map(|claim| &claim.ask.lease.controller).collect();
            db::machine::seen(&mut tx, &controllers, &still_idle(claims, &batch), first.ask.lease.now).await?;
        }
        let builds = self.builds(&mut tx, &batch).await?;
        let mut stages = Vec::new();
        let mut booted = HashMap::new();
        for one in batch.taken.iter_mut().flatten() {
            let build = match one.boots_build() {
                Some(id) => db::build::get_in(&mut tx, id).await?,
                None => builds.get(&one.job.run_id).cloned().ok_or(DbError::NotFound)?,
            };
            let facts = BuildFacts { release: build.release.clone(), build_id: build.build_id.clone() };
            let judged = judging::first(&one.lease.attempt, &one.job.scenario, &facts, one.lease.now);
            one.check_at = judged.check_at;
            stages.push((one.lease.attempt.clone(), judged.stages));
            booted.insert(one.lease.attempt.clone(), build);
        }
        queue::open(&mut tx, &batch).await?;
        db::judgement::open_all(&mut tx, &stages).await?;
        let passed_over = std::mem::take(&mut batch.passed_over);
        let leased = queue::record(&mut tx, batch).await?;
        // A commit waits for the disk.
        let (files, committed) = tokio::join!(files(db, &booted), tx.commit());
        committed?;
        Ok(with_builds(leased, &booted, &files?, passed_over))
    }

    /// The kernels under test of what was taken, by run.
    async fn builds(&self, tx: &mut Tx, batch: &Batch) -> DbResult<HashMap<RunId, BuildRow>> {
        let runs: BTreeSet<&RunId> = batch.taken.iter().flatten().map(|one| &one.job.run_id).collect();
        let (mut builds, mut unknown) = (HashMap::new(), BTreeSet::new());
        {
            let known = self.known();
            for run in runs {
                match known.get(run) {
                    Some(build) => _ = builds.insert(run.clone(), build.clone()),
                    None => _ = unknown.insert(run),
                }
            }
        }
        if !unknown.is_empty() {
            let found = db::build::of_runs(tx, &unknown).await?;
            let mut known = self.known();
            if known.len() + found.len() > KNOWN {
                known.clear();
            }
            known.extend(found.clone());
            builds.extend(found);
        }
        Ok(builds)
    }

    fn known(&self) -> MutexGuard<'_, HashMap<RunId, BuildRow>> {
        self.builds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Machines that were called idle and got nothing to do; of the others a lease says more.
fn still_idle(claims: &[Claim], batch: &Batch) -> Vec<Idle> {
    let leased: BTreeSet<&MachineId> = batch.taken.iter().flatten().map(|one| &one.machine.id).collect();
    let idle = claims.iter().flat_map(|claim| {
        let machines = claim.idle.iter().filter(|id| !leased.contains(id));
        machines.map(|id| Idle { controller: claim.ask.lease.controller.clone(), machine: id.clone() })
    });
    idle.collect::<BTreeSet<_>>().into_iter().collect()
}

/// Files of builds.
type Files = HashMap<BuildId, Arc<Vec<ArtifactRow>>>;

/// The files of the builds that are booted, once for each build.
async fn files(db: &Db, booted: &HashMap<AttemptId, BuildRow>) -> DbResult<Files> {
    let builds: BTreeSet<&BuildId> = booted.values().map(|build| &build.id).collect();
    let mut files = Files::new();
    for id in builds {
        files.insert(id.clone(), Arc::new(db::artifact::list(db, &Owner::Build(id.clone())).await?));
    }
    Ok(files)
}

/// Adds what briefs are made of.
fn with_builds(
    leased: Vec<Option<Leased>>,
    booted: &HashMap<AttemptId, BuildRow>,
    files: &Files,
    mut passed_over: BTreeSet<SelectorId>,
) -> Vec<Option<Placed>> {
    let mut with_build = |leased: Leased| {
        let build = booted.get(&leased.attempt.id)?.clone();
        let files = files.get(&build.id)?.clone();
        Some(Placed { leased, build, files, passed_over: std::mem::take(&mut passed_over) })
    };
    leased.into_iter().map(|one| one.and_then(&mut with_build)).collect()
}
