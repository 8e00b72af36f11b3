//! A PostgreSQL of the test's own: a fresh cluster in a temporary directory, reachable by a unix socket only.
//!
//! PostgreSQL refuses to run as root, so as root it runs as the `postgres` user that its package makes.

use anyhow::{Context as _, bail};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A running server; stopped and removed when dropped.
pub struct Postgres {
    dir: tempfile::TempDir,
    server: Child,
}

impl Postgres {
    /// Makes a cluster and starts it.
    ///
    /// # Errors
    /// Names the Debian package if PostgreSQL is not installed.
    pub fn start() -> anyhow::Result<Self> {
        // Nothing of a test survives the machine, so nothing needs to be synced.
        Self::start_with(&["fsync=off", "max_connections=200"])
    }

    /// Makes a cluster that keeps what it acknowledged, for measuring, and starts it.
    ///
    /// # Errors
    /// Names the Debian package if PostgreSQL is not installed.
    pub fn start_durable() -> anyhow::Result<Self> {
        Self::start_with(&["max_connections=200", "shared_buffers=512MB", "max_wal_size=4GB"])
    }

    fn start_with(settings: &[&str]) -> anyhow::Result<Self> {
        let bin = find_bin()?;
        let dir = tempfile::Builder::new().prefix("crashyard-pg-").tempdir().context("a temporary directory")?;
        if nobody_but_root() {
            run(Command::new("chown").arg("postgres").arg(dir.path()))?;
        }
        let data = dir.path().join("data");
        run(as_owner(&bin.join("initdb")).arg("--pgdata").arg(&data).args([
            "--auth=trust",
            "--username=crashyard",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
        ]))?;
        let mut server = as_owner(&bin.join("postgres"));
        server.arg("-D").arg(&data).arg("-k").arg(dir.path());
        server.args(["-c", "listen_addresses="]);
        for setting in settings {
            server.args(["-c", setting]);
        }
        let log = std::fs::File::create(dir.path().join("log")).context("the server's log")?;
        let server = server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().context("postgres")?;
        let mut this = Self { dir, server };
        this.wait_until_ready(&bin)?;
        Ok(this)
    }

    /// The id of its first process, whose children do the work.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.server.id()
    }

    /// Makes an empty database and returns its URL.
    ///
    /// # Errors
    /// If the server does not make it.
    pub fn database(&self, name: &str) -> anyhow::Result<String> {
        let bin = find_bin()?;
        run(Command::new(bin.join("createdb")).arg("-h").arg(self.dir.path()).args(["-U", "crashyard", name]))?;
        let socket = self.dir.path().to_string_lossy().replace('/', "%2F");
        Ok(format!("postgres://crashyard@{socket}/{name}"))
    }

    /// `pg_isready` tells "not yet" from "never": a server that has ended is an error, not something to wait for.
    fn wait_until_ready(&mut self, bin: &Path) -> anyhow::Result<()> {
        loop {
            if let Some(status) = self.server.try_wait().context("the server's state")? {
                let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
                bail!("PostgreSQL ended with {status}:\n{log}");
            }
            let ready = Command::new(bin.join("pg_isready"))
                .args(["-q", "-t", "1", "-U", "crashyard", "-d", "postgres", "-h"])
                .arg(self.dir.path())
                .status()
                .context("pg_isready")?;
            if ready.success() {
                return Ok(());
            }
            std::thread::yield_now();
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // SIGQUIT is an immediate shutdown: there is nothing to save, and clients may still be connected.
        let _ = Command::new("kill").arg("-QUIT").arg(self.server.id().to_string()).status();
        let _ = self.server.wait();
    }
}

fn find_bin() -> anyhow::Result<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .map(|versions| versions.filter_map(Result::ok).map(|version| version.path().join("bin")).collect())
        .unwrap_or_default();
    found.retain(|bin| bin.join("initdb").exists());
    found.sort();
    found.pop().context("PostgreSQL is not installed: apt-get install postgresql")
}

fn nobody_but_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").is_ok_and(|this| this.uid() == 0)
}

fn as_owner(program: &Path) -> Command {
    if nobody_but_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--init-groups", "--"]).arg(program);
        command.current_dir("/");
        command
    } else {
        Command::new(program)
    }
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output().with_context(|| format!("cannot start {}", command.get_program().display()))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::Postgres;

    #[test]
    fn a_cluster_starts_and_gives_databases() {
        let server = Postgres::start().unwrap();
        assert!(server.database("one").unwrap().ends_with("/one"));
    }
}
