//! Consoles against real ends: a terminal server (ser2net) that speaks telnet, sockets, and programs.

use crashyard_agent::controller::console::{ConsoleConfig, GAP};
use crashyard_agent::controller::machine::Console;
use crashyard_agent::controller::watch::Watcher;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A console, and what wakes its readers.
struct Opened {
    console: Arc<dyn Console>,
    _watcher: Watcher,
}

impl std::ops::Deref for Opened {
    type Target = dyn Console;
    fn deref(&self) -> &Self::Target {
        self.console.as_ref()
    }
}

fn open(config: &str, directory: &Path) -> Opened {
    let config: ConsoleConfig = toml::from_str(config).unwrap();
    config.check(false).unwrap();
    let watcher = Watcher::start().unwrap();
    Opened { console: config.open(directory, None, &watcher).unwrap(), _watcher: watcher }
}

/// Reads until `text` is there; everything from the beginning.
async fn until(console: &dyn Console, text: &str) -> Vec<u8> {
    let mut all = Vec::new();
    let found = |all: &[u8]| all.windows(text.len()).any(|window| window == text.as_bytes());
    let read = tokio::time::timeout(PATIENCE, async {
        while !found(&all) {
            let offset = all.len() as u64;
            console.grown(offset).await.unwrap();
            all.extend_from_slice(&console.read(offset, 1 << 20).await.unwrap());
        }
    });
    read.await.unwrap_or_else(|_| panic!("no {text:?} on the console"));
    all
}

fn gaps(text: &[u8]) -> usize {
    String::from_utf8_lossy(text).matches(GAP).count()
}

#[tokio::test]
async fn a_channel_that_is_cut_is_opened_again_and_the_record_says_where() {
    let dir = tempfile::tempdir().unwrap();
    let wire = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = format!("tcp = '{}'", wire.local_addr().unwrap());
    let console = open(&config, dir.path());
    let (mut first, _) = wire.accept().await.unwrap();
    first.write_all(b"[    0.0] one\n[    0.1] tw").await.unwrap();
    until(&*console, "tw").await;
    drop(first);
    let (mut second, _) = wire.accept().await.unwrap();
    second.write_all(b"o\n[    0.2] three\n").await.unwrap();
    let heard = until(&*console, "three\n").await;
    assert_eq!(gaps(&heard), 1);
    let text = String::from_utf8(heard).unwrap();
    assert!(text.starts_with(&format!("[    0.0] one\n[    0.1] tw\r\n{GAP} for 0.")), "{text}");
    assert!(text.contains("the other end closed it]\r\no\n"), "{text}");
    console.write(b"typed").await.unwrap();
    let mut typed = [0; 5];
    second.read_exact(&mut typed).await.unwrap();
    assert_eq!(&typed, b"typed");
}

#[tokio::test]
async fn a_controller_that_comes_back_goes_on_with_the_record_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let wire = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = format!("tcp = '{}'", wire.local_addr().unwrap());
    let console = open(&config, dir.path());
    let (mut stream, _) = wire.accept().await.unwrap();
    stream.write_all(b"before\n").await.unwrap();
    until(&*console, "before\n").await;
    drop(console);
    let console = open(&config, dir.path());
    let (mut stream, _) = wire.accept().await.unwrap();
    stream.write_all(b"after\n").await.unwrap();
    let text = String::from_utf8(until(&*console, "after\n").await).unwrap();
    assert!(
        text.starts_with("before\n\r\n") && text.contains("for some time: the controller was restarted]\r\nafter\n"),
        "{text}"
    );
}

#[tokio::test]
async fn a_programs_output_is_a_console_and_what_it_says_of_its_end_is_no_evidence() {
    let dir = tempfile::tempdir().unwrap();
    let script = "echo up; read line; echo \"got $line\"; echo trouble >&2; exit 3";
    let console = open(&format!("command = ['sh', '-c', '{script}']"), dir.path());
    until(&*console, "up\n").await;
    console.write(b"hello\n").await.unwrap();
    let heard = until(&*console, "]\r\nup\n").await;
    let text = String::from_utf8(heard).unwrap();
    assert!(text.starts_with("up\ngot hello\n") && text.contains("the other end closed it]"), "{text}");
    assert!(!text.contains("trouble"), "a program could say what a kernel says: {text}");
}

/// A terminal server between a machine's wire and its users.
async fn ser2net(directory: &Path, port: u16, wire: u16) -> Child {
    let config = directory.join("ser2net.yaml");
    let text = format!(
        "connection: &one\n  accepter: telnet(rfc2217),tcp,127.0.0.1,{port}\n  connector: tcp,127.0.0.1,{wire}\n"
    );
    std::fs::write(&config, text).unwrap();
    let child = Command::new("ser2net")
        .args(["-n", "-d", "-c"])
        .arg(&config)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("ser2net (Debian package ser2net)");
    tokio::time::timeout(PATIENCE, async {
        while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("ser2net listens");
    child
}

#[tokio::test]
async fn a_terminal_servers_telnet_leaves_every_byte_as_it_was_in_both_directions() {
    let dir = tempfile::tempdir().unwrap();
    let wire = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let _server = ser2net(dir.path(), port, wire.local_addr().unwrap().port()).await;
    // The look whether it listens was a user, too, and has gone again.
    let console = open(&format!("telnet = '127.0.0.1:{port}'\nbaud = 115200"), dir.path());
    let every: Vec<u8> = (0..=255).chain(*b"the end\n").collect();
    let serve = async {
        loop {
            let (mut machine, _) = wire.accept().await.unwrap();
            if machine.write_all(&every).await.is_ok() {
                let mut typed = vec![0; 6];
                if machine.read_exact(&mut typed).await.is_ok() {
                    return typed;
                }
            }
        }
    };
    let listen = async {
        let heard = until(&*console, "the end\n").await;
        console.write(b"\xffsysrq").await.unwrap();
        heard
    };
    let (typed, heard) = tokio::join!(tokio::time::timeout(PATIENCE, serve), listen);
    assert_eq!(typed.expect("what was typed arrives"), b"\xffsysrq"[..6]);
    assert!(heard.ends_with(&every), "{heard:?}");
}
