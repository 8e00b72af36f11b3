//! `crashyard triage`: crash logs and vmcores read offline.

mod log;
pub mod vmcore;

use clap::Subcommand;

/// What to read.
#[derive(Subcommand)]
pub enum Triage {
    /// Crash reports in console logs
    Log(log::Args),
    /// A crash dump: who crashed, where, and what everybody else was doing
    Vmcore(vmcore::Args),
}

impl Triage {
    pub fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Log(args) => log::run(&args),
            Self::Vmcore(args) => vmcore::run(&args),
        }
    }
}
