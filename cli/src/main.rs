//! `crashyard`: the farm at the command line, and its two readers for people who only have a file.
//!
//! Each subcommand is one file. Nothing here judges: `triage` calls the libraries, everything else calls the server.

mod debuginfo;
mod job;
mod machine;
mod owed;
mod server;
mod time;
mod triage;
mod vmcore;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

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
    /// Machines: where each is in its life, why, and what a person decides about it
    #[command(subcommand)]
    Machine(machine::MachineCommand),
    /// Take a machine out of the farm for a time
    Reserve(machine::Reserve),
    /// Say what the farm owes and has not delivered; the exit status is 1 if there is anything
    Owed(owed::Owed),
    /// Dumps that the server keeps: open one here, hold it, let go of it
    #[command(subcommand)]
    Vmcore(vmcore::Vmcore),
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        // What a person needs is the chain of reasons, and never a stack.
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Triage(what) => what.run(),
        Command::Job(what) => what.run(),
        Command::Machine(what) => server::wait(what.run()),
        Command::Reserve(what) => server::wait(what.run()),
        Command::Owed(what) => server::wait(what.run()),
        Command::Vmcore(what) => what.run(),
    }
}
