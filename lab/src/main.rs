//! `crashyard-lab`: emulated machines and what runs on them.

mod agent;
mod cache;
mod command;
mod image;
mod kernel;
mod vmlinux;

use clap::{Parser, Subcommand};

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
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Verb::Image { kernel } => {
            let image = image::build(&kernel::debian(&kernel)?, &agent::build()?)?;
            println!("{}", serde_json::to_string_pretty(&image)?);
            Ok(())
        }
    }
}
