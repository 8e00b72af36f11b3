//! `crashyard-agent`: starts one of the three roles.

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use crashyard_agent::{capture, controller, guest, target};
use std::path::PathBuf;

#[derive(Parser)]
#[command(name = "crashyard-agent", version, about = "Drives machines through a crash, and acts on them")]
struct Arguments {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// Drive the machines of a lab.
    Controller {
        /// Configuration file (TOML).
        #[arg(long)]
        config: PathBuf,
    },
    /// Arm kdump in this kernel and crash it, when the server says so.
    Target {
        /// Where ticket and brief are.
        #[arg(long, default_value = guest::DIRECTORY)]
        directory: PathBuf,
    },
    /// Get the dump out of this capture kernel.
    Capture {
        /// Where ticket and brief are.
        #[arg(long, default_value = guest::DIRECTORY)]
        directory: PathBuf,
        /// The old kernel's memory.
        #[arg(long, default_value = "/proc/vmcore")]
        memory: PathBuf,
    },
    /// Join standard input and output with one TCP connection (how an emulated machine reaches the server only).
    #[command(hide = true)]
    Relay {
        /// Address to connect to.
        address: String,
    },
    /// Keep a machine emulated by Bochs (started by the controller, in the machine's directory).
    #[command(hide = true)]
    KeepBochs {
        /// Bochs's program.
        program: String,
        /// Where the server is, host and port.
        server: String,
    },
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    // Standard error: an emulated machine's relay speaks on standard output, and on a machine both are the console.
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_env_filter(tracing_subscriber::EnvFilter::try_from_env("CRASHYARD_LOG").unwrap_or_else(|_| "info".into()))
        .init();
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?.block_on(async {
        match arguments.role {
            Role::Controller { config } => controller::run(&config).await,
            Role::Target { directory } => target::run(&directory).await,
            Role::Capture { directory, memory } => capture::run(&directory, &memory).await,
            Role::Relay { address } => controller::relay(&address).await,
            Role::KeepBochs { program, server } => controller::bochs::keeper::run(&program, &server).await,
        }
    })
}
