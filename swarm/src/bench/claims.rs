//! Claims per second, with few and with a million queued jobs, on SQLite and on PostgreSQL with two servers.
//!
//! Real HTTP: 50 controllers of 20 machines each, all claims of a round under way at once over kept connections; the
//! machines are handed back between rounds, which is not counted.

use crate::farm;
use crate::figures::{Figure, quantile};
use crate::server::Server;
use crashyard_protocol::agent::{Claim, ClaimRequest, EnrolRequest, Enrolled, MachineSpec, ReleaseRequest};
use crashyard_protocol::api::{NewPlan, NewRun, NewToken, Policy};
use crashyard_protocol::client::Client;
use crashyard_protocol::{BuildId, MachineId, Scope};
use futures::StreamExt as _;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

const CONTROLLERS: usize = 50;
const MACHINES: usize = 20;
const SELECTORS: usize = 200;
/// Selectors each machine satisfies.
const EACH: usize = 5;
const SUBMITTERS: usize = 4;
/// Most jobs of one run.
const RUN: usize = 10_000;
const FEW: usize = 5_000;
const MANY: usize = 1_000_000;
const ROUNDS: usize = 3;
/// Claims under way at once.
const AT_ONCE: usize = 32;

/// SQLite, one server.
pub async fn sqlite() -> anyhow::Result<Vec<Figure>> {
    let servers = [Server::start().await?];
    measure("SQLite", &servers, 2000.0).await
}

/// PostgreSQL, two servers.
pub async fn postgres() -> anyhow::Result<Vec<Figure>> {
    let postgres = crashyard_testkit::Postgres::start_durable()?;
    let first = Server::start_on(Some(&postgres.database("farm")?)).await?;
    let second = first.second().await?;
    let figures = measure("PostgreSQL, two servers", &[first, second], 1500.0).await;
    drop(postgres);
    figures
}

async fn measure(what: &str, servers: &[Server], bar: f64) -> anyhow::Result<Vec<Figure>> {
    let admin = &servers[0].admin;
    let build = farm::prepare(admin, 1).await?;
    let mut clients = Vec::new();
    for index in 0..SUBMITTERS {
        let token = NewToken { name: format!("submitter-{index}"), scope: Scope::Submit, expires_at: None };
        clients.push(admin.with_token(&admin.create_token(&token).await?.secret));
    }
    let labs = enrol(admin).await?;
    fill(&clients, &build, FEW).await?;
    let few = rounds(servers, &labs).await?;
    let begun = Instant::now();
    fill(&clients, &build, MANY).await?;
    let filled = begun.elapsed().as_secs_f64();
    let mut many = rounds(servers, &labs).await?;
    let p99 = quantile(&mut many.latencies, 0.99) * 1e3;
    let ratio = many.processor / few.processor;
    let held =
        format!("{:.0} µs of processor a claim; {} claims, {AT_ONCE} at once", many.processor * 1e6, many.claims);
    Ok(vec![
        Figure {
            what: format!("claims/s, {what}, 1 M queued"),
            measured: format!("{:.0}/s", many.rate),
            bar: format!("≥ {bar:.0}/s"),
            reached: many.rate >= bar,
            limit: format!("{held}; with 5 k queued {:.0}/s; 1 M jobs submitted in {filled:.0} s", few.rate),
        },
        Figure {
            what: format!("claim p99, {what}, 1 M queued"),
            measured: format!("{p99:.1} ms"),
            bar: "< 20 ms".into(),
            reached: p99 < 20.0,
            limit: format!("median {:.1} ms", quantile(&mut many.latencies, 0.5) * 1e3),
        },
        Figure {
            what: format!("claim cost, {what}, 1 M ÷ 5 k queued"),
            measured: format!("{ratio:.2}"),
            bar: "≤ 1.5".into(),
            reached: ratio <= 1.5,
            limit: "processor time of the servers for one claim, PostgreSQL's own not counted".into(),
        },
        Figure {
            what: format!("jobs placed twice, {what}"),
            measured: format!("{}", few.doubled + many.doubled),
            bar: "0".into(),
            reached: few.doubled + many.doubled == 0,
            limit: format!("{} claims compared", few.claims + many.claims),
        },
    ])
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

/// Queues so many jobs, evenly over selectors and submitters.
async fn fill(clients: &[Client], build: &BuildId, jobs: usize) -> anyhow::Result<()> {
    let runs = (jobs / RUN).max(SELECTORS);
    let repetitions = u32::try_from(jobs / runs)?;
    for run in 0..runs {
        let client = &clients[run % clients.len()];
        let plan = NewPlan {
            name: format!("slot{}", run % SELECTORS),
            scenarios: vec!["bench-0".into()],
            selector: BTreeMap::new(),
            requires: vec![format!("slot{}", run % SELECTORS)],
            repetitions,
            policy: Policy::default(),
        };
        client.put_plan(&plan).await?;
        client.create_run(&NewRun::new(build.clone(), &plan.name)).await?;
    }
    Ok(())
}

#[derive(Default)]
struct Measured {
    claims: usize,
    doubled: usize,
    rate: f64,
    processor: f64,
    latencies: Vec<f64>,
}

async fn rounds(servers: &[Server], labs: &[Enrolled]) -> anyhow::Result<Measured> {
    let mut sum = Measured::default();
    let (mut seconds, mut processor) = (0.0, 0.0);
    let used = || servers.iter().map(Server::processor).sum::<anyhow::Result<f64>>();
    for _ in 0..ROUNDS {
        let all: Vec<(usize, &Enrolled, &MachineId)> = labs
            .iter()
            .enumerate()
            .flat_map(|(at, lab)| lab.machines.values().map(move |machine| (at, lab, machine)))
            .collect();
        let (before, begun) = (used()?, Instant::now());
        let claims: Vec<anyhow::Result<(Claim, usize, f64)>> = futures::stream::iter(all)
            .map(|(at, lab, machine)| async move {
                let client = &servers[at % servers.len()].admin;
                let request = ClaimRequest {
                    controller: lab.controller.clone(),
                    machines: vec![machine.clone()],
                    wait_seconds: 10,
                };
                let begun = Instant::now();
                let claim = client.claim(&request).await?;
                let Some(claim) = claim else { anyhow::bail!("a machine got no job of a full queue") };
                Ok((claim, at, begun.elapsed().as_secs_f64()))
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        seconds += begun.elapsed().as_secs_f64();
        processor += used()? - before;
        let claims = claims.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
        let jobs: BTreeSet<_> = claims.iter().map(|(claim, ..)| &claim.brief.job).collect();
        sum.doubled += claims.len() - jobs.len();
        sum.claims += claims.len();
        sum.latencies.extend(claims.iter().map(|(_, _, seconds)| seconds));
        give_back(servers, &claims).await?;
    }
    sum.rate = sum.claims as f64 / seconds;
    sum.processor = processor / sum.claims as f64;
    Ok(sum)
}

async fn give_back(servers: &[Server], claims: &[(Claim, usize, f64)]) -> anyhow::Result<()> {
    let released: Vec<_> = futures::stream::iter(claims)
        .map(|(claim, at, _)| {
            let client = servers[at % servers.len()].admin.at_epoch(claim.epoch);
            async move {
                client.release(&claim.attempt, &ReleaseRequest { healthy: true, detail: String::new() }).await
            }
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    Ok(released.into_iter().collect::<Result<(), _>>()?)
}
