//! From the submission to the attempt on an idle machine, as a controller in another process sees it.

use crate::farm;
use crate::figures::{Figure, quantile};
use crate::server::Server;
use crashyard_protocol::agent::ClaimRequest;
use std::time::Instant;

const SUBMISSIONS: usize = 200;

/// 200 submissions one after another; the clock runs from sending the submission to the claim's answer.
pub async fn measure() -> anyhow::Result<Figure> {
    let server = Server::start().await?;
    let build = farm::prepare(&server.admin, 1).await?;
    let lab = farm::enrol(&server.admin, "lab", SUBMISSIONS).await?;
    let mut idle: Vec<_> = lab.machines.values().cloned().collect();
    let mut samples = Vec::with_capacity(SUBMISSIONS);
    for _ in 0..SUBMISSIONS {
        let client = server.admin.clone();
        let request = ClaimRequest {
            controller: lab.controller.clone(),
            machines: idle.clone(),
            wait_seconds: 30,
            errands: false,
        };
        let poll = tokio::spawn(async move {
            let claim = client.claim(&request).await;
            (claim, Instant::now())
        });
        // The claim must be waiting before the submission comes, or its own way there would not be counted.
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        let begun = Instant::now();
        farm::submit(&server.admin, &build).await?;
        let (claim, ended) = poll.await?;
        let Some(claim) = claim? else { anyhow::bail!("a submission was not placed in 30 seconds") };
        idle.retain(|machine| *machine != claim.machine);
        samples.push(ended.duration_since(begun).as_secs_f64() * 1e3);
    }
    let median = quantile(&mut samples, 0.5);
    let p99 = quantile(&mut samples, 0.99);
    Ok(Figure {
        what: "submit to attempt started, p99 of 200".into(),
        measured: format!("{p99:.1} ms"),
        bar: "< 100 ms".into(),
        reached: p99 < 100.0,
        limit: format!("median {median:.1} ms; no polling interval on the way"),
    })
}
