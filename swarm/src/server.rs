//! The server under load: its own process, its own data, ended when dropped.

use anyhow::{Context as _, bail};
use crashyard_protocol::client::Client;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running server.
pub struct Server {
    child: Child,
    /// Where it keeps its data.
    pub data: tempfile::TempDir,
    /// A client with an admin token.
    pub admin: Client,
    /// Its base URL.
    pub url: String,
}

impl Server {
    /// Starts the server program that lies beside this one, on a free port, on SQLite and a directory.
    pub async fn start() -> anyhow::Result<Self> {
        let program = beside("crashyard-server")?;
        let data = tempfile::Builder::new().prefix("crashyard-bench-").tempdir().context("a temporary directory")?;
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let listen = format!("127.0.0.1:{port}");
        let token_file = data.path().join("admin.token");
        let log = std::fs::File::create(data.path().join("server.log"))?;
        let child = Command::new(&program)
            .arg("serve")
            .env("CRASHYARD_LISTEN", &listen)
            .env("CRASHYARD_DATABASE_URL", format!("sqlite:{}", data.path().join("farm.db").display()))
            .env("CRASHYARD_BLOBS", format!("dir:{}", data.path().join("blobs").display()))
            .env("CRASHYARD_ADMIN_TOKEN_FILE", &token_file)
            .env("CRASHYARD_LOG_FILTER", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("starting the server")?;
        let url = format!("http://{listen}");
        let admin = Client::new(&url, None);
        let mut this = Self { child, data, admin, url };
        this.wait_until_ready().await?;
        let secret = std::fs::read_to_string(token_file).context("the server's admin token")?;
        this.admin = this.admin.with_token(secret.trim());
        Ok(this)
    }

    async fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                let log = std::fs::read_to_string(self.data.path().join("server.log")).unwrap_or_default();
                bail!("the server ended with {status}:\n{log}");
            }
            if self.admin.send(self.admin.request(reqwest::Method::GET, "/readyz")).await.is_ok() {
                return Ok(());
            }
            if begun.elapsed() > Duration::from_secs(30) {
                bail!("the server did not become ready in 30 seconds");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Resident memory of the server process, in bytes (`VmRSS` of proc(5)).
    pub fn memory(&self) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").trim().parse::<u64>()? * 1024)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn beside(name: &str) -> anyhow::Result<PathBuf> {
    let here = std::env::current_exe()?;
    let path = here.parent().unwrap_or(Path::new(".")).join(name);
    if !path.exists() {
        bail!("{} is missing: cargo build --release -p {name}", path.display());
    }
    Ok(path)
}
