//! A farm for the program to talk to: a real server on a port of its own, with what a person keeps beside it.

use crashyard_protocol::Scope;
use crashyard_server::app::AppState;
use crashyard_server::config::Config;
use crashyard_server::{api, routes, serve};
use crashyard_testkit::{FakeLab, Wire};
use std::path::Path;
use std::process::{Output, Stdio};
use tokio::process::Command;

/// A server on a port of its own, with its passes, and what a person keeps beside it.
pub struct Farm {
    pub state: AppState,
    pub address: String,
    pub token: String,
    pub dir: tempfile::TempDir,
}

impl Farm {
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = Config {
            database_url: format!("sqlite:{}", dir.path().join("farm.db").display()),
            blobs: format!("dir:{}", dir.path().join("blobs").display()),
            ..Config::default()
        };
        let state = serve::open(config).await.unwrap();
        let token = api::tokens::make(&state, "ci".into(), Scope::Submit, None).await.unwrap().1;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(serve::run(state.clone(), listener));
        let farm = Self { state, address, token, dir };
        let scenario =
            "name = \"sysrq\"\ntitle = \"Plain\"\ntrigger = \"sysrq-c\"\n[expect]\npanic = \"sysrq triggered crash\"\n";
        farm.file("sysrq.toml", scenario);
        let plan = "name = \"smoke\"\nscenarios = [\"sysrq\"]\nrepetitions = 2\n[selector]\ndriver = \"fake\"\n";
        farm.file("smoke.toml", plan);
        farm.ok(&["scenario", "put", "sysrq.toml"]).await;
        assert_eq!(farm.ok(&["plan", "put", "smoke.toml"]).await, "smoke is stored; a run of it has 2 jobs\n");
        farm
    }

    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.dir.path().join(name), content).unwrap();
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        command(self.dir.path(), &self.address, &self.token, arguments)
    }

    pub async fn ok(&self, arguments: &[&str]) -> String {
        let done = self.command(arguments).output().await.unwrap();
        assert!(done.status.success(), "{arguments:?}: {}", stderr(&done));
        String::from_utf8(done.stdout).unwrap()
    }

    /// A kernel that says its release, of two chunks, and an initramfs.
    pub async fn build(&self) -> String {
        let mut kernel = vec![7; (4 << 20) + 4711];
        kernel[0x202..0x206].copy_from_slice(b"HdrS");
        kernel[0x20e..0x210].copy_from_slice(&0x100u16.to_le_bytes());
        kernel[0x300..0x30b].copy_from_slice(b"6.1.0-test\0");
        self.file("bzImage", kernel);
        self.file("initrd", "an initramfs");
        self.ok(&BUILD).await.trim().to_owned()
    }

    /// A lab in memory with two machines, and the wire to this farm.
    pub async fn lab(&self) -> (FakeLab, Wire) {
        let controller = api::tokens::make(&self.state, "lab".into(), Scope::Controller, None).await.unwrap().1;
        (FakeLab::new("lab", 2, &controller, 1), Wire::new(routes::router(self.state.clone()), 1, 0))
    }
}

pub const BUILD: [&str; 10] = [
    "build",
    "add",
    "--name",
    "linux 6.1",
    "--kernel",
    "bzImage",
    "--initrd",
    "initrd",
    "--build-id",
    "0123456789abcdef",
];

pub fn command(dir: &Path, server: &str, token: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_crashyard"));
    command.args(arguments).current_dir(dir).env("CRASHYARD_SERVER", server).env("CRASHYARD_TOKEN", token);
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}
