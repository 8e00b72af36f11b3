//! `crashyard-lab`: emulated machines and what runs on them.

mod agent;
mod cache;
mod command;
mod demo;
mod image;
mod kernel;
mod vmlinux;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Guest images and the demo.
#[derive(Parser)]
#[command(name = "crashyard-lab", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Build the guest image (or find it in the cache) and print where it is, as JSON
    Image {
        /// Debian's meta package of the kernel under test
        #[arg(long, default_value = "linux-image-cloud-amd64")]
        kernel: String,
    },
    /// A whole farm on this machine, and four real crashes on it
    Demo(demo::Args),
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    match Cli::parse().command {
        Verb::Image { kernel } => {
            let image = image::build(&kernel::debian(&kernel)?, &agent::build()?)?;
            println!("{}", serde_json::to_string_pretty(&image)?);
            Ok(ExitCode::SUCCESS)
        }
        Verb::Demo(args) => Ok(if demo::run(&args).await? { ExitCode::SUCCESS } else { ExitCode::FAILURE }),
    }
}
