//! What a thousand waiting labs cost.

use crate::farm;
use crate::figures::Figure;
use crate::server::Server;
use crashyard_protocol::agent::ClaimRequest;
use std::time::Duration;

const AGENTS: usize = 1000;

/// 1,000 controllers with one machine each, all held in a claim, then the server's resident memory.
pub async fn measure() -> anyhow::Result<Figure> {
    let server = Server::start().await?;
    let before = server.memory()?;
    let mut polls = Vec::with_capacity(AGENTS);
    for i in 0..AGENTS {
        let lab = farm::enrol(&server.admin, &format!("lab-{i}"), 1).await?;
        let client = server.admin.clone();
        let machines = lab.machines.values().cloned().collect();
        let request = ClaimRequest { controller: lab.controller, machines, wait_seconds: 60, errands: false };
        polls.push(tokio::spawn(async move { client.claim(&request).await }));
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let waiting = polls.iter().filter(|poll| !poll.is_finished()).count();
    anyhow::ensure!(waiting == AGENTS, "only {waiting} of {AGENTS} claims are being held");
    let memory = server.memory()? as f64 / 1e6;
    for poll in polls {
        poll.abort();
    }
    Ok(Figure {
        what: "server memory, 1,000 idle agents in long poll".into(),
        measured: format!("{memory:.0} MB"),
        bar: "< 100 MB".into(),
        reached: memory < 100.0,
        limit: format!("just started: {:.0} MB", before as f64 / 1e6),
    })
}
