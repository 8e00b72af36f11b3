//! What a story of the farm costs beside the same crash done by hand.
//!
//! Both boot the same kernel in the same emulator, load `kvm_intel`, load the crash kernel, crash by sysrq-c, and take the
//! dump at the same level with the same compression. The bare recipe (`lab/bochs/bare-init`) does it with a shell, nobody
//! to report to, and a raw disk that the dump is written to; the farm with its agents, its reports, its proofs and its
//! upload. Seconds are those of the emulator's process, which is where everything inside of the machine is paid.

use super::{Tested, bochs, builds, matrix};
use crate::cache::Cache;
use crate::command::output;
use crate::demo::farm::Farm;
use crate::demo::submit::{self, Submission};
use crate::demo::{progress, table};
use crate::image::{self, File, archive};
use anyhow::{Context as _, bail, ensure};
use builds::Kind;
use clap::Args;
use crashyard_protocol::agent::Report;
use crashyard_protocol::api::Evidence;
use crashyard_protocol::client::Client;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// `/init` of the bare recipe.
const INIT: &str = include_str!("../../bochs/bare-init");

/// The story that is measured.
const SCENARIO: &str = "vmx-kvm-loaded";

/// How much dearer the farm may be.
const BAR: f64 = 1.3;

/// What can be said on the command line.
#[derive(Debug, Args)]
pub struct Options {
    /// Where the farm keeps its data. Emptied at the start.
    #[arg(long, default_value = "bench-vmx-data")]
    data: PathBuf,
    /// Where the server listens.
    #[arg(long, default_value = "127.0.0.1:8481")]
    listen: SocketAddr,
}

/// Runs both and prints what they cost. The farm's story is run first, so that everything is in the cache.
pub async fn run(options: Options, source: PathBuf) -> anyhow::Result<ExitCode> {
    let cache = Cache::open()?;
    let (tested, bare) = tokio::task::spawn_blocking(move || {
        let stories = matrix::stories(Kind::Good, &[SCENARIO.to_owned()])?;
        let (_, image) = builds::build(&cache, &source, &[Kind::Good])?.pop().context("one build")?;
        let bare = Bare::prepare(&cache, &source, &image.kernel)?;
        anyhow::Ok((Tested { name: Kind::Good.name().into(), config: "crashyard-lab", image, stories }, bare))
    })
    .await??;
    let (story, dump) = story(&options, &tested).await?;
    let scenario = tested.stories[0].scenario.clone();
    let bare = tokio::task::spawn_blocking(move || bare.run(&scenario)).await??;
    let ratio = story / bare;
    let mark = if ratio <= BAR { "reached" } else { "MISSED " };
    println!(
        "bare recipe: {bare:.1} CPU s of the emulator; story of the farm: {story:.1} CPU s, with a dump of {dump} bytes"
    );
    println!("{mark}  a warm Bochs story / the bare recipe       {ratio:.2}   bar <= {BAR}");
    Ok(if ratio <= BAR { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// CPU seconds of the emulator for one story that passes, and the bytes of its dump.
async fn story(options: &Options, tested: &Tested) -> anyhow::Result<(f64, u64)> {
    let mut farm = Farm::start(&options.data, options.listen, &bochs(1)).await?;
    let client = farm.client().clone();
    let cost = cost(&client, tested).await;
    farm.stop().await;
    cost
}

async fn cost(client: &Client, tested: &Tested) -> anyhow::Result<(f64, u64)> {
    let Tested { config, image, stories, .. } = tested;
    let what = Submission { build: &image.package, config, plan: "bench", driver: "bochs" };
    let run = submit::everything(client, &what, image, stories).await?;
    progress::follow(client, &run).await.context("follow the run")?;
    let results = table::results(client, &run, stories).await?;
    ensure!(table::show(&results), "the story did not pass, so what it cost says nothing");
    let jobs = client.run_jobs(&run).await?;
    let attempt = jobs.first().and_then(|job| job.attempts.last()).context("an attempt")?;
    let evidence: Vec<Evidence> = client.get(&format!("/api/v1/attempts/{attempt}/evidence")).await?;
    let seconds = evidence.iter().find_map(|one| match &one.report {
        Report::MachineEnded { detail } | Report::Power { detail, .. } => cpu_seconds(detail),
        _ => None,
    });
    let dump = evidence.iter().find_map(|one| match one.report {
        Report::DumpFinished { bytes, .. } => Some(bytes),
        _ => None,
    });
    Ok((seconds.context("the driver did not say what the machine cost")?, dump.context("no dump")?))
}

/// Out of what the driver says when its machine has ended: `the guest powered off (34.5 s of CPU)`.
fn cpu_seconds(detail: &str) -> Option<f64> {
    detail.rsplit_once(" s of CPU)")?.0.rsplit_once('(')?.1.parse().ok()
}

struct Bare {
    script: PathBuf,
    kernel: PathBuf,
    initrd: PathBuf,
    work: PathBuf,
}

impl Bare {
    fn prepare(cache: &Cache, source: &Path, kernel: &Path) -> anyhow::Result<Self> {
        let modules = builds::kvm_intel(source)?;
        let inner = image::userland(INIT, BTreeMap::new())?;
        let mut files = image::userland(INIT, BTreeMap::from([("kvm_intel".to_owned(), modules)]))?;
        files.insert("crash/kernel".into(), File::read(kernel, 0o644)?);
        files.insert("crash/initrd".into(), File { permissions: 0o644, content: archive(&inner) });
        let mut key = blake3::Hasher::new();
        image::name(&mut key, &files);
        let key = key.finalize().to_hex();
        let directory = cache.directory(&format!("images/bare-{}", &key[..32]), |into| {
            Ok(std::fs::write(into.join("initrd"), archive(&files))?)
        })?;
        let work = cache.path("bare");
        std::fs::create_dir_all(&work)?;
        Ok(Self {
            script: source.join("lab/bochs/run"),
            kernel: kernel.to_owned(),
            initrd: directory.join("initrd"),
            work,
        })
    }

    /// CPU seconds of the emulator from power-on to power-off.
    fn run(&self, scenario: &crashyard_protocol::Scenario) -> anyhow::Result<f64> {
        let (disk, console) = (self.work.join("disk"), self.work.join("console"));
        let boot = &scenario.boot;
        // A disk of Bochs has cylinders of 16 heads with 63 sectors.
        std::fs::File::create(&disk)?.set_len((u64::from(boot.memory_mib) << 20).next_multiple_of(516_096))?;
        let cmdline = format!(
            "console=ttyS0,115200 printk.devkmsg=on panic=0 no_timer_check earlyprintk=serial,ttyS0,115200 crashkernel={}",
            boot.crashkernel
        );
        let text = |path: &Path| path.display().to_string();
        let said = output(
            &text(&self.script),
            [
                "--kernel",
                &text(&self.kernel),
                "--initramfs",
                &text(&self.initrd),
                "--cmdline",
                &cmdline,
                "--console",
                &text(&console),
                "--timeout",
                "1800",
                "--cpus",
                &boot.cpus.to_string(),
                "--memory",
                &boot.memory_mib.to_string(),
                "--disk",
                &text(&disk),
            ],
        )?;
        let said = String::from_utf8_lossy(&said);
        let console = std::fs::read_to_string(&console).unwrap_or_default();
        if !console.contains("bare: dumped with status 0") {
            bail!("the bare recipe did not come to its dump: {}", crashyard_agent::guest::tail(&console, 1000));
        }
        let _ = std::fs::remove_file(&disk);
        said.trim()
            .rsplit_once("cpu=")
            .and_then(|(_, cpu)| cpu.parse().ok())
            .context("the recipe did not say what it cost")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_machine_cost_is_read_from_the_drivers_words() {
        assert_eq!(cpu_seconds("Bochs is gone: the guest powered off (34.5 s of CPU)"), Some(34.5));
        assert_eq!(cpu_seconds("was off"), None);
    }
}
