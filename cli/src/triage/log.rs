//! `crashyard triage log`.

use std::path::PathBuf;

/// Arguments of `triage log`.
#[derive(clap::Args)]
pub struct Args {
    /// Files to read
    #[arg(required = true)]
    files: Vec<PathBuf>,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    anyhow::bail!("not built yet: {:?}", args.files)
}
