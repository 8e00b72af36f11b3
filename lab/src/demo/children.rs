//! Server and controller as child processes, ended with the demo whatever way it ends.

use super::programs;
use anyhow::{Context as _, bail};
use crashyard_protocol::client::Client;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};

/// Where the server leaves its admin token.
pub fn admin_token_file(data: &Path) -> PathBuf {
    data.join("admin.token")
}

/// The demo's processes. Dropping them ends them, the controller first, because it owns the machine.
pub struct Children {
    data: PathBuf,
    running: Vec<(&'static str, Child)>,
}

impl Children {
    /// No processes yet; their logs and data go to `data`.
    pub fn new(data: &Path) -> Self {
        Self { data: data.to_owned(), running: Vec::new() }
    }

    /// Starts the server and waits until it is ready; returns a client with its admin token.
    pub async fn start_server(&mut self, url: &str, port: u16) -> anyhow::Result<Client> {
        let token_file = admin_token_file(&self.data);
        let mut command = Command::new(programs()?.join("crashyard-server"));
        command
            .arg("serve")
            .env("CRASHYARD_LISTEN", format!("127.0.0.1:{port}"))
            .env("CRASHYARD_DATABASE_URL", format!("sqlite:{}", self.data.join("farm.db").display()))
            .env("CRASHYARD_BLOBS", format!("dir:{}", self.data.join("blobs").display()))
            .env("CRASHYARD_ADMIN_TOKEN_FILE", &token_file);
        self.spawn("server", command)?;
        let anonymous = Client::new(url, None);
        let begun = Instant::now();
        while anonymous.send(anonymous.request(reqwest::Method::GET, "/readyz")).await.is_err() {
            self.fail_if_ended()?;
            if begun.elapsed() > Duration::from_secs(60) {
                bail!("the server is not ready after a minute; see {}", self.log("server").display());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.fail_if_ended()?;
        let token = std::fs::read_to_string(&token_file).with_context(|| {
            format!("no admin token in {}; remove {} and start again", token_file.display(), self.data.display())
        })?;
        Ok(Client::new(url, Some(token.trim().to_owned())))
    }

    /// Starts the controller with one emulated machine.
    pub fn start_controller(&mut self, url: &str, token: &str) -> anyhow::Result<()> {
        let config = self.data.join("controller.toml");
        let token_file = self.data.join("controller.token");
        write_secret(&token_file, token)?;
        let text = format!(
            "# One emulated machine, made by the demo.\nname = \"demo-lab\"\nserver = {url:?}\ntoken_file = {:?}\nstate_dir = {:?}\n\n[[machine]]\nname = \"qemu-1\"\ndriver = \"qemu\"\n",
            token_file,
            self.data.join("controller"),
        );
        std::fs::write(&config, text)?;
        let mut command = Command::new(programs()?.join("crashyard-agent"));
        command.arg("controller").arg("--config").arg(&config);
        self.spawn("controller", command)
    }

    /// Waits until a process ends, which none may do by itself.
    pub async fn watch(&mut self) -> anyhow::Error {
        loop {
            if let Err(error) = self.fail_if_ended() {
                return error;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    fn fail_if_ended(&mut self) -> anyhow::Result<()> {
        for (name, child) in &mut self.running {
            if let Some(status) = child.try_wait()? {
                let log = self.data.join(format!("{name}.log"));
                let text = std::fs::read_to_string(&log).unwrap_or_default();
                let tail: Vec<&str> = text.lines().rev().take(15).collect();
                let tail: Vec<&str> = tail.into_iter().rev().collect();
                bail!("the {name} ended with {status}; {} says:\n{}", log.display(), tail.join("\n"));
            }
        }
        Ok(())
    }

    fn log(&self, name: &str) -> PathBuf {
        self.data.join(format!("{name}.log"))
    }

    fn spawn(&mut self, name: &'static str, mut command: Command) -> anyhow::Result<()> {
        let log = std::fs::File::create(self.log(name))?;
        let program = command.as_std().get_program().to_string_lossy().into_owned();
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C is for the demo, which ends its children in order.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        self.running.push((name, child));
        Ok(())
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        for (name, child) in self.running.iter_mut().rev() {
            let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) else { continue };
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
            let begun = Instant::now();
            while matches!(child.try_wait(), Ok(None)) {
                if begun.elapsed() > Duration::from_secs(15) {
                    eprintln!("the {name} does not end; killing it");
                    let _ = child.start_kill();
                    break;
                }
                std::thread::park_timeout(Duration::from_millis(20));
            }
        }
    }
}

fn write_secret(path: &Path, secret: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.create(true).truncate(true).write(true).mode(0o600).open(path)?;
    Ok(file.write_all(secret.as_bytes())?)
}
