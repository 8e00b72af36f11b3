//! A machine as labs have them: a BMC that speaks IPMI, a serial console over LAN, a firmware that boots from the network.
//!
//! The BMC is OpenIPMI's `ipmi_sim`; the machine behind it is QEMU with a firmware of its own, started and stopped by
//! nothing but what the BMC is told. The controller knows neither: it has an address, a password and the network. Between
//! the two lies a wire that delays every datagram and loses some of the console's.

#[expect(dead_code, reason = "the browser is for the tests beside this one")]
mod support;

use crashyard_protocol::agent::Report;
use crashyard_protocol::api::{Attempt, Evidence, Job, Page, Run};
use crashyard_protocol::client::Client;
use crashyard_protocol::{Stage, StageName, StageState, Status};
use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::{BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;
use support::Demo;

const CHASSIS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../agent/tests/ipmi/chassis.c");

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port").port()
}

/// What the machine behind the BMC is wired to.
struct Wires {
    /// Its serial port.
    serial: u16,
    /// The network's boot service.
    netboot: u16,
    /// Its own way to its BMC.
    in_band: u16,
}

/// The wire between the machine's serial port and the BMC, which is there whether the machine is on or not: joins what
/// connects to one end with what connects to the other. Returns both ends' ports, the BMC's first.
fn serial_wire() -> (u16, u16) {
    let [bmc, board] = [0, 1].map(|_| TcpListener::bind("127.0.0.1:0").expect("a port"));
    let ports = [&bmc, &board].map(|end| end.local_addr().expect("an address").port());
    let listening: Arc<Mutex<Option<TcpStream>>> = Arc::default();
    let heard = listening.clone();
    std::thread::spawn(move || {
        for stream in bmc.incoming() {
            *heard.lock().expect("no panic") = stream.ok();
        }
    });
    std::thread::spawn(move || {
        for machine in board.incoming() {
            let (mut machine, mut piece) = (machine.expect("a machine"), [0; 4096]);
            while let Ok(size @ 1..) = machine.read(&mut piece) {
                if let Some(bmc) = listening.lock().expect("no panic").as_mut() {
                    // What nobody hears is gone, as on any wire.
                    let _ = bmc.write_all(&piece[..size]);
                }
            }
        }
    });
    (ports[0], ports[1])
}

/// A BMC with a machine behind it.
struct Lab {
    sim: Child,
    machine: Option<JoinHandle<()>>,
    directory: tempfile::TempDir,
    port: u16,
    netboot: u16,
    lost: Arc<AtomicUsize>,
}

impl Lab {
    fn start() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path();
        let compiled = Command::new("gcc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
            .args([path.join("chassis.so").as_path(), Path::new(CHASSIS)])
            .status()
            .expect("gcc (Debian package gcc)");
        assert!(compiled.success(), "the module needs the Debian package libopenipmi-dev");
        nix::unistd::mkfifo(&path.join("told"), nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        let (port, netboot, in_band) = (free_udp_port(), free_port(), free_port());
        let (sol, serial) = serial_wire();
        let at = path.display();
        let lan = format!(
            "name \"lab\"\nset_working_mc 0x20\nstartlan 1\naddr 127.0.0.1 {port}\npriv_limit admin\n\
             allowed_auths_admin none md2 md5 straight\nguid 00112233445566778899aabbccddee00\nendlan\n\
             loadlib \"{at}/chassis.so\" \"{at}/told\"\nsol \"telnet:127.0.0.1:{sol}\" 115200\n\
             serial 15 127.0.0.1 {in_band} codec VM\n\
             user 2 true \"admin\" \"secret\" admin 10 none md2 md5 straight\n"
        );
        let emulation = "mc_setbmc 0x20\nmc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02\n\
                         sel_enable 0x20 100 0x0a\nmc_enable 0x20\n\
                         sel_add 0x20 2 0 0 0 0 0x20 0 4 0x23 0x71 0x6f 1 0xff 0xff\n";
        std::fs::write(path.join("lan.conf"), lan).expect("lan.conf");
        std::fs::write(path.join("bmc.emu"), emulation).expect("bmc.emu");
        std::fs::create_dir(path.join("state")).expect("state");
        // Opened for both, so that neither end ever waits for the other.
        let told = OpenOptions::new().read(true).write(true).open(path.join("told")).expect("the pipe");
        let mut sim = Command::new("ipmi_sim")
            .args(["-c", "lan.conf", "-f", "bmc.emu", "-s", "state"])
            .current_dir(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("ipmi_sim (Debian package openipmi)");
        // It prompts when its configuration is done and its sockets are open.
        let (mut said, mut out) = (Vec::new(), sim.stdout.take().expect("piped"));
        while !said.ends_with(b"> ") {
            let mut byte = [0];
            assert!(out.read(&mut byte).expect("text") > 0, "ipmi_sim ended: {}", String::from_utf8_lossy(&said));
            said.extend(byte);
        }
        std::thread::spawn(move || out.read_to_end(&mut Vec::new()));
        let lost = bad_wire(port);
        let wires = Wires { serial, netboot, in_band };
        let machine = std::thread::spawn(move || be_a_machine(BufReader::new(told), &wires));
        Self { sim, machine: Some(machine), directory, port, netboot, lost }
    }

    /// The machines' part of a controller's configuration. The server is on this host, which the machine has at 10.9.8.2.
    fn configuration(&self) -> String {
        let password = self.directory.path().join("password");
        std::fs::write(&password, "secret\n").expect("the password");
        std::fs::set_permissions(&password, std::fs::Permissions::from_mode(0o600)).expect("chmod");
        format!(
            "[netboot]\nlisten = \"127.0.0.1:{}\"\n\n[[machine]]\nname = \"m1\"\ncmdline = \"no_timer_check\"\n\
             server_from_machine = \"http://10.9.8.2:SERVER\"\n\n[machine.metal.power.ipmi]\nhost = \"{WIRE}\"\n\
             port = {}\nuser = \"admin\"\npassword_file = \"{}/password\"\n\n[[machine.metal.console]]\nsol = true\n",
            self.netboot,
            self.port,
            self.directory.path().display()
        )
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.sim.kill();
        let _ = self.sim.wait();
        // The last word to the machine, by the same way as all others.
        let told = OpenOptions::new().write(true).open(self.directory.path().join("told"));
        let _ = told.and_then(|mut told| told.write_all(b"end\n"));
        let _ = self.machine.take().map(JoinHandle::join);
    }
}

fn free_udp_port() -> u16 {
    std::net::UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port").port()
}

/// How long a datagram is under way.
const DELAY: Duration = Duration::from_millis(20);

/// One of so many datagrams of serial over LAN is lost. A lost command is another test's: an NMI must not be sent twice.
///
/// Not more of them: `ipmi_sim` counts what it sends again over as many packets as follow each other without a pause, and at the
/// sixth it drops what it has and never reads the serial port again, in this session or another (`sol_timeout` in lanserv/sol.c of
/// OpenIPMI 2.0). A machine that boots quickly prints without a pause; its whole console is some 500 datagrams.
const LOSES: usize = 200;

/// Where the wire to the BMC begins. It has the BMC's port: serial over LAN names it, and `ipmitool` takes no other.
const WIRE: &str = "127.0.0.2";

/// A wire to the BMC's port; returns how many datagrams it has lost.
fn bad_wire(bmc: u16) -> Arc<AtomicUsize> {
    let front = Arc::new(UdpSocket::bind((WIRE, bmc)).expect("the BMC's port at another address"));
    let (seen, lost) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let losing = lost.clone();
    // The payload type of an RMCP+ datagram is at byte 5; 1 is serial over LAN (IPMI 2.0, table 13-16).
    let passes = move |datagram: &[u8]| {
        #[expect(clippy::disallowed_methods, reason = "the wire is slow; nobody waits here for anything to happen")]
        std::thread::sleep(DELAY);
        let console = datagram.get(5).is_some_and(|kind| kind & 0x3f == 1);
        if console && (seen.fetch_add(1, Ordering::SeqCst) + 1).is_multiple_of(LOSES) {
            losing.fetch_add(1, Ordering::SeqCst);
            return false;
        }
        true
    };
    std::thread::spawn(move || {
        let mut sessions: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
        let mut buffer = [0; 2048];
        while let Ok((size, client)) = front.recv_from(&mut buffer) {
            let session = sessions.entry(client).or_insert_with(|| {
                let back = Arc::new(UdpSocket::bind("127.0.0.1:0").expect("a port"));
                back.connect(("127.0.0.1", bmc)).expect("the BMC");
                let (replies, front, passes) = (back.clone(), front.clone(), passes.clone());
                std::thread::spawn(move || {
                    let mut buffer = [0; 2048];
                    while let Ok(size) = replies.recv(&mut buffer) {
                        if passes(&buffer[..size]) {
                            // A client that has given up is no trouble of the wire's.
                            let _ = front.send_to(&buffer[..size], client);
                        }
                    }
                });
                back
            });
            if passes(&buffer[..size]) {
                let _ = session.send(&buffer[..size]);
            }
        }
    });
    lost
}

/// Does what the BMC was told, as the board of a machine does.
fn be_a_machine(told: impl std::io::BufRead, wires: &Wires) {
    let (mut running, mut from_network): (Option<Child>, bool) = (None, false);
    let stop = |running: &mut Option<Child>| {
        if let Some(mut machine) = running.take() {
            machine.kill().and_then(|()| machine.wait()).expect("QEMU ends");
        }
    };
    for line in told.lines() {
        match line.expect("text").as_str() {
            "control 0" | "end 0" => stop(&mut running),
            "control 1" if running.is_none() => running = Some(firmware(wires, std::mem::take(&mut from_network))),
            "control 4" => {
                let monitor = running.as_mut().and_then(|machine| machine.stdin.as_mut());
                monitor.expect("a machine that is on").write_all(b"nmi\n").expect("QEMU's monitor");
            }
            "control 3" => {
                stop(&mut running);
                running = Some(firmware(wires, std::mem::take(&mut from_network)));
            }
            // Force PXE, IPMI 2.0 section 28.12.
            "boot 1" => from_network = true,
            "end" => return stop(&mut running),
            _ => {}
        }
    }
}

/// A PC with 2 CPUs, no disk, and a network card that can boot.
fn firmware(wires: &Wires, from_network: bool) -> Child {
    let script = format!("http://10.9.8.2:{}/boot/m1/boot.ipxe", wires.netboot);
    Command::new("qemu-system-x86_64")
        // Without graphics the firmware speaks on the serial port.
        .args(["-machine", "pc,graphics=off", "-accel", "tcg,thread=single", "-m", "1024", "-smp", "2"])
        .args(["-display", "none", "-nodefaults", "-no-user-config"])
        .args(["-chardev", &format!("socket,id=s,host=127.0.0.1,port={}", wires.serial)])
        .args(["-serial", "chardev:s"])
        // Addresses that nobody could have guessed, and a card that the kernel for virtual machines has no driver for.
        .args(["-netdev", &format!("user,id=n,net=10.9.8.0/24,bootfile={script}"), "-device", "e1000e,netdev=n"])
        .args(["-chardev", &format!("socket,id=b,host=127.0.0.1,port={},reconnect=1", wires.in_band)])
        .args(["-device", "ipmi-bmc-extern,id=bmc,chardev=b", "-device", "isa-ipmi-kcs,bmc=bmc"])
        .args(["-boot", if from_network { "order=n" } else { "order=c" }])
        .args(["-monitor", "stdio"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("qemu-system-x86_64")
}

#[tokio::test]
async fn a_machine_with_a_bmc_crashes_by_itself_and_by_its_bmcs_nmi_whoever_asks_for_it_and_is_judged_from_outside() {
    let lab = Lab::start();
    let data = tempfile::tempdir().expect("a temporary directory");
    let machines = lab.directory.path().join("machines.toml");
    let port = free_port();
    std::fs::write(&machines, lab.configuration().replace("SERVER", &port.to_string())).expect("machines.toml");
    let farm = data.path().join("farm");
    let words = ["--machines", "", "--driver", "metal", "--module", "e1000e"].map(std::ffi::OsStr::new);
    let options = words.map(|word| if word.is_empty() { machines.as_os_str() } else { word });
    let mut demo = Demo::start_at(&farm, port, &["sysrq-c", "nmi", "bmc-nmi"], &options);
    demo.wait_for("3 of 3 as predicted");
    let client = Client::new(&demo.url, None);
    let runs: Page<Run> = client.get("/api/v1/runs").await.unwrap();
    let jobs: Vec<Job> = client.run_jobs(&runs.items[0].id).await.unwrap();
    for (scenario, panicked) in [
        ("sysrq-c", "The intended panic is on console line"),
        ("nmi", "in the log of the dump"),
        ("bmc-nmi", "in the log of the dump"),
    ] {
        let job = jobs.iter().find(|job| job.scenario.name == scenario).expect("a job of each");
        assert_eq!(job.status, Status::Pass, "{:?}", job.reason);
        let attempt: Attempt = client.attempt(&job.attempts[0]).await.unwrap();
        let proven: Vec<&Stage> = attempt.stages.iter().filter(|stage| stage.state == StageState::Proven).collect();
        assert_eq!(proven.iter().map(|stage| stage.name).collect::<Vec<_>>(), StageName::ALL);
        // Debian's 6.1 prints nothing of a panic in an NMI before it jumps.
        let why = proven.iter().find(|stage| stage.name == StageName::Panicked).and_then(|stage| stage.reason.as_ref());
        assert!(why.is_some_and(|why| why.contains(panicked)), "{scenario}: {why:?}");
        let console = attempt.artifacts.iter().find(|file| file.name == "console-serial").expect("a console");
        let console = client.download(&console.id, 0).await.unwrap().text().await.unwrap();
        let begins = &console[..console.len().min(500)];
        assert!(console.contains("iPXE"), "the firmware is on the console as well: {begins}");
        // Who asked the BMC: its controller over the network, or the agent on it in band.
        let evidence: Vec<Evidence> =
            client.get(&format!("/api/v1/attempts/{}/evidence", job.attempts[0])).await.unwrap();
        let by_controller =
            evidence.iter().any(|one| matches!(&one.report, Report::Power { action, .. } if action == "nmi"));
        assert_eq!(by_controller, scenario == "nmi", "{scenario}: {evidence:?}");
        let found = evidence.iter().find_map(|one| match &one.report {
            Report::Step { name, ok: true, output, .. } if name == "find-bmc" => Some(output.as_str()),
            _ => None,
        });
        let answers = "the BMC at /dev/ipmi0 answers: manufacturer 4753, firmware 9.08";
        assert_eq!(found, (scenario == "bmc-nmi").then_some(answers), "{scenario}");
        let missed: Vec<_> = console.lines().filter(|line| line.contains("was not heard")).collect();
        assert!(missed.is_empty(), "{missed:?} in a console that begins with {begins}");
    }

    let found = client.machine_inventory("m1").await.unwrap();
    for fact in ["cpu.vendor", "memory.mib", "firmware.version", "network.cards", "bmc.firmware"] {
        assert!(found.facts.contains_key(fact), "{fact} in {found:?}");
    }
    assert_eq!(found.facts["network.cards"], "8086:10d3");
    // In band, the BMC's log is the same that the controller reads over the network.
    assert_eq!(found.facts["bmc.events"], "1");
    let noted = &found.facts["bmc.last_event"];
    assert!(noted.starts_with("1 | ") && noted.contains(" | Watchdog 2 0x71 | Hard Reset | asserted | "), "{noted}");
    let interfaces = found.interfaces();
    assert!(interfaces.iter().any(|one| one.starts_with("eth0: e1000e, 1000 Mbit/s, at 0000:")), "{interfaces:?}");
    assert!(lab.lost.load(Ordering::SeqCst) > 0, "the wire was as bad as it should be");

    // A check beside a running controller is refused: it would take the console from it.
    assert!(demo.interrupt().0.success());
    let check = Command::new(Path::new(env!("CARGO_BIN_EXE_crashyard-lab")).with_file_name("crashyard-agent"))
        .args(["machine", "check", "m1", "--cycle", "--json", "--config"])
        .arg(farm.join("controller.toml"))
        .output()
        .expect("crashyard-agent, built with the workspace");
    let said = String::from_utf8_lossy(&check.stdout);
    let report: serde_json::Value = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {check:?}"));
    let seen = |capability: &str| {
        let all = report["findings"].as_array().expect("a list");
        all.iter().find(|one| one["capability"] == capability).map(|one| one["seen"].clone()).unwrap_or_default()
    };
    for capability in ["power state", "power off", "power on", "network boot", "console serial", "event log"] {
        assert_eq!(seen(capability), "works", "{capability}: {said}");
    }
    assert_eq!(seen("NMI"), "unknown", "IPMI does not say, and nobody was to try: {said}");
    assert!(check.status.success());
}
