//! Groups claims into commits.
//!
//! A lease must be durable before a controller is told of it, and a durable commit costs a flush of the disk. Claims that
//! arrive while a commit is under way wait for the next one together: one flush for all of them, no waiting where there
//! is only one, no timer. What decides who gets what is [`crate::db::queue`].

use crate::auth::secret_hash;
use crate::db::artifact::{ArtifactRow, Owner};
use crate::db::build::BuildRow;
use crate::db::queue::{self, Ask, Leased};
use crate::db::token::TokenRow;
use crate::db::{self, Db, DbError, DbResult};
use crate::judging;
use crate::triage::BuildFacts;
use crashyard_protocol::{BuildId, MachineId, RunId, Scope, TokenId};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// Claims waiting for the next commit; beyond it, claims wait for a place.
const QUEUE: usize = 4096;
/// Claims in one commit.
const BATCH: usize = 64;

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

type Job = (Claim, oneshot::Sender<DbResult<Option<Placed>>>);

/// Handle to the placer.
#[derive(Clone, Debug)]
pub struct Placer(mpsc::Sender<Job>);

impl Placer {
    /// Starts the placer; it ends when the last handle is gone.
    #[must_use]
    pub fn start(db: Db) -> Self {
        let (sender, mut jobs) = mpsc::channel::<Job>(QUEUE);
        tokio::spawn(async move {
            let mut batch = Vec::with_capacity(BATCH);
            while jobs.recv_many(&mut batch, BATCH).await > 0 {
                // A claim whose controller hung up gets nothing: it would be handed out again, but only later.
                batch.retain(|(_, sender)| !sender.is_closed());
                Box::pin(place(&db, std::mem::take(&mut batch))).await;
            }
        });
        Self(sender)
    }

    /// Asks for a lease; durable when this returns one.
    pub async fn claim(&self, claim: Claim) -> DbResult<Option<Placed>> {
        let gone = || DbError::Unavailable(sqlx::Error::PoolClosed);
        let (sender, answer) = oneshot::channel();
        self.0.send((claim, sender)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

async fn place(db: &Db, batch: Vec<Job>) {
    if batch.is_empty() {
        return;
    }
    match place_together(db, &batch).await {
        Ok(leases) => {
            for ((_, sender), lease) in batch.into_iter().zip(leases) {
                // One that hung up at this moment gets the same lease again with its next claim.
                let _ = sender.send(Ok(lease));
            }
        }
        Err(error) => match <[Job; 1]>::try_from(batch) {
            Ok([(_, sender)]) => {
                let _ = sender.send(match error {
                    // The database itself refuses a second lease, if two servers were that close.
                    DbError::Conflict(_) => Ok(None),
                    error => Err(error),
                });
            }
            // One of them spoils the transaction: each for itself then.
            Err(batch) => {
                for job in batch {
                    Box::pin(place(db, vec![job])).await;
                }
            }
        },
    }
}

async fn place_together(db: &Db, batch: &[Job]) -> DbResult<Vec<Option<Placed>>> {
    let mut tx = db.begin().await?;
    let idle: Vec<&Claim> = batch.iter().map(|(claim, _)| claim).filter(|claim| !claim.idle.is_empty()).collect();
    if let Some(first) = idle.first() {
        let controllers = idle.iter().map(|claim| &claim.ask.lease.controller).collect();
        let machines = idle.iter().flat_map(|claim| &claim.idle).collect();
        db::machine::seen_all(&mut tx, &controllers, &machines, first.ask.lease.now).await?;
    }
    let asks: Vec<Ask> = batch.iter().map(|(claim, _)| claim.ask.clone()).collect();
    let mut taken = queue::take(&mut tx, &asks).await?;
    let runs: BTreeSet<&RunId> = taken.taken.iter().flatten().map(|one| &one.job.run_id).collect();
    let builds = db::build::of_runs(&mut tx, &runs).await?;
    let mut stages = Vec::new();
    let mut tokens = Vec::new();
    for (one, (claim, _)) in taken.taken.iter_mut().zip(batch) {
        let Some(one) = one else { continue };
        let build = builds.get(&one.job.run_id).ok_or(DbError::NotFound)?;
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
    }
    let leased = queue::record(&mut tx, taken).await?;
    db::judgement::open_all(&mut tx, &stages).await?;
    db::token::create_all(&mut tx, &tokens).await?;
    tx.commit().await?;
    with_builds(db, leased, &builds).await
}

/// Adds what briefs are made of: once for each build.
async fn with_builds(
    db: &Db,
    leased: Vec<Option<Leased>>,
    builds: &HashMap<RunId, BuildRow>,
) -> DbResult<Vec<Option<Placed>>> {
    let mut files: HashMap<&BuildId, Arc<Vec<ArtifactRow>>> = HashMap::new();
    let mut placed = Vec::with_capacity(leased.len());
    for one in leased {
        let Some((build, leased)) = one.and_then(|one| Some((builds.get(&one.attempt.run_id)?, one))) else {
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
