//! What emulated machines have in common, whoever emulates them: a directory with a control socket, a console's file
//! and a process id, and a process that outlives the controller.
//!
//! What it must never do: know which emulator it is.

use anyhow::{Context as _, bail};
use nix::unistd::Pid;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::process::Command;

/// Free space in the state directory below which a machine takes no job: a dump and its console must fit.
const FREE_BYTES: u64 = 2 * 1024 * 1024 * 1024;

/// Room on a dump disk beyond the machine's memory: headers, and a dump that does not compress.
pub const DISK_SLACK: u64 = 64 * 1024 * 1024;

/// Names of the files that every emulated machine has in its directory.
pub mod names {
    /// Socket that types into the serial console.
    pub const SERIAL_INPUT: &str = "serial.sock";
    /// Everything the serial console printed.
    pub const SERIAL: &str = "serial.log";
    /// Everything the emulator itself said.
    pub const EMULATOR: &str = "emulator.log";
    /// Image of the dump disk.
    pub const DUMP_DISK: &str = "dump.disk";
}

/// A path below `directory` that is short enough for a socket address (108 bytes, unix(7)), wherever it is.
pub struct ShortPath {
    directory: File,
}

impl ShortPath {
    /// For a directory.
    pub fn to(directory: &Path) -> anyhow::Result<Self> {
        Ok(Self { directory: File::open(directory).with_context(|| format!("open {}", directory.display()))? })
    }

    /// The short path of `name`, valid as long as this lives.
    pub fn of(&self, name: &str) -> PathBuf {
        format!("/proc/self/fd/{}/{name}", self.directory.as_raw_fd()).into()
    }
}

/// Host and port of a server that an emulated machine can reach.
pub fn host_and_port(server: &str) -> anyhow::Result<(String, u16)> {
    let url: reqwest::Url = server.parse().with_context(|| format!("the server's URL {server:?}"))?;
    if url.scheme() != "http" {
        bail!("emulated machines reach the server by http only; {server} is something else");
    }
    let port = url.port_or_known_default().context("the server's URL has no port")?;
    Ok((url.host_str().context("the server's URL has no host")?.to_owned(), port))
}

/// Starts the process behind a machine, in the machine's directory. What it prints goes to the file `output`.
///
/// The control socket is made here and handed over as standard input: it takes connections from the first moment, and
/// refuses them from the moment the process is gone, so that a controller that comes back can tell the two apart.
pub fn start(mut command: Command, directory: &Path, control: &str, output: &str) -> anyhow::Result<()> {
    let short = ShortPath::to(directory)?;
    let socket = short.of(control);
    remove(&socket)?;
    let listener = UnixListener::bind(&socket).context("make the control socket")?;
    let log = OpenOptions::new().create(true).append(true).open(directory.join(output))?;
    let mut child = command
        .current_dir(directory)
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stdout(log.try_clone()?)
        .stderr(log)
        // A group of its own: Ctrl-C in a terminal is meant for the controller, not for its machines.
        .process_group(0)
        .spawn()?;
    // Somebody has to collect its exit status as long as this controller lives.
    tokio::spawn(async move { child.wait().await });
    Ok(())
}

/// Removes a file; fine if there is none.
pub fn remove(path: &Path) -> anyhow::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// The process id that a process left in this file.
pub fn pid(file: &Path) -> Option<Pid> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok().map(Pid::from_raw)
}

/// Whether the machine ever ran: it printed something, or its process got as far as writing its id into `pid`.
pub fn was_on(directory: &Path, pid: &str) -> bool {
    let printed = std::fs::metadata(directory.join(names::SERIAL)).is_ok_and(|log| log.len() > 0);
    printed || directory.join(pid).exists()
}

/// Free space for the next attempt, in words; an error if it is too little.
pub fn free_space(directory: &Path) -> anyhow::Result<String> {
    let space = nix::sys::statvfs::statvfs(directory).context("look for free space")?;
    let free = space.blocks_available() * space.fragment_size();
    if free < FREE_BYTES {
        bail!("only {} MiB are free in {}", free >> 20, directory.display());
    }
    Ok(format!("{} MiB free", free >> 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_may_lie_deeper_than_a_socket_address_is_long() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("x".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let short = ShortPath::to(&deep).unwrap();
        let _listener = UnixListener::bind(short.of(names::SERIAL_INPUT)).unwrap();
        assert!(deep.join(names::SERIAL_INPUT).exists());
    }
}
