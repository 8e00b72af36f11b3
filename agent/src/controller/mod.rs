//! The controller: takes leases for its machines and works them through.
//!
//! One task for each machine: finish what the journal says is open, then claim, work, and again. Machines do not
//! wait for each other. The first Ctrl-C (or SIGTERM) lets running attempts come to their end and takes no new ones;
//! the second ends the process at once, as `kill -9` would: machines go on, and the next start takes them up.

mod attempt;
pub mod bochs;
pub mod check;
mod config;
pub mod console;
mod emulated;
mod errand;
mod filelog;
mod forward;
mod images;
pub mod machine;
pub mod metal;
mod netboot;
mod qemu;
mod record;
mod reports;
pub mod watch;

pub use bochs::BochsConfig;
pub use config::{Config, MachineConfig};
pub use qemu::{ACCEL, QemuConfig, Qmp};

use crate::http::LONG_POLL;
use crate::retry::persist;
use anyhow::{Context as _, bail};
use attempt::Attempt;
use crashyard_protocol::agent::{ClaimRequest, EnrolRequest, Enrolled, MachineSpec, Work};
use crashyard_protocol::client::Client;
use crashyard_protocol::retry::Backoff;
use crashyard_protocol::{ControllerId, MachineId};
use images::Images;
use machine::Driver;
use netboot::NetbootConfig;
use record::Ending;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use watch::Watcher;

/// Directories of lost attempts that are kept for a person to look at.
const KEEP_LOST: usize = 16;

/// How long after a refusal it is asked again for a machine that another controller has.
const REFUSED: Duration = Duration::from_secs(60);

/// What all attempts share.
pub struct Farm {
    client: Client,
    images: Images,
    /// The server's URL as a machine reaches it, where the configuration knows better than the driver.
    overrides: BTreeMap<String, String>,
}

impl Farm {
    fn server_from(&self, driver: &dyn Driver, machine: &str) -> String {
        self.overrides.get(machine).cloned().unwrap_or_else(|| driver.server_seen_from_machine())
    }
}

/// One machine of the configuration with its driver.
#[derive(Clone)]
pub struct Member {
    /// Its configuration.
    pub config: MachineConfig,
    /// What drives it.
    pub driver: Arc<dyn Driver>,
}

/// Runs until told to end.
pub async fn run(path: &Path) -> anyhow::Result<()> {
    let config = Config::read(path)?;
    let watcher = Watcher::start()?;
    let members = config
        .machines
        .iter()
        .map(|machine| Ok(Member { config: machine.clone(), driver: machine.driver(&config.server, &watcher)? }))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let drain = CancellationToken::new();
    let work = Controller::open(&config, members)?.run(&drain);
    tokio::pin!(work);
    let mut interrupts = signal(SignalKind::interrupt())?;
    let mut terminations = signal(SignalKind::terminate())?;
    loop {
        tokio::select! {
            result = &mut work => return result,
            _ = interrupts.recv() => {}
            _ = terminations.recv() => {}
        }
        if drain.is_cancelled() {
            tracing::warn!("ending at once; machines go on, and the next start takes them up");
            return Ok(());
        }
        tracing::info!("taking no new attempts; again to end at once");
        drain.cancel();
    }
}

/// Powers off every machine of attempts that are not over, without a word to the server. For whoever takes a farm
/// down as a whole; a running controller must have ended before.
pub async fn power_off_all(path: &Path) -> anyhow::Result<()> {
    let config = Config::read(path)?;
    let watcher = Watcher::start()?;
    for directory in attempt_directories(&config.state)? {
        let Some(record) = Attempt::look(&directory)? else { continue };
        if let Some(machine) = config.machines.iter().find(|machine| machine.name == record.machine) {
            machine.driver(&config.server, &watcher)?.attach(&directory)?.power.off().await?;
        }
    }
    Ok(())
}

/// Takes a state directory; fails if a controller, or a check of a machine, has it.
fn lock(state: &Path) -> anyhow::Result<File> {
    std::fs::create_dir_all(state).with_context(|| format!("make {}", state.display()))?;
    let lock = File::create(state.join("lock"))?;
    if lock.try_lock().is_err() {
        bail!("another controller uses {}, or a machine of it is being checked", state.display());
    }
    Ok(lock)
}

/// Whether an attempt on this machine is not over.
fn is_in_an_attempt(state: &Path, machine: &str) -> anyhow::Result<bool> {
    for directory in attempt_directories(state)? {
        if Attempt::look(&directory)?.is_some_and(|record| record.machine == machine) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A controller with its state directory.
pub struct Controller {
    name: String,
    state: PathBuf,
    members: Vec<Member>,
    farm: Arc<Farm>,
    netboot: Option<NetbootConfig>,
    _lock: File,
}

impl Controller {
    /// Opens the state directory; fails if another controller has it.
    pub fn open(config: &Config, members: Vec<Member>) -> anyhow::Result<Self> {
        let state = config.state.clone();
        std::fs::create_dir_all(state.join("attempts")).with_context(|| format!("make {}", state.display()))?;
        let lock = lock(&state)?;
        let overrides = config
            .machines
            .iter()
            .filter_map(|machine| Some((machine.name.clone(), machine.server_from_machine.clone()?)))
            .collect();
        let client = crate::http::client(&config.server, Some(config.token()?))?;
        let images = Images::open(&state.join("images"))?;
        Ok(Self {
            name: config.name.clone(),
            state,
            members,
            farm: Arc::new(Farm { client, images, overrides }),
            netboot: config.netboot.clone(),
            _lock: lock,
        })
    }

    /// Works until drained.
    pub async fn run(self, drain: &CancellationToken) -> anyhow::Result<()> {
        let enrolled = tokio::select! {
            enrolled = self.enrol() => enrolled?,
            () = drain.cancelled() => return Ok(()),
        };
        tracing::info!(controller = %enrolled.controller, machines = self.members.len(), "enrolled");
        self.warn_of_strangers()?;
        let this = Arc::new(self);
        let controller = Arc::new(Mutex::new(enrolled));
        let mut tasks = JoinSet::new();
        let netboot = async {
            match &this.netboot {
                Some(netboot) => netboot::serve(netboot, this.state.join("attempts")).await,
                None => std::future::pending().await,
            }
        };
        for member in this.members.clone() {
            let (this, controller, drain) = (this.clone(), controller.clone(), drain.clone());
            tasks.spawn(async move { this.serve(&member, &controller, &drain).await });
        }
        let machines = async {
            while let Some(joined) = tasks.join_next().await {
                joined.context("a machine's task")??;
            }
            anyhow::Ok(())
        };
        tokio::select! {
            done = machines => done,
            error = netboot => error,
        }
    }

    /// Attempts whose machine is not in the configuration any more: nobody finishes them, and the machine stays as it is.
    fn warn_of_strangers(&self) -> anyhow::Result<()> {
        for directory in attempt_directories(&self.state)? {
            let Ok(Some(record)) = Attempt::look(&directory) else { continue };
            if self.members.iter().all(|member| member.config.name != record.machine) {
                let (machine, path) = (&record.machine, directory.display());
                tracing::warn!(machine, %path, "its attempt is left as it is, since the machine is not configured any more");
            }
        }
        Ok(())
    }

    async fn enrol(&self) -> anyhow::Result<Enrolled> {
        let machines = self
            .members
            .iter()
            .map(|member| {
                let mut labels = member.config.labels.clone();
                labels.insert("driver".into(), member.driver.name().into());
                MachineSpec { name: member.config.name.clone(), driver: member.driver.name().into(), labels }
            })
            .collect();
        let request = EnrolRequest { name: self.name.clone(), version: env!("CARGO_PKG_VERSION").into(), machines };
        persist("enrol", || self.farm.client.enrol(&request)).await.context("enrol at the server")
    }

    /// One machine, attempt after attempt.
    async fn serve(
        &self,
        member: &Member,
        enrolled: &Mutex<Enrolled>,
        drain: &CancellationToken,
    ) -> anyhow::Result<()> {
        for directory in attempt_directories(&self.state)? {
            match Attempt::look(&directory) {
                Ok(Some(record)) if record.machine == member.config.name => self.work(member, &directory).await?,
                Ok(_) => {}
                Err(error) => {
                    tracing::error!(error = format!("{error:#}"), "an attempt's journal is damaged and left alone");
                }
            }
        }
        let mut backoff = Backoff::default();
        while !drain.is_cancelled() {
            let ids = ids(&enrolled.lock().unwrap_or_else(PoisonError::into_inner), &member.config.name);
            let (controller, machine) = match ids {
                Ok(ids) => ids,
                // The other machines of this lab go on; this one comes back as soon as nobody else has it.
                Err(why) => {
                    tracing::error!(machine = member.config.name, why, "not this controller's; asking again later");
                    tokio::select! {
                        () = tokio::time::sleep(REFUSED) => {}
                        () = drain.cancelled() => return Ok(()),
                    }
                    let fresh = self.enrol().await?;
                    *enrolled.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
                    continue;
                }
            };
            let wait_seconds = u32::try_from(LONG_POLL.as_secs()).unwrap_or(30);
            let request = ClaimRequest { controller, machines: vec![machine], wait_seconds, errands: true };
            let work = tokio::select! {
                work = self.farm.client.job_or_errand(&request) => work,
                () = drain.cancelled() => return Ok(()),
            };
            match work {
                Ok(None) => backoff = Backoff::default(),
                Ok(Some(Work::Errand(errand))) => {
                    backoff = Backoff::default();
                    errand::run(&self.farm.client, member, &errand).await;
                }
                Ok(Some(Work::Lease(claim))) => {
                    backoff = Backoff::default();
                    let directory = self.state.join("attempts").join(claim.attempt.as_str());
                    tracing::info!(attempt = %claim.attempt, machine = member.config.name, scenario = claim.brief.scenario.name, "claimed");
                    Attempt::begin(&directory, &member.config.name, &claim)?;
                    self.work(member, &directory).await?;
                }
                Err(error) => {
                    tracing::warn!(%error, "claim: trying again");
                    backoff.wait().await;
                    // A server that has forgotten this controller (a restored database) gets to know it again.
                    if !error.is_transient() {
                        let fresh = self.enrol().await?;
                        *enrolled.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
                    }
                }
            }
        }
        Ok(())
    }

    /// Works one attempt to its end, through whatever trouble this host has in between.
    async fn work(&self, member: &Member, directory: &Path) -> anyhow::Result<()> {
        let mut backoff = Backoff::default();
        let ending = loop {
            let result = async {
                let cmdline = format!("{} {}", member.driver.cmdline(), member.config.cmdline);
                match Attempt::take_up(&self.farm, &member.driver, &cmdline, directory)? {
                    Some(attempt) => attempt.work().await,
                    None => Ok(Ending::Lost),
                }
            };
            match result.await {
                Ok(ending) => break ending,
                Err(error) => {
                    tracing::error!(
                        error = format!("{error:#}"),
                        machine = member.config.name,
                        "taking the attempt up again"
                    );
                    backoff.wait().await;
                }
            }
        };
        tracing::info!(?ending, machine = member.config.name, "attempt over");
        match ending {
            Ending::Released => std::fs::remove_dir_all(directory)?,
            Ending::Lost => self.keep_lost(directory)?,
        }
        Ok(())
    }

    /// Puts a lost attempt's directory aside: its console may hold what the server never got.
    fn keep_lost(&self, directory: &Path) -> anyhow::Result<()> {
        let lost = self.state.join("lost");
        std::fs::create_dir_all(&lost)?;
        let mut kept = directories(&lost)?;
        for name in ["initrd", "kernel", "dump.disk", "machine.iso"] {
            // Large, and of no use to a reader.
            let _ = std::fs::remove_file(directory.join(name));
        }
        let name = directory.file_name().context("an attempt's directory has a name")?;
        std::fs::rename(directory, lost.join(name))?;
        // Ids sort by time, so the first are the oldest.
        kept.truncate((kept.len() + 1).saturating_sub(KEEP_LOST));
        for old in kept {
            std::fs::remove_dir_all(old)?;
        }
        Ok(())
    }
}

/// The controller's and the machine's ids, or why the machine is not this controller's.
fn ids(enrolled: &Enrolled, machine: &str) -> Result<(ControllerId, MachineId), String> {
    match enrolled.machines.get(machine) {
        Some(id) => Ok((enrolled.controller.clone(), id.clone())),
        None => Err(enrolled.refused.get(machine).cloned().unwrap_or_else(|| "the server forgot it".to_owned())),
    }
}

fn attempt_directories(state: &Path) -> anyhow::Result<Vec<PathBuf>> {
    directories(&state.join("attempts"))
}

/// Directories below `parent`, oldest id first; none if there is no `parent`.
fn directories(parent: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(parent) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("list {}", parent.display()))?,
    };
    let mut found = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
    found.sort();
    Ok(found)
}

/// Joins standard input and output, one socket to an emulator, with a TCP connection.
pub async fn relay(address: &str) -> anyhow::Result<()> {
    let socket = std::os::unix::net::UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    socket.set_nonblocking(true)?;
    let mut inside = tokio::net::UnixStream::from_std(socket)?;
    let mut outside = tokio::net::TcpStream::connect(address).await.with_context(|| format!("connect to {address}"))?;
    outside.set_nodelay(true)?;
    // Either side may end the connection in any way it likes.
    let _ = tokio::io::copy_bidirectional(&mut inside, &mut outside).await;
    Ok(())
}
