//! Fair share: four submitters with weights 1, 2, 3 and 4, of whom the first floods.

use crate::farm;
use crate::figures::Figure;
use crate::server::Server;
use crashyard_protocol::Scope;
use crashyard_protocol::agent::{ClaimRequest, ReleaseRequest};
use crashyard_protocol::api::{NewPlan, NewRun, NewToken, Policy, SetSubmitter};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const MACHINES: usize = 20;
/// Attempts measured.
const ATTEMPTS: usize = 3_000;

/// Twenty machines whose attempts last 300 to 600 ms: long enough that an answer which a busy machine holds up for some tens
/// of milliseconds is no part of what is measured. Machine time is from lease to release, as the labs see it.
pub async fn measure() -> anyhow::Result<Figure> {
    let server = Server::start().await?;
    let admin = &server.admin;
    let build = farm::prepare(admin, 1).await?;
    let lab = farm::enrol(admin, "lab", MACHINES).await?;
    for (name, repetitions) in [("flood", 10_000), ("some", 1_000)] {
        let selector = BTreeMap::from([("driver".to_owned(), "simulated".to_owned())]);
        let plan = NewPlan {
            name: name.into(),
            scenarios: vec!["bench-0".into()],
            selector,
            requires: Vec::new(),
            repetitions,
            policy: Policy::default(),
        };
        admin.put_plan(&plan).await?;
    }
    let mut weight_of = BTreeMap::new();
    for weight in 1..=4_u32 {
        let token = NewToken { name: format!("weight-{weight}"), scope: Scope::Submit, expires_at: None };
        let client = admin.with_token(&admin.create_token(&token).await?.secret);
        for _ in 0..if weight == 1 { 5 } else { 1 } {
            let run = NewRun::new(build.clone(), if weight == 1 { "flood" } else { "some" });
            weight_of.insert(client.create_run(&run).await?.id, weight);
        }
    }
    for submitter in admin.submitters().await? {
        let weight = submitter.name.rsplit('-').next().and_then(|text| text.parse().ok()).unwrap_or(1);
        admin.set_submitter(&submitter.id, &SetSubmitter { weight, max_machines: None }).await?;
    }
    let mut labs = tokio::task::JoinSet::new();
    for (index, machine) in lab.machines.values().cloned().enumerate() {
        let (client, controller) = (admin.clone(), lab.controller.clone());
        labs.spawn(async move {
            let mut had = Vec::new();
            for round in 0..ATTEMPTS / MACHINES {
                let request = ClaimRequest {
                    controller: controller.clone(),
                    machines: vec![machine.clone()],
                    wait_seconds: 30,
                    errands: false,
                };
                let Some(claim) = client.claim(&request).await? else { anyhow::bail!("no job") };
                let begun = Instant::now();
                tokio::time::sleep(Duration::from_millis(300 + (index * 37 + round * 61) as u64 % 300)).await;
                let done = ReleaseRequest { healthy: true, detail: String::new() };
                client.at_epoch(claim.epoch).release(&claim.attempt, &done).await?;
                had.push((claim.brief.run, begun.elapsed().as_secs_f64()));
            }
            Ok(had)
        });
    }
    let mut seconds_of: BTreeMap<u32, f64> = (1..=4).map(|weight| (weight, 0.0)).collect();
    while let Some(done) = labs.join_next().await {
        for (run, seconds) in done?? {
            *seconds_of.entry(weight_of[&run]).or_default() += seconds;
        }
    }
    let had: Vec<(f64, f64)> = seconds_of.into_iter().map(|(weight, seconds)| (f64::from(weight), seconds)).collect();
    let counted: Vec<(f64, f64)> = admin
        .submitters()
        .await?
        .iter()
        .filter(|one| one.machine_seconds > 0)
        .map(|one| (f64::from(one.weight), one.machine_seconds as f64))
        .collect();
    let off = off(&had);
    let parts: Vec<String> = had.iter().map(|(weight, had)| format!("{weight:.0}: {had:.1} s")).collect();
    Ok(Figure {
        what: "fair share 1:2:3:4, the first floods".into(),
        measured: format!("{:.1} % off", off * 100.0),
        bar: "≤ 5 %".into(),
        reached: off <= 0.05,
        limit: format!(
            "machine time by weight: {}; as the server counted it {:.1} % off",
            parts.join(", "),
            self::off(&counted) * 100.0
        ),
    })
}

/// How far the one that is farthest is from its part: (weight, what it had).
fn off(had: &[(f64, f64)]) -> f64 {
    let (weights, seconds) = had.iter().fold((0.0, 0.0), |(w, s), (weight, had)| (w + weight, s + had));
    had.iter().map(|(weight, had)| (had / seconds / (weight / weights) - 1.0).abs()).fold(0.0, f64::max)
}
