//! Bochs in a network of its own.
//!
//! Debian's Bochs has no display without a window or a listener, and its listener takes connections on all addresses.
//! So Bochs runs in a fresh network namespace with nothing in it but a loopback: nobody outside can reach the display,
//! and the guest can reach nobody outside, except through the sockets that are made here and served by the keeper. A
//! socket belongs to the namespace it was made in, whoever uses it later; that is the only door.

use super::launch::{CONSOLE_PORT, LINE_PORT, SERVER_PORT, names};
use anyhow::{Context as _, ensure};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use tokio::sync::oneshot;

/// The doors of the namespace, from inside to the keeper.
pub struct Doors {
    /// Where Bochs connects the serial console to.
    pub console: TcpListener,
    /// Where Bochs connects the second serial line to, for guests that have no driver for its network card.
    pub line: TcpListener,
    /// Where the guest finds the server.
    pub server: TcpListener,
}

/// A namespace in which Bochs is about to run.
pub struct Inside {
    go: mpsc::Sender<()>,
    child: Arc<Mutex<Option<Child>>>,
    ended: Exit,
}

/// Where the end of Bochs is told.
pub type Exit = oneshot::Receiver<anyhow::Result<Ended>>;

/// Ends Bochs; may be shared.
#[derive(Clone)]
pub struct Killer(Arc<Mutex<Option<Child>>>);

/// How Bochs ended as a process.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// Its status.
    pub status: ExitStatus,
    /// Seconds of CPU it took.
    pub cpu_seconds: f64,
}

/// Makes this process able to make network namespaces. Must be called before there is a second thread.
pub fn allow() -> anyhow::Result<()> {
    let (user, group) = (nix::unistd::geteuid(), nix::unistd::getegid());
    if user.is_root() {
        return Ok(());
    }
    unshare(CloneFlags::CLONE_NEWUSER).context(
        "make a user namespace for the emulator's network (kernel.unprivileged_userns_clone=1, or run as root)",
    )?;
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("0 {user} 1"))?;
    std::fs::write("/proc/self/gid_map", format!("0 {group} 1"))?;
    Ok(())
}

/// Makes the namespace. Bochs starts in it with [`Inside::go`].
pub fn make(program: &str) -> anyhow::Result<(Doors, Inside)> {
    let (made, doors) = mpsc::channel();
    let (go, gone) = mpsc::channel();
    let (end, ended) = oneshot::channel();
    let child = Arc::new(Mutex::new(None));
    let (program, theirs) = (program.to_owned(), child.clone());
    // A thread of its own: only the thread that asks gets the new namespace, and its children with it. It lives as
    // long as Bochs, because "kill me when my parent dies" means the parent's thread.
    std::thread::Builder::new().name("namespace".into()).spawn(move || {
        let made_it = enter();
        let entered = made_it.is_ok();
        // Whoever waits for either end is gone only when the whole process is.
        let _ = made.send(made_it);
        if entered && gone.recv().is_ok() {
            let _ = end.send(run(&program, &theirs));
        }
    })?;
    let doors = doors.recv().context("the thread of the namespace ended")??;
    Ok((doors, Inside { go, child, ended }))
}

impl Inside {
    /// Starts Bochs.
    pub fn go(self) -> (Killer, Exit) {
        // Only a namespace whose thread has ended does not hear this; then the other end says so.
        let _ = self.go.send(());
        (Killer(self.child), self.ended)
    }
}

impl Killer {
    /// Ends Bochs at once, if it runs.
    pub fn kill(&self) -> std::io::Result<()> {
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            Some(child) => child.kill(),
            None => Ok(()),
        }
    }
}

fn enter() -> anyhow::Result<Doors> {
    unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace (run as root, or allow user namespaces)")?;
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).stdin(Stdio::null()).output();
    let up = up.context("start ip (Debian package iproute2)")?;
    ensure!(up.status.success(), "ip link set lo up: {}", String::from_utf8_lossy(&up.stderr).trim());
    let listen = |port| {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, port)).with_context(|| format!("listen on port {port}"))?;
        listener.set_nonblocking(true)?;
        anyhow::Ok(listener)
    };
    Ok(Doors { console: listen(CONSOLE_PORT)?, line: listen(LINE_PORT)?, server: listen(SERVER_PORT)? })
}

fn run(program: &str, child: &Mutex<Option<Child>>) -> anyhow::Result<Ended> {
    let started = Command::new("setpriv")
        // A keeper that is killed takes its machine with it; a console that goes away does not.
        .args(["--pdeathsig", "KILL", "--", "env", "--ignore-signal=PIPE", program])
        .args(["-q", "-rc", names::DEBUGGER, "-f", names::CONFIG])
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| format!("start {program} (Debian packages bochs and util-linux)"))?;
    let pid = i32::try_from(started.id()).context("a process id")?;
    *child.lock().unwrap_or_else(PoisonError::into_inner) = Some(started);
    // Waits without collecting, so that the process id stays Bochs's for whoever wants to kill it.
    waitid(Id::Pid(Pid::from_raw(pid)), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).context("wait for Bochs")?;
    let mut child = child.lock().unwrap_or_else(PoisonError::into_inner);
    let status = child.take().context("Bochs was collected by somebody else")?.wait().context("collect Bochs")?;
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).context("ask what Bochs has cost")?;
    let milliseconds = usage.user_time().num_milliseconds() + usage.system_time().num_milliseconds();
    #[expect(clippy::cast_precision_loss, reason = "milliseconds of one emulator fit")]
    Ok(Ended { status, cpu_seconds: milliseconds as f64 / 1000.0 })
}
