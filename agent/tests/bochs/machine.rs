//! One machine under the real driver, running the guest of `guest.S`.

use super::guest::{GREETING, guest};
use crashyard_agent::controller::BochsConfig;
use crashyard_agent::controller::bochs::Bochs;
use crashyard_agent::controller::machine::{Attached, BootPlan, Driver as _, PowerStatus};
use crashyard_agent::controller::watch::Watcher;
use crashyard_protocol::agent::Keys;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The agent, which is also the keeper.
pub const AGENT: &str = env!("CARGO_BIN_EXE_crashyard-agent");

/// A machine's directory with everything it needs to boot.
pub struct Machine {
    directory: TempDir,
    driver: Bochs,
    plan: BootPlan,
}

impl Machine {
    /// Not powered on yet.
    pub fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (kernel, initrd) = (directory.path().join("kernel"), directory.path().join("initrd"));
        std::fs::write(&kernel, guest()).expect("the kernel");
        std::fs::write(&initrd, [0; 4096]).expect("the initramfs");
        let watcher = Watcher::start().expect("a watcher");
        // Nobody is there; this guest has no network.
        let driver = Bochs::new(&BochsConfig::default(), "http://127.0.0.1:9", watcher).expect("a driver");
        let plan = BootPlan { kernel, initrd, cmdline: "quiet".into(), cpus: 1, memory_mib: 64 };
        Self { directory, driver: driver.kept_by(AGENT.into()), plan }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The machine as a controller finds it that was just started.
    pub fn attach(&self) -> Attached {
        self.driver.attach(self.path()).expect("the machine")
    }

    /// Powers on and waits for the greeting, the `count`th in this directory.
    pub async fn boot(&self, count: usize) -> Attached {
        let machine = self.attach();
        machine.power.on(&self.plan).await.expect("power");
        assert_eq!(machine.power.status().await.expect("a status"), PowerStatus::On);
        until(&machine, |said| said.matches(GREETING).count() == count).await;
        machine
    }

    pub async fn power_on_again(&self) -> anyhow::Result<String> {
        self.attach().power.on(&self.plan).await
    }
}

/// Waits until all that the console has said is what is wanted.
pub async fn until(machine: &Attached, wanted: impl Fn(&str) -> bool) {
    let console = &machine.consoles[0].1;
    loop {
        let said = console.read(0, 1 << 20).await.expect("the console");
        if wanted(&String::from_utf8_lossy(&said)) {
            return;
        }
        console.grown(said.len() as u64).await.expect("the console");
    }
}

/// Types into a machine's console.
pub async fn type_in(machine: &Attached, letters: &str) {
    machine.consoles[0].1.press(&Keys::Text(letters.to_owned())).await.expect("the console's input");
}

/// The keeper of the machine in this directory, and its Bochs.
pub fn processes(directory: &Path) -> (i32, i32) {
    let keeper: i32 =
        std::fs::read_to_string(directory.join("keeper.pid")).expect("a keeper").parse().expect("a number");
    // Of all its threads: Bochs is the child of the one that made the namespace.
    let tasks = std::fs::read_dir(format!("/proc/{keeper}/task")).expect("a running keeper");
    let children: String =
        tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("children")).ok()).collect();
    (keeper, children.trim().parse().expect("one child"))
}

/// Whether a process is there, and not merely waiting to be collected.
pub fn lives(pid: i32) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !matches!(state.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()), None | Some('Z' | 'X'))
}

/// Waits for the end of a process that is not a child of this one.
pub async fn gone(pid: i32) {
    let mut poll = tokio::time::interval(std::time::Duration::from_millis(10));
    while lives(pid) {
        poll.tick().await;
    }
}

/// Where Bochs leaves its lock.
pub fn lock_of(directory: &Path) -> PathBuf {
    directory.join("dump.disk.lock")
}
