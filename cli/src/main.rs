//! `crashyard`: the farm at the command line, and its two readers for people who only have a file.
//!
//! Each subcommand is one file. Nothing here judges: `triage` calls the libraries, everything else calls the server.

mod build;
mod console;
mod debuginfo;
mod fetch;
mod follow;
mod job;
mod machine;
mod owed;
mod plan;
mod scenario;
mod server;
mod submit;
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
    /// Have a kernel tested: a build against a plan; with --wait, until the results are there
    Submit(submit::Submit),
    /// What came of a run, or with --wait what will
    Run(submit::ShowRun),
    /// Builds: give the farm a kernel
    #[command(subcommand)]
    Build(build::BuildCommand),
    /// Plans: which scenarios, how often, on which machines
    #[command(subcommand)]
    Plan(plan::PlanCommand),
    /// Read crash logs and vmcores offline, with nothing but the file
    #[command(subcommand)]
    Triage(triage::Triage),
    /// Jobs: why one is waiting
    #[command(subcommand)]
    Job(job::Job),
    /// Scenarios: what can be done to a machine, and what must come of it
    #[command(subcommand)]
    Scenario(scenario::ScenarioCommand),
    /// Machines: where each is in its life, why, and what a person decides about it
    #[command(subcommand)]
    Machine(machine::MachineCommand),
    /// Take a machine out of the farm for a time
    Reserve(machine::Reserve),
    /// A live attempt's console: read it, type into it, send SysRq
    Console(console::Console),
    /// What it takes to do an attempt again, as commands
    Repro(console::Repro),
    /// Say what the farm owes and has not delivered; the exit status is 1 if there is anything
    Owed(owed::Owed),
    /// Dumps that the server keeps: open one here, hold it, let go of it
    #[command(subcommand)]
    Vmcore(vmcore::Vmcore),
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(status) => status,
        // What a person needs is the chain of reasons, and never a stack.
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Submit(what) => return server::wait(what.run()),
        Command::Run(what) => return server::wait(what.run()),
        Command::Machine(what) => return server::wait(what.run()),
        Command::Build(what) => what.run(),
        Command::Plan(what) => what.run(),
        Command::Triage(what) => what.run(),
        Command::Job(what) => what.run(),
        Command::Scenario(what) => what.run(),
        Command::Reserve(what) => server::wait(what.run()),
        Command::Console(what) => server::wait(what.run()),
        Command::Repro(what) => server::wait(what.run()),
        Command::Owed(what) => server::wait(what.run()),
        Command::Vmcore(what) => what.run(),
    }?;
    Ok(ExitCode::SUCCESS)
}
