//! QEMU's configuration and command line.

use crate::controller::emulated::{self, DISK_SLACK};
use crate::controller::machine::BootPlan;
use crate::disk;
use anyhow::Context as _;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use tokio::process::Command;

/// All CPUs of a machine in one thread. With a thread for each, a CPU may still run what QEMU translated before another
/// one patched the kernel's text, and trap on a breakpoint that is gone: seen as `Oops: int3` while Debian's 7.3 boots, in
/// 2 of 8 boots with 4 CPUs (QEMU 7.2). An emulator must not crash the kernels that it is there to judge.
pub const ACCEL: &str = "tcg,thread=single";

/// An emulated machine in the controller's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QemuConfig {
    /// QEMU's program.
    pub program: String,
    /// `-machine`.
    pub machine: String,
    /// `-accel`.
    pub accel: String,
    /// `-cpu`.
    pub cpu: String,
    /// Network card.
    pub network_card: String,
    /// Whether the machine may reach anything but the server.
    pub open_network: bool,
    /// Whether the machine, a PC, has a BMC that the kernel on it reaches (QEMU's `ipmi-bmc-sim` behind `isa-ipmi-kcs`). It says
    /// what it is, has an event log, resets and powers off, and refuses a diagnostic NMI (`hw/ipmi/ipmi.c`: no
    /// `IPMI_PULSE_DIAG_IRQ`).
    pub bmc: bool,
    /// Added to QEMU's command line.
    pub arguments: Vec<String>,
}

impl Default for QemuConfig {
    fn default() -> Self {
        Self {
            program: "qemu-system-x86_64".into(),
            machine: "pc".into(),
            accel: ACCEL.into(),
            cpu: "qemu64".into(),
            network_card: "virtio-net-pci".into(),
            open_network: false,
            bmc: false,
            arguments: Vec::new(),
        }
    }
}

/// Names of the files in a machine's directory.
pub mod names {
    pub use crate::controller::emulated::names::*;

    /// Control socket.
    pub const QMP: &str = "qmp.sock";
    /// Process id, while it runs.
    pub const PID: &str = "qemu.pid";
}

/// Where the machine finds the server: the address, and what stands behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Address and port inside the machine's network.
    pub inside: String,
    /// Host and port as this process reaches them.
    pub outside: String,
    /// The program that joins the two (this very agent).
    pub relay: PathBuf,
}

/// Starts QEMU in `directory`. The machine's CPUs run when this returns, or QEMU is about to say why not.
pub fn launch(config: &QemuConfig, route: &Route, directory: &Path, plan: &BootPlan) -> anyhow::Result<()> {
    disk::blank(&directory.join(names::DUMP_DISK), u64::from(plan.memory_mib) * 1024 * 1024 + DISK_SLACK)?;
    let mut command = Command::new(&config.program);
    command.args(arguments(config, route, plan));
    emulated::start(command, directory, names::QMP, names::EMULATOR)
        .with_context(|| format!("start {} (Debian package qemu-system-x86)", config.program))
}

fn arguments(config: &QemuConfig, route: &Route, plan: &BootPlan) -> Vec<String> {
    let network = if config.open_network {
        "user,id=net".to_owned()
    } else {
        // Commas separate options, so they are doubled inside one.
        let relay = route.relay.display().to_string().replace(',', ",,");
        format!("user,id=net,restrict=on,guestfwd=tcp:{}-cmd:{relay} relay {}", route.inside, route.outside)
    };
    let mut arguments: Vec<String> = vec![];
    let mut add = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
    add("-machine", config.machine.clone());
    add("-accel", config.accel.clone());
    add("-cpu", config.cpu.clone());
    add("-smp", plan.cpus.to_string());
    add("-m", format!("{}M", plan.memory_mib));
    add("-kernel", plan.kernel.display().to_string());
    add("-initrd", plan.initrd.display().to_string());
    add("-append", plan.cmdline.clone());
    add("-chardev", "socket,id=qmp,fd=0,server=on,wait=off".into());
    add("-mon", "chardev=qmp,mode=control".into());
    add(
        "-chardev",
        format!(
            "socket,id=serial,path={},server=on,wait=off,logfile={},logappend=on",
            names::SERIAL_INPUT,
            names::SERIAL
        ),
    );
    add("-serial", "chardev:serial".into());
    add("-netdev", network);
    add("-device", format!("{},netdev=net", config.network_card));
    add("-drive", format!("file={},format=raw,if=none,id=dump", names::DUMP_DISK));
    add("-device", format!("virtio-blk-pci,drive=dump,serial={}", disk::SERIAL));
    if config.bmc {
        add("-device", "ipmi-bmc-sim,id=bmc".into());
        add("-device", "isa-ipmi-kcs,bmc=bmc".into());
    }
    add("-pidfile", names::PID.into());
    add("-display", "none".into());
    // A machine that stops stays as it is until it was looked at; a reset is a stop, since it destroys evidence.
    add("-action", "reboot=shutdown,shutdown=pause".into());
    arguments.extend(["-nodefaults", "-no-user-config"].map(str::to_owned));
    arguments.extend(config.arguments.iter().cloned());
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(config: &QemuConfig) -> String {
        let route = Route { inside: "10.0.2.100:80".into(), outside: "127.0.0.1:8480".into(), relay: "/a,b".into() };
        let plan = BootPlan {
            kernel: "/k".into(),
            initrd: "/i".into(),
            cmdline: "console=ttyS0".into(),
            cpus: 2,
            memory_mib: 768,
        };
        arguments(config, &route, &plan).join(" ")
    }

    #[test]
    fn a_machine_reaches_the_server_and_nothing_else_unless_told_so() {
        let closed = sample(&QemuConfig::default());
        assert!(closed.contains("restrict=on,guestfwd=tcp:10.0.2.100:80-cmd:/a,,b relay 127.0.0.1:8480 "), "{closed}");
        assert!(!closed.contains("ipmi"), "{closed}");
        let open = sample(&QemuConfig { open_network: true, ..QemuConfig::default() });
        assert!(open.contains("-netdev user,id=net -device"), "{open}");
    }

    #[test]
    fn a_bmc_is_there_before_the_interface_to_it() {
        let with = sample(&QemuConfig { bmc: true, ..QemuConfig::default() });
        assert!(with.contains("-device ipmi-bmc-sim,id=bmc -device isa-ipmi-kcs,bmc=bmc "), "{with}");
    }
}
