//! `kill -9` of a server every five seconds under load: nothing may be lost, doubled or stuck.
//!
//! A hundred simulated machines go through attempts with a console each, and submissions never stop. Every request is
//! repeated until it is answered, as real agents do. At the end every acknowledged run must be done, every acknowledged
//! console byte must be there once, no job was on two machines at once, and every machine is free.

use crate::farm;
use crate::figures::Figure;
use crate::server::Server;
use anyhow::Context as _;
use crashyard_protocol::agent::{Claim, ClaimRequest, Enrolled, ReleaseRequest};
use crashyard_protocol::api::{Machine, NewPlan, NewRun, Page, Policy};
use crashyard_protocol::client::{Client, ClientError};
use crashyard_protocol::{AttemptId, BuildId, JobId, MachineId, MachineState, RunId, RunState};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

const CONTROLLERS: usize = 10;
const MACHINES: usize = 10;
/// Jobs of one submission.
const JOBS: u32 = 20;
const KILL_EVERY: Duration = Duration::from_secs(5);
/// Between the console writes of an attempt, of which there are three.
const WRITE_EVERY: Duration = Duration::from_millis(50);
const SUBMIT_EVERY: Duration = Duration::from_millis(200);
/// Before a request that failed goes to the next server.
const RETRY_AFTER: Duration = Duration::from_millis(100);
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long no attempt may end after the last kill, before what is owed counts as lost. What was submitted faster than it
/// could be worked off may take as long as it likes; runs of such a queue end late and all at once.
const SETTLE: Duration = Duration::from_secs(60);

/// What the labs know.
#[derive(Default)]
struct Book {
    live: HashMap<JobId, AttemptId>,
    doubled: usize,
    consoles: BTreeMap<AttemptId, u64>,
    runs: Vec<RunId>,
}

#[derive(Clone)]
struct Lab {
    clients: Arc<Vec<Client>>,
    book: Arc<Mutex<Book>>,
    stop: Arc<AtomicBool>,
}

/// One server on SQLite.
pub async fn sqlite(seconds: u64) -> anyhow::Result<Figure> {
    measure("SQLite, one server", vec![Server::start().await?], seconds).await
}

/// Two servers on PostgreSQL.
pub async fn postgres(seconds: u64) -> anyhow::Result<Figure> {
    let postgres = crashyard_testkit::Postgres::start_durable()?;
    let first = Server::start_on(Some(&postgres.database("farm")?)).await?;
    let second = first.second().await?;
    let figure = measure("PostgreSQL, two servers", vec![first, second], seconds).await;
    drop(postgres);
    figure
}

async fn measure(what: &str, mut servers: Vec<Server>, seconds: u64) -> anyhow::Result<Figure> {
    let admin = servers[0].admin.clone();
    let build = farm::prepare(&admin, 1).await?;
    let selector = BTreeMap::from([("driver".to_owned(), "simulated".to_owned())]);
    let scenarios = vec!["bench-0".to_owned()];
    let plan = NewPlan {
        name: "storm".into(),
        scenarios,
        selector,
        requires: Vec::new(),
        repetitions: JOBS,
        policy: Policy::default(),
    };
    admin.put_plan(&plan).await?;
    let lab = Lab {
        clients: Arc::new(servers.iter().map(|server| server.admin.clone()).collect()),
        book: Arc::default(),
        stop: Arc::default(),
    };
    let mut work = tokio::task::JoinSet::new();
    for number in 0..CONTROLLERS {
        let enrolled = farm::enrol(&admin, &format!("lab{number}"), MACHINES).await?;
        for (index, machine) in enrolled.machines.values().cloned().enumerate() {
            let (lab, enrolled) = (lab.clone(), enrolled.clone());
            work.spawn(async move { lab.machine(&enrolled, &machine, number + index).await });
        }
    }
    let submitting = tokio::spawn({
        let lab = lab.clone();
        async move { lab.submit(&build).await }
    });
    let (begun, mut kills) = (Instant::now(), 0);
    while begun.elapsed() < Duration::from_secs(seconds) {
        tokio::time::sleep(KILL_EVERY).await;
        let count = servers.len();
        servers[kills % count].kill_and_restart().await?;
        kills += 1;
    }
    lab.stop.store(true, Ordering::SeqCst);
    submitting.await??;
    let runs = lab.book().runs.clone();
    let lost = lab.not_done(&runs).await?;
    // A machine's life has no end of its own: one that is over met an answer that no agent may get.
    if let Some(ended) = work.try_join_next() {
        ended?.context("a machine gave up")?;
    }
    work.shutdown().await;
    let console_errors = lab.consoles_that_differ().await?;
    let stuck = stuck(&admin).await?;
    let doubled = lab.book().doubled;
    let attempts = lab.book().consoles.len();
    let bad = lost + doubled + console_errors + stuck;
    Ok(Figure {
        what: format!("kill -9 every 5 s for {seconds} s, {what}"),
        measured: format!("{lost} lost, {doubled} doubled, {stuck} stuck"),
        bar: "0, 0, 0".into(),
        reached: bad == 0,
        limit: format!(
            "{kills} kills, {} jobs owed, {attempts} attempts, {console_errors} consoles that differ",
            runs.len() * JOBS as usize
        ),
    })
}

impl Lab {
    fn book(&self) -> std::sync::MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Repeats a request, at the next server each time, until it is answered by one.
    async fn until_answered<T, F>(&self, first: usize, call: impl Fn(Client) -> F) -> Result<T, ClientError>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        let mut at = first;
        loop {
            match call(self.clients[at % self.clients.len()].clone()).await {
                Err(error) if error.is_transient() => {
                    at += 1;
                    tokio::time::sleep(RETRY_AFTER).await;
                }
                answer => return answer,
            }
        }
    }

    /// One machine's life: attempts, one after another. Ends when it is aborted.
    async fn machine(&self, lab: &Enrolled, machine: &MachineId, number: usize) -> anyhow::Result<()> {
        let request = ClaimRequest {
            controller: lab.controller.clone(),
            machines: vec![machine.clone()],
            wait_seconds: 5,
            errands: false,
        };
        loop {
            let claim = self.until_answered(number, |client| {
                let request = request.clone();
                async move { client.claim(&request).await }
            });
            if let Some(claim) = claim.await? {
                self.attempt(&claim, number).await?;
            }
        }
    }

    async fn attempt(&self, claim: &Claim, number: usize) -> anyhow::Result<()> {
        {
            let mut book = self.book();
            let before = book.live.insert(claim.brief.job.clone(), claim.attempt.clone());
            if before.is_some_and(|before| before != claim.attempt) {
                book.doubled += 1;
            }
        }
        let text = format!("console of attempt {} on machine {}\n", claim.attempt, claim.machine);
        let mut sent = 0_u64;
        for _ in 0..3 {
            let put = self.until_answered(number, |client| {
                let (client, text) = (client.at_epoch(claim.epoch), text.clone());
                async move { client.put_console(&claim.attempt, "serial0", sent, text.into()).await }
            });
            put.await.context("console")?;
            sent += text.len() as u64;
            tokio::time::sleep(WRITE_EVERY).await;
        }
        self.book().consoles.insert(claim.attempt.clone(), sent);
        // Before it is handed back: whoever gets the job then may have it.
        self.book().live.remove(&claim.brief.job);
        let release = self.until_answered(number, |client| {
            let client = client.at_epoch(claim.epoch);
            async move {
                client.release(&claim.attempt, &ReleaseRequest { healthy: true, detail: String::new() }).await
            }
        });
        release.await.context("release")
    }

    async fn submit(&self, build: &BuildId) -> anyhow::Result<()> {
        let mut number = 0;
        while !self.stop.load(Ordering::SeqCst) {
            let run = NewRun { key: Some(format!("storm-{number}")), ..NewRun::new(build.clone(), "storm") };
            let made = self.until_answered(number, |client| {
                let run = run.clone();
                async move { client.create_run(&run).await }
            });
            let made = made.await?;
            self.book().runs.push(made.id);
            number += 1;
            tokio::time::sleep(SUBMIT_EVERY).await;
        }
        Ok(())
    }

    /// Runs that were acknowledged and are not whole and done in time.
    async fn not_done(&self, runs: &[RunId]) -> anyhow::Result<usize> {
        let (mut progress, mut attempts) = (Instant::now(), 0);
        let mut open: Vec<RunId> = runs.to_vec();
        let mut lost = 0;
        while !open.is_empty() && progress.elapsed() < SETTLE {
            let mut still = Vec::new();
            for id in open {
                let run = self.clients[0].run(&id).await?;
                let owed: u32 = run.counts.values().sum();
                match run.state {
                    RunState::Done => lost += usize::from(owed != JOBS),
                    RunState::Open => still.push(id),
                }
            }
            open = still;
            let ended = self.book().consoles.len();
            if ended > attempts {
                (progress, attempts) = (Instant::now(), ended);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(lost + open.len())
    }

    /// Attempts whose console is not what was acknowledged.
    async fn consoles_that_differ(&self) -> anyhow::Result<usize> {
        let consoles = self.book().consoles.clone();
        let mut differ = 0;
        for (id, sent) in consoles {
            let attempt = self.clients[0].attempt(&id).await?;
            let has: u64 =
                attempt.artifacts.iter().filter(|file| file.name == "console-serial0").map(|file| file.size).sum();
            differ += usize::from(has != sent);
        }
        Ok(differ)
    }
}

/// Machines that are not free although nothing is left to do.
async fn stuck(admin: &Client) -> anyhow::Result<usize> {
    let page: Page<Machine> = admin.get("/api/v1/machines?limit=200").await?;
    Ok(page.items.iter().filter(|machine| machine.state != MachineState::Available).count())
}
