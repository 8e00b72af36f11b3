//! What a Bochs machine is made of, and how its keeper is started.

use crate::controller::emulated::{self, DISK_SLACK};
use crate::controller::machine::BootPlan;
use crate::disk;
use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// Bochs's configuration, with `@NAMES@` to fill in.
const TEMPLATE: &str = include_str!("bochsrc");

/// Debian builds Bochs with its debugger, which stops before the first instruction unless it is told to go on.
const DEBUGGER: &str = "c\nq\n";

/// Slirp's own network. There is nothing behind it but the keeper: Bochs lives in an empty network namespace.
const SLIRP: &str = "# slirp config\nnet = 10.0.2.0\nmask = 255.255.255.0\nhost = 10.0.2.2\ndhcpstart = 10.0.2.15\n\
                     dns = 10.0.2.3\n";

/// The boot loader of the CD (Debian packages isolinux and syslinux-common).
const BOOT_LOADER: [(&str, &str); 2] =
    [("isolinux.bin", "/usr/lib/ISOLINUX/isolinux.bin"), ("ldlinux.c32", "/usr/lib/syslinux/modules/bios/ldlinux.c32")];

/// Models with CPUID leaf 0x15 or 0x16: Linux believes the clock they name and runs 70 times too slow, or dies early.
const WRONG_CLOCK: [&str; 4] = ["corei7_skylake_x", "corei3_cnl", "corei7_icelake_u", "tigerlake"];

/// A disk of Bochs has cylinders of 16 heads with 63 sectors.
const CYLINDER: u64 = 16 * 63 * 512;

/// Port of the console inside the namespace, where nothing else is.
pub const CONSOLE_PORT: u16 = 18083;

/// Port of the second serial line inside the namespace.
pub const LINE_PORT: u16 = 18084;

/// Port of the server inside the namespace; the guest reaches it at slirp's own address.
pub const SERVER_PORT: u16 = 80;

/// An emulated Intel machine in the controller's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BochsConfig {
    /// Bochs's program.
    pub program: String,
    /// CPU model (`cpu: model=`).
    pub model: String,
    /// Emulated instructions per emulated second (`cpu: ips=`).
    pub ips: u32,
}

impl Default for BochsConfig {
    fn default() -> Self {
        Self { program: "bochs-bin".into(), model: "broadwell_ult".into(), ips: 50_000_000 }
    }
}

impl BochsConfig {
    /// Refuses what is known not to work.
    pub fn check(&self) -> anyhow::Result<()> {
        if WRONG_CLOCK.contains(&self.model.as_str()) {
            bail!(
                "Linux misjudges the clock of Bochs's model {} (CPUID leaf 0x15); use broadwell_ult or corei7_haswell_4770",
                self.model
            );
        }
        let word = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        ensure!(word(&self.model) && !self.model.is_empty(), "{:?} is no name of a CPU model", self.model);
        ensure!(self.ips >= 1_000_000, "ips = {} is too slow to boot anything", self.ips);
        Ok(())
    }
}

/// Names of the files in a machine's directory.
pub mod names {
    pub use crate::controller::emulated::names::*;

    /// Control socket of the keeper.
    pub const CONTROL: &str = "control.sock";
    /// What Bochs and its keeper printed.
    pub const OUTPUT: &str = "emulator.out";
    /// Process id of the keeper.
    pub const PID: &str = "keeper.pid";
    /// What Bochs leaves beside the image while it runs, and when it is killed.
    pub const DUMP_DISK_LOCK: &str = "dump.disk.lock";
    /// CD the machine boots from.
    pub const CD: &str = "machine.iso";
    /// Bochs's configuration.
    pub const CONFIG: &str = "bochsrc";
    /// Commands for Bochs's debugger.
    pub const DEBUGGER: &str = "debugger";
    /// Configuration of Bochs's user network.
    pub const SLIRP: &str = "slirp.conf";
}

/// Starts a machine in `directory`. Its keeper runs when this returns, and Bochs is about to.
pub async fn launch(
    config: &BochsConfig,
    keeper: &Path,
    server: &str,
    directory: &Path,
    plan: &BootPlan,
) -> anyhow::Result<()> {
    let bytes = (u64::from(plan.memory_mib) * 1024 * 1024 + DISK_SLACK).next_multiple_of(CYLINDER);
    disk::blank(&directory.join(names::DUMP_DISK), bytes)?;
    // A killed Bochs leaves its lock, and the next one would refuse the disk.
    emulated::remove(&directory.join(names::DUMP_DISK_LOCK))?;
    burn(directory, plan).await?;
    std::fs::write(directory.join(names::CONFIG), configuration(config, plan))?;
    std::fs::write(directory.join(names::DEBUGGER), DEBUGGER)?;
    std::fs::write(directory.join(names::SLIRP), SLIRP)?;

    let mut command = tokio::process::Command::new(keeper);
    command.args(["keep-bochs", &config.program, server]);
    emulated::start(command, directory, names::CONTROL, names::OUTPUT)
        .with_context(|| format!("start {}", keeper.display()))
}

/// Makes the CD. Bochs has no other way to boot a kernel with an initramfs and a command line.
async fn burn(directory: &Path, plan: &BootPlan) -> anyhow::Result<()> {
    let loader_config = directory.join("isolinux.cfg");
    std::fs::write(
        &loader_config,
        format!(
            "default machine\nprompt 0\ntimeout 1\nlabel machine\n kernel /vmlinuz\n initrd /initrd\n append {}\n",
            plan.cmdline
        ),
    )?;
    let cd = directory.join(names::CD);
    // Only its owner may read it: the initramfs holds an attempt token.
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&cd)?;
    let mut files: Vec<(String, PathBuf)> = vec![
        ("vmlinuz".into(), plan.kernel.clone()),
        ("initrd".into(), plan.initrd.clone()),
        ("isolinux/isolinux.cfg".into(), loader_config),
    ];
    for (name, path) in BOOT_LOADER {
        ensure!(Path::new(path).exists(), "{path} is missing (Debian packages isolinux and syslinux-common)");
        files.push((format!("isolinux/{name}"), path.into()));
    }
    let output = tokio::process::Command::new("xorriso")
        .args(["-as", "mkisofs", "-quiet", "-R", "-J", "-graft-points", "-no-emul-boot", "-boot-load-size", "4"])
        .args(["-boot-info-table", "-b", "isolinux/isolinux.bin", "-c", "isolinux/boot.cat", "-o"])
        .arg(&cd)
        .args(files.iter().map(|(name, path)| format!("{name}={}", graft(path))))
        .stdin(Stdio::null())
        .output()
        .await
        .context("start xorriso (Debian package xorriso)")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("xorriso: {}: {}", output.status, crate::guest::tail(said.trim(), 500));
    }
    Ok(())
}

/// A path on the right side of a graft point, where `=` and `\` have meanings.
fn graft(path: &Path) -> String {
    path.display().to_string().replace('\\', "\\\\").replace('=', "\\=")
}

/// Bochs's configuration for a machine. Paths in it are relative to the machine's directory.
fn configuration(config: &BochsConfig, plan: &BootPlan) -> String {
    let disk = format!("ata0-slave: type=disk, mode=flat, path=\"{}\", model=\"{}\"", names::DUMP_DISK, disk::SERIAL);
    let network = format!("e1000: enabled=1, mac=52:54:00:12:34:56, ethmod=slirp, script={}", names::SLIRP);
    [
        ("@MODEL@", config.model.clone()),
        ("@IPS@", config.ips.to_string()),
        // Packages, cores, threads.
        ("@CPUS@", format!("1:{}:1", plan.cpus)),
        ("@MEMORY@", plan.memory_mib.to_string()),
        // A machine that talks to a server must not run ahead of its clock.
        ("@CLOCK@", "slowdown".into()),
        ("@ISO@", names::CD.into()),
        ("@DISK@", disk),
        ("@PORT@", CONSOLE_PORT.to_string()),
        ("@LINE@", format!("com2: enabled=1, mode=socket-client, dev=127.0.0.1:{LINE_PORT}")),
        ("@NETWORK@", network),
        ("@LOG@", names::EMULATOR.into()),
    ]
    .iter()
    .fold(TEMPLATE.to_owned(), |text, (name, value)| text.replace(name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_in_the_configuration_is_filled_in() {
        let plan = BootPlan {
            kernel: "/k".into(),
            initrd: "/i".into(),
            cmdline: "console=ttyS0".into(),
            cpus: 2,
            memory_mib: 512,
        };
        let text = configuration(&BochsConfig::default(), &plan);
        let settings: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert!(!settings.iter().any(|line| line.contains('@')), "{text}");
        for wanted in [
            "cpu: model=broadwell_ult, count=1:2:1, ips=50000000, reset_on_triple_fault=0,",
            "memory: guest=512, host=512",
            "clock: sync=slowdown,",
            "model=\"crashyard-dump\"",
            "com1: enabled=1, mode=socket-client, dev=127.0.0.1:18083",
        ] {
            assert!(settings.iter().any(|line| line.contains(wanted)), "{wanted} in {text}");
        }
    }

    #[test]
    fn a_model_whose_clock_linux_misjudges_is_refused() {
        assert!(BochsConfig::default().check().is_ok());
        let skylake = BochsConfig { model: "corei7_skylake_x".into(), ..BochsConfig::default() };
        assert!(skylake.check().unwrap_err().to_string().contains("broadwell_ult"));
        let injected = BochsConfig { model: "x, count=9".into(), ..BochsConfig::default() };
        assert!(injected.check().is_err());
    }
}
