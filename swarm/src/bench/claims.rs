//! Claims per second, with few and with a million queued jobs, on SQLite and on PostgreSQL with two servers.
//!
//! Real HTTP: 50 controllers of 20 machines each, over kept connections; each claim asks for one machine and gives one lease,
//! as real controllers ask. The machines are handed back between rounds, which is not counted.

use crate::farm;
use crate::figures::{Figure, quantile};
use crate::process;
use crate::server::Server;
use crashyard_protocol::agent::{Claim, ClaimRequest, EnrolRequest, Enrolled, MachineSpec, ReleaseRequest};
use crashyard_protocol::api::{NewPlan, NewRun, NewToken, Policy};
use crashyard_protocol::client::Client;
use crashyard_protocol::{BuildId, MachineId, Scope};
use crashyard_testkit::Postgres;
use futures::StreamExt as _;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

const CONTROLLERS: usize = 50;
const MACHINES: usize = 20;
const SELECTORS: usize = 200;
/// Selectors each machine satisfies.
const EACH: usize = 5;
const SUBMITTERS: usize = 4;
/// Most jobs of one run.
const RUN: usize = 10_000;
/// With few queued, there are twice so many before each round and so many after it.
const FEW: usize = 1_000;
const MANY: usize = 1_000_000;
/// Of three, a single flush that the disk took 30 ms for was more than one claim in a hundred.
const ROUNDS: usize = 9;
/// Claims under way at once at each server. Of a third more, as many are served in a second, and each of them later.
const AT_ONCE: usize = 24;
/// Servers and database rest when in so long they use at most this part of one processor.
const REST: Duration = Duration::from_secs(2);
const AT_REST: f64 = 0.05;
/// Longest wait for that: a server that is never at rest is found out, and not waited for.
const RESTLESS: Duration = Duration::from_secs(300);

/// SQLite, one server.
pub async fn sqlite() -> anyhow::Result<Vec<Figure>> {
    let few = Bench::of(vec![Server::start().await?], None).await?;
    let many = Bench::of(vec![Server::start().await?], None).await?;
    measure("SQLite", &few, &many, Bars { rate: 2000.0, p99: Some(20.0) }).await
}

/// PostgreSQL, two servers.
pub async fn postgres() -> anyhow::Result<Vec<Figure>> {
    let postgres = Postgres::start_durable()?;
    let two = async |name| {
        let first = Server::start_on(Some(&postgres.database(name)?)).await?;
        let second = first.second().await?;
        Bench::of(vec![first, second], Some(&postgres)).await
    };
    let (few, many) = (two("few").await?, two("many").await?);
    measure("PostgreSQL, two servers", &few, &many, Bars { rate: 1500.0, p99: None }).await
}

/// What is wanted.
struct Bars {
    /// Claims in a second.
    rate: f64,
    /// Milliseconds that 99 of 100 claims take at most.
    p99: Option<f64>,
}

/// Rounds by turns at a farm with few and at one with many queued jobs: a machine that is slower for some minutes is so for
/// both, and its hour is not taken for what a longer queue costs.
async fn measure(
    what: &str,
    few_queued: &Bench<'_>,
    many_queued: &Bench<'_>,
    bars: Bars,
) -> anyhow::Result<Vec<Figure>> {
    let servers = &many_queued.servers;
    few_queued.fill(FEW).await?;
    let begun = Instant::now();
    many_queued.fill(MANY).await?;
    let filled = begun.elapsed().as_secs_f64();
    let (mut few, mut many) = (Measured::default(), Measured::default());
    for _ in 0..ROUNDS {
        few_queued.fill(FEW).await?;
        few_queued.round(&mut few).await?;
        many_queued.round(&mut many).await?;
    }
    let [median, p99] = [0.5, 0.99].map(|part| quantile(&mut many.latencies, part) * 1e3);
    let [few_used, many_used] = [&few, &many].map(Measured::used_by_one);
    let ratio = (many_used[0] + many_used[1]) / (few_used[0] + few_used[1]);
    let held = format!(
        "processor time of a claim: servers {:.0} µs, database {:.0} µs, this program {:.0} µs; {} claims, {} at once, median {median:.1} ms, p99 {p99:.1} ms",
        many_used[0] * 1e6,
        many_used[1] * 1e6,
        many_used[2] * 1e6,
        many.claims,
        AT_ONCE * servers.len(),
    );
    let mut figures = vec![
        Figure {
            what: format!("claims/s, {what}, 1 M queued"),
            measured: format!("{:.0}/s", many.rate()),
            bar: format!("≥ {:.0}/s", bars.rate),
            reached: many.rate() >= bars.rate,
            limit: format!("{held}; with 1 k queued {:.0}/s; 1 M jobs submitted in {filled:.0} s", few.rate()),
        },
        Figure {
            what: format!("claim cost, {what}, 1 M ÷ 1 k queued"),
            measured: format!("{ratio:.2}"),
            bar: "≤ 1.5".into(),
            reached: ratio <= 1.5,
            limit: format!(
                "processor time of servers and database for one claim: {:.0} ÷ {:.0} µs, rounds by turns",
                (many_used[0] + many_used[1]) * 1e6,
                (few_used[0] + few_used[1]) * 1e6
            ),
        },
        Figure {
            what: format!("jobs placed twice, {what}"),
            measured: format!("{}", few.doubled + many.doubled),
            bar: "0".into(),
            reached: few.doubled + many.doubled == 0,
            limit: format!("{} claims compared", few.claims + many.claims),
        },
    ];
    figures.extend(bars.p99.map(|bar| Figure {
        what: format!("claim p99, {what}, 1 M queued"),
        measured: format!("{p99:.1} ms"),
        bar: format!("< {bar:.0} ms"),
        reached: p99 < bar,
        limit: format!("median {median:.1} ms"),
    }));
    Ok(figures)
}

async fn enrol(admin: &Client) -> anyhow::Result<Vec<Enrolled>> {
    let mut labs = Vec::new();
    for lab in 0..CONTROLLERS {
        let machines = (0..MACHINES).map(|machine| {
            let number = lab * MACHINES + machine;
            let slots = (0..EACH).map(|step| (format!("slot{}", (number + step * 37) % SELECTORS), "1".to_owned()));
            MachineSpec { name: format!("m{number}"), driver: "simulated".into(), labels: slots.collect() }
        });
        let request = EnrolRequest { name: format!("lab{lab}"), version: "bench".into(), machines: machines.collect() };
        labs.push(admin.enrol(&request).await?);
    }
    Ok(labs)
}

/// A farm, and what stays the same over all of its rounds.
struct Bench<'a> {
    servers: Vec<Server>,
    database: Option<&'a Postgres>,
    labs: Vec<Enrolled>,
    clients: Vec<Client>,
    build: BuildId,
}

/// The sums of all rounds of a farm.
#[derive(Default)]
struct Measured {
    claims: usize,
    doubled: usize,
    seconds: f64,
    /// Processor seconds: servers, database, this program.
    used: [f64; 3],
    latencies: Vec<f64>,
}

impl Measured {
    /// Claims in a second.
    fn rate(&self) -> f64 {
        self.claims as f64 / self.seconds
    }

    /// Processor seconds of one claim.
    fn used_by_one(&self) -> [f64; 3] {
        self.used.map(|used| used / self.claims as f64)
    }
}

impl<'a> Bench<'a> {
    async fn of(servers: Vec<Server>, database: Option<&'a Postgres>) -> anyhow::Result<Self> {
        let admin = &servers[0].admin;
        let build = farm::prepare(admin, 1).await?;
        let mut clients = Vec::new();
        for index in 0..SUBMITTERS {
            let token = NewToken { name: format!("submitter-{index}"), scope: Scope::Submit, expires_at: None };
            clients.push(admin.with_token(&admin.create_token(&token).await?.secret));
        }
        let labs = enrol(admin).await?;
        Ok(Self { servers, database, labs, clients, build })
    }

    /// Queues so many jobs, evenly over selectors and submitters.
    async fn fill(&self, jobs: usize) -> anyhow::Result<()> {
        let runs = (jobs / RUN).max(SELECTORS);
        let repetitions = u32::try_from(jobs / runs)?;
        for run in 0..runs {
            let client = &self.clients[run % self.clients.len()];
            let plan = NewPlan {
                name: format!("slot{}", run % SELECTORS),
                scenarios: vec!["bench-0".into()],
                selector: BTreeMap::new(),
                requires: vec![format!("slot{}", run % SELECTORS)],
                repetitions,
                policy: Policy::default(),
            };
            client.put_plan(&plan).await?;
            client.create_run(&NewRun::new(self.build.clone(), &plan.name)).await?;
        }
        Ok(())
    }

    /// Processor time used so far by servers, database and this program.
    fn used(&self) -> anyhow::Result<[f64; 3]> {
        let servers = self.servers.iter().map(Server::processor).sum::<anyhow::Result<f64>>()?;
        let database = self.database.map_or(Ok(0.0), |database| process::processor_of_children(database.pid()))?;
        Ok([servers, database, process::processor("self")?])
    }

    /// Waits until what was submitted or handed back before is on the disk and the servers rest: a queue is measured that has
    /// stood there, not the writing of it.
    async fn settle(&self) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            anyhow::ensure!(begun.elapsed() < RESTLESS, "the servers do not come to rest; is the machine busy?");
            let before = self.used()?;
            tokio::time::sleep(REST).await;
            let after = self.used()?;
            if after[0] + after[1] - before[0] - before[1] < REST.as_secs_f64() * AT_REST {
                break;
            }
        }
        Ok(tokio::task::spawn_blocking(nix::unistd::sync).await?)
    }

    /// A round in which every machine gets a job.
    async fn round(&self, sum: &mut Measured) -> anyhow::Result<()> {
        self.settle().await?;
        let (before, begun) = (self.used()?, Instant::now());
        let claims = self.claim_all().await;
        sum.seconds += begun.elapsed().as_secs_f64();
        for (sum, (before, after)) in sum.used.iter_mut().zip(before.iter().zip(self.used()?)) {
            *sum += after - before;
        }
        let claims = claims.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
        let jobs: BTreeSet<_> = claims.iter().map(|(claim, ..)| &claim.brief.job).collect();
        sum.doubled += claims.len() - jobs.len();
        sum.claims += claims.len();
        sum.latencies.extend(claims.iter().map(|(_, _, seconds)| seconds));
        self.give_back(&claims).await
    }

    /// A claim for every machine: the lease, which server gave it, and how long it took.
    async fn claim_all(&self) -> Vec<anyhow::Result<(Claim, usize, f64)>> {
        let all: Vec<(usize, &Enrolled, &MachineId)> = self
            .labs
            .iter()
            .enumerate()
            .flat_map(|(at, lab)| lab.machines.values().map(move |machine| (at % self.servers.len(), lab, machine)))
            .collect();
        futures::stream::iter(all)
            .map(|(at, lab, machine)| async move {
                let request = ClaimRequest {
                    controller: lab.controller.clone(),
                    machines: vec![machine.clone()],
                    wait_seconds: 10,
                    errands: false,
                };
                let begun = Instant::now();
                let claim = self.servers[at].admin.claim(&request).await?;
                let Some(claim) = claim else { anyhow::bail!("a machine got no job of a full queue") };
                Ok((claim, at, begun.elapsed().as_secs_f64()))
            })
            .buffer_unordered(AT_ONCE * self.servers.len())
            .collect()
            .await
    }

    async fn give_back(&self, claims: &[(Claim, usize, f64)]) -> anyhow::Result<()> {
        let released: Vec<_> =
            futures::stream::iter(claims)
                .map(|(claim, at, _)| {
                    let client = self.servers[*at].admin.at_epoch(claim.epoch);
                    async move {
                        client.release(&claim.attempt, &ReleaseRequest { healthy: true, detail: String::new() }).await
                    }
                })
                .buffer_unordered(AT_ONCE)
                .collect()
                .await;
        Ok(released.into_iter().collect::<Result<(), _>>()?)
    }
}
