//! The page of a run with 200 jobs, cold and warm.

use crate::farm;
use crate::figures::{Figure, quantile};
use crate::server::Server;
use std::time::Instant;

/// Each sample is the page of another run that nobody has looked at yet.
pub async fn measure() -> anyhow::Result<Figure> {
    let server = Server::start().await?;
    let build = farm::prepare(&server.admin, 200).await?;
    let mut runs = Vec::new();
    for _ in 0..20 {
        runs.push(farm::submit(&server.admin, &build).await?.id);
    }
    let http = crashyard_protocol::client::builder(&server.url).build()?;
    http.get(format!("{}/healthz", server.url)).send().await?.error_for_status()?;
    let mut samples = Vec::new();
    let mut bytes = 0;
    for run in &runs {
        let begun = Instant::now();
        let page = http.get(format!("{}/runs/{run}", server.url)).send().await?.error_for_status()?.bytes().await?;
        samples.push(begun.elapsed().as_secs_f64() * 1e3);
        bytes = page.len();
    }
    let first = samples[0];
    let median = quantile(&mut samples, 0.5);
    Ok(Figure {
        what: "cold page, run with 200 jobs, first sight".into(),
        measured: format!("{first:.1} ms"),
        bar: "< 20 ms".into(),
        reached: first < 20.0,
        limit: format!("median of 20 such pages {median:.1} ms, client's side, {} kB", bytes / 1000),
    })
}
