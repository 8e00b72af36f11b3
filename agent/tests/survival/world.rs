//! The fake machine, and the clock of deaths.

use async_trait::async_trait;
use bytes::Bytes;
use crashyard_agent::controller::machine::{Attached, BootPlan, Console, Driver, Power, PowerStatus};
use crashyard_protocol::agent::Keys;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::Notify;

/// What the machine prints when it boots; the fake server gives this marker out.
pub const BOOT: &str = "Linux version …\ncrashyard: trigger job=J\n";
/// What it prints when the NMI comes.
pub const PANIC: &str = "Kernel panic - not syncing: NMI\n---[ end\n";
/// What its emulator says.
pub const EMULATOR: &str = "emulator: a warning\n";

/// Everything outside the controller.
#[derive(Default)]
pub struct World {
    passed: AtomicU64,
    kill_at: AtomicU64,
    died: Notify,
    /// A machine's life, by the directory of its attempt.
    pub machines: Mutex<BTreeMap<PathBuf, Life>>,
    pub printed: Notify,
    /// How often the machine was powered off between attempts.
    pub idle_offs: AtomicU64,
}

/// What became of the machine under one attempt.
#[derive(Clone, Debug, Default)]
pub struct Life {
    pub running: bool,
    pub on: u32,
    pub off: u32,
    pub nmi: u32,
    pub typed: u32,
    pub console: Vec<u8>,
}

impl World {
    /// Stops the world at the `point`th moment from now.
    pub fn arm(&self, point: u64) {
        self.passed.store(0, Ordering::SeqCst);
        self.kill_at.store(point, Ordering::SeqCst);
    }

    pub fn disarm(&self) {
        self.kill_at.store(0, Ordering::SeqCst);
    }

    /// Returns when the world has stopped.
    pub async fn stopped(&self) {
        // Several moments may have been on their way when the world stopped before; theirs is not this one's.
        while self.passed.load(Ordering::SeqCst) < self.kill_at.load(Ordering::SeqCst) {
            self.died.notified().await;
        }
    }

    /// One moment. The chosen one never passes; once it was reached, no other passes either.
    pub async fn moment(&self) {
        let kill_at = self.kill_at.load(Ordering::SeqCst);
        let now = self.passed.fetch_add(1, Ordering::SeqCst) + 1;
        if kill_at != 0 && now >= kill_at {
            self.died.notify_one();
            std::future::pending::<()>().await;
        }
    }

    /// Returns when a machine runs.
    pub async fn running(&self) {
        loop {
            let mut news = std::pin::pin!(self.printed.notified());
            news.as_mut().enable();
            if self.anything_runs() {
                return;
            }
            news.await;
        }
    }

    pub fn anything_runs(&self) -> bool {
        self.machines.lock().unwrap().values().any(|life| life.running)
    }

    fn change<T>(&self, directory: &Path, change: impl FnOnce(&mut Life) -> T) -> T {
        change(self.machines.lock().unwrap().entry(directory.to_owned()).or_default())
    }

    fn print(&self, directory: &Path, text: &str) {
        self.change(directory, |life| life.console.extend_from_slice(text.as_bytes()));
        self.printed.notify_waiters();
    }
}

pub struct FakeDriver(pub Arc<World>);

struct FakeMachine(Arc<World>, PathBuf);

#[async_trait]
impl Driver for FakeDriver {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn server_seen_from_machine(&self) -> String {
        "http://10.0.0.1".into()
    }

    fn attach(&self, directory: &Path) -> anyhow::Result<Attached> {
        let log = directory.join("emulator.log");
        std::fs::write(&log, EMULATOR)?;
        let machine = || FakeMachine(self.0.clone(), directory.to_owned());
        Ok(Attached {
            power: Arc::new(machine()),
            consoles: vec![("serial".into(), Arc::new(machine()))],
            dump_disk: None,
            logs: vec![("emulator.log".into(), log)],
        })
    }

    async fn off(&self) -> anyhow::Result<String> {
        self.0.moment().await;
        assert!(!self.0.anything_runs(), "an attempt has it");
        self.0.idle_offs.fetch_add(1, Ordering::SeqCst);
        self.0.moment().await;
        Ok("off".into())
    }
}

#[async_trait]
impl Power for FakeMachine {
    async fn status(&self) -> anyhow::Result<PowerStatus> {
        Ok(self.0.change(&self.1, |life| match (life.running, life.on) {
            (true, _) => PowerStatus::On,
            (false, 0) => PowerStatus::NeverOn,
            (false, _) => PowerStatus::Ended("off".into()),
        }))
    }

    async fn on(&self, plan: &BootPlan) -> anyhow::Result<String> {
        assert_eq!(std::fs::read(&plan.kernel)?, b"the kernel");
        assert!(std::fs::read(&plan.initrd)?.starts_with(b"the initrd"));
        self.0.moment().await;
        assert!(!self.0.anything_runs(), "a machine is powered on that runs already");
        self.0.change(&self.1, |life| {
            assert_eq!(life.on, 0, "a machine is powered on twice in one attempt: its evidence is destroyed");
            life.on += 1;
            life.running = true;
        });
        self.0.print(&self.1, BOOT);
        self.0.moment().await;
        Ok("on".into())
    }

    async fn off(&self) -> anyhow::Result<String> {
        self.0.moment().await;
        self.0.change(&self.1, |life| {
            life.off += 1;
            life.running = false;
        });
        self.0.moment().await;
        Ok("off".into())
    }

    async fn reset(&self) -> anyhow::Result<String> {
        panic!("nobody asked for a reset");
    }

    async fn nmi(&self) -> anyhow::Result<String> {
        self.0.moment().await;
        self.0.change(&self.1, |life| {
            assert_eq!(life.nmi, 0, "the NMI is sent twice");
            assert!(life.running);
            life.nmi += 1;
        });
        self.0.print(&self.1, PANIC);
        self.0.moment().await;
        Ok("sent".into())
    }

    async fn ended(&self) -> anyhow::Result<String> {
        std::future::pending().await
    }

    async fn check(&self) -> anyhow::Result<String> {
        assert!(!self.0.anything_runs(), "checked while it runs");
        Ok("fine".into())
    }
}

#[async_trait]
impl Console for FakeMachine {
    async fn read(&self, offset: u64, limit: usize) -> std::io::Result<Bytes> {
        let console = self.0.change(&self.1, |life| life.console.clone());
        // Small pieces, so that deaths fall between them.
        let start = console.len().min(usize::try_from(offset).unwrap());
        Ok(Bytes::copy_from_slice(&console[start..console.len().min(start + limit.min(24))]))
    }

    async fn press(&self, keys: &Keys) -> std::io::Result<()> {
        assert_eq!(*keys, Keys::Sysrq('t'));
        self.0.moment().await;
        self.0.change(&self.1, |life| {
            assert_eq!(life.typed, 0, "what a person typed is typed twice");
            life.typed += 1;
        });
        self.0.moment().await;
        Ok(())
    }

    async fn grown(&self, offset: u64) -> std::io::Result<()> {
        loop {
            let mut news = std::pin::pin!(self.0.printed.notified());
            news.as_mut().enable();
            if self.0.change(&self.1, |life| life.console.len() as u64) > offset {
                return Ok(());
            }
            news.await;
        }
    }
}
