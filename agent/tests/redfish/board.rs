//! A real machine for a Redfish service: a domain of libvirt, in which QEMU runs the guest of `guest.S`.
//!
//! The daemon is one of its own for each test, without privileges and with all its files in one directory, so that it
//! neither needs nor touches what the host has of libvirt. As root it runs as nobody, since root's is the host's.

use super::guest::guest;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::process::{Child, Command};

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// The user and the group of nobody, on Debian.
const NOBODY: u32 = 65534;

const DEFINE: &str = "import libvirt, sys; libvirt.open(sys.argv[1]).defineXML(sys.stdin.read())";

/// The daemon with one domain; both end with this.
pub struct Board {
    directory: tempfile::TempDir,
    _daemon: Child,
    listener: TcpListener,
}

impl Board {
    /// A machine that is off.
    pub async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        std::fs::write(path.join("kernel"), guest()).unwrap();
        // Not the system's, which may have users and certificates.
        std::fs::write(path.join("libvirtd.conf"), "auth_unix_rw = \"none\"\n").unwrap();
        let mut daemon = Command::new("libvirtd");
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
            daemon.uid(NOBODY).gid(NOBODY);
        }
        let daemon = daemon
            .arg("--config")
            .arg(path.join("libvirtd.conf"))
            .envs(["HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"].map(|name| (name, path)))
            .current_dir(path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("libvirtd (Debian packages libvirt-daemon, libvirt-daemon-driver-qemu)");
        let board = Self { directory, _daemon: daemon, listener };
        let listens = tokio::time::timeout(PATIENCE, async {
            while UnixStream::connect(board.socket()).await.is_err() {
                tokio::task::yield_now().await;
            }
        });
        listens.await.expect("libvirtd listens");
        board.define().await;
        board
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("libvirt/libvirt-sock")
    }

    /// Where libvirt's clients find it.
    pub fn uri(&self) -> String {
        format!("qemu:///session?socket={}", self.socket().display())
    }

    async fn define(&self) {
        let kernel = self.directory.path().join("kernel");
        let port = self.listener.local_addr().unwrap().port();
        let domain = format!(
            "<domain type='qemu'><name>m1</name><memory unit='MiB'>64</memory>
             <os><type arch='x86_64' machine='pc'>hvm</type><kernel>{}</kernel></os>
             <features><acpi/><apic/></features>
             <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
             <serial type='tcp'><source mode='connect' host='127.0.0.1' service='{port}'/></serial>
             </devices></domain>",
            kernel.display()
        );
        let mut python = Command::new("/usr/bin/python3")
            .args(["-c", DEFINE, &self.uri()])
            .stdin(Stdio::piped())
            .spawn()
            .expect("python3 (Debian package python3)");
        python.stdin.take().unwrap().write_all(domain.as_bytes()).await.unwrap();
        assert!(python.wait().await.unwrap().success(), "Debian package python3-libvirt");
    }

    /// The machine's serial port, once it is on.
    pub async fn serial(&self) -> Serial {
        let connects = tokio::time::timeout(PATIENCE, self.listener.accept());
        Serial(connects.await.expect("the machine is on").unwrap().0)
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        // QEMU does not end with the daemon.
        let pid = std::fs::read_to_string(self.directory.path().join("libvirt/qemu/run/m1.pid"));
        if let Some(pid) = pid.ok().and_then(|pid| pid.trim().parse().ok()) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
}

/// What a machine prints.
pub struct Serial(TcpStream);

impl Serial {
    /// Reads until it has said this.
    pub async fn says(&mut self, text: &str) {
        let mut said = Vec::new();
        let read = tokio::time::timeout(PATIENCE, async {
            while !String::from_utf8_lossy(&said).contains(text) {
                let size = self.0.read_buf(&mut said).await.unwrap();
                assert!(size > 0, "it is off: {}", String::from_utf8_lossy(&said));
            }
        });
        read.await.unwrap_or_else(|_| panic!("the machine does not say {text:?}"));
    }

    /// Reads until it is off.
    pub async fn ends(mut self) {
        let mut rest = Vec::new();
        let read = tokio::time::timeout(PATIENCE, self.0.read_to_end(&mut rest));
        read.await.expect("the machine is off").unwrap();
    }
}
