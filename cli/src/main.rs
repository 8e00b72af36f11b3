//! `crashyard`: the farm at the command line, and its two readers for people who only have a file.
//!
//! Each subcommand is one file. Nothing here judges: `triage` calls the libraries, everything else calls the server.

mod job;
mod server;
mod triage;
mod vmcore;

use clap::{Parser, Subcommand};

/// Crashyard: does the crash dump come out right?
#[derive(Parser)]
#[command(name = "crashyard", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Read crash logs and vmcores offline, with nothing but the file
    #[command(subcommand)]
    Triage(triage::Triage),
    /// Jobs: why one is waiting
    #[command(subcommand)]
    Job(job::Job),
    /// Dumps that the server keeps: open one here, hold it, let go of it
    #[command(subcommand)]
    Vmcore(vmcore::Vmcore),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Triage(what) => what.run(),
        Command::Job(what) => what.run(),
        Command::Vmcore(what) => what.run(),
    }
}
