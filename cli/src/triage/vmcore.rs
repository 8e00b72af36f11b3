//! `crashyard triage vmcore`.

use std::path::PathBuf;

/// Arguments of `triage vmcore`.
#[derive(clap::Args)]
pub struct Args {
    /// Files to read
    #[arg(required = true)]
    files: Vec<PathBuf>,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    anyhow::bail!("not built yet: {:?}", args.files)
}
