//! Consoles against real ends: a terminal server (ser2net) that speaks telnet, conserver, a BMC's serial over LAN, sockets,
//! and programs.

#[path = "../ipmi/sim.rs"]
#[expect(dead_code, reason = "its power is tested beside it")]
mod sim;
mod sol;

use crashyard_agent::controller::console::{ConsoleConfig, GAP};
use crashyard_agent::controller::machine::Console;
use crashyard_agent::controller::metal::ipmi::Bmc;
use crashyard_agent::controller::watch::Watcher;
use crashyard_protocol::agent::Keys;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
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
    open_by(config, directory, None)
}

fn open_by(config: &str, directory: &Path, bmc: Option<&Bmc>) -> Opened {
    let config: ConsoleConfig = toml::from_str(config).unwrap();
    config.check(bmc.is_some()).unwrap();
    let watcher = Watcher::start().unwrap();
    Opened { console: config.open(directory, bmc, &watcher).unwrap(), _watcher: watcher }
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

fn words(text: &str) -> Keys {
    Keys::Text(text.into())
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
    console.press(&words("typed")).await.unwrap();
    let mut typed = [0; 5];
    second.read_exact(&mut typed).await.unwrap();
    assert_eq!(&typed, b"typed");
}

#[tokio::test]
async fn a_channel_that_dies_without_a_word_is_opened_anew_after_a_while_of_silence() {
    let dir = tempfile::tempdir().unwrap();
    let wire = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let console = open(&format!("tcp = '{}'\nstall_seconds = 1", wire.local_addr().unwrap()), dir.path());
    let (mut first, _) = wire.accept().await.unwrap();
    first.write_all(b"up\n").await.unwrap();
    until(&*console, "up\n").await;
    // It stays open, as a BMC's session does that has forgotten whom it talks to.
    let (mut second, _) = tokio::time::timeout(PATIENCE, wire.accept()).await.expect("it is opened anew").unwrap();
    second.write_all(b"still here\n").await.unwrap();
    let text = String::from_utf8(until(&*console, "still here\n").await).unwrap();
    assert!(text.contains("it brought nothing for too long]\r\nstill here\n"), "{text}");
    drop(first);
}

#[tokio::test]
async fn whoever_types_at_a_dead_session_does_not_keep_it_from_being_opened_anew() {
    let dir = tempfile::tempdir().unwrap();
    let wire = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let console = open(&format!("tcp = '{}'\nstall_seconds = 1", wire.local_addr().unwrap()), dir.path());
    let (_first, _) = wire.accept().await.unwrap();
    let typing = async {
        loop {
            // It is refused while the console is opened anew.
            let _ = console.press(&words("?")).await;
        }
    };
    let again = tokio::time::timeout(PATIENCE, async {
        tokio::select! {
            again = wire.accept() => again,
            () = typing => unreachable!("it never stops"),
        }
    });
    again.await.expect("it is opened anew").unwrap();
}

/// A serial port: the machine's end is a program's, which prints the port's name, then what it was typed.
const PORT: &str = "import os, pty, sys, tty
machine, port = pty.openpty()
tty.setraw(port)
print(os.ttyname(port), flush=True)
sys.stdin.readline()
os.write(machine, b'[    0.0] up\\n')
print(os.read(machine, 5).decode(), flush=True)
";

#[tokio::test]
async fn a_serial_port_is_heard_and_typed_into() {
    let dir = tempfile::tempdir().unwrap();
    let mut machine = Command::new("python3")
        .args(["-c", PORT])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("python3 (Debian package python3)");
    let mut said = BufReader::new(machine.stdout.take().unwrap()).lines();
    let port = said.next_line().await.unwrap().expect("the port's name");
    let console = open(&format!("device = '{port}'\nbaud = 115200"), dir.path());
    machine.stdin.take().unwrap().write_all(b"go\n").await.unwrap();
    until(&*console, "[    0.0] up\n").await;
    console.press(&words("typed")).await.unwrap();
    let typed = tokio::time::timeout(PATIENCE, said.next_line()).await.expect("it arrives").unwrap();
    assert_eq!(typed.as_deref(), Some("typed"));
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
    console.press(&words("hello\n")).await.unwrap();
    let heard = until(&*console, "]\r\nup\n").await;
    let text = String::from_utf8(heard).unwrap();
    assert!(text.starts_with("up\ngot hello\n") && text.contains("the other end closed it]"), "{text}");
    assert!(!text.contains("trouble"), "a program could say what a kernel says: {text}");
}

#[tokio::test]
async fn a_program_that_says_much_of_its_own_trouble_does_not_stop_the_console() {
    let dir = tempfile::tempdir().unwrap();
    let script = "head -c 300000 /dev/zero | tr \\0 x >&2; echo still here; read line";
    let console = open(&format!("command = ['sh', '-c', '{script}']"), dir.path());
    until(&*console, "still here\n").await;
}

#[tokio::test]
async fn what_cannot_be_typed_is_told_at_once_and_never_typed_later() {
    let dir = tempfile::tempdir().unwrap();
    let wire = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let console = open(&format!("tcp = '{}'", wire.local_addr().unwrap()), dir.path());
    let (mut machine, _) = wire.accept().await.unwrap();
    machine.write_all(b"up\n").await.unwrap();
    until(&*console, "up\n").await;
    let refused = console.press(&Keys::Sysrq('b')).await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::Unsupported, "{refused}");
    console.press(&words("a")).await.unwrap();
    let mut typed = [0; 1];
    machine.read_exact(&mut typed).await.unwrap();
    assert_eq!(&typed, b"a", "and nothing of the SysRq");
    assert_eq!(gaps(&console.read(0, 1 << 20).await.unwrap()), 0, "which is no reason to stop listening");
}

/// A terminal server between a machine's wire and its users.
async fn ser2net(directory: &Path, port: u16, connector: &str) -> Child {
    let config = directory.join("ser2net.yaml");
    let text =
        format!("connection: &one\n  accepter: telnet(rfc2217),tcp,127.0.0.1,{port}\n  connector: {connector}\n");
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
    let _server = ser2net(dir.path(), port, &format!("tcp,127.0.0.1,{}", wire.local_addr().unwrap().port())).await;
    // The look whether it listens was a user, too, and has gone again.
    let console = open(&format!("telnet = '127.0.0.1:{port}'\nbaud = 115200"), dir.path());
    let every: Vec<u8> = (0..=255).chain(*b"the end\n").collect();
    let serve = async {
        loop {
            let (mut machine, _) = wire.accept().await.unwrap();
            if machine.write_all(&every).await.is_ok() {
                let mut typed = vec![0; 8];
                if machine.read_exact(&mut typed).await.is_ok() {
                    return typed;
                }
            }
        }
    };
    let listen = async {
        let heard = until(&*console, "the end\n").await;
        console.press(&words("sysrq ÿ")).await.unwrap();
        heard
    };
    let (typed, heard) = tokio::join!(tokio::time::timeout(PATIENCE, serve), listen);
    assert_eq!(typed.expect("what was typed arrives"), "sysrq ÿ".as_bytes());
    assert!(heard.ends_with(&every), "{heard:?}");
}

/// The terminal server is told to send a break, and the other wire speaks telnet as well, so that it can be seen there.
#[tokio::test]
async fn a_break_and_a_sysrq_key_go_through_a_terminal_server() {
    let dir = tempfile::tempdir().unwrap();
    let wire = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let connector = format!("telnet(rfc2217),tcp,127.0.0.1,{}", wire.local_addr().unwrap().port());
    let _server = ser2net(dir.path(), port, &connector).await;
    for config in [format!("telnet = '127.0.0.1:{port}'\nbaud = 115200"), format!("telnet = '127.0.0.1:{port}'")] {
        let directory = tempfile::tempdir().unwrap();
        let console = open(&config, directory.path());
        let serve = async {
            loop {
                let (mut machine, _) = wire.accept().await.unwrap();
                // All of the telnet options, as one that has them; what counts is what comes behind them.
                let mut told = vec![0xff, 0xfb, 44, 0xff, 0xfd, 44];
                told.extend(b"up\r\n");
                if machine.write_all(&told).await.is_err() {
                    continue;
                }
                let (mut all, mut piece) = (Vec::new(), [0; 256]);
                while let Ok(size @ 1..) = machine.read(&mut piece).await {
                    all.extend_from_slice(&piece[..size]);
                    if all.ends_with(b"t") {
                        return all;
                    }
                }
            }
        };
        let type_it = async {
            until(&*console, "up").await;
            console.press(&Keys::Sysrq('t')).await.unwrap();
        };
        let (heard, ()) = tokio::join!(tokio::time::timeout(PATIENCE, serve), type_it);
        let heard = heard.expect("the key arrives");
        let has = |bytes: &[u8]| heard.windows(bytes.len()).any(|window| window == bytes);
        // RFC 854's, or RFC 2217's "set break on".
        assert!(has(&[0xff, 243]) || has(&[0xff, 250, 44, 5, 5, 0xff, 240]), "{config}: {heard:x?}");
    }
}

/// The daemon that keeps consoles open for people, with one console that is this wire.
async fn conserver(directory: &Path, port: u16, wire: u16) -> Child {
    let at = directory.display();
    let config = format!(
        "config * {{ defaultaccess allowed; logfile {at}/server.log; passwdfile {at}/passwd; }}\n\
         default * {{ logfile {at}/&.log; rw *; master 127.0.0.1; }}\n\
         console m1 {{ type host; host 127.0.0.1; port {wire}; }}\n\
         access * {{ trusted 127.0.0.1; allowed 127.0.0.1; }}\n"
    );
    std::fs::write(directory.join("conserver.cf"), config).unwrap();
    std::fs::write(directory.join("passwd"), "*any*:\n").unwrap();
    let child = Command::new("conserver")
        .args(["-F", "-M", "127.0.0.1", "-p", &port.to_string(), "-C", "conserver.cf", "-P", "passwd"])
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("conserver (Debian package conserver-server)");
    tokio::time::timeout(PATIENCE, async {
        while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("conserver listens");
    child
}

#[tokio::test]
async fn a_console_behind_conserver_is_heard_and_typed_into() {
    let dir = tempfile::tempdir().unwrap();
    let wire = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let _server = conserver(dir.path(), port, wire.local_addr().unwrap().port()).await;
    let (mut machine, _) = tokio::time::timeout(PATIENCE, wire.accept()).await.expect("conserver connects").unwrap();
    let console = open(&format!("command = ['console', '-M', '127.0.0.1', '-p', '{port}', '-f', 'm1']"), dir.path());
    // What conserver says itself shows that its client is attached.
    until(&*console, "for help]").await;
    machine.write_all(b"[    1.0] up\n").await.unwrap();
    until(&*console, "[    1.0] up").await;
    console.press(&words("typed\n")).await.unwrap();
    let mut typed = [0; 5];
    tokio::time::timeout(PATIENCE, machine.read_exact(&mut typed)).await.expect("it arrives").unwrap();
    assert_eq!(&typed, b"typed");
}
