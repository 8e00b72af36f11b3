//! A real machine in the controller's configuration.

use super::chassis::Chassis;
use super::command::{ByCommand, Commands};
use super::ipmi::{BUILTIN_SUITE, Bmc};
use super::redfish::{Redfish, RedfishConfig};
use crate::controller::console::ConsoleConfig;
use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A real machine.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetalConfig {
    /// How it is powered.
    pub power: PowerConfig,
    /// Its consoles, the most trusted first.
    #[serde(rename = "console", default)]
    pub consoles: Vec<ConsoleConfig>,
}

/// Exactly one way.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PowerConfig {
    /// By IPMI over LAN.
    #[serde(default)]
    pub ipmi: Option<IpmiConfig>,
    /// By Redfish.
    #[serde(default)]
    pub redfish: Option<RedfishConfig>,
    /// By commands.
    #[serde(default)]
    pub command: Option<Commands>,
}

/// A BMC.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IpmiConfig {
    /// Host name or address.
    pub host: String,
    /// UDP port.
    #[serde(default = "port")]
    pub port: u16,
    /// An account with the privilege Administrator.
    pub user: String,
    /// File with its password, on one line.
    pub password_file: PathBuf,
    /// Cipher suite: 3 is spoken by this program, others (17 for BMCs without SHA1) by `ipmitool`.
    #[serde(default = "suite")]
    pub suite: u8,
}

fn port() -> u16 {
    623
}

fn suite() -> u8 {
    BUILTIN_SUITE
}

/// Reads a password from the first line of a file.
pub fn password(file: &Path) -> anyhow::Result<String> {
    let mode = std::fs::metadata(file).with_context(|| format!("read {}", file.display()))?.permissions().mode();
    ensure!(mode & 0o007 == 0, "everybody on this host can read the password in {0}: chmod 600 {0}", file.display());
    let text = std::fs::read_to_string(file).with_context(|| format!("read the password from {}", file.display()))?;
    match text.lines().next().map(str::trim_end) {
        Some(password) if !password.is_empty() => Ok(password.to_owned()),
        _ => bail!("{} is empty", file.display()),
    }
}

impl MetalConfig {
    /// Paths in it are relative to the configuration's directory.
    pub fn relative_to(&mut self, base: &Path) {
        if let Some(ipmi) = &mut self.power.ipmi {
            ipmi.password_file = base.join(&ipmi.password_file);
        }
        if let Some(redfish) = &mut self.power.redfish {
            redfish.relative_to(base);
        }
    }

    /// Where its consoles listen for datagrams.
    pub fn datagrams(&self) -> impl Iterator<Item = SocketAddr> {
        self.consoles.iter().filter_map(|console| console.netconsole)
    }

    /// Says what is wrong with it.
    pub fn check(&self) -> anyhow::Result<()> {
        let power = &self.power;
        let ways = [power.ipmi.is_some(), power.redfish.is_some(), power.command.is_some()];
        match ways.iter().filter(|chosen| **chosen).count() {
            1 => {}
            0 => bail!("power has no way: give one of power.ipmi, power.redfish, power.command"),
            _ => bail!("power has more than one way; give one of ipmi, redfish, command"),
        }
        ensure!(!self.consoles.is_empty(), "a machine without a console proves nothing: add [[machine.metal.console]]");
        let mut names = BTreeSet::new();
        for console in &self.consoles {
            console.check(power.ipmi.is_some())?;
            ensure!(names.insert(&console.name), "two consoles are named {}", console.name);
        }
        Ok(())
    }

    /// Its power, and its BMC where that speaks IPMI. Reads the passwords.
    pub fn chassis(&self, machine: &str) -> anyhow::Result<(Arc<dyn Chassis>, Option<Bmc>)> {
        if let Some(config) = &self.power.ipmi {
            let bmc = Bmc {
                host: config.host.clone(),
                port: config.port,
                user: config.user.clone(),
                password: password(&config.password_file)?,
                suite: config.suite,
            };
            return Ok((Arc::new(bmc.clone()), Some(bmc)));
        }
        if let Some(config) = &self.power.redfish {
            return Ok((Arc::new(Redfish::new(config)?), None));
        }
        let commands = self.power.command.clone().context("power has no way")?;
        Ok((Arc::new(ByCommand { machine: machine.to_owned(), commands }), None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_that_everybody_can_read_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("password");
        let set = |mode| std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        std::fs::write(&file, "secret\n").unwrap();
        set(0o644);
        let error = format!("{:#}", password(&file).unwrap_err());
        assert!(error.contains("chmod 600") && !error.contains("secret"), "{error}");
        for mode in [0o600, 0o400, 0o640] {
            set(mode);
            assert_eq!(password(&file).unwrap(), "secret");
        }
        std::fs::write(&file, "\n").unwrap();
        assert!(password(&file).is_err());
    }
}
