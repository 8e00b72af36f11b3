//! The controller's configuration: one TOML file.

use super::bochs::{Bochs, BochsConfig};
use super::machine::Driver;
use super::metal::{Metal, MetalConfig};
use super::netboot::NetbootConfig;
use super::qemu::{Qemu, QemuConfig};
use super::watch::Watcher;
use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The whole file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Unique name of this controller.
    pub name: String,
    /// The server's URL.
    pub server: String,
    /// File with the controller token.
    pub token_file: PathBuf,
    /// Directory for journals, images and consoles; one controller at a time.
    pub state: PathBuf,
    /// Serves kernels to real machines that boot from the network.
    #[serde(default)]
    pub netboot: Option<NetbootConfig>,
    /// The machines.
    #[serde(rename = "machine", default)]
    pub machines: Vec<MachineConfig>,
}

/// One machine.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    /// Unique name.
    pub name: String,
    /// Properties that selectors can ask for; `driver` is added.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Added to the command line of every boot, the capture kernel's included.
    #[serde(default)]
    pub cmdline: String,
    /// The server's URL as the machine reaches it, if that is not known to the driver.
    #[serde(default)]
    pub server_from_machine: Option<String>,
    /// Driven by QEMU.
    #[serde(default)]
    pub qemu: Option<QemuConfig>,
    /// Driven by Bochs.
    #[serde(default)]
    pub bochs: Option<BochsConfig>,
    /// A real machine.
    #[serde(default)]
    pub metal: Option<MetalConfig>,
}

impl Config {
    /// Reads and checks a file. Relative paths in it are relative to the file.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let mut config: Self = toml::from_str(&text).with_context(|| format!("understand {}", path.display()))?;
        let base = path.parent().unwrap_or(Path::new("."));
        config.token_file = base.join(&config.token_file);
        config.state = base.join(&config.state);
        let mut names = BTreeSet::new();
        for machine in &mut config.machines {
            ensure!(names.insert(machine.name.clone()), "two machines are named {}", machine.name);
            if let Some(metal) = &mut machine.metal {
                metal.relative_to(base);
            }
        }
        let mut sockets = BTreeSet::new();
        for listen in config.machines.iter().filter_map(|one| one.metal.as_ref()).flat_map(MetalConfig::datagrams) {
            ensure!(
                sockets.insert(listen),
                "two consoles listen for netconsole at {listen}; give each machine a port of its own"
            );
        }
        for machine in &config.machines {
            machine.check(config.netboot.is_some()).with_context(|| format!("machine {}", machine.name))?;
        }
        Ok(config)
    }

    /// The token, without the line's end.
    pub fn token(&self) -> anyhow::Result<String> {
        let text = std::fs::read_to_string(&self.token_file)
            .with_context(|| format!("read the token from {}", self.token_file.display()))?;
        match text.trim() {
            "" => bail!("{} is empty", self.token_file.display()),
            token => Ok(token.to_owned()),
        }
    }
}

impl MachineConfig {
    fn check(&self, netboot: bool) -> anyhow::Result<()> {
        let drivers = [("qemu", self.qemu.is_some()), ("bochs", self.bochs.is_some()), ("metal", self.metal.is_some())];
        let chosen: Vec<_> = drivers.iter().filter(|(_, chosen)| *chosen).map(|(name, _)| *name).collect();
        match chosen.as_slice() {
            [] => bail!("no driver: add a table [machine.qemu], [machine.bochs] or [machine.metal]"),
            [_] => {}
            many => bail!("{} drivers, {}; one machine has one", many.len(), many.join(" and ")),
        }
        if let Some(bochs) = &self.bochs {
            bochs.check()?;
        }
        if let Some(metal) = &self.metal {
            metal.check()?;
            ensure!(netboot, "a real machine boots from the network: add a table [netboot] with `listen`");
        }
        Ok(())
    }

    /// Makes the machine's driver.
    pub fn driver(&self, server: &str, watcher: &Watcher) -> anyhow::Result<Arc<dyn Driver>> {
        if let Some(bochs) = &self.bochs {
            return Ok(Arc::new(Bochs::new(bochs, server, watcher.clone())?));
        }
        if let Some(metal) = &self.metal {
            return Ok(Arc::new(Metal::new(&self.name, metal, server, watcher.clone())?));
        }
        let qemu = self.qemu.as_ref().with_context(|| format!("machine {} has no driver", self.name))?;
        Ok(Arc::new(Qemu::new(qemu, server, watcher.clone())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> anyhow::Result<Config> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("controller.toml");
        std::fs::write(&path, text)?;
        Config::read(&path)
    }

    const HEAD: &str = "name = 'lab'\nserver = 'http://127.0.0.1:1'\ntoken_file = 'token'\nstate = '/s'\n";

    const METAL: &str = "[[machine]]\nname = 'm1'\n[machine.metal.power.command]\non = ['a']\noff = ['a']\n\
        status = ['a']\n[[machine.metal.console]]\ntcp = '10.0.0.1:7001'\n";

    #[test]
    fn a_real_machine_has_power_and_consoles_and_paths_are_relative_to_the_file() {
        let ipmi = METAL.replace(
            "command]\non = ['a']\noff = ['a']\nstatus = ['a']",
            "ipmi]\nhost = 'b'\nuser = 'u'\npassword_file = 'p'",
        );
        let config = parse(&format!("{HEAD}[netboot]\nlisten = '127.0.0.1:0'\n{ipmi}")).unwrap();
        let metal = config.machines[0].metal.as_ref().unwrap();
        let ipmi = metal.power.ipmi.as_ref().unwrap();
        assert!(ipmi.password_file.is_absolute() && ipmi.password_file.ends_with("p"));
        assert_eq!((ipmi.port, ipmi.suite), (623, 3));
    }

    #[test]
    fn a_small_file_is_enough() {
        let config = parse(&format!("{HEAD}[[machine]]\nname = 'q1'\n[machine.qemu]\ncpu = 'max'\n")).unwrap();
        let qemu = config.machines[0].qemu.as_ref().unwrap();
        assert_eq!((qemu.cpu.as_str(), qemu.program.as_str()), ("max", "qemu-system-x86_64"));
        assert_eq!(config.state, Path::new("/s"));
        assert!(config.token_file.ends_with("token"));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, word) in [
            ("[[machine]]\nname = 'q1'\n", "no driver"),
            ("[[machine]]\nname = 'q1'\n[machine.qemu]\n[[machine]]\nname = 'q1'\n[machine.qemu]\n", "two machines"),
            ("[[machine]]\nname = 'q1'\n[machine.qemu]\ncpus = 2\n", "cpus"),
            ("[[machine]]\nname = 'b1'\n[machine.bochs]\n[machine.qemu]\n", "2 drivers"),
            ("[[machine]]\nname = 'm1'\n[machine.metal.power]\n", "power has no way"),
            (METAL, "boots from the network"),
            (
                "[netboot]\nlisten = '127.0.0.1:0'\n[[machine]]\nname = 'm1'\n[machine.metal.power.command]\non = ['a']\n\
                 off = ['a']\nstatus = ['a']\n[[machine.metal.console]]\nnetconsole = '0.0.0.0:6666'\nfrom = '10.0.0.1'\n\
                 [[machine.metal.console]]\nname = 'net'\nnetconsole = '0.0.0.0:6666'\nfrom = '10.0.0.1'\n",
                "a port of its own",
            ),
            ("[[machine]]\nname = 'b1'\n[machine.bochs]\nmodel = 'tigerlake'\n", "clock"),
        ] {
            let error = format!("{:#}", parse(&format!("{HEAD}{text}")).unwrap_err());
            assert!(error.contains(word), "{error}");
        }
    }
}
