//! `crashyard-agent machine check`: what can be seen of a real machine's power and consoles, before any job depends on it.
//!
//! Each line is something that was tried just now and what came of it, never what should be so. Nothing is done to the
//! machine unless that was asked for.

use super::config::Config;
use super::console::ConsoleConfig;
use super::metal::Metal;
use super::metal::chassis::Chassis;
use super::watch::Watcher;
use anyhow::{Context as _, bail};
use serde::Serialize;
use std::path::Path;
use std::time::Duration;

/// How long a console may take to bring its first byte.
const LISTEN: Duration = Duration::from_secs(10);

/// How long after power-on a firmware may take until it prints.
const BOOT: Duration = Duration::from_secs(120);

/// What came of one thing that was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Seen {
    /// It works; it was seen to.
    Works,
    /// It does not.
    Fails,
    /// It was not tried, or trying it shows nothing.
    Unknown,
}

/// One thing that was tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What: `power state`, `console serial`, …
    pub capability: String,
    /// What came of it.
    pub seen: Seen,
    /// In words.
    pub detail: String,
    /// Whether no job can run without it.
    pub needed: bool,
}

/// What to try.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Also what does something to the machine: off, on, and off again.
    pub cycle: bool,
}

/// Everything that was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The machine.
    pub machine: String,
    /// In the order in which it was tried.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether everything is there that a job needs, as far as it was tried.
    #[must_use]
    pub fn passes(&self) -> bool {
        self.findings.iter().all(|finding| !finding.needed || finding.seen != Seen::Fails)
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let line = |finding: &Finding| {
            let word = match (finding.seen, finding.needed) {
                (Seen::Works, _) => "works",
                (Seen::Fails, true) => "FAILS",
                (Seen::Fails, false) => "is not there",
                (Seen::Unknown, _) => "not known",
            };
            let detail: String = finding.detail.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            format!("{:<20} {word:<14} {detail}\n", finding.capability)
        };
        let end = if self.passes() {
            format!("{} can take jobs, as far as was tried.\n", self.machine)
        } else {
            format!("{} cannot take jobs: mend what FAILS and check again.\n", self.machine)
        };
        self.findings.iter().map(line).collect::<String>() + &end
    }

    fn add(&mut self, capability: &str, needed: bool, outcome: anyhow::Result<String>) -> bool {
        let works = outcome.is_ok();
        let (seen, detail) = match outcome {
            Ok(detail) => (Seen::Works, detail),
            Err(error) => (Seen::Fails, format!("{error:#}")),
        };
        self.findings.push(Finding { capability: capability.into(), seen, detail, needed });
        works
    }

    fn unknown(&mut self, capability: &str, detail: impl Into<String>) {
        let capability = capability.to_owned();
        self.findings.push(Finding { capability, seen: Seen::Unknown, detail: detail.into(), needed: false });
    }
}

/// Tries a machine of a configuration.
pub async fn check(file: &Path, machine: &str, options: Options) -> anyhow::Result<Report> {
    let config = Config::read(file)?;
    let known = || config.machines.iter().map(|one| one.name.clone()).collect::<Vec<_>>().join(", ");
    let one = config.machines.iter().find(|one| one.name == machine);
    let one = one.with_context(|| format!("{} has no machine {machine:?}, only {}", file.display(), known()))?;
    let Some(metal) = &one.metal else {
        bail!("{machine} is an emulated machine; there is no BMC and no wire to check");
    };
    let watcher = Watcher::start()?;
    let driver = Metal::new(machine, metal, &config.server, watcher.clone())?;
    let mut report = Report { machine: machine.to_owned(), findings: Vec::new() };
    power(&mut report, driver.chassis().as_ref()).await;
    let directory = tempfile::tempdir().context("a directory for what the consoles bring")?;
    let consoles = open(&mut report, &driver, &metal.consoles, directory.path(), &watcher);
    if options.cycle {
        cycle(&mut report, driver.chassis().as_ref(), &consoles).await;
    } else {
        for (name, console) in &consoles {
            match heard(console.as_ref(), LISTEN).await {
                Ok(said) => drop(report.add(&format!("console {name}"), true, Ok(said))),
                Err(_) => report.unknown(
                    &format!("console {name}"),
                    format!("opened, and silent for {} s; --cycle shows whether it speaks", LISTEN.as_secs()),
                ),
            }
        }
        report.unknown("power off and on", "not tried; --cycle does it");
    }
    Ok(report)
}

type Consoles = Vec<(String, std::sync::Arc<dyn super::machine::Console>)>;

async fn power(report: &mut Report, chassis: &dyn Chassis) {
    let state = chassis.is_on().await;
    let words = state.map(|on| format!("{} says that it is {}", chassis.what(), if on { "on" } else { "off" }));
    if !report.add("power state", true, words) {
        return;
    }
    match chassis.can_nmi().await {
        Ok(how) => report.unknown("NMI", how),
        Err(error) => report.unknown("NMI", format!("{error:#}")),
    }
    match chassis.events().await {
        Ok(Some(events)) => {
            report.add("event log", false, Ok(format!("{} entries", events.len())));
        }
        Ok(None) => report.unknown("event log", "it has none"),
        Err(error) => {
            report.add("event log", false, Err(error));
        }
    }
}

fn open(
    report: &mut Report,
    driver: &Metal,
    configs: &[ConsoleConfig],
    directory: &Path,
    watcher: &Watcher,
) -> Consoles {
    let mut consoles = Vec::new();
    for config in configs {
        match config.open(directory, driver.bmc(), watcher) {
            Ok(console) => consoles.push((config.name.clone(), console)),
            Err(error) => drop(report.add(&format!("console {}", config.name), true, Err(error))),
        }
    }
    consoles
}

/// The first bytes of a console, as evidence that it speaks.
async fn heard(console: &dyn super::machine::Console, patience: Duration) -> anyhow::Result<String> {
    let bytes = tokio::time::timeout(patience, async {
        console.grown(0).await?;
        console.read(0, 4096).await
    });
    let bytes = bytes.await.context("silent")??;
    let text = String::from_utf8_lossy(&bytes);
    let line: String =
        text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("…").chars().take(60).collect();
    Ok(format!("it said {line:?}"))
}

/// Off, on, heard, off.
async fn cycle(report: &mut Report, chassis: &dyn Chassis, consoles: &Consoles) {
    if !report.add("power off", true, chassis.power(false).await) {
        return;
    }
    report.add("network boot", true, chassis.boot_from_network_once().await);
    if report.add("power on", true, chassis.power(true).await) {
        for (name, console) in consoles {
            let said = heard(console.as_ref(), BOOT).await;
            let said = said.with_context(|| format!("it brought nothing in {} s after power-on", BOOT.as_secs()));
            report.add(&format!("console {name}"), true, said);
        }
    }
    report.add("power off again", true, chassis.power(false).await);
}
