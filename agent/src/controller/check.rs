//! `crashyard-agent machine check`, and the same when the server asks for it: what can be seen of a real machine's power and
//! consoles, before any job depends on it.
//!
//! Each line is something that was tried just now and what came of it, never what should be so. Nothing is done to the
//! machine unless that was asked for.

use super::config::Config;
use super::console::GAP;
use super::metal::chassis::Chassis;
use super::metal::{Metal, MetalConfig};
use super::watch::Watcher;
use anyhow::{Context as _, bail};
use crashyard_protocol::check::{Finding, Report, Seen};
use std::path::Path;
use std::time::Duration;

/// How long a console may take to bring its first byte.
const LISTEN: Duration = Duration::from_secs(10);

/// How long after power-on a firmware may take until it prints.
const BOOT: Duration = Duration::from_secs(120);

/// What to try.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Also what does something to the machine: off, on, and off again.
    pub cycle: bool,
}

/// Writes down what came of one thing; whether it works.
fn add(report: &mut Report, capability: &str, needed: bool, outcome: anyhow::Result<String>) -> bool {
    let works = outcome.is_ok();
    let (seen, detail) = match outcome {
        Ok(detail) => (Seen::Works, detail),
        Err(error) => (Seen::Fails, format!("{error:#}")),
    };
    report.findings.push(Finding { capability: capability.into(), seen, detail, needed });
    works
}

fn unknown(report: &mut Report, capability: &str, detail: impl Into<String>) {
    let capability = capability.to_owned();
    report.findings.push(Finding { capability, seen: Seen::Unknown, detail: detail.into(), needed: false });
}

/// A real machine of a configuration.
fn metal<'a>(config: &'a Config, file: &Path, machine: &str) -> anyhow::Result<&'a MetalConfig> {
    let known = || config.machines.iter().map(|one| one.name.clone()).collect::<Vec<_>>().join(", ");
    let one = config.machines.iter().find(|one| one.name == machine);
    let one = one.with_context(|| format!("{} has no machine {machine:?}, only {}", file.display(), known()))?;
    let Some(metal) = &one.metal else {
        bail!("{machine} is an emulated machine; there is no BMC and no wire to check");
    };
    Ok(metal)
}

/// Makes a machine of a configuration show itself. Nothing else is done to it, so its controller may run meanwhile.
pub async fn identify(file: &Path, machine: &str, seconds: u8) -> anyhow::Result<String> {
    let config = Config::read(file)?;
    let (chassis, _) = metal(&config, file, machine)?.chassis(machine)?;
    chassis.identify(seconds).await
}

/// Tries a machine of a configuration.
pub async fn check(file: &Path, machine: &str, options: Options) -> anyhow::Result<Report> {
    let config = Config::read(file)?;
    let metal = metal(&config, file, machine)?;
    // A check would take a running attempt's console away, and with it evidence; a cycle would take the rest.
    let _lock = super::lock(&config.state).context(
        "stop the controller before a check (`systemctl stop crashyard-controller`); machines go on meanwhile",
    )?;
    if super::is_in_an_attempt(&config.state, machine)? {
        bail!("{machine} is in an attempt that is not over: start the controller, and check when that has ended");
    }
    let watcher = Watcher::start()?;
    look(&Metal::new(machine, metal, &config.server, watcher)?, options).await
}

/// Tries a machine that no attempt has. The caller makes sure of that.
pub async fn look(metal: &Metal, options: Options) -> anyhow::Result<Report> {
    let report = &mut Report { machine: metal.machine().to_owned(), findings: Vec::new() };
    power(report, metal.chassis().as_ref()).await;
    let directory = tempfile::tempdir().context("a directory for what the consoles bring")?;
    let consoles = open(report, metal, directory.path());
    if options.cycle {
        cycle(report, metal.chassis().as_ref(), &consoles).await;
    } else {
        for (name, console) in &consoles {
            let capability = format!("console {name}");
            match (heard(console.as_ref(), LISTEN).await, console.trouble()) {
                (Ok(said), _) => drop(add(report, &capability, true, Ok(said))),
                (Err(_), Some(why)) => drop(add(report, &capability, true, Err(anyhow::anyhow!("not open: {why}")))),
                (Err(_), None) => unknown(
                    report,
                    &capability,
                    format!("opened, and silent for {} s; --cycle shows whether it speaks", LISTEN.as_secs()),
                ),
            }
        }
        unknown(report, "power off and on", "not tried; --cycle does it");
    }
    Ok(report.clone())
}

type Consoles = Vec<(String, std::sync::Arc<dyn super::machine::Console>)>;

async fn power(report: &mut Report, chassis: &dyn Chassis) {
    let state = chassis.is_on().await;
    let words = state.map(|on| format!("{} says that it is {}", chassis.what(), if on { "on" } else { "off" }));
    if !add(report, "power state", true, words) {
        return;
    }
    match chassis.can_nmi().await {
        Ok(how) => unknown(report, "NMI", how),
        Err(error) => unknown(report, "NMI", format!("{error:#}")),
    }
    match chassis.events().await {
        Ok(Some(events)) => {
            add(report, "event log", false, Ok(format!("{} entries", events.len())));
        }
        Ok(None) => unknown(report, "event log", "it has none"),
        Err(error) => {
            add(report, "event log", false, Err(error));
        }
    }
}

fn open(report: &mut Report, metal: &Metal, directory: &Path) -> Consoles {
    let mut consoles = Vec::new();
    let (configs, watcher) = metal.consoles();
    for config in configs {
        match config.open(directory, metal.bmc(), watcher) {
            Ok(console) => consoles.push((config.name.clone(), console)),
            Err(error) => drop(add(report, &format!("console {}", config.name), true, Err(error))),
        }
    }
    consoles
}

/// The first line of a console, as evidence that it speaks.
async fn heard(console: &dyn super::machine::Console, patience: Duration) -> anyhow::Result<String> {
    let line = tokio::time::timeout(patience, async {
        let mut known = 0;
        loop {
            console.grown(known).await?;
            let bytes = console.read(0, 4096).await?;
            known = bytes.len() as u64;
            match first_line(&String::from_utf8_lossy(&bytes)) {
                Some(line) => return std::io::Result::Ok(line),
                None if bytes.len() == 4096 => return Ok("…".into()),
                None => {}
            }
        }
    });
    Ok(format!("it said {:?}", line.await.context("silent")??))
}

/// The first line that the machine printed. What `ipmitool` and the recorder say of themselves is not the machine's.
fn first_line(text: &str) -> Option<String> {
    let ours = ["[SOL Session operational", GAP];
    let mut lines = text.lines().map(str::trim);
    let line = lines.find(|line| !line.is_empty() && !ours.iter().any(|own| line.starts_with(own)))?;
    Some(line.chars().take(60).collect())
}

/// Off, on, heard, off.
async fn cycle(report: &mut Report, chassis: &dyn Chassis, consoles: &Consoles) {
    if !add(report, "power off", true, chassis.power(false).await) {
        return;
    }
    add(report, "network boot", true, chassis.boot_from_network_once().await);
    if add(report, "power on", true, chassis.power(true).await) {
        for (name, console) in consoles {
            let said = heard(console.as_ref(), BOOT).await;
            let said = said.with_context(|| match console.trouble() {
                Some(why) => format!("not open: {why}"),
                None => format!("it brought nothing in {} s after power-on", BOOT.as_secs()),
            });
            add(report, &format!("console {name}"), true, said);
        }
    }
    add(report, "power off again", true, chassis.power(false).await);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_machine_printed_shows_that_its_console_speaks() {
        assert_eq!(first_line("[SOL Session operational.  Use ~? for help]\r\n\r\n"), None);
        assert_eq!(first_line(&format!("\r\n{GAP} up to now: it ended]\r\n")), None);
        assert_eq!(first_line("[SOL Session operational.  Use ~? for help]\nSeaBIOS\n").as_deref(), Some("SeaBIOS"));
    }

    #[tokio::test]
    async fn a_machine_is_not_checked_beside_its_controller() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("controller.toml");
        let text = "name = 'lab'\nserver = 'http://127.0.0.1:1'\ntoken_file = 'token'\nstate = 'state'\n\
            [netboot]\nlisten = '127.0.0.1:0'\n[[machine]]\nname = 'm1'\n[machine.metal.power.command]\n\
            on = ['false']\noff = ['false']\nstatus = ['false']\n\
            [[machine.metal.console]]\nname = 'serial'\ntcp = '127.0.0.1:1'\n";
        std::fs::write(&file, text).unwrap();
        let controller = crate::controller::lock(&dir.path().join("state")).unwrap();
        let error = format!("{:#}", check(&file, "m1", Options { cycle: true }).await.unwrap_err());
        assert!(error.contains("stop the controller"), "{error}");
        drop(controller);
        let report = check(&file, "m1", Options::default()).await.unwrap();
        assert!(!report.passes(), "and afterwards it is tried: {report:?}");
        let console = report.findings.iter().find(|one| one.capability == "console serial").unwrap();
        assert!(console.seen == Seen::Fails && console.detail.contains("refused"), "nobody is there: {console:?}");
    }
}
