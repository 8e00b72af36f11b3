//! `crashyard-swarm bench`: each benchmark is a file, named like the line it prints.

mod claims;
mod console;
mod idle;
mod page;
mod placement;
mod share;
mod steady;
mod storm;
mod vmcore;

use crate::figures;

/// Arguments of `bench`.
#[derive(clap::Args)]
pub struct Args {
    /// Only these: placement, console, vmcore, idle, page, share, claims-sqlite, claims-postgres, steady, storm-sqlite, storm-postgres
    names: Vec<String>,
    /// How long each storm of `kill -9` lasts
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    storm_seconds: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the benchmarks one after another, each on a fresh server.
pub async fn run(args: &Args) -> anyhow::Result<()> {
    let wants = |name: &str| args.names.is_empty() || args.names.iter().any(|wanted| wanted == name);
    let mut all = Vec::new();
    if wants("placement") {
        all.push(placement::measure().await?);
    }
    if wants("console") {
        all.push(console::measure().await?);
    }
    if wants("vmcore") {
        all.push(vmcore::measure().await?);
    }
    if wants("idle") {
        all.push(idle::measure().await?);
    }
    if wants("page") {
        all.push(page::measure().await?);
    }
    if wants("share") {
        all.push(share::measure().await?);
    }
    if wants("claims-sqlite") {
        all.extend(claims::sqlite().await?);
    }
    if wants("claims-postgres") {
        all.extend(claims::postgres().await?);
    }
    if wants("steady") {
        all.extend(steady::measure().await?);
    }
    if wants("storm-sqlite") {
        all.push(storm::sqlite(args.storm_seconds).await?);
    }
    if wants("storm-postgres") {
        all.push(storm::postgres(args.storm_seconds).await?);
    }
    figures::print(&all, args.json)
}
