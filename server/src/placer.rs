//! Claims, many in one commit ([`crate::group`]). What decides who gets what is [`crate::db::queue`].
//!
//! A claim whose controller hangs up before its turn gets nothing; one that hangs up later gets the same lease again with
//! its next claim.

use crate::auth::secret_hash;
use crate::db::artifact::{ArtifactRow, Owner};
use crate::db::build::BuildRow;
use crate::db::queue::{self, Ask, Leased};
use crate::db::token::TokenRow;
use crate::db::{self, Db, DbError, DbResult};
use crate::group::Together;
use crate::judging;
use crate::triage::BuildFacts;
use crashyard_protocol::{AttemptId, BuildId, MachineId, RunId, Scope, TokenId};
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
}

/// Gives out leases.
#[derive(Debug)]
pub struct Placer;

impl Together for Placer {
    type Ask = Claim;
    type Answer = Option<Placed>;
    const QUEUE: usize = 4096;
    const BATCH: usize = 64;

    async fn write(db: &Db, claims: &[Claim]) -> DbResult<Vec<DbResult<Option<Placed>>>> {
        match place(db, claims).await {
            // The database itself refuses a second lease, if two servers were that close.
            Err(DbError::Conflict(_)) if claims.len() == 1 => Ok(vec![Ok(None)]),
            placed => Ok(placed?.into_iter().map(Ok).collect()),
        }
    }
}

async fn place(db: &Db, claims: &[Claim]) -> DbResult<Vec<Option<Placed>>> {
    let mut tx = db.begin().await?;
    let idle: Vec<&Claim> = claims.iter().filter(|claim| !claim.idle.is_empty()).collect();
    if let Some(first) = idle.first() {
        let controllers = idle.iter().map(|claim| &claim.ask.lease.controller).collect();
        let machines = idle.iter().flat_map(|claim| &claim.idle).collect();
        db::machine::seen_idle(&mut tx, &controllers, &machines, first.ask.lease.now).await?;
    }
    let asks: Vec<Ask> = claims.iter().map(|claim| claim.ask.clone()).collect();
    let mut taken = queue::take(&mut tx, &asks).await?;
    let runs: BTreeSet<&RunId> = taken.taken.iter().flatten().map(|one| &one.job.run_id).collect();
    let builds = db::build::of_runs(&mut tx, &runs).await?;
    let mut stages = Vec::new();
    let mut tokens = Vec::new();
    let mut booted = HashMap::new();
    for (one, claim) in taken.taken.iter_mut().zip(claims) {
        let Some(one) = one else { continue };
        let build = match one.boots_build() {
            Some(id) => db::build::get_in(&mut tx, id).await?,
            None => builds.get(&one.job.run_id).cloned().ok_or(DbError::NotFound)?,
        };
        let facts = BuildFacts { release: build.release.clone(), build_id: build.build_id.clone() };
        let judged = judging::first(&one.lease.attempt, &one.job.scenario, &facts, one.lease.now);
        one.check_at = judged.check_at;
        stages.push((one.lease.attempt.clone(), judged.stages));
        let token = TokenRow {
            id: claim.token.clone(),
            name: format!("attempt {}", one.lease.attempt),
            scope: Scope::Attempt,
            attempt_id: Some(one.lease.attempt.clone()),
            created_at: one.lease.now,
            expires_at: None,
            revoked_at: None,
        };
        tokens.push((token, secret_hash(&claim.secret)));
        booted.insert(one.lease.attempt.clone(), build);
    }
    let leased = queue::record(&mut tx, taken).await?;
    db::judgement::open_all(&mut tx, &stages).await?;
    db::token::create_all(&mut tx, &tokens).await?;
    tx.commit().await?;
    with_builds(db, leased, &booted).await
}

/// Adds what briefs are made of: once for each build.
async fn with_builds(
    db: &Db,
    leased: Vec<Option<Leased>>,
    builds: &HashMap<AttemptId, BuildRow>,
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
        placed.push(Some(Placed { leased, build: build.clone(), files: files[&build.id].clone() }));
    }
    Ok(placed)
}
