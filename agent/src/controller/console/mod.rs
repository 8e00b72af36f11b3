//! Consoles of real machines: whatever way their bytes come, they are recorded into a file of the attempt.
//!
//! A channel ([`channel`]) is a way to the bytes that has to be held open: a BMC's serial over LAN, a terminal server, a
//! serial port, a datagram socket, any program's standard output. What is printed while it is down is gone; so the recorder
//! ([`recorder`]) opens it again at once, and writes into the record for how long nobody listened, and why. The
//! record is evidence: nothing else is ever added to it, and nothing removed.

mod channel;
mod netconsole;
mod recorder;
mod telnet;

use super::machine::Console;
use super::metal::ipmi::Bmc;
use super::watch::Watcher;
use anyhow::{bail, ensure};
use channel::Channel;
pub use recorder::GAP;
use recorder::Recorder;
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A console in the configuration of a machine. Exactly one way.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsoleConfig {
    /// Its name among the machine's consoles; evidence is kept under it.
    #[serde(default = "serial")]
    pub name: String,
    /// `true`: serial over LAN of the machine's BMC, by `ipmitool`.
    #[serde(default)]
    pub sol: bool,
    /// Address of a TCP port that gives the bytes as they are.
    #[serde(default)]
    pub tcp: Option<String>,
    /// Address of a terminal server that speaks telnet (RFC 854), and RFC 2217 where `baud` is given.
    #[serde(default)]
    pub telnet: Option<String>,
    /// A program with its arguments; its standard output is the console (conserver's `console`, `ssh`).
    #[serde(default)]
    pub command: Option<Vec<String>>,
    /// A serial port of the controller's host.
    #[serde(default)]
    pub device: Option<PathBuf>,
    /// Speed of `device`, and of `telnet` where the terminal server is to set it.
    #[serde(default)]
    pub baud: Option<u32>,
    /// Where datagrams of the kernel's netconsole arrive.
    #[serde(default)]
    pub netconsole: Option<SocketAddr>,
    /// Whose datagrams they are; others are dropped.
    #[serde(default)]
    pub from: Option<std::net::IpAddr>,
    /// Opens the channel anew when it has brought nothing for so many seconds; 0 never. A crashed kernel is silent, and so
    /// is a dead session, which a BMC does not tell apart.
    #[serde(default)]
    pub stall_seconds: u64,
}

fn serial() -> String {
    "serial".into()
}

impl ConsoleConfig {
    /// Says what is wrong with it, and how to mend it.
    pub fn check(&self, has_bmc: bool) -> anyhow::Result<()> {
        let ways = [
            ("sol", self.sol),
            ("tcp", self.tcp.is_some()),
            ("telnet", self.telnet.is_some()),
            ("command", self.command.is_some()),
            ("device", self.device.is_some()),
            ("netconsole", self.netconsole.is_some()),
        ];
        let chosen: Vec<_> = ways.iter().filter(|(_, chosen)| *chosen).map(|(way, _)| *way).collect();
        match chosen.as_slice() {
            [] => bail!("console {} has no way: give one of sol, tcp, telnet, command, device, netconsole", self.name),
            [_] => {}
            many => bail!("console {} has {} ways ({}); give one", self.name, many.len(), many.join(", ")),
        }
        let word = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        ensure!(
            !self.name.is_empty() && self.name.len() <= 32 && self.name.chars().all(word),
            "a console's name has letters, digits, - and _, not {:?}",
            self.name
        );
        ensure!(!self.sol || has_bmc, "console {}: serial over LAN needs power by ipmi", self.name);
        ensure!(self.command.as_ref().is_none_or(|words| !words.is_empty()), "console {}: an empty command", self.name);
        ensure!(self.device.is_none() || self.baud.is_some(), "console {}: a device needs its baud", self.name);
        ensure!(
            self.from.is_some() == self.netconsole.is_some(),
            "console {}: netconsole and from go together",
            self.name
        );
        Ok(())
    }

    fn channel(&self, bmc: Option<&Bmc>) -> anyhow::Result<Channel> {
        if let Some(address) = &self.tcp {
            return Ok(Channel::Tcp(address.clone()));
        }
        if let Some(address) = &self.telnet {
            return Ok(Channel::Telnet { address: address.clone(), baud: self.baud });
        }
        if let Some(words) = &self.command {
            return Ok(Channel::Command(words.clone()));
        }
        if let (Some(path), Some(baud)) = (&self.device, self.baud) {
            return Ok(Channel::Device { path: path.clone(), baud });
        }
        if let (Some(listen), Some(from)) = (self.netconsole, self.from) {
            return Ok(Channel::Netconsole { listen, from });
        }
        match bmc {
            Some(bmc) => Ok(Channel::SerialOverLan(bmc.clone())),
            None => bail!("console {} has no way", self.name),
        }
    }

    /// Begins to record into the attempt's directory, or goes on where an earlier controller stopped.
    pub fn open(&self, directory: &Path, bmc: Option<&Bmc>, watcher: &Watcher) -> anyhow::Result<Arc<dyn Console>> {
        let path = directory.join(format!("console-{}.log", self.name));
        Ok(Arc::new(Recorder::start(self.channel(bmc)?, &path, self.stall_seconds, watcher)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> anyhow::Result<()> {
        toml::from_str::<ConsoleConfig>(text)?.check(false)
    }

    #[test]
    fn a_console_has_one_way_and_mistakes_are_named() {
        parse("tcp = '10.0.0.1:7001'").unwrap();
        parse("name = 'net'\nnetconsole = '0.0.0.0:6666'\nfrom = '10.0.0.9'").unwrap();
        parse("device = '/dev/ttyUSB0'\nbaud = 115200").unwrap();
        for (text, word) in [
            ("", "has no way"),
            ("tcp = 'a:1'\ntelnet = 'b:2'", "2 ways (tcp, telnet)"),
            ("sol = true", "needs power by ipmi"),
            ("device = '/dev/ttyUSB0'", "baud"),
            ("command = []", "empty command"),
            ("netconsole = '0.0.0.0:6666'", "go together"),
            ("tcp = 'a:1'\nname = '../x'", "name has letters"),
            ("speed = 3", "unknown field"),
        ] {
            let error = format!("{:#}", parse(text).unwrap_err());
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
