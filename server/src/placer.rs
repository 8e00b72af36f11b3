//! Claims, many in one commit ([`crate::group`]). What decides who gets what is [`crate::db::queue`].
//!
//! A claim whose controller hangs up before its turn gets nothing; one that hangs up later gets the same lease again with
//! its next claim.

use crate::auth::secret_hash;
use crate::db::artifact::{ArtifactRow, Owner};
use crate::db::build::BuildRow;
use crate::db::machine::Idle;
use crate::db::queue::{self, Ask, Batch, Leased};
use crate::db::token::AttemptToken;
use crate::db::{self, Db, DbError, DbResult, Tx};
use crate::group::Together;
use crate::judging;
use crate::triage::BuildFacts;
use crashyard_protocol::{AttemptId, BuildId, MachineId, RunId, SelectorId, TokenId};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// A claim.
#[derive(Clone, Debug)]
pub struct Claim {
    /// What is asked for.
    pub ask: Ask,
    /// Machines that the controller calls idle; written down with it.
    pub idle: Vec<MachineId>,
    /// Id of the attempt's token, if there will be one.
    pub token: TokenId,
    /// Its secret.
    pub secret: String,
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

/// Gives out leases.
#[derive(Debug)]
pub struct Placer;

impl Together for Placer {
    type Ask = Claim;
    type Answer = Option<Placed>;
    const QUEUE: usize = 4096;
    const BATCH: usize = 64;

    async fn write(&self, db: &Db, tx: Tx, claims: &[Claim]) -> DbResult<Vec<DbResult<Option<Placed>>>> {
        match place(db, tx, claims).await {
            // The database itself refuses a second lease, if two servers were that close.
            Err(DbError::Conflict(_)) if claims.len() == 1 => Ok(vec![Ok(None)]),
            placed => Ok(placed?.into_iter().map(Ok).collect()),
        }
    }
}

async fn place(db: &Db, mut tx: Tx, claims: &[Claim]) -> DbResult<Vec<Option<Placed>>> {
    let asks: Vec<Ask> = claims.iter().map(|claim| claim.ask.clone()).collect();
    let mut batch = queue::take(&mut tx, &asks).await?;
    if let Some(first) = claims.first() {
        let controllers = claims.iter().map(|claim| &claim.ask.lease.controller).collect();
        db::machine::seen(&mut tx, &controllers, &still_idle(claims, &batch), first.ask.lease.now).await?;
    }
    let runs: BTreeSet<&RunId> = batch.taken.iter().flatten().map(|one| &one.job.run_id).collect();
    let builds = db::build::of_runs(&mut tx, &runs).await?;
    let mut stages = Vec::new();
    let mut tokens = Vec::new();
    let mut booted = HashMap::new();
    for (one, claim) in batch.taken.iter_mut().zip(claims) {
        let Some(one) = one else { continue };
        let build = match one.boots_build() {
            Some(id) => db::build::get_in(&mut tx, id).await?,
            None => builds.get(&one.job.run_id).cloned().ok_or(DbError::NotFound)?,
        };
        let facts = BuildFacts { release: build.release.clone(), build_id: build.build_id.clone() };
        let judged = judging::first(&one.lease.attempt, &one.job.scenario, &facts, one.lease.now);
        one.check_at = judged.check_at;
        stages.push((one.lease.attempt.clone(), judged.stages));
        tokens.push(AttemptToken {
            id: claim.token.clone(),
            name: format!("attempt {}", one.lease.attempt),
            secret_hash: secret_hash(&claim.secret),
            attempt: one.lease.attempt.clone(),
            at: one.lease.now,
        });
        booted.insert(one.lease.attempt.clone(), build);
    }
    queue::open(&mut tx, &batch).await?;
    db::judgement::open_all(&mut tx, &stages).await?;
    db::token::create_all(&mut tx, &tokens).await?;
    let passed_over = std::mem::take(&mut batch.passed_over);
    let leased = queue::record(&mut tx, batch).await?;
    tx.commit().await?;
    with_builds(db, leased, &booted, passed_over).await
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

/// Adds what briefs are made of: once for each build.
async fn with_builds(
    db: &Db,
    leased: Vec<Option<Leased>>,
    builds: &HashMap<AttemptId, BuildRow>,
    mut passed_over: BTreeSet<SelectorId>,
) -> DbResult<Vec<Option<Placed>>> {
    let mut files: HashMap<&BuildId, Arc<Vec<ArtifactRow>>> = HashMap::new();
    let mut placed = Vec::with_capacity(leased.len());
    for one in leased {
        let Some((build, leased)) = one.and_then(|one| Some((builds.get(&one.attempt.id)?, one))) else {
            placed.push(None);
            continue;
        };
        if !files.contains_key(&build.id) {
            files.insert(&build.id, Arc::new(db::artifact::list(db, &Owner::Build(build.id.clone())).await?));
        }
        let passed_over = std::mem::take(&mut passed_over);
        placed.push(Some(Placed { leased, build: build.clone(), files: files[&build.id].clone(), passed_over }));
    }
    Ok(placed)
}
