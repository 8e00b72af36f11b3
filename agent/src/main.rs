//! `crashyard-agent`: starts one of the three roles.

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use crashyard_agent::controller::check;
use crashyard_agent::{capture, controller, guest, line, target};
use std::path::PathBuf;
use std::process::ExitCode;

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
    /// Real machines: try power and consoles before any job depends on them.
    #[command(subcommand)]
    Machine(Machine),
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
    /// Take connections to the server and carry them over a serial line (a kernel without a driver for the network card).
    #[command(hide = true)]
    Line {
        /// The line's device.
        device: String,
        /// Where connections are taken.
        listen: String,
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

#[derive(Subcommand)]
enum Machine {
    /// Say what of a machine's power and consoles works, as seen just now. The exit status is 1 if something needed fails.
    #[command(after_help = "\
The controller must be stopped: a check would take the console from a running attempt.
Without --cycle nothing is done to the machine. With it, the machine is switched off, told to boot from the network,
switched on, listened to, and switched off again; whatever runs on it is lost.

  crashyard-agent machine check r740 --config /etc/crashyard/controller.toml
  crashyard-agent machine check r740 --config /etc/crashyard/controller.toml --cycle --json")]
    Check {
        /// The machine's name.
        machine: String,
        /// The controller's configuration file (TOML).
        #[arg(long)]
        config: PathBuf,
        /// Also switch it off and on.
        #[arg(long)]
        cycle: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Switch a machine's light on, for who looks for it in the racks; its controller may run meanwhile.
    #[command(
        after_help = "  crashyard-agent machine identify r740 --config /etc/crashyard/controller.toml --seconds 120"
    )]
    Identify {
        /// The machine's name.
        machine: String,
        /// The controller's configuration file (TOML).
        #[arg(long)]
        config: PathBuf,
        /// For so long; 0 ends it.
        #[arg(long, default_value_t = 15)]
        seconds: u8,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(code) => code,
        // What a person needs is the chain of reasons, and never a stack.
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    // Standard error: an emulated machine's relay speaks on standard output, and on a machine both are the console.
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_env_filter(tracing_subscriber::EnvFilter::try_from_env("CRASHYARD_LOG").unwrap_or_else(|_| "info".into()))
        .init();
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?.block_on(async {
        match arguments.role {
            Role::Controller { config } => controller::run(&config).await?,
            Role::Machine(Machine::Check { machine, config, cycle, json }) => {
                let report = check::check(&config, &machine, check::Options { cycle }).await?;
                if json {
                    println!("{}", serde_json::to_string_pretty(&report)?);
                } else {
                    print!("{}", report.text());
                }
                return Ok(if report.passes() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
            }
            Role::Machine(Machine::Identify { machine, config, seconds }) => {
                println!("{}", check::identify(&config, &machine, seconds).await?);
            }
            Role::Target { directory } => target::run(&directory).await?,
            Role::Capture { directory, memory } => capture::run(&directory, &memory).await?,
            Role::Line { device, listen } => line::of_guest(&device, &listen).await?,
            Role::Relay { address } => controller::relay(&address).await?,
            Role::KeepBochs { program, server } => controller::bochs::keeper::run(&program, &server).await?,
        }
        Ok(ExitCode::SUCCESS)
    })
}
