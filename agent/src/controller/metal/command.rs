//! Power by commands: PDUs, relays, and whatever has a program that switches it.
//!
//! A command is a list of words and no shell reads it; `{machine}` in a word is the machine's name.

use super::chassis::Chassis;
use anyhow::{Context as _, bail};
use async_trait::async_trait;
use serde::Deserialize;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;

/// How long one command may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Longest output that is quoted.
const QUOTED: usize = 300;

/// The commands of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Commands {
    /// Switches on.
    pub on: Vec<String>,
    /// Switches off.
    pub off: Vec<String>,
    /// Prints `on` or `off` as its last word.
    pub status: Vec<String>,
    /// Resets; off and on again where there is none.
    #[serde(default)]
    pub reset: Vec<String>,
    /// Sends an NMI.
    #[serde(default)]
    pub nmi: Vec<String>,
    /// Makes the next boot one from the network; without it, the machine is taken to try the network first.
    #[serde(default)]
    pub network_boot: Vec<String>,
}

/// The commands with the machine they are for.
pub struct ByCommand {
    /// Its name.
    pub machine: String,
    /// The commands.
    pub commands: Commands,
}

impl ByCommand {
    async fn run(&self, words: &[String]) -> anyhow::Result<String> {
        let words: Vec<String> = words.iter().map(|word| word.replace("{machine}", &self.machine)).collect();
        let (program, arguments) = words.split_first().context("the command is empty")?;
        let run = Command::new(program).args(arguments).stdin(Stdio::null()).kill_on_drop(true).output();
        let output = tokio::time::timeout(PATIENCE, run).await;
        let output = output.with_context(|| format!("{program} does not end within {} s", PATIENCE.as_secs()))?;
        let output = output.with_context(|| format!("start {program}"))?;
        let said = crate::guest::tail(String::from_utf8_lossy(&output.stdout).trim(), QUOTED);
        if !output.status.success() {
            let why = crate::guest::tail(String::from_utf8_lossy(&output.stderr).trim(), QUOTED);
            bail!("{program}: {}: {said} {why}", output.status);
        }
        Ok(said)
    }
}

#[async_trait]
impl Chassis for ByCommand {
    fn what(&self) -> String {
        format!("the command {}", self.commands.status.first().map_or("", String::as_str))
    }

    fn who(&self) -> &'static str {
        "the status command"
    }

    async fn is_on(&self) -> anyhow::Result<bool> {
        let said = self.run(&self.commands.status).await?;
        match said.split_whitespace().next_back() {
            Some("on") => Ok(true),
            Some("off") => Ok(false),
            _ => bail!("the status command's last word is neither on nor off: {said:?}"),
        }
    }

    async fn switch(&self, on: bool) -> anyhow::Result<()> {
        self.run(if on { &self.commands.on } else { &self.commands.off }).await.map(drop)
    }

    async fn reset(&self) -> anyhow::Result<String> {
        if self.commands.reset.is_empty() {
            self.power(false).await?;
            return self.power(true).await.map(|on| format!("switched off and on: {on}"));
        }
        self.run(&self.commands.reset).await
    }

    async fn nmi(&self) -> anyhow::Result<String> {
        self.can_nmi().await?;
        self.run(&self.commands.nmi).await
    }

    async fn boot_from_network_once(&self) -> anyhow::Result<String> {
        if self.commands.network_boot.is_empty() {
            return Ok("it is taken to try the network first".into());
        }
        self.run(&self.commands.network_boot).await?;
        Ok("its next boot is from the network".into())
    }

    async fn events(&self) -> anyhow::Result<Option<Vec<String>>> {
        Ok(None)
    }

    async fn can_nmi(&self) -> anyhow::Result<String> {
        if self.commands.nmi.is_empty() {
            bail!("no nmi command is configured");
        }
        Ok("an nmi command is configured".into())
    }
}
