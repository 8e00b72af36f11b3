//! Emulated Intel machines by Bochs, which has VMX where QEMU's emulation has none.
//!
//! Each machine has a keeper ([`keeper`]), a process that outlives the controller, records the console, and says how the
//! machine ended. So nothing depends on the controller being there; what it needs to find its machine again is a socket
//! in the attempt's directory.
//!
//! What it must never do: let anything of a machine be reached from outside of this host ([`namespace`] says how).

pub mod keeper;
mod launch;
mod log;
mod namespace;

pub use launch::BochsConfig;

use super::emulated::{self, ShortPath};
use super::filelog::FileLog;
use super::machine::{Attached, BootPlan, Driver, Power, PowerStatus};
use super::watch::Watcher;
use anyhow::{Context as _, bail};
use async_trait::async_trait;
use launch::{launch, names};
use nix::sys::signal::{Signal, kill};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

/// How long a keeper may take to answer before it is killed.
const OBEDIENCE: Duration = Duration::from_secs(10);

/// Where an emulated machine reaches the server: slirp's own address, which is the namespace's loopback.
const INSIDE: &str = "10.0.2.2:80";

/// Words for the command line of every boot. Emulated time is not real time, so the timer check only costs seconds;
/// checksums of the crash kernel by emulated code cost a minute; the early console is the only one that a fault in the
/// jump to the capture kernel can speak on. A kernel without a driver for the network card has the second serial line.
const CMDLINE: &str = "no_timer_check crashyard.kexec=load earlyprintk=serial,ttyS0,115200 crashyard.line=ttyS1";

/// Drives one emulated machine.
pub struct Bochs {
    config: BochsConfig,
    /// Host and port of the server as this process reaches them.
    server: String,
    /// The program that keeps a machine (this very agent).
    keeper: PathBuf,
    watcher: Watcher,
}

impl Bochs {
    /// For a machine of the configuration; `server` is the server's URL as this process reaches it.
    pub fn new(config: &BochsConfig, server: &str, watcher: Watcher) -> anyhow::Result<Self> {
        config.check()?;
        let (host, port) = emulated::host_and_port(server)?;
        let keeper = std::env::current_exe().context("find this program")?;
        Ok(Self { config: config.clone(), server: format!("{host}:{port}"), keeper, watcher })
    }

    /// The same with another program as keeper, for callers that are not the agent themselves.
    #[must_use]
    pub fn kept_by(self, keeper: PathBuf) -> Self {
        Self { keeper, ..self }
    }
}

impl Driver for Bochs {
    fn name(&self) -> &'static str {
        "bochs"
    }

    fn server_seen_from_machine(&self) -> String {
        format!("http://{INSIDE}")
    }

    fn cmdline(&self) -> &'static str {
        CMDLINE
    }

    fn carries_build(&self) -> bool {
        true
    }

    fn attach(&self, directory: &Path) -> anyhow::Result<Attached> {
        // The keeper runs with this as its working directory.
        let directory = directory.canonicalize()?;
        let serial =
            FileLog::open(&directory.join(names::SERIAL), Some(directory.join(names::SERIAL_INPUT)), &self.watcher)?;
        let logs = [names::EMULATOR, names::OUTPUT].map(|name| (name.to_owned(), directory.join(name)));
        let dump_disk = Some(directory.join(names::DUMP_DISK));
        let power = Emulated {
            config: self.config.clone(),
            server: self.server.clone(),
            keeper: self.keeper.clone(),
            directory,
        };
        Ok(Attached {
            power: Arc::new(power),
            consoles: vec![("serial".into(), Arc::new(serial))],
            dump_disk,
            logs: logs.into(),
        })
    }
}

struct Emulated {
    config: BochsConfig,
    server: String,
    keeper: PathBuf,
    directory: PathBuf,
}

/// What a keeper says.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Running,
    Ended(String),
}

/// A conversation with a keeper.
struct Conversation(BufReader<UnixStream>);

impl Conversation {
    /// What the keeper says next; `None` when it is gone.
    async fn next(&mut self) -> anyhow::Result<Option<Said>> {
        let mut line = String::new();
        match self.0.read_line(&mut line).await {
            Ok(0) => return Ok(None),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(None),
            result => result.context("listen to the keeper")?,
        };
        match line.trim_end().split_once(' ') {
            Some(("ended", how)) => Ok(Some(Said::Ended(how.to_owned()))),
            None if line.trim_end() == "running" => Ok(Some(Said::Running)),
            _ => bail!("the keeper says something strange: {}", line.trim_end()),
        }
    }

    /// How the machine ended; `None` if the keeper is gone without a word about it.
    async fn end(&mut self) -> anyhow::Result<Option<String>> {
        loop {
            match self.next().await? {
                Some(Said::Running) => {}
                Some(Said::Ended(how)) => return Ok(Some(how)),
                None => return Ok(None),
            }
        }
    }
}

impl Emulated {
    /// A conversation with the keeper; `None` if there is none.
    async fn keeper(&self) -> anyhow::Result<Option<Conversation>> {
        let short = ShortPath::to(&self.directory)?;
        match UnixStream::connect(short.of(names::CONTROL)).await {
            Ok(stream) => Ok(Some(Conversation(BufReader::new(stream)))),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => Ok(None),
            Err(error) => Err(error).context("connect to the keeper"),
        }
    }

    /// What the machine ended as when there is no keeper to ask: its log is still there.
    fn traces(&self) -> String {
        let log = std::fs::read(self.directory.join(names::EMULATOR)).unwrap_or_default();
        log::ending(&String::from_utf8_lossy(&log)).unwrap_or_else(|| {
            let output = std::fs::read(self.directory.join(names::OUTPUT)).unwrap_or_default();
            let said = crate::guest::tail(String::from_utf8_lossy(&output).trim(), 300);
            format!("Bochs and its keeper are gone: {said}")
        })
    }

    async fn quit(&self, mut keeper: Conversation) -> anyhow::Result<String> {
        keeper.0.write_all(b"off\n").await?;
        let how = keeper.end().await?.unwrap_or_else(|| self.traces());
        // The keeper's side is closed when it is about to be gone; then nobody listens any more.
        while keeper.next().await?.is_some() {}
        Ok(how)
    }
}

#[async_trait]
impl Power for Emulated {
    async fn status(&self) -> anyhow::Result<PowerStatus> {
        let said = match self.keeper().await? {
            Some(mut keeper) => {
                tokio::time::timeout(OBEDIENCE, keeper.next()).await.context("the keeper does not answer")??
            }
            None => None,
        };
        Ok(match said {
            Some(Said::Running) => PowerStatus::On,
            Some(Said::Ended(how)) => PowerStatus::Ended(how),
            None if emulated::was_on(&self.directory, names::PID) => PowerStatus::Ended(self.traces()),
            None => PowerStatus::NeverOn,
        })
    }

    async fn on(&self, plan: &BootPlan) -> anyhow::Result<String> {
        launch(&self.config, &self.keeper, &self.server, &self.directory, plan).await?;
        match self.status().await? {
            PowerStatus::On => Ok(format!("Bochs runs ({}, {} CPUs)", self.config.model, plan.cpus)),
            PowerStatus::Ended(how) => bail!("Bochs ended at once: {how}"),
            PowerStatus::NeverOn => bail!("Bochs's keeper did not start: {}", self.traces()),
        }
    }

    async fn off(&self) -> anyhow::Result<String> {
        let said = match self.keeper().await {
            Ok(None) => "was off".to_owned(),
            Ok(Some(keeper)) => match tokio::time::timeout(OBEDIENCE, self.quit(keeper)).await {
                Ok(Ok(how)) => format!("Bochs is gone: {how}"),
                _ => self.kill()?,
            },
            Err(_) => self.kill()?,
        };
        let _ = std::fs::remove_file(self.directory.join(names::DUMP_DISK_LOCK));
        Ok(said)
    }

    async fn reset(&self) -> anyhow::Result<String> {
        bail!("Bochs cannot be reset from outside; power it off and on")
    }

    async fn nmi(&self) -> anyhow::Result<String> {
        bail!("Bochs cannot be sent an NMI from outside; use the trigger module-nmi-panic instead")
    }

    async fn ended(&self) -> anyhow::Result<String> {
        let Some(mut keeper) = self.keeper().await? else { return Ok(self.traces()) };
        Ok(keeper.end().await?.unwrap_or_else(|| self.traces()))
    }

    async fn check(&self) -> anyhow::Result<String> {
        if self.keeper().await?.is_some() {
            bail!("Bochs's keeper still runs after power-off");
        }
        Ok(format!("Bochs is gone, {}", emulated::free_space(&self.directory)?))
    }
}

impl Emulated {
    /// The last resort. Bochs dies with its keeper.
    fn kill(&self) -> anyhow::Result<String> {
        let pid = emulated::pid(&self.directory.join(names::PID))
            .context("the keeper does not answer, and has left no process id to kill it by")?;
        kill(pid, Signal::SIGKILL).with_context(|| format!("kill the keeper (process {pid})"))?;
        Ok("the keeper did not obey and was killed, and Bochs with it".into())
    }
}
