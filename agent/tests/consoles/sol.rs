//! Serial over LAN against a real BMC's end of it, `ipmi_sim`, which as real ones has one console session for all.

use super::sim::{Cut, Sim};
use super::{Opened, PATIENCE, gaps, open_by, until, words};
use crashyard_protocol::agent::Keys;
use std::process::Stdio;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// The machine's end of the serial port, once the BMC is connected to it.
async fn machine(sim: &Sim) -> TcpStream {
    tokio::time::timeout(PATIENCE, sim.serial.accept()).await.expect("the BMC connects").unwrap().0
}

/// Types, and returns when the BMC has given this console its session; what the machine prints before goes to nobody.
/// `ipmitool` itself says nothing of that until it has something to print. What is typed is not waited for: `ipmi_sim` takes the
/// first keys of a session for those of the session before it, repeated, and drops them.
async fn given(sim: &Sim, console: &Opened) {
    let used = sim.wire.next_use_of_console();
    console.press(&words("typed")).await.unwrap();
    tokio::time::timeout(PATIENCE, used).await.expect("the BMC gives the console");
}

#[tokio::test]
async fn a_session_that_a_dead_controller_left_does_not_keep_the_next_one_out() {
    let (sim, dir) = (Sim::start().await, tempfile::tempdir().unwrap());
    let (mut machine, bmc) = (machine(&sim).await, sim.bmc(3));
    let mut dead = bmc.sol("activate");
    let mut dead = dead.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    dead.stdin.as_mut().unwrap().write_all(b"typed").await.unwrap();
    let mut heard = Vec::new();
    // The BMC's telnet says something of its own first.
    while !heard.ends_with(b"typed") {
        assert!(machine.read_buf(&mut heard).await.unwrap() > 0, "the BMC closed the port");
    }
    dead.kill().await.unwrap();

    let refused = bmc.sol("activate").stdin(Stdio::piped()).output().await.unwrap();
    let why = String::from_utf8_lossy(&refused.stderr);
    assert!(why.contains("already active on another session"), "what makes this a test: {refused:?}");

    let console = open_by("sol = true", dir.path(), Some(&bmc));
    given(&sim, &console).await;
    machine.write_all(b"[    1.0] up\r\n").await.unwrap();
    let heard = String::from_utf8(until(&*console, "[    1.0] up").await).unwrap();
    assert!(!heard.contains("already active"), "it is let in at once: {heard}");
}

/// By `ipmitool`'s own command for a break, which the BMC passes on as telnet's, since that is its way to this serial port.
#[tokio::test]
async fn a_break_and_a_sysrq_key_go_through_a_bmc() {
    let (sim, dir) = (Sim::start().await, tempfile::tempdir().unwrap());
    let (mut machine, bmc) = (machine(&sim).await, sim.bmc(3));
    let console = open_by("sol = true", dir.path(), Some(&bmc));
    console.press(&Keys::Sysrq('t')).await.unwrap();
    let mut heard = Vec::new();
    let read = tokio::time::timeout(PATIENCE, async {
        while !heard.ends_with(b"t") {
            assert!(machine.read_buf(&mut heard).await.unwrap() > 0, "the BMC closed the port");
        }
    });
    read.await.unwrap_or_else(|_| panic!("the key does not arrive: {heard:x?}"));
    assert!(heard.windows(2).any(|two| two == [0xff, 243]), "no break: {heard:x?}");
}

/// A network that takes everything, which `ipmitool` notices after a minute and a half; and a session whose keep-alive the
/// BMC answers although its console brings nothing any more, which it never notices.
#[tokio::test]
async fn a_session_that_has_gone_silent_is_opened_anew_whether_its_keep_alive_is_answered_or_not() {
    for cut in [Cut::Everything, Cut::Console] {
        let (sim, dir) = (Sim::start().await, tempfile::tempdir().unwrap());
        let (mut machine, bmc) = (machine(&sim).await, sim.bmc(3));
        let console = open_by("sol = true\nstall_seconds = 5", dir.path(), Some(&bmc));
        given(&sim, &console).await;
        machine.write_all(b"[    1.0] up\r\n").await.unwrap();
        until(&*console, "[    1.0] up").await;

        let client = sim.wire.next_client();
        sim.wire.cut(cut);
        tokio::time::timeout(PATIENCE, client).await.expect("the session is given up");
        sim.wire.cut(Cut::Nothing);

        given(&sim, &console).await;
        machine.write_all(b"[    3.0] back\r\n").await.unwrap();
        let heard = until(&*console, "[    3.0] back").await;
        assert!(gaps(&heard) > 0, "{cut:?}: {}", String::from_utf8_lossy(&heard));
        until(&*console, "it brought nothing for too long]\r\n").await;
    }
}
