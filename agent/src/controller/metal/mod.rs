//! Real machines: power by a BMC or by commands, consoles that are recorded, booted from the network.
//!
//! The machine gets its kernel from this controller ([`super::netboot`]): for one boot, its BMC makes it ask its network
//! card for a boot loader, and iPXE fetches kernel and initramfs of the attempt. Whatever it boots after that, it
//! boots from its own disk, so a machine that resets in the middle of a crash is seen to have done so.
//!
//! What it must never do: power a machine off before its consoles and the BMC's event log are kept, or believe a command
//! that nobody has seen done.

mod certificates;
pub mod chassis;
mod command;
mod config;
pub mod ipmi;
pub mod redfish;

use super::check::{self, Options};
use super::console::ConsoleConfig;
use super::emulated;
use super::machine::{Attached, BootPlan, Driver, Power, PowerStatus};
use super::netboot::{self, Offer};
use super::watch::Watcher;
use anyhow::{Context as _, bail};
use async_trait::async_trait;
use chassis::Chassis;
pub use config::MetalConfig;
use crashyard_protocol::check::Report;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// What the BMC's event log says that it did not say when the machine was powered on.
const EVENTS: &str = "bmc-events.log";

/// What the event log said when the machine was powered on. Its entries and not their number: a full log drops old
/// entries for new ones, and has as many as before.
const EVENTS_BEFORE: &str = "bmc-events.before";

/// Between two looks at the power of a machine that is on. A BMC tells nothing unasked.
const LOOK: Duration = Duration::from_secs(5);

/// Drives one machine.
pub struct Metal {
    machine: String,
    chassis: Arc<dyn Chassis>,
    bmc: Option<ipmi::Bmc>,
    consoles: Vec<ConsoleConfig>,
    server: String,
    watcher: Watcher,
}

impl Metal {
    /// For a machine of the configuration; `server` is the server's URL.
    pub fn new(machine: &str, config: &MetalConfig, server: &str, watcher: Watcher) -> anyhow::Result<Self> {
        let (chassis, bmc) = config.chassis(machine)?;
        Ok(Self {
            machine: machine.to_owned(),
            chassis,
            bmc,
            consoles: config.consoles.clone(),
            server: server.to_owned(),
            watcher,
        })
    }

    /// Its BMC, where that speaks IPMI.
    #[must_use]
    pub fn bmc(&self) -> Option<&ipmi::Bmc> {
        self.bmc.as_ref()
    }

    /// Its name.
    #[must_use]
    pub fn machine(&self) -> &str {
        &self.machine
    }

    /// Its consoles, and what watches their files.
    #[must_use]
    pub fn consoles(&self) -> (&[ConsoleConfig], &Watcher) {
        (&self.consoles, &self.watcher)
    }

    /// Its power.
    #[must_use]
    pub fn chassis(&self) -> &Arc<dyn Chassis> {
        &self.chassis
    }
}

#[async_trait]
impl Driver for Metal {
    fn name(&self) -> &'static str {
        "metal"
    }

    fn server_seen_from_machine(&self) -> String {
        self.server.clone()
    }

    fn attach(&self, directory: &Path) -> anyhow::Result<Attached> {
        let consoles = self
            .consoles
            .iter()
            .map(|config| Ok((config.name.clone(), config.open(directory, self.bmc.as_ref(), &self.watcher)?)))
            .collect::<anyhow::Result<_>>()?;
        let power = MetalPower {
            machine: self.machine.clone(),
            chassis: self.chassis.clone(),
            directory: directory.to_owned(),
        };
        Ok(Attached {
            power: Arc::new(power),
            consoles,
            dump_disk: None,
            logs: vec![(EVENTS.into(), directory.join(EVENTS))],
        })
    }

    async fn off(&self) -> anyhow::Result<String> {
        self.chassis.power(false).await
    }

    async fn look(&self, cycle: bool) -> anyhow::Result<Report> {
        check::look(self, Options { cycle }).await
    }
}

struct MetalPower {
    machine: String,
    chassis: Arc<dyn Chassis>,
    directory: PathBuf,
}

impl MetalPower {
    /// Notes where the event log ends; a BMC without one is noted as that.
    async fn remember_events(&self) -> anyhow::Result<()> {
        let events = match self.chassis.events().await {
            Ok(Some(events)) => events,
            Ok(None) => return Ok(()),
            Err(error) => {
                tracing::warn!(
                    error = format!("{error:#}"),
                    machine = self.machine,
                    "the BMC's event log cannot be read"
                );
                return Ok(());
            }
        };
        Ok(std::fs::write(self.directory.join(EVENTS_BEFORE), serde_json::to_vec(&events)?)?)
    }

    /// Keeps what the event log says since then. An event log that cannot be read is said in the evidence.
    async fn keep_events(&self) -> anyhow::Result<()> {
        let before: Vec<String> = match std::fs::read(self.directory.join(EVENTS_BEFORE)) {
            Ok(events) => serde_json::from_slice(&events).context("the BMC's events before power-on")?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let lines = match self.chassis.events().await {
            Ok(Some(events)) => new_events(&before, events),
            Ok(None) => return Ok(()),
            Err(error) => vec![format!("The BMC's event log cannot be read: {error:#}")],
        };
        if lines.is_empty() {
            return Ok(());
        }
        Ok(std::fs::write(self.directory.join(EVENTS), lines.join("\n") + "\n")?)
    }
}

/// What is in the log now and was not before. Entries that read the same are counted, as some have no number or time.
fn new_events(before: &[String], now: Vec<String>) -> Vec<String> {
    let mut known: HashMap<&str, usize> = HashMap::new();
    for event in before {
        *known.entry(event).or_default() += 1;
    }
    now.into_iter()
        .filter(|event| match known.get_mut(event.as_str()) {
            Some(left) if *left > 0 => {
                *left -= 1;
                false
            }
            _ => true,
        })
        .collect()
}

#[async_trait]
impl Power for MetalPower {
    async fn status(&self) -> anyhow::Result<PowerStatus> {
        if Offer::read(&self.directory)?.is_none() {
            return Ok(PowerStatus::NeverOn);
        }
        Ok(if self.chassis.is_on().await? { PowerStatus::On } else { PowerStatus::Ended("its power is off".into()) })
    }

    async fn on(&self, plan: &BootPlan) -> anyhow::Result<String> {
        self.remember_events().await?;
        // Between jobs it may run its base system, or hang in whatever an earlier attempt left.
        if self.chassis.is_on().await? {
            self.chassis.power(false).await.context("power it off before it boots the kernel under test")?;
        }
        let way = self.chassis.boot_from_network_once().await?;
        Offer::new(&self.machine, plan).write(&self.directory)?;
        let on = self.chassis.power(true).await?;
        Ok(format!("{on}; {way}"))
    }

    async fn off(&self) -> anyhow::Result<String> {
        // Whatever runs there is its base system's, or another attempt's whose evidence this would destroy.
        if Offer::read(&self.directory)?.is_none() {
            return Ok("this attempt never powered it on, so it is left as it is".into());
        }
        self.keep_events().await?;
        netboot::withdraw(&self.directory)?;
        self.chassis.power(false).await
    }

    async fn reset(&self) -> anyhow::Result<String> {
        self.chassis.reset().await
    }

    async fn nmi(&self) -> anyhow::Result<String> {
        self.chassis.nmi().await
    }

    async fn ended(&self) -> anyhow::Result<String> {
        loop {
            tokio::time::sleep(LOOK).await;
            match self.chassis.is_on().await {
                Ok(true) => {}
                Ok(false) => return Ok("its power went off".into()),
                // A BMC that is away for a while says nothing about its machine.
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), machine = self.machine, "the BMC does not answer");
                }
            }
        }
    }

    async fn check(&self) -> anyhow::Result<String> {
        if Offer::read(&self.directory)?.is_none() {
            return Ok("this attempt never powered it on".into());
        }
        if self.chassis.is_on().await? {
            bail!("{} says that the machine is still on", self.chassis.what());
        }
        Ok(format!(
            "{} says that it is off, {}; no base system is configured, so none was booted",
            self.chassis.what(),
            emulated::free_space(&self.directory)?
        ))
    }
}

#[cfg(test)]
mod tests;
