//! The demo's farm: a server and a controller as child processes, and a directory they leave behind.

use anyhow::{Context as _, bail, ensure};
use crashyard_agent::controller;
use crashyard_agent::guest::tail;
use crashyard_protocol::Scope;
use crashyard_protocol::api::NewToken;
use crashyard_protocol::client::Client;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

/// A file that says that a directory belongs to a demo and may be emptied. It is also the lock.
const MARK: &str = ".crashyard-demo";

/// How long a member may take to end when asked to.
const PATIENCE: Duration = Duration::from_secs(15);

/// How long the server may take until it answers.
const STARTUP: Duration = Duration::from_secs(60);

/// QEMU for the demo: one machine of the controller's configuration, with all that a scenario of the demo asks for.
pub const QEMU: &str = "[[machine]]\nname = \"qemu-1\"\n\
    # Emulated time is not real time: the timer check would only cost seconds.\n\
    cmdline = \"no_timer_check\"\n\n[machine.qemu]\nbmc = true\n";

/// A running farm.
pub struct Farm {
    data: PathBuf,
    /// In the order in which they were started.
    members: Vec<Member>,
    client: Client,
    _lock: File,
}

struct Member {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Farm {
    /// Starts a fresh farm in `data`, which must be empty or an earlier demo's.
    /// `machines` is the part of the controller's configuration that names its machines.
    pub async fn start(data: &Path, listen: SocketAddr, machines: &str) -> anyhow::Result<Self> {
        let (data, lock) = take_directory(data).await?;
        let base = format!("http://{listen}");
        let mut farm = Self { data, members: Vec::new(), client: Client::new(&base, None), _lock: lock };
        match farm.start_members(&base, listen, machines).await {
            Ok(()) => Ok(farm),
            Err(error) => {
                farm.stop().await;
                Err(error)
            }
        }
    }

    async fn start_members(&mut self, base: &str, listen: SocketAddr, machines: &str) -> anyhow::Result<()> {
        let data = self.data.display();
        let config = format!(
            "listen = \"{listen}\"\ndatabase_url = \"sqlite:{data}/crashyard.db\"\nblobs = \"dir:{data}/blobs\"\n\
             admin_token_file = \"{data}/admin.token\"\n"
        );
        let path = self.data.join("server.toml");
        std::fs::write(&path, config)?;
        self.member("server", "crashyard-server", &["--config".as_ref(), path.as_ref(), "serve".as_ref()])?;
        self.until_ready().await?;

        let secret = std::fs::read_to_string(self.data.join("admin.token")).context("read the server's first token")?;
        self.client = Client::new(base, Some(secret.trim().to_owned()));
        let token = |name: &str, scope| NewToken { name: name.into(), scope, expires_at: None };
        let controller = self.client.create_token(&token("demo controller", Scope::Controller)).await?;
        write_secret(&self.data.join("controller.token"), &controller.secret)?;
        let submit = self.client.create_token(&token("demo submitter", Scope::Submit)).await?;
        write_secret(&self.data.join("submit.token"), &submit.secret)?;
        self.client = self.client.with_token(&submit.secret);

        let config = format!(
            "name = \"demo\"\nserver = \"{base}\"\ntoken_file = \"controller.token\"\nstate = \"controller\"\n\n{machines}"
        );
        let path = self.data.join("controller.toml");
        std::fs::write(&path, config)?;
        self.member("controller", "crashyard-agent", &["controller".as_ref(), "--config".as_ref(), path.as_ref()])
    }

    /// Starts a program that lies beside this one.
    fn member(&mut self, name: &'static str, program: &str, arguments: &[&std::ffi::OsStr]) -> anyhow::Result<()> {
        let beside = std::env::current_exe()?.with_file_name(program);
        ensure!(beside.is_file(), "{} is missing: build it first (make demo does)", beside.display());
        let log = self.data.join(format!("{name}.log"));
        let file = File::create(&log)?;
        let child = Command::new(beside)
            .args(arguments)
            .current_dir(&self.data)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            // Ctrl-C is the demo's; it ends its members in the right order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start the {name}"))?;
        self.members.push(Member { name, child, log });
        Ok(())
    }

    /// Waits until the server answers, or has ended.
    async fn until_ready(&mut self) -> anyhow::Result<()> {
        let client = self.client.clone();
        let ready = async {
            let mut backoff = crashyard_protocol::retry::Backoff::default();
            while client.send(client.request(reqwest::Method::GET, "/readyz")).await.is_err() {
                backoff.wait().await;
            }
        };
        tokio::select! {
            ready = tokio::time::timeout(STARTUP, ready) => ready.context("the server does not become ready"),
            died = self.member_died() => Err(died),
        }
    }

    /// A client that may submit.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Waits until a member ends by itself, and says which and why. Cancelling this does no harm.
    async fn member_died(&mut self) -> anyhow::Error {
        let ends = self.members.iter_mut().map(|member| {
            Box::pin(async {
                let status = member.child.wait().await;
                let log = std::fs::read_to_string(&member.log).unwrap_or_default();
                anyhow::anyhow!("the {} ended ({status:?}):\n{}", member.name, tail(&log, 2000))
            })
        });
        futures::future::select_all(ends).await.0
    }

    /// Follows `course` to its verdicts, then serves until Ctrl-C unless told to `exit`. The farm is taken down before this
    /// returns; the exit status says whether everything was as predicted.
    pub async fn run(
        mut self,
        listen: SocketAddr,
        exit: bool,
        course: impl Future<Output = anyhow::Result<bool>>,
    ) -> anyhow::Result<ExitCode> {
        let mut interrupts = signal(SignalKind::interrupt())?;
        let mut terminations = signal(SignalKind::terminate())?;
        let how_to_go_on = self.how_to_go_on(listen);
        println!("Dashboard: http://{listen}");
        let course = async {
            let as_predicted = course.await?;
            if !exit {
                println!("{how_to_go_on}");
                std::future::pending::<()>().await;
            }
            anyhow::Ok(as_predicted)
        };
        let result = tokio::select! {
            result = course => result,
            died = self.member_died() => Err(died),
            // Serving is ended like this; waiting for verdicts that must come is not.
            _ = interrupts.recv() => Ok(!exit),
            _ = terminations.recv() => Ok(!exit),
        };
        self.stop().await;
        Ok(if result? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// What a person can do with a farm that goes on.
    fn how_to_go_on(&self, listen: SocketAddr) -> String {
        format!(
            "\nThe farm goes on at http://{listen} until Ctrl-C. Submit to it yourself with the token in\n\
             {}/submit.token; logs, consoles and dumps are in the same directory.",
            self.data.display()
        )
    }

    /// Takes the farm down: the controller at once, its machines, then the server.
    pub async fn stop(&mut self) {
        while let Some(mut member) = self.members.pop() {
            let controller = member.name == "controller";
            // A controller lets attempts come to their end at the first signal; the second ends it at once.
            for _ in 0..if controller { 2 } else { 1 } {
                if let Some(pid) = member.child.id().and_then(|pid| i32::try_from(pid).ok()) {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
                    let _ = tokio::time::timeout(Duration::from_millis(300), member.child.wait()).await;
                }
            }
            if tokio::time::timeout(PATIENCE, member.child.wait()).await.is_err() {
                eprintln!("The {} does not end; killing it. Its log is {}", member.name, member.log.display());
                let _ = member.child.kill().await;
            }
            if controller && let Err(error) = controller::power_off_all(&self.data.join("controller.toml")).await {
                eprintln!("A machine may still be running: {error:#}");
            }
        }
    }
}

/// Empties and locks the demo's directory.
async fn take_directory(data: &Path) -> anyhow::Result<(PathBuf, File)> {
    std::fs::create_dir_all(data).with_context(|| format!("make {}", data.display()))?;
    let data = data.canonicalize()?;
    ensure!(!data.display().to_string().contains(['"', '\\']), "{} cannot be written in TOML", data.display());
    let mark = data.join(MARK);
    if !mark.exists() && std::fs::read_dir(&data)?.next().is_some() {
        bail!("{} is not empty and no demo's: name another directory with --data", data.display());
    }
    let lock = OpenOptions::new().create(true).append(true).open(&mark)?;
    if lock.try_lock().is_err() {
        bail!("another demo runs in {}", data.display());
    }
    // A demo that was killed may have left its machine running.
    let config = data.join("controller.toml");
    if config.exists()
        && let Err(error) = controller::power_off_all(&config).await
    {
        eprintln!("Could not look for machines of an earlier demo: {error:#}");
    }
    for entry in std::fs::read_dir(&data)? {
        let path = entry?.path();
        if path == mark {
            continue;
        }
        if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) }
            .with_context(|| format!("empty {}", data.display()))?;
    }
    Ok((data, lock))
}

fn write_secret(path: &Path, secret: &str) -> anyhow::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    writeln!(file, "{secret}")?;
    Ok(())
}
