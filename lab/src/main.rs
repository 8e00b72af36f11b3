//! `crashyard-lab`: emulated machines for developers and for CI.
//!
//! `image` builds the guest that emulated machines boot; `demo` takes a whole farm up, crashes it four times, and
//! says whether everything came out as predicted; `demo-vmx` does the same with VMX, and with kernels that are broken
//! on purpose.

mod cache;
mod command;
mod demo;
mod image;
mod kernel;
mod vmcores;
mod vmx;

use clap::{Parser, Subcommand};
use std::path::{Path, PathBuf};

#[derive(Parser)]
#[command(name = "crashyard-lab", version, about = "Emulated machines: guest images and the demo")]
struct Arguments {
    /// The project's source, for building the guest's agent.
    #[arg(long, global = true, default_value_os_t = source())]
    source: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build the guest image, or find it in the cache, and print where it is (`crashyard build add --image` takes that).
    Image(image::Options),
    /// Take a farm up on this machine and crash a real kernel, again and again.
    Demo(demo::Options),
    /// Crash many kernels in many ways and compare each dump with what the kernel said of itself before.
    Vmcores(vmcores::Options),
    /// Take a farm of emulated Intel machines up and crash kernels, good and broken, in every state of VMX.
    DemoVmx(vmx::Options),
    /// Measure what a story on an emulated Intel machine costs beside the same crash done by hand.
    BenchVmx(vmx::bench::Options),
}

/// The directory this program was built from.
fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_owned()
}

#[tokio::main]
async fn main() -> anyhow::Result<std::process::ExitCode> {
    let Arguments { source, command } = Arguments::parse();
    match command {
        Command::Image(options) => {
            tokio::task::spawn_blocking(move || image::run(&options, &source)).await??;
            Ok(std::process::ExitCode::SUCCESS)
        }
        Command::Demo(options) => demo::run(options, source).await,
        Command::Vmcores(options) => tokio::task::spawn_blocking(move || vmcores::run(&options, &source)).await?,
        Command::DemoVmx(options) => vmx::run(options, source).await,
        Command::BenchVmx(options) => vmx::bench::run(options, source).await,
    }
}
