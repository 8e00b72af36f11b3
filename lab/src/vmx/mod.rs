//! The VMX demo: a farm of emulated Intel machines, and four kernels of which three are broken in the crash path, each
//! crashed in four states of VMX. It ends well only if the farm's verdicts are the predicted ones, all sixteen.

mod builds;
mod matrix;

use crate::cache::Cache;
use crate::demo::farm::Farm;
use crate::demo::stories::Story;
use crate::demo::submit::{self, Submission};
use crate::demo::{progress, table};
use anyhow::{Context as _, ensure};
use builds::Kind;
use clap::Args;
use crashyard_protocol::client::Client;
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
    #[arg(long, default_value = "demo-vmx-data")]
    data: PathBuf,
    /// Where the server listens.
    #[arg(long, default_value = "127.0.0.1:8480")]
    listen: SocketAddr,
    /// Emulated machines at a time. Each takes a whole CPU of this one.
    #[arg(long, default_value_t = machines())]
    machines: u32,
    /// Only these builds: good, seed-bug, leaked-vmxon, skipped-vmclear.
    #[arg(long = "build", value_name = "NAME")]
    builds: Vec<String>,
    /// Only these scenarios: vmx-kvm-loaded, vmx-kvm-running, vmx-vmcs-loaded, vmx-vmcs-launched.
    #[arg(long = "scenario", value_name = "NAME")]
    scenarios: Vec<String>,
}

/// One for each CPU but one, which the server, the controller and the person need; at most four.
fn machines() -> u32 {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    u32::try_from(cpus).unwrap_or(1).saturating_sub(1).clamp(1, 4)
}

/// Runs the demo. Whatever happens, the farm is taken down before this returns.
pub async fn run(options: Options, source: PathBuf) -> anyhow::Result<ExitCode> {
    let mut chosen = Vec::new();
    for name in &options.builds {
        ensure!(Kind::ALL.iter().any(|kind| kind.name() == name), "there is no build named {name}; see --help");
    }
    for kind in Kind::ALL {
        if options.builds.is_empty() || options.builds.iter().any(|name| name == kind.name()) {
            let mut stories = matrix::stories(kind)?;
            stories.retain(|story| options.scenarios.is_empty() || options.scenarios.contains(&story.scenario.name));
            ensure!(!stories.is_empty(), "there is no such scenario; see --help");
            chosen.push((kind, stories));
        }
    }
    let kinds: Vec<Kind> = chosen.iter().map(|(kind, _)| *kind).collect();
    println!("Kernel, modules and images (the first time, this builds a kernel: 15 to 20 minutes on two cores)");
    let images = tokio::task::spawn_blocking(move || builds::build(&Cache::open()?, &source, &kinds)).await??;

    let farm = Farm::start(&options.data, options.listen, &bochs(options.machines)).await?;
    let client = farm.client().clone();
    let course = async {
        let mut runs = Vec::new();
        for ((kind, stories), (_, image)) in chosen.iter().zip(&images) {
            let plan = format!("vmx-{}", kind.name());
            let what = Submission { build: &image.package, config: "crashyard-lab", plan: &plan, driver: "bochs" };
            let run = submit::everything(&client, &what, image, stories).await?;
            println!("{}: http://{}/runs/{run}", kind.name(), options.listen);
            runs.push((*kind, run, stories));
        }
        outcome(&client, &runs).await
    };
    farm.run(options.listen, options.exit, course).await
}

/// Machines of the controller's configuration.
fn bochs(machines: u32) -> String {
    (1..=machines)
        .map(|number| {
            format!("[[machine]]\nname = \"bochs-{number}\"\nlabels = {{ vmx = \"yes\" }}\n\n[machine.bochs]\n\n")
        })
        .collect()
}

/// Follows the runs and prints what came of them; whether all of it was as predicted.
async fn outcome(client: &Client, runs: &[(Kind, crashyard_protocol::RunId, &Vec<Story>)]) -> anyhow::Result<bool> {
    let mut all = Vec::new();
    for (kind, run, stories) in runs {
        println!("\n{}", kind.name());
        progress::follow(client, run).await.context("follow the run")?;
        for mut result in table::results(client, run, stories).await.context("read the verdicts")? {
            result.scenario = format!("{} × {}", kind.name(), result.scenario.trim_start_matches("vmx-"));
            all.push(result);
        }
    }
    Ok(table::show(&all))
}
