//! The server under load: its own process, its own data, ended when dropped.

use anyhow::{Context as _, bail};
use crashyard_protocol::client::Client;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A running server.
pub struct Server {
    child: Child,
    /// Where it keeps its data.
    pub data: Arc<tempfile::TempDir>,
    /// A client with an admin token.
    pub admin: Client,
    /// Its base URL.
    pub url: String,
    /// The admin token.
    pub token: String,
    place: Place,
}

#[derive(Clone)]
struct Place {
    listen: String,
    database: String,
    blobs: PathBuf,
}

fn spawn(place: &Place, data: &Path, token_file: &Path) -> anyhow::Result<Child> {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(data.join("server.log"))?;
    Command::new(beside("crashyard-server")?)
        .arg("serve")
        .env("CRASHYARD_LISTEN", &place.listen)
        .env("CRASHYARD_DATABASE_URL", &place.database)
        .env("CRASHYARD_BLOBS", format!("dir:{}", place.blobs.display()))
        .env("CRASHYARD_ADMIN_TOKEN_FILE", token_file)
        .env("CRASHYARD_LOG_FILTER", "warn")
        // Simulated machines show no kernel, so every attempt of theirs ends as MISS.
        .env("CRASHYARD_QUARANTINE_FAILURES", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .context("starting the server")
}

impl Server {
    /// Starts the server program that lies beside this one, on a free port, on SQLite and a directory.
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_on(None).await
    }

    /// The same on this database.
    pub async fn start_on(database: Option<&str>) -> anyhow::Result<Self> {
        let data = tempfile::Builder::new().prefix("crashyard-bench-").tempdir().context("a temporary directory")?;
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let database =
            database.map_or_else(|| format!("sqlite:{}", data.path().join("farm.db").display()), ToOwned::to_owned);
        let place = Place { listen: format!("127.0.0.1:{port}"), blobs: data.path().join("blobs"), database };
        Self::start_at(place, Arc::new(data)).await
    }

    /// Another server on the same database and blobs.
    pub async fn second(&self) -> anyhow::Result<Self> {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let place = Place { listen: format!("127.0.0.1:{port}"), ..self.place.clone() };
        Self::start_at(place, self.data.clone()).await
    }

    async fn start_at(place: Place, data: Arc<tempfile::TempDir>) -> anyhow::Result<Self> {
        let token_file = data.path().join("admin.token");
        let child = spawn(&place, data.path(), &token_file)?;
        let url = format!("http://{}", place.listen);
        let mut this = Self { child, data, admin: Client::new(&url, None), url, place, token: String::new() };
        this.wait_until_ready().await?;
        let secret = std::fs::read_to_string(token_file).context("the server's admin token")?;
        this.token = secret.trim().to_owned();
        this.admin = this.admin.with_token(&this.token);
        Ok(this)
    }

    /// `kill -9`, and the same server again on the same port.
    pub async fn kill_and_restart(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        self.child = spawn(&self.place, self.data.path(), &self.data.path().join("admin.token"))?;
        self.wait_until_ready().await
    }

    /// Processor time the server has used, in seconds.
    pub fn processor(&self) -> anyhow::Result<f64> {
        crate::process::processor(&self.child.id().to_string())
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
