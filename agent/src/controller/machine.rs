//! What a driver must offer: power, consoles, and what it leaves behind.
//!
//! A driver is attached once for an attempt, with a directory of its own, and may be attached again to the same
//! directory after the controller was killed. So everything a driver needs to find its machine again lives in that
//! directory or on the machine, never in this process's memory.

use anyhow::bail;
use async_trait::async_trait;
use bytes::Bytes;
use crashyard_protocol::agent::Keys;
use crashyard_protocol::check::Report;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a machine is to boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootPlan {
    /// Kernel image.
    pub kernel: PathBuf,
    /// Initramfs, ticket included.
    pub initrd: PathBuf,
    /// Kernel command line.
    pub cmdline: String,
    /// CPUs an emulated machine gets.
    pub cpus: u32,
    /// Memory an emulated machine gets, in MiB.
    pub memory_mib: u32,
}

/// What a machine is doing, seen from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PowerStatus {
    /// It was not powered on since the driver's directory was made: nothing can be destroyed by powering it on.
    NeverOn,
    /// It runs, as far as power is concerned; a crashed kernel runs.
    On,
    /// It was on and stopped: by itself, or by [`Power::off`].
    Ended(String),
}

/// Power of one machine. Every action is confirmed before it returns; the text says by what.
#[async_trait]
pub trait Power: Send + Sync {
    /// What the machine is doing.
    async fn status(&self) -> anyhow::Result<PowerStatus>;
    /// Powers on and boots. The caller has made sure that the machine is off.
    async fn on(&self, plan: &BootPlan) -> anyhow::Result<String>;
    /// Powers off at once; fine if it is off already.
    async fn off(&self) -> anyhow::Result<String>;
    /// Resets at once.
    async fn reset(&self) -> anyhow::Result<String>;
    /// Sends a diagnostic NMI.
    async fn nmi(&self) -> anyhow::Result<String>;
    /// Waits until a machine that is on stops by itself, and says how it did.
    async fn ended(&self) -> anyhow::Result<String>;
    /// Checks that a machine that is off may take the next job; the error says why it may not.
    async fn check(&self) -> anyhow::Result<String>;
}

/// A console: a record that grows. Reading is by offset, so a controller that was away misses nothing that the
/// recorder kept. A console whose bytes are gone once read (a BMC's serial over LAN) is wrapped in a recorder.
#[async_trait]
pub trait Console: Send + Sync {
    /// Up to `limit` bytes from `offset` on; empty if there are none yet.
    async fn read(&self, offset: u64, limit: usize) -> std::io::Result<Bytes>;
    /// Returns when there may be bytes behind `offset`.
    async fn grown(&self, offset: u64) -> std::io::Result<()>;
    /// Why nobody listens to it at this moment, where somebody should and that is known.
    fn trouble(&self) -> Option<String> {
        None
    }
    /// Types into the console, where that is possible, and returns when the other end has taken it.
    async fn press(&self, _keys: &Keys) -> std::io::Result<()> {
        Err(std::io::Error::new(std::io::ErrorKind::Unsupported, "this console cannot be written to"))
    }
}

/// A machine that a driver found.
#[derive(Clone)]
pub struct Attached {
    /// Its power.
    pub power: Arc<dyn Power>,
    /// Its consoles, by name; the server keeps each under that name.
    pub consoles: Vec<(String, Arc<dyn Console>)>,
    /// Image of the dump disk, where it has one.
    pub dump_disk: Option<PathBuf>,
    /// Files of the driver that are evidence, with the names under which they are kept.
    pub logs: Vec<(String, PathBuf)>,
}

/// Drives one machine.
#[async_trait]
pub trait Driver: Send + Sync {
    /// `qemu`, `bochs`, `ipmi`, …
    fn name(&self) -> &'static str;
    /// The server as the machine reaches it.
    fn server_seen_from_machine(&self) -> String;
    /// Words for the command line of every boot of such a machine.
    fn cmdline(&self) -> &'static str {
        ""
    }
    /// Whether the build's files travel to the target agent inside the initramfs, because that is quicker on such a
    /// machine than a download by the guest.
    fn carries_build(&self) -> bool {
        false
    }
    /// Finds the machine of an attempt, whether it was ever powered on or not.
    fn attach(&self, directory: &Path) -> anyhow::Result<Attached>;
    /// Powers off at once what no attempt has; fine if it is off already. An emulated machine is there in attempts only.
    async fn off(&self) -> anyhow::Result<String> {
        Ok("an emulated machine is off between attempts".into())
    }
    /// Tries power and consoles of a machine that no attempt has; with `cycle`, by switching it off, on and off again.
    async fn look(&self, _cycle: bool) -> anyhow::Result<Report> {
        bail!("it is an emulated machine; there is no BMC and no wire to check")
    }
}
