//! The VMX demo: a farm of emulated Intel machines, and four kernels of which three are broken in the crash path, each
//! crashed in four states of VMX. It ends well only if the farm's verdicts are the predicted ones, all sixteen. Any
//! scenario of the catalogue can be chosen instead, and Debian's own kernels.

pub mod bench;
mod builds;
mod matrix;

use crate::cache::Cache;
use crate::demo::farm::Farm;
use crate::demo::stories::Story;
use crate::demo::submit::{self, Submission};
use crate::demo::{progress, table};
use crate::image::Image;
use anyhow::{Context as _, ensure};
use builds::Kind;
use clap::Args;
use crashyard_protocol::RunId;
use crashyard_protocol::client::Client;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
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
    #[arg(long = "build", value_name = "NAME", conflicts_with = "kernels")]
    builds: Vec<String>,
    /// Instead of the lab's builds Debian's cloud kernel whose release begins with this (6.1., 6.12., 7.); states of KVM only.
    #[arg(long = "kernel", value_name = "PREFIX")]
    kernels: Vec<String>,
    /// Only these scenarios, of all that the catalogue has; without it those of the matrix.
    #[arg(long = "scenario", value_name = "NAME")]
    scenarios: Vec<String>,
    /// Print the catalogue's scenarios, and do nothing.
    #[arg(long)]
    list: bool,
}

/// One for each CPU but one, which the server, the controller and the person need; at most four.
fn machines() -> u32 {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    u32::try_from(cpus).unwrap_or(1).saturating_sub(1).clamp(1, 4)
}

/// A kernel under test, and what must come of it.
struct Tested {
    name: String,
    config: &'static str,
    image: Image,
    stories: Vec<Story>,
}

/// Runs the demo. Whatever happens, the farm is taken down before this returns.
pub async fn run(options: Options, source: PathBuf) -> anyhow::Result<ExitCode> {
    if options.list {
        for scenario in matrix::catalogue()?.iter().chain(&matrix::debian()?) {
            println!("{:<44} {}", scenario.name, scenario.title);
        }
        return Ok(ExitCode::SUCCESS);
    }
    for name in &options.builds {
        ensure!(Kind::ALL.iter().any(|kind| kind.name() == name), "there is no build named {name}; see --help");
    }
    let (data, listen, exit, machines) = (options.data.clone(), options.listen, options.exit, options.machines);
    let tested = tokio::task::spawn_blocking(move || prepare(&options, &source)).await??;

    let farm = Farm::start(&data, listen, &bochs(machines)).await?;
    let client = farm.client().clone();
    let course = async {
        for scenario in matrix::catalogue()? {
            client.put_scenario(&scenario).await.context("store the catalogue")?;
        }
        let mut runs = Vec::new();
        for Tested { name, config, image, stories } in &tested {
            let plan = format!("vmx-{name}");
            let what = Submission { build: &image.package, config, plan: &plan, driver: "bochs" };
            let run = submit::everything(&client, &what, image, stories).await?;
            println!("{name}: http://{listen}/runs/{run}");
            runs.push((name.as_str(), run, stories));
        }
        outcome(&client, &runs).await
    };
    farm.run(listen, exit, course).await
}

/// Kernels, modules and images of what was chosen, with its stories.
fn prepare(options: &Options, source: &Path) -> anyhow::Result<Vec<Tested>> {
    let cache = Cache::open()?;
    if !options.kernels.is_empty() {
        return options.kernels.iter().map(|prefix| debian(options, &cache, source, prefix)).collect();
    }
    let chosen = |kind: &Kind| options.builds.is_empty() || options.builds.iter().any(|name| name == kind.name());
    let kinds: Vec<Kind> = Kind::ALL.into_iter().filter(chosen).collect();
    // Before anything is built: a name that is misspelt costs nothing.
    let stories =
        kinds.iter().map(|kind| matrix::stories(*kind, &options.scenarios)).collect::<anyhow::Result<Vec<_>>>()?;
    println!("Kernel, modules and images (the first time, this builds a kernel: 15 to 20 minutes on two cores)");
    let images = builds::build(&cache, source, &kinds)?;
    let tested = images.into_iter().zip(stories).map(|((kind, image), stories)| Tested {
        name: kind.name().into(),
        config: "crashyard-lab",
        image,
        stories,
    });
    Ok(tested.collect())
}

fn debian(options: &Options, cache: &Cache, source: &Path, prefix: &str) -> anyhow::Result<Tested> {
    let stories = matrix::debian_stories(&options.scenarios)?;
    let image = builds::debian(cache, source, prefix)?;
    Ok(Tested { name: format!("debian-{}", prefix.trim_end_matches('.')), config: "debian-cloud", image, stories })
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
async fn outcome(client: &Client, runs: &[(&str, RunId, &Vec<Story>)]) -> anyhow::Result<bool> {
    let mut all = Vec::new();
    for (name, run, stories) in runs {
        println!("\n{name}");
        progress::follow(client, run).await.context("follow the run")?;
        for mut result in table::results(client, run, stories).await.context("read the verdicts")? {
            result.scenario = format!("{name} × {}", result.scenario.trim_start_matches("vmx-"));
            all.push(result);
        }
    }
    Ok(table::show(&all))
}
