//! Redfish against a real service: OpenStack's sushy-emulator with its driver for machines that exist in memory only.
//!
//! It is installed from its registry into a directory of the build, once. What its driver for machines in memory gets wrong
//! stays visible here: it advertises an NMI and refuses to send one. With its driver for libvirt the machine is a real one,
//! as far as QEMU is ([`board`]). Neither has log services.

mod board;
mod certificates;
#[path = "../bochs/guest.rs"]
mod guest;

use board::Board;
use crashyard_agent::controller::metal::chassis::Chassis as _;
use crashyard_agent::controller::metal::redfish::{Redfish, RedfishConfig};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

/// Where the service is installed; the lock keeps two test runs from installing it at once.
fn installed() -> PathBuf {
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join("sushy-tools");
    std::fs::create_dir_all(&home).unwrap();
    let lock = std::fs::File::create(home.join("lock")).unwrap();
    lock.lock().unwrap();
    let requirements = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/redfish/requirements.txt");
    // With Debian's own packages, as libvirt's bindings come from there; they are for Debian's Python and no other.
    let options = ["-m", "venv", "--clear", "--system-site-packages"];
    let wanted = format!("{options:?}\n{}", std::fs::read_to_string(requirements).unwrap());
    let done = home.join("installed");
    if std::fs::read_to_string(&done).ok().as_ref() != Some(&wanted) {
        let run = |program: &Path, arguments: &[&str]| {
            let status = std::process::Command::new(program).args(arguments).stdout(Stdio::null()).status();
            assert!(status.unwrap().success(), "{} {arguments:?} (Debian package python3-venv)", program.display());
        };
        let venv = home.join("venv");
        run(Path::new("/usr/bin/python3"), &[&options[..], &[venv.to_str().unwrap()]].concat());
        run(&venv.join("bin/pip"), &["install", "--quiet", "--requirement", requirements]);
        std::fs::write(&done, wanted).unwrap();
    }
    home.join("venv/bin/sushy-emulator")
}

/// The way to a service, without a password.
fn way(url: &str) -> RedfishConfig {
    RedfishConfig { url: url.into(), system: None, user: None, password_file: None, ca_file: None, insecure: false }
}

/// The service; it ends with this.
struct Service {
    url: String,
    _process: Child,
    _directory: tempfile::TempDir,
}

impl Service {
    /// With the driver that these arguments choose.
    async fn start(driver: &[&str]) -> Self {
        Self::configured(driver, "").await
    }

    /// With these lines in its configuration, too.
    async fn configured(arguments: &[&str], lines: &str) -> Self {
        let program = installed();
        let directory = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = directory.path().join("emulator.conf");
        std::fs::write(
            &config,
            format!("SUSHY_EMULATOR_STATE_DIR = {:?}\n{lines}", directory.path().display().to_string()),
        )
        .unwrap();
        let mut process = Command::new(program)
            .args(arguments)
            .args(["--interface", "127.0.0.1", "--port", &port.to_string(), "--config"])
            .arg(&config)
            .current_dir(directory.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let mut said = Vec::new();
        let url = loop {
            let line = lines.next_line().await.unwrap().unwrap_or_else(|| panic!("it ended: {said:?}"));
            if let Some((_, url)) = line.split_once("Running on ") {
                break url.trim().to_owned();
            }
            said.push(line);
        };
        // Its later output has to go somewhere.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Self { url, _process: process, _directory: directory }
    }

    /// The way to it, without a password.
    fn config(&self) -> RedfishConfig {
        way(&self.url)
    }

    fn redfish(&self) -> Redfish {
        Redfish::new(&self.config()).unwrap()
    }
}

#[tokio::test]
async fn power_and_boot_override_are_done_and_seen_and_what_is_not_there_is_said() {
    let service = Service::start(&["--fake"]).await;
    let machine = service.redfish();
    machine.power(false).await.unwrap();
    assert!(!machine.is_on().await.unwrap());
    let boots = machine.boot_from_network_once().await.unwrap();
    assert_eq!(boots, "its boots are from the network, all of them: the service says \"Continuous\"", "as it says");
    assert_eq!(machine.power(true).await.unwrap(), "the service says that it is on");
    assert!(machine.is_on().await.unwrap());
    assert_eq!(machine.power(true).await.unwrap(), "the service says that it is on already");
    assert!(machine.reset().await.unwrap().contains("ForceRestart"));
    assert!(machine.can_nmi().await.unwrap().contains("advertises Nmi"));
    let refused = format!("{:#}", machine.nmi().await.unwrap_err());
    assert!(refused.contains("501"), "it advertises what it does not do, and that is seen: {refused}");
    assert_eq!(machine.events().await.unwrap(), None, "its log services are advertised at most");
    assert!(machine.identify(15).await.unwrap().starts_with("its light is on"));
    assert_eq!(machine.identify(0).await.unwrap(), "its light is off");
    machine.power(false).await.unwrap();
}

#[tokio::test]
async fn an_nmi_by_redfish_arrives_at_a_real_machine() {
    let board = Board::start().await;
    let service = Service::start(&["--libvirt-uri", &board.uri()]).await;
    let machine = service.redfish();
    assert!(!machine.is_on().await.unwrap());
    assert!(machine.can_nmi().await.unwrap().contains("advertises Nmi"));
    assert_eq!(machine.power(true).await.unwrap(), "the service says that it is on");
    let mut serial = board.serial().await;
    serial.says(guest::GREETING).await;
    assert_eq!(machine.nmi().await.unwrap(), "the service took the reset Nmi");
    serial.says("the guest got an NMI\r\n").await;
    assert_eq!(machine.reset().await.unwrap(), "the service took the reset ForceRestart");
    // Libvirt's driver makes another QEMU.
    serial.ends().await;
    serial = board.serial().await;
    serial.says(guest::GREETING).await;
    assert_eq!(machine.power(false).await.unwrap(), "the service says that it is off");
    serial.ends().await;
}

#[tokio::test]
async fn a_service_that_is_not_there_or_another_system_is_an_error_that_names_it() {
    let service = Service::start(&["--fake"]).await;
    let other = RedfishConfig { system: Some("no-such-system".into()), ..service.config() };
    let error = format!("{:#}", Redfish::new(&other).unwrap().is_on().await.unwrap_err());
    assert!(error.contains("no-such-system") && error.contains("404"), "{error}");
    let strange = RedfishConfig { system: Some("../../etc".into()), ..other.clone() };
    assert!(Redfish::new(&strange).unwrap().is_on().await.is_err());
    let gone = RedfishConfig { url: "http://127.0.0.1:1".into(), ..other };
    let error = format!("{:#}", Redfish::new(&gone).unwrap().is_on().await.unwrap_err());
    assert!(error.contains("ask http://127.0.0.1:1"), "{error}");
}
