//! The driver for Bochs on a real Bochs, with a guest that does what it is told: every way in which an emulated machine
//! can end, what is left behind by one that was killed, and who can reach it.

mod books;
mod guest;
mod machine;
#[expect(dead_code, reason = "its story is another one; here only its books are read")]
#[path = "../survival/server.rs"]
mod server;
mod sockets;
#[expect(dead_code, reason = "as for the server")]
#[path = "../survival/world.rs"]
mod world;

use books::{count, read};
use crashyard_agent::controller::machine::PowerStatus;
use crashyard_protocol::agent::Report;
use guest::{GREETING, guest};
use machine::{AGENT, Machine, gone, lives, lock_of, processes, type_in, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use server::Server;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use world::World;

fn kill_at_once(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("kill");
}

#[tokio::test]
async fn a_power_off_by_acpi_is_a_normal_end() {
    let machine = Machine::new();
    let attached = machine.boot(1).await;
    type_in(&attached, "o").await;
    let how = attached.power.ended().await.unwrap();
    assert!(how.starts_with("the guest powered off (") && how.ends_with(" s of CPU)"), "{how}");
    assert_eq!(attached.power.status().await.unwrap(), PowerStatus::Ended(how.clone()));
    assert_eq!(attached.power.off().await.unwrap(), format!("Bochs is gone: {how}"));
    attached.power.check().await.unwrap();
}

#[tokio::test]
async fn a_triple_fault_is_evidence_with_the_registers_and_not_another_boot() {
    let machine = Machine::new();
    let attached = machine.boot(1).await;
    type_in(&attached, "t").await;
    let how = attached.power.ended().await.unwrap();
    assert!(how.starts_with("triple fault: exception(): 3rd (13) exception with no resolution; "), "{how}");
    assert!(how.contains("CR4=0x00000000"), "the registers say whether VMX was on: {how}");
    // The log itself is kept as evidence, by the name under which the server finds it.
    let log = attached.logs.iter().find(|(name, _)| name == "emulator.log").expect("the emulator's log");
    assert!(std::fs::read_to_string(&log.1).unwrap().contains(">>PANIC<< exception(): 3rd (13)"));
    until(&attached, |said| said.matches(GREETING).count() == 1).await;
    attached.power.off().await.unwrap();
}

#[tokio::test]
async fn nothing_of_a_machine_listens_outside_of_its_own_network() {
    let machine = Machine::new();
    let attached = machine.boot(1).await;
    let (keeper, bochs) = processes(machine.path());
    // Bochs does listen on all addresses, where it is: a check that finds nothing there would find nothing anywhere.
    let display = sockets::listeners_in_network_of(bochs);
    assert!(display.iter().any(|listener| listener.starts_with("0.0.0.0:59")), "the display: {display:?}");
    let inside = std::fs::read_link(format!("/proc/{bochs}/ns/net")).unwrap();
    assert_ne!(inside, std::fs::read_link("/proc/self/ns/net").unwrap(), "Bochs has a network of its own");
    assert_eq!(sockets::interfaces_in_network_of(bochs), ["lo"], "with nothing in it that leads outside");
    // And here, where everybody else is, neither it nor its keeper has anything open to anybody.
    for pid in [keeper, bochs] {
        assert_eq!(sockets::open_here(pid), Vec::<String>::new(), "of process {pid}");
    }
    let ours = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let found = sockets::open_here(i32::try_from(std::process::id()).unwrap());
    assert!(found.contains(&ours.local_addr().unwrap().to_string()), "what is open is found: {found:?}");
    attached.power.off().await.unwrap();
}

#[tokio::test]
async fn whoever_watches_or_types_may_go_away_at_any_time() {
    let machine = Machine::new();
    let attached = machine.boot(1).await;
    let (keeper, bochs) = processes(machine.path());
    // A console that nobody reads any more must not end the machine: signal 13 is SIGPIPE.
    let status = std::fs::read_to_string(format!("/proc/{bochs}/status")).unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:\t")).expect("signals");
    assert_ne!(u64::from_str_radix(ignored, 16).unwrap() & 1 << 12, 0, "Bochs ignores SIGPIPE: {ignored}");
    for _ in 0..20 {
        // By the socket's own path, as controllers of other times and places come and go.
        drop(UnixStream::connect(machine.path().join("control.sock")).await.unwrap());
        let typist = UnixStream::connect(machine.path().join("serial.sock")).await.unwrap();
        typist.try_write(b"?").unwrap();
        drop(typist);
    }
    type_in(&attached, "m").await;
    until(&attached, |said| said.ends_with("crashyard: trigger job=J\r\n")).await;
    assert_eq!(attached.power.status().await.unwrap(), PowerStatus::On);
    assert!(lives(keeper) && lives(bochs));
    attached.power.off().await.unwrap();
    gone(keeper).await;
    assert!(!lives(bochs), "off means off");
}

#[tokio::test]
async fn a_killed_bochs_is_told_from_one_that_ended_and_leaves_nothing_in_the_way() {
    let machine = Machine::new();
    let attached = machine.boot(1).await;
    let (_, bochs) = processes(machine.path());
    kill_at_once(bochs);
    let how = attached.power.ended().await.unwrap();
    assert!(how.contains("signal: 9"), "{how}");
    assert!(lock_of(machine.path()).exists(), "a killed Bochs leaves its lock: without it this test proves nothing");
    attached.power.off().await.unwrap();
    assert!(!lock_of(machine.path()).exists(), "which is taken away");
    let again = machine.boot(2).await;
    again.power.off().await.unwrap();
}

#[tokio::test]
async fn a_killed_keeper_takes_bochs_along_and_leaves_nothing_in_the_way() {
    let machine = Machine::new();
    let attached = machine.boot(1).await;
    let (keeper, bochs) = processes(machine.path());
    kill_at_once(keeper);
    gone(bochs).await;
    assert!(lock_of(machine.path()).exists() && machine.path().join("control.sock").exists(), "this is what is left");
    // A controller that comes later sees that it ran, and that it is over.
    let later = machine.attach();
    assert!(matches!(later.power.status().await.unwrap(), PowerStatus::Ended(_)));
    assert!(later.power.ended().await.unwrap().contains("gone"));
    // The machine of the attempt before may have left the lock; so powering on takes it away as well.
    machine.power_on_again().await.unwrap();
    until(&attached, |said| said.matches(GREETING).count() == 2).await;
    later.power.off().await.unwrap();
    later.power.check().await.unwrap();
    assert!(!lock_of(machine.path()).exists());
}

#[tokio::test]
async fn a_keeper_that_does_not_answer_is_killed() {
    let machine = Machine::new();
    let attached = machine.boot(1).await;
    let (keeper, bochs) = processes(machine.path());
    kill(Pid::from_raw(keeper), Signal::SIGSTOP).unwrap();
    let said = attached.power.off().await.unwrap();
    assert!(said.contains("did not obey and was killed"), "{said}");
    gone(bochs).await;
    gone(keeper).await;
    attached.power.check().await.unwrap();
}

/// A controller of one Bochs machine as a process, with its state in `directory`.
fn controller(directory: &Path, server: &Server) -> Child {
    let config = directory.join("controller.toml");
    let text = format!(
        "name = \"lab\"\nserver = \"{}\"\ntoken_file = \"token\"\nstate = \"state\"\n\n[[machine]]\nname = \"m1\"\n\n[machine.bochs]\n",
        server.url
    );
    std::fs::write(&config, text).unwrap();
    std::fs::write(directory.join("token"), "secret").unwrap();
    let mut command = Command::new(AGENT);
    command.args(["controller", "--config"]).arg(config).stdin(Stdio::null()).kill_on_drop(true);
    command.spawn().expect("the controller")
}

/// The machine's directory under the one attempt that there is.
fn attempt(directory: &Path) -> PathBuf {
    let mut attempts = std::fs::read_dir(directory.join("state/attempts")).unwrap();
    attempts.next().expect("an attempt").unwrap().path()
}

/// What must be true in the end, whatever happened in between.
fn check(server: &Server, directory: &Path, (keeper, bochs): (i32, i32), console: &str) {
    read(server, |books| {
        assert_eq!(String::from_utf8_lossy(&books.console), console, "the console is whole, and of one boot");
        assert_eq!(count(books, |report| matches!(report, Report::Power { action, .. } if action == "on")), 1);
        assert_eq!(
            count(books, |report| matches!(report, Report::Power { action, ok: true, .. } if action == "off")),
            1
        );
        assert_eq!(count(books, |report| matches!(report, Report::Health { healthy: true, .. })), 1);
        assert!(books.logs.get("emulator.log").is_some_and(|(log, closed)| *closed && !log.is_empty()));
    });
    assert!(!lives(keeper) && !lives(bochs), "nothing runs on");
    assert_eq!(std::fs::read_dir(directory.join("state/attempts")).unwrap().count(), 0, "nothing is left to do");
}

#[tokio::test]
async fn a_controller_that_is_killed_finds_its_running_machine_again() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::with_build(&Arc::new(World::default()), [guest(), vec![0; 4096]]).await;
    let mut first = controller(directory.path(), &server);
    books::until(&server, |books| String::from_utf8_lossy(&books.console).contains(GREETING)).await;
    let machine = attempt(directory.path());
    let processes = processes(&machine);
    first.kill().await.unwrap();
    assert!(lives(processes.0) && lives(processes.1), "the machine goes on");
    // What it says while nobody is there must not get lost.
    let mut typist = UnixStream::connect(machine.join("serial.sock")).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut typist, b"m").await.unwrap();

    let mut second = controller(directory.path(), &server);
    // The marker makes the controller send an NMI, which this machine cannot be sent; so the server wants it back.
    books::until(&server, |books| books.released == 1).await;
    server.idle().await;
    second.kill().await.unwrap();
    check(&server, directory.path(), processes, &format!("{GREETING}crashyard: trigger job=J\r\n"));
    read(&server, |books| assert_eq!(count(books, |report| matches!(report, Report::MachineEnded { .. })), 0));
}

#[tokio::test]
async fn a_machine_that_died_with_its_controller_is_cleaned_up_and_not_booted_again() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::with_build(&Arc::new(World::default()), [guest(), vec![0; 4096]]).await;
    let mut first = controller(directory.path(), &server);
    books::until(&server, |books| String::from_utf8_lossy(&books.console).contains(GREETING)).await;
    let processes = processes(&attempt(directory.path()));
    first.kill().await.unwrap();
    kill_at_once(processes.0);
    gone(processes.1).await;

    let mut second = controller(directory.path(), &server);
    books::until(&server, |books| books.released == 1).await;
    server.idle().await;
    second.kill().await.unwrap();
    check(&server, directory.path(), processes, GREETING);
    read(&server, |books| {
        let ends = count(books, |report| matches!(report, Report::MachineEnded { detail } if detail.contains("gone")));
        assert_eq!(ends, 1, "and the server knows how it ended");
    });
}
