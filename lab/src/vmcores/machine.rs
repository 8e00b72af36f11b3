//! One machine that crashes once: QEMU, its console in a pipe, its monitor (QMP) on a socket.

use super::guest::Guest;
use super::{Crash, Format, How, Load, Panic};
use anyhow::{Context as _, bail};
use crashyard_agent::controller::{ACCEL, Qmp};
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;

/// Memory of a machine.
const MEMORY_MIB: u64 = 768;
/// Room for the largest dump of it.
const DISK: u64 = 2 << 30;
/// Far longer than a crash takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(600);
/// The last line of a kernel that has panicked and has nowhere to go.
const END: &str = "end Kernel panic";

/// A directory of one crash; gone with this. Below /tmp, because the path of a socket must be short.
#[derive(Debug)]
pub struct Work(PathBuf);

/// Tells the crashes of this process apart.
static COUNT: AtomicU32 = AtomicU32::new(0);

impl Work {
    pub fn new() -> anyhow::Result<Self> {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("crashyard-vmcores-{}-{count}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        Ok(Self(dir))
    }

    /// Where the dump comes.
    pub fn dump(&self) -> PathBuf {
        self.0.join("vmcore")
    }

    /// What the machine prints.
    pub fn serial(&self) -> PathBuf {
        self.0.join("serial")
    }

    fn monitor(&self) -> PathBuf {
        self.0.join("qmp")
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// QEMU and what its console printed so far; ended with this.
struct Machine {
    child: Child,
    lines: Receiver<String>,
    console: String,
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Machine {
    /// Waits for a line with this text and returns it.
    fn wait(&mut self, text: &str) -> anyhow::Result<String> {
        self.wait_for(|line| line.contains(text), text)
    }

    /// Waits for a line and returns it; a machine that ends or panics elsewhere ends the waiting.
    fn wait_for(&mut self, wanted: impl Fn(&str) -> bool, text: &str) -> anyhow::Result<String> {
        let until = Instant::now() + PATIENCE;
        loop {
            let line = match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => line,
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("the machine ended before it said {text:?}; {}", self.last())
                }
                Err(RecvTimeoutError::Timeout) => {
                    bail!("the machine did not say {text:?} in {} s; {}", PATIENCE.as_secs(), self.last())
                }
            };
            self.console.push_str(&line);
            if wanted(&line) {
                return Ok(line);
            }
            if line.contains(END) {
                bail!("the machine panicked for good before it said {text:?}");
            }
        }
    }

    /// Waits until the machine is off.
    fn end(&mut self) -> anyhow::Result<()> {
        let until = Instant::now() + PATIENCE;
        while let Ok(line) = self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
            self.console.push_str(&line);
        }
        if Instant::now() >= until {
            bail!("the machine did not power off in {} s; {}", PATIENCE.as_secs(), self.last());
        }
        self.child.wait()?;
        Ok(())
    }

    fn last(&self) -> String {
        format!("its last line: {}", self.console.lines().last().unwrap_or("none"))
    }
}

/// Boots, crashes, dumps. Returns the console; the dump is in its place.
pub fn crash(guest: &Guest, crash: Crash, work: &Work) -> anyhow::Result<String> {
    let disk = File::create(work.dump())?;
    disk.set_len(DISK)?;
    let mut machine = start(guest, crash, work)?;
    if crash.panic == Panic::Nmi {
        machine.wait("waiting for an NMI")?;
        command(work, "inject-nmi", serde_json::json!({}))?;
    }
    if crash.panic == Panic::Lockup && !guest.own {
        // Printed at once (it goes through the kernel's log), and then a line end from the CPU that hangs.
        let said = machine.wait("hanging one CPU")?;
        if !is_cut(&said) {
            machine.wait_for(is_cut, "a line end from the hanging CPU")?;
        }
        command(work, "inject-nmi", serde_json::json!({}))?;
    }
    match crash.format.how() {
        How::Qemu => {
            machine.wait(END)?;
            std::fs::remove_file(work.dump())?;
            let mut how = serde_json::json!({
                "paging": crash.format == Format::Paging, "protocol": format!("file:{}", work.dump().display()) });
            if crash.format == Format::KdumpZlib {
                how["format"] = "kdump-zlib".into();
            }
            command(work, "dump-guest-memory", how)?;
        }
        How::Kdump => {
            let said = machine.wait("written with status ")?;
            let (_, said) = said.split_once("written with status ").context("it was just there")?;
            let (status, memory) = said.split_once(", memory ").context("a cut line on the console")?;
            if status != "0" {
                bail!("the capture kernel could not write the dump (status {status})");
            }
            let bytes: u64 = memory.trim().parse().context("the dump's size")?;
            // What was written is on the disk when the machine is off.
            machine.end()?;
            let length = if crash.format == Format::Raw { bytes } else { end_of_stream(&work.dump())? };
            disk.set_len(length)?;
        }
    }
    Ok(std::mem::take(&mut machine.console))
}

/// Whether a line ends as [`super::trigger::LOCKUP`] ends it. The kernel returns the carriage before each line end, and may be in
/// the middle of a line just then.
fn is_cut(line: &str) -> bool {
    line.ends_with('\n') && !line.ends_with("\r\n")
}

fn start(guest: &Guest, crash: Crash, work: &Work) -> anyhow::Result<Machine> {
    let writer = match crash.format {
        Format::Flattened(letter) => letter,
        _ => "raw",
    };
    let how = if crash.format.how() == How::Kdump { "kdump crashkernel=256M" } else { "qemu" };
    let cmdline = format!(
        "console=ttyS0,115200 panic=0 no_timer_check crashyard.how={how} crashyard.writer={writer} \
         crashyard.level={} crashyard.panic={} crashyard.busy={} crashyard.watched={}",
        // What makedumpfile may leave out of a kernel that it does not know is more than it says (docs/VMCORE.md).
        if guest.release.starts_with("6.1.") { 31 } else { 23 },
        crash.panic.word(),
        if crash.load == Load::Busy { (crash.cpus / 2).max(1) } else { 0 },
        u8::from(crash.load == Load::Watched)
    );
    let five_levels = if guest.release.starts_with("6.") { "max,la57=off" } else { "max" };
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-accel", ACCEL, "-nodefaults", "-display", "none", "-no-reboot", "-device", "vmcoreinfo"])
        .args(["-cpu", five_levels, "-m", &MEMORY_MIB.to_string(), "-smp", &crash.cpus.to_string()])
        .arg("-kernel")
        .arg(&guest.kernel)
        .arg("-initrd")
        .arg(&guest.initrd)
        .args(["-append", &cmdline, "-serial", "stdio"])
        .args(["-qmp", &format!("unix:{},server=on,wait=off", work.monitor().display())])
        .args(["-drive", &format!("file={},format=raw,if=virtio,cache=unsafe", work.dump().display())])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut child = command.spawn().context("start qemu-system-x86_64 (Debian package qemu-system-x86)")?;
    let mut console = BufReader::new(child.stdout.take().context("stdout is piped")?);
    let mut log = File::create(work.serial())?;
    let (send, lines) = channel();
    std::thread::spawn(move || {
        let mut line = Vec::new();
        while console.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
            // The log is for people; a full disk shows elsewhere soon enough.
            let _ = log.write_all(&line);
            if send.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                break;
            }
            line.clear();
        }
    });
    Ok(Machine { child, lines, console: String::new() })
}

/// Length of a flattened dump on a disk that is larger: to the end of its end mark (two times -1).
fn end_of_stream(disk: &Path) -> anyhow::Result<u64> {
    let disk = File::open(disk)?;
    let mut at = 4096;
    loop {
        let mut head = [0u8; 16];
        disk.read_exact_at(&mut head, at).context("a flattened dump without its end")?;
        at += 16;
        if head == [0xff; 16] {
            return Ok(at);
        }
        let (_, size) = head.split_at(8);
        let size = i64::from_be_bytes(size.try_into().context("eight bytes")?);
        at += u64::try_from(size).ok().filter(|size| *size > 0).context("a flattened dump without its end")?;
    }
}

/// Gives QEMU a command and waits until it is carried out.
fn command(work: &Work, command: &str, arguments: serde_json::Value) -> anyhow::Result<()> {
    let told = async { Qmp::connect(&work.monitor()).await?.execute(command, arguments).await };
    let told = Handle::current().block_on(async { tokio::time::timeout(PATIENCE, told).await });
    told.with_context(|| format!("QEMU did not answer to {command}"))?.map(drop)
}

#[cfg(test)]
mod tests {
    use super::is_cut;

    #[test]
    fn a_hanging_cpu_is_heard_in_the_middle_of_a_line_of_the_kernel() {
        assert!(is_cut("\n"));
        assert!(is_cut("[    8.683771] ts_fsm: module verification failed: signature and/or required key missi\n"));
        for line in
            ["[    8.675822] crashyard-vmcores: hanging one CPU\r\n", "\r\n", "cut by the end of the machine", ""]
        {
            assert!(!is_cut(line), "{line:?}");
        }
    }
}
