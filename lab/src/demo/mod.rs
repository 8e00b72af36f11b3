//! The demo: a farm on one machine, from an empty directory to four verdicts, with the real server, the real agents
//! and a real kernel. Nothing in here knows a shortcut: it says over the public API what any CI system would say.

pub mod farm;
pub mod progress;
pub mod stories;
pub mod submit;
pub mod table;

use crate::cache::Cache;
use crate::image;
use crate::kernel::Flavour;
use anyhow::Context as _;
use clap::Args;
use crashyard_protocol::client::Client;
use crashyard_protocol::{RunId, Trigger};
use farm::Farm;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

/// What can be said on the command line.
#[derive(Debug, Args)]
pub struct Options {
    /// End after the verdicts; the exit status says whether they are as predicted.
    #[arg(long)]
    exit: bool,
    /// Where the demo's farm keeps its data. Emptied at each start.
    #[arg(long, default_value = "demo-data")]
    data: PathBuf,
    /// Where the server listens.
    #[arg(long, default_value = "127.0.0.1:8480")]
    listen: SocketAddr,
    /// Crash the machines of this file instead of an emulated one: the controller's configuration, without its first
    /// four keys.
    #[arg(long, value_name = "FILE")]
    machines: Option<PathBuf>,
    /// Their driver.
    #[arg(long, default_value = "qemu")]
    driver: String,
    /// A kernel module that the machines need, such as `igb` for their network cards (may be repeated). The kernel is then
    /// Debian's for all hardware, not that for virtual machines.
    #[arg(long = "module", value_name = "NAME")]
    modules: Vec<String>,
    /// Run only the scenarios with these names. `dump-to-disk`, `nmi`, `bmc-nmi` and `bmc-refuses` run only when they
    /// are named. `bmc-nmi` is for machines whose own BMC sends an NMI, as the emulated one's does not: that is `bmc-refuses`.
    #[arg(long = "scenario")]
    scenarios: Vec<String>,
}

/// Runs the demo. Whatever happens, the farm is taken down before this returns.
pub async fn run(options: Options, source: PathBuf) -> anyhow::Result<ExitCode> {
    let stories = stories::chosen(&options.scenarios)?;
    let spinner = progress::spinner("guest image");
    let modules = options.modules.clone();
    // Debian's kernel for virtual machines knows no BMC: in its configuration, CONFIG_IPMI_HANDLER is not set.
    let by_bmc = stories.iter().any(|story| story.scenario.trigger == Trigger::BmcNmi);
    let flavour = if by_bmc { Flavour::Generic } else { Flavour::Cloud };
    let image =
        tokio::task::spawn_blocking(move || image::build(&Cache::open()?, &source, flavour, &modules)).await??;
    spinner.finish_and_clear();
    let build_id = image.build_id.as_deref().unwrap_or("unknown");
    println!("Kernel under test: {} ({}, build id {build_id})", image.release, image.package);

    let machines = match &options.machines {
        Some(file) => std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?,
        None => farm::QEMU.to_owned(),
    };
    let farm = Farm::start(&options.data, options.listen, &machines).await?;
    let client = farm.client().clone();
    let course = async {
        let what =
            submit::Submission { build: &image.package, config: "debian-cloud", plan: "demo", driver: &options.driver };
        let run = submit::everything(&client, &what, &image, &stories).await?;
        println!("Run: http://{}/runs/{run}", options.listen);
        outcome(&client, &run, &stories).await
    };
    farm.run(options.listen, options.exit, course).await
}

/// Follows the run and prints what came of it; whether all of it was as predicted.
async fn outcome(client: &Client, run: &RunId, stories: &[stories::Story]) -> anyhow::Result<bool> {
    progress::follow(client, run).await.context("follow the run")?;
    let results = table::results(client, run, stories).await.context("read the verdicts")?;
    Ok(table::show(&results))
}
