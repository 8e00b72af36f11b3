//! `crashyard-swarm`: load on a real server, over real HTTP, from simulated labs.
//!
//! Every figure is a ratio or a count taken in one run, printed beside its bar and beside the physical limit that was
//! measured in the same run. Nothing here is a test: a slow day of the machine is not a bug of the code.

mod bench;
mod calls;
mod farm;
mod figures;
mod life;
mod load;
mod process;
mod progress;
mod server;

use clap::{Parser, Subcommand};

// What simulates the labs takes its processor time from the server beside it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(name = "crashyard-swarm", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure the server that stands beside this program and print figures against their bars
    Bench(bench::Args),
    /// Put simulated labs on a server of yours: whole attempts, and how it bore them
    Load(load::Args),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        // Servers, databases and their directories go with what is dropped.
        Command::Bench(args) => tokio::select! {
            done = bench::run(&args) => done,
            _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
        },
        Command::Load(args) => load::run(&args).await,
    }
}
