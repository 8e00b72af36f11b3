//! `ipmi_sim` with a chassis in memory, a serial port that the test holds the other end of, and the wire in front of it.

use crashyard_agent::controller::metal::ipmi::Bmc;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, UdpSocket};
use tokio::process::{Child, Command};
use tokio::sync::watch;

const CHASSIS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/ipmi/chassis.c");

/// Where the wire begins. It has the BMC's port: serial over LAN names it, and `ipmitool` takes no other.
const WIRE: &str = "127.0.0.2";

/// One BMC; it ends with this.
pub struct Sim {
    directory: tempfile::TempDir,
    _process: Child,
    /// Where the BMC connects to the machine's serial port.
    pub serial: TcpListener,
    /// What lies between it and its users.
    pub wire: Wire,
}

impl Sim {
    /// Starts it, and returns when it is ready.
    pub async fn start() -> Self {
        Self::with_events(&["2 0 0 0 0 0x20 0 4 0x23 0x71 0x6f 0 0xff 0xff"]).await
    }

    /// With these records in its event log: the type of each, and its bytes behind that.
    pub async fn with_events(events: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let compiled = Command::new("gcc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
            .args([path.join("chassis.so").as_path(), Path::new(CHASSIS)])
            .status()
            .await
            .expect("gcc (Debian package gcc)");
        assert!(compiled.success(), "the module needs the Debian package libopenipmi-dev");
        let port = {
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.local_addr().unwrap().port()
        };
        let serial = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let board = serial.local_addr().unwrap().port();
        let at = path.display();
        let lan = format!(
            "name \"test\"\nset_working_mc 0x20\nstartlan 1\naddr 127.0.0.1 {port}\npriv_limit admin\n\
             allowed_auths_admin none md2 md5 straight\nguid 00112233445566778899aabbccddeeff\nendlan\n\
             loadlib \"{at}/chassis.so\" \"{at}/journal\"\nsol \"telnet:127.0.0.1:{board}\" 115200\n\
             user 2 true \"admin\" \"secret\" admin 10 none md2 md5 straight\n"
        );
        let events: String = events.iter().map(|event| format!("sel_add 0x20 {event}\n")).collect();
        let emulation = format!(
            "mc_setbmc 0x20\nmc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02\n\
             sel_enable 0x20 1000 0x0a\nmc_enable 0x20\n{events}"
        );
        std::fs::write(path.join("lan.conf"), lan).unwrap();
        std::fs::write(path.join("bmc.emu"), emulation).unwrap();
        std::fs::create_dir(path.join("state")).unwrap();
        let mut process = Command::new("ipmi_sim")
            .args(["-c", "lan.conf", "-f", "bmc.emu", "-s", "state"])
            .current_dir(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("ipmi_sim (Debian package openipmi)");
        // It prompts when its configuration is done and its sockets are open.
        let (mut said, out) = (Vec::new(), process.stdout.as_mut().unwrap());
        while !said.ends_with(b"> ") {
            let read = out.read_buf(&mut said).await.unwrap();
            assert!(read > 0, "ipmi_sim ended: {}", String::from_utf8_lossy(&said));
        }
        let wire = Wire::to(([127, 0, 0, 1], port).into()).await;
        Self { directory, _process: process, serial, wire }
    }

    /// The way to it, over the wire.
    pub fn bmc(&self, suite: u8) -> Bmc {
        let port = self.wire.address.port();
        Bmc { host: WIRE.into(), port, user: "admin".into(), password: "secret".into(), suite }
    }

    /// How many sessions are open, as another client sees it, whose own is one of them.
    pub async fn sessions(&self) -> String {
        let port = self.wire.address.port().to_string();
        let told = Command::new("ipmitool")
            .args(["-I", "lanplus", "-C", "3", "-H", WIRE, "-p", &port, "-U", "admin", "-E", "session", "info"])
            .arg("active")
            .env("IPMI_PASSWORD", "secret")
            .output()
            .await
            .expect("ipmitool (Debian package ipmitool)");
        let told = String::from_utf8_lossy(&told.stdout).into_owned();
        told.lines().filter(|line| line.starts_with("active sessions")).map(|line| format!("{line}\n")).collect()
    }

    /// What the chassis was told, in order.
    pub fn journal(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.directory.path().join("journal")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

/// What a wire does not let through, in either direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cut {
    /// All is well.
    #[default]
    Nothing,
    /// Serial over LAN: the session lives, and nothing comes of it.
    Console,
    /// Everything.
    Everything,
}

impl Cut {
    fn lets_through(self, datagram: &[u8]) -> bool {
        match self {
            Self::Nothing => true,
            Self::Console => !is_console(datagram),
            Self::Everything => false,
        }
    }
}

/// Whether it is serial over LAN: payload type 1, at byte 5 of an RMCP+ datagram (IPMI 2.0, table 13-16).
fn is_console(datagram: &[u8]) -> bool {
    datagram.get(5).is_some_and(|kind| kind & 0x3f == 1)
}

#[derive(Default)]
struct Plan {
    replies_of_last: usize,
    lose: Option<usize>,
    repeat: Option<usize>,
    cut: Cut,
}

/// A wire that can lose or repeat one reply, or be cut. Each client has a session of its own.
pub struct Wire {
    address: SocketAddr,
    plan: Arc<Mutex<Plan>>,
    clients: watch::Receiver<usize>,
    console: watch::Receiver<usize>,
}

impl Wire {
    async fn to(bmc: SocketAddr) -> Self {
        let front = Arc::new(UdpSocket::bind((WIRE, bmc.port())).await.unwrap());
        let (address, plan) = (front.local_addr().unwrap(), Arc::<Mutex<Plan>>::default());
        let ((seen, clients), (used, console)) = (watch::channel(0), watch::channel(0));
        let theirs = plan.clone();
        tokio::spawn(async move {
            let mut sessions: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
            let mut buffer = [0; 2048];
            while let Ok((size, client)) = front.recv_from(&mut buffer).await {
                let session = match sessions.entry(client) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(new) => {
                        let back = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
                        back.connect(bmc).await.unwrap();
                        tokio::spawn(replies(back.clone(), front.clone(), client, theirs.clone()));
                        seen.send_modify(|seen| *seen += 1);
                        new.insert(back)
                    }
                };
                let cut = theirs.lock().unwrap().cut;
                if cut.lets_through(&buffer[..size]) {
                    session.send(&buffer[..size]).await.unwrap();
                    if is_console(&buffer[..size]) {
                        used.send_modify(|used| *used += 1);
                    }
                }
            }
        });
        Self { address, plan, clients, console }
    }

    /// How many replies the newest session got.
    pub fn replies_of_last_session(&self) -> usize {
        self.plan.lock().unwrap().replies_of_last
    }

    /// Loses the reply with this number (from 1), of the next session that gets so far.
    pub fn lose_reply(&self, number: usize) {
        self.plan.lock().unwrap().lose = Some(number);
    }

    /// Has the reply with this number (from 1) arrive twice, so that each answer behind it is late by one.
    pub fn repeat_reply(&self, number: usize) {
        self.plan.lock().unwrap().repeat = Some(number);
    }

    /// Whether the reply was repeated.
    pub fn repeated(&self) -> bool {
        self.plan.lock().unwrap().repeat.is_none()
    }

    /// Whether the reply was lost.
    pub fn lost(&self) -> bool {
        self.plan.lock().unwrap().lose.is_none()
    }

    /// Lets this through no longer, until told otherwise.
    pub fn cut(&self, what: Cut) {
        self.plan.lock().unwrap().cut = what;
    }

    /// Returns when somebody comes who was not there when it was called; what is cut is no matter.
    pub fn next_client(&self) -> impl Future<Output = ()> {
        next(&self.clients)
    }

    /// Returns when somebody uses the BMC's console, who has it then.
    pub fn next_use_of_console(&self) -> impl Future<Output = ()> {
        next(&self.console)
    }
}

fn next(counter: &watch::Receiver<usize>) -> impl Future<Output = ()> + use<> {
    let mut counter = counter.clone();
    counter.mark_unchanged();
    async move {
        counter.changed().await.unwrap();
    }
}

async fn replies(back: Arc<UdpSocket>, front: Arc<UdpSocket>, client: SocketAddr, plan: Arc<Mutex<Plan>>) {
    let (mut buffer, mut number) = ([0; 2048], 0);
    while let Ok(size) = back.recv(&mut buffer).await {
        number += 1;
        let times = {
            let mut plan = plan.lock().unwrap();
            plan.replies_of_last = number;
            let lose = plan.lose.take_if(|lose| *lose == number).is_some() || !plan.cut.lets_through(&buffer[..size]);
            let repeat = plan.repeat.take_if(|repeat| *repeat == number).is_some();
            if lose { 0 } else { 1 + usize::from(repeat) }
        };
        for _ in 0..times {
            // A client that has given up is no trouble of the wire's.
            let _ = front.send_to(&buffer[..size], client).await;
        }
    }
}
