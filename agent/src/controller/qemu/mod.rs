//! Emulated machines by QEMU.
//!
//! QEMU runs in its own process group and outlives the controller. Its serial console goes into a file that QEMU
//! itself writes, its control socket lies in the attempt's directory, and it never exits by itself: a guest that
//! powers off or resets is kept, paused, until somebody has looked. So nothing depends on the controller being there.

mod launch;
mod qmp;

pub use launch::{ACCEL, QemuConfig};
pub use qmp::Qmp;

use super::emulated::{self, ShortPath};
use super::filelog::FileLog;
use super::machine::{Attached, BootPlan, Console, Driver, Power, PowerStatus};
use super::watch::Watcher;
use anyhow::{Context as _, bail};
use async_trait::async_trait;
use bytes::Bytes;
use crashyard_protocol::agent::Keys;
use launch::{Route, launch, names};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use qmp::RunState;
use serde_json::json;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;

/// How long QEMU may take to obey before it is killed.
const OBEDIENCE: Duration = Duration::from_secs(10);

/// Where an emulated machine reaches the server: an address of QEMU's user network that no other service has.
const INSIDE: &str = "10.0.2.100:80";

/// The address of the machine running QEMU in QEMU's user network.
const HOST_INSIDE: &str = "10.0.2.2";

/// Drives one emulated machine.
pub struct Qemu {
    config: QemuConfig,
    route: Route,
    watcher: Watcher,
}

impl Qemu {
    /// For a machine of the configuration; `server` is the server's URL as this process reaches it.
    pub fn new(config: &QemuConfig, server: &str, watcher: Watcher) -> anyhow::Result<Self> {
        let (host, port) = emulated::host_and_port(server)?;
        let relay = std::env::current_exe().context("find this program")?;
        let route = if config.open_network {
            if !matches!(host.as_str(), "127.0.0.1" | "localhost" | "[::1]") {
                bail!("with open_network, an emulated machine reaches only a server on this host");
            }
            Route { inside: format!("{HOST_INSIDE}:{port}"), outside: String::new(), relay }
        } else {
            Route { inside: INSIDE.into(), outside: format!("{host}:{port}"), relay }
        };
        Ok(Self { config: config.clone(), route, watcher })
    }
}

impl Driver for Qemu {
    fn name(&self) -> &'static str {
        "qemu"
    }

    fn server_seen_from_machine(&self) -> String {
        format!("http://{}", self.route.inside)
    }

    fn attach(&self, directory: &Path) -> anyhow::Result<Attached> {
        // QEMU runs with this as its working directory and is told paths inside it.
        let directory = directory.canonicalize()?;
        let serial =
            FileLog::open(&directory.join(names::SERIAL), Some(directory.join(names::SERIAL_INPUT)), &self.watcher)?;
        let emulated = Arc::new(Emulated {
            config: self.config.clone(),
            route: self.route.clone(),
            directory: directory.clone(),
            connection: Mutex::new(None),
        });
        let serial = SerialPort { log: serial, machine: emulated.clone() };
        Ok(Attached {
            power: emulated,
            consoles: vec![("serial".into(), Arc::new(serial))],
            dump_disk: Some(directory.join(names::DUMP_DISK)),
            logs: vec![("emulator.log".into(), directory.join(names::EMULATOR))],
        })
    }
}

struct Emulated {
    config: QemuConfig,
    route: Route,
    directory: PathBuf,
    connection: Mutex<Option<Qmp>>,
}

impl Emulated {
    /// The connection to QEMU; `None` if no QEMU is there.
    async fn qmp(&self) -> anyhow::Result<Option<Qmp>> {
        let mut connection = self.connection.lock().await;
        if let Some(qmp) = connection.as_ref() {
            if qmp.state() != RunState::Gone {
                return Ok(Some(qmp.clone()));
            }
            *connection = None;
        }
        let short = ShortPath::to(&self.directory)?;
        match tokio::time::timeout(OBEDIENCE, Qmp::connect(&short.of(names::QMP))).await {
            Ok(Ok(qmp)) => {
                *connection = Some(qmp.clone());
                Ok(Some(qmp))
            }
            Ok(Err(error)) => match error.downcast_ref::<std::io::Error>().map(std::io::Error::kind) {
                // Nobody listens: not started, or gone. An end in the middle of the greeting is the same, a bit later.
                Some(ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset) => Ok(None),
                _ if self.pid().is_none() => Ok(None),
                _ => Err(error),
            },
            Err(_) => bail!("QEMU does not answer on its control socket"),
        }
    }

    async fn must_run(&self) -> anyhow::Result<Qmp> {
        self.qmp().await?.context("the machine is off")
    }

    fn pid(&self) -> Option<Pid> {
        emulated::pid(&self.directory.join(names::PID))
    }

    fn last_words(&self) -> String {
        let log = std::fs::read_to_string(self.directory.join(names::EMULATOR)).unwrap_or_default();
        crate::guest::tail(log.trim(), 500)
    }
}

/// The serial port: a file that QEMU writes, a socket that types, and a break by QMP, as a socket has none.
struct SerialPort {
    log: FileLog,
    machine: Arc<Emulated>,
}

#[async_trait]
impl Console for SerialPort {
    async fn read(&self, offset: u64, limit: usize) -> std::io::Result<Bytes> {
        self.log.read(offset, limit).await
    }

    async fn grown(&self, offset: u64) -> std::io::Result<()> {
        self.log.grown(offset).await
    }

    async fn press(&self, keys: &Keys) -> std::io::Result<()> {
        let send_break = async || {
            let qmp = self.machine.must_run().await?;
            qmp.execute("chardev-send-break", json!({"id": "serial"})).await.map(drop)
        };
        match keys {
            Keys::Text(_) => self.log.press(keys).await,
            Keys::Break => send_break().await.map_err(std::io::Error::other),
            Keys::Sysrq(key) => {
                send_break().await.map_err(std::io::Error::other)?;
                self.log.press(&Keys::Text(key.to_string())).await
            }
        }
    }
}

#[async_trait]
impl Power for Emulated {
    async fn status(&self) -> anyhow::Result<PowerStatus> {
        Ok(match self.qmp().await?.map(|qmp| qmp.state()) {
            Some(RunState::Running) => PowerStatus::On,
            Some(RunState::Stopped(detail)) => PowerStatus::Ended(detail),
            Some(RunState::Gone) | None if emulated::was_on(&self.directory, names::PID) => {
                PowerStatus::Ended("QEMU is gone".into())
            }
            Some(RunState::Gone) | None => PowerStatus::NeverOn,
        })
    }

    async fn on(&self, plan: &BootPlan) -> anyhow::Result<String> {
        launch(&self.config, &self.route, &self.directory, plan)?;
        match self.qmp().await {
            Ok(Some(_)) => Ok(format!("QEMU runs ({}, {})", self.config.accel, self.config.cpu)),
            Ok(None) => bail!("QEMU ended at once: {}", self.last_words()),
            Err(error) => Err(error.context(self.last_words())),
        }
    }

    async fn off(&self) -> anyhow::Result<String> {
        let connected = self.qmp().await;
        if matches!(connected, Ok(None)) {
            return Ok("was off".into());
        }
        if let Ok(Some(qmp)) = connected {
            let quit = async {
                // QEMU may be gone before it has answered; that is what was asked for.
                let _ = qmp.execute("quit", json!({})).await;
                qmp.wait_for(|state| *state == RunState::Gone).await;
            };
            if tokio::time::timeout(OBEDIENCE, quit).await.is_ok() {
                return Ok("QEMU has quit".into());
            }
        }
        let pid = self.pid().context("QEMU does not answer, and has left no process id to kill it by")?;
        kill(pid, Signal::SIGKILL).with_context(|| format!("kill QEMU (process {pid})"))?;
        Ok("QEMU did not obey and was killed".into())
    }

    async fn reset(&self) -> anyhow::Result<String> {
        // `-action reboot=shutdown` is there for the guest's resets; a wanted one lifts it first.
        let qmp = self.must_run().await?;
        qmp.execute("set-action", json!({"reboot": "reset"})).await?;
        qmp.execute("system_reset", json!({})).await?;
        qmp.execute("set-action", json!({"reboot": "shutdown"})).await?;
        Ok("reset by QMP".into())
    }

    async fn nmi(&self) -> anyhow::Result<String> {
        self.must_run().await?.execute("inject-nmi", json!({})).await?;
        Ok("NMI by QMP".into())
    }

    async fn ended(&self) -> anyhow::Result<String> {
        let Some(qmp) = self.qmp().await? else { return Ok(format!("QEMU is gone: {}", self.last_words())) };
        Ok(match qmp.wait_for(|state| *state != RunState::Running).await {
            RunState::Stopped(detail) => detail,
            _ => format!("QEMU is gone: {}", self.last_words()),
        })
    }

    async fn check(&self) -> anyhow::Result<String> {
        if self.qmp().await?.is_some() {
            bail!("QEMU still runs after power-off");
        }
        Ok(format!("QEMU is gone, {}", emulated::free_space(&self.directory)?))
    }
}
