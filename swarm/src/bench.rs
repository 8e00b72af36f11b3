//! `crashyard-swarm bench`: each benchmark is a file, named like the line it prints.

mod console;
mod idle;
mod page;
mod placement;
mod vmcore;

use crate::figures;

/// Arguments of `bench`.
#[derive(clap::Args)]
pub struct Args {
    /// Only these: placement, console, vmcore, idle, page
    names: Vec<String>,
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
    figures::print(&all, args.json)
}
