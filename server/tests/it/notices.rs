//! People are told that the machine they have goes back to the jobs.

use crate::fleet::{hand_back, machine};
use crate::harness::{Call, Server};
use crashyard_protocol::api::{Extension, Machine, NewReservation};
use crashyard_protocol::problem::kind;
use crashyard_server::passes::{Next, machines, notices};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;
use tokio::io::AsyncReadExt as _;

/// A command that keeps what it is told, and fails as long as there is a file `broken`.
const KEEPS: &str = "[ -e broken ] && exit 3\ncat >>told; echo >>told; env >environment";

/// One that never ends, and neither does what it starts. All of them have the pipe `lives` open.
const NEVER_ENDS: &str = "exec >lives\n(trap '' TERM HUP INT; echo up; while :; do sleep 60; done) &\nwait";

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(300);

/// A server with this command, which runs in the server's directory.
async fn server(command: &str) -> Server {
    let dir = std::sync::Arc::new(tempfile::tempdir().unwrap());
    let script = dir.path().join("tell");
    std::fs::write(&script, format!("#!/bin/sh\ncd \"$1\" || exit 9\n{command}\n")).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let blobs = crashyard_server::blobs::Blobs::open(&format!("dir:{}", dir.path().join("blobs").display())).unwrap();
    let place = dir.path().display().to_string();
    Server::over(dir, blobs, |config| config.notify_command = vec![script.display().to_string(), place]).await
}

fn reserve(notify: Option<&str>) -> Call {
    let notify = notify.map(str::to_owned);
    let new = NewReservation { minutes: 60, reason: "debugs \"it\"; $(touch x)".into(), notify };
    Call::post("/api/v1/machines/m1/reservation", &new)
}

fn told(dir: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(dir.join("told")).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

async fn pass(server: &Server, minutes: u64) {
    server.advance(minutes * 60);
    machines::tick(&server.state).await.unwrap();
    notices::tick(&server.state).await.unwrap();
}

#[tokio::test]
async fn an_owner_is_told_before_the_end_and_after_it_each_once_whoever_is_killed() {
    let server = server(KEEPS).await;
    server.enrol(&["m1"]).await;
    let dir = server.dir.path().to_owned();
    server.call(reserve(Some("kris@example.org")).token(&server.submit)).await.ok::<Machine>();
    assert!(machine(&server, "m1").await.reservation.unwrap().notifies);
    pass(&server, 30).await;
    assert!(told(&dir).is_empty(), "there is time");
    // The server that announced it is killed before it has told anybody.
    server.advance(16 * 60);
    machines::tick(&server.state).await.unwrap();
    let server = server.restarted().await;
    for _ in 0..2 {
        pass(&server, 0).await;
    }
    let events = told(&dir);
    assert_eq!(events.len(), 1, "{events:?}");
    for (field, wanted) in [
        ("event", "ends-soon"),
        ("machine", "m1"),
        ("owner", "token:submit"),
        ("address", "kris@example.org"),
        ("reason", "debugs \"it\"; $(touch x)"),
    ] {
        assert_eq!(events[0][field], wanted, "{events:?}");
    }
    let text = events[0]["text"].as_str().unwrap();
    assert!(
        text.starts_with("m1 is yours until 2026-11-23 13:00:00 UTC")
            && text.contains("crashyard reserve m1 --extend 2h"),
        "{text}"
    );
    let extend = Call::put_json("/api/v1/machines/m1/reservation", &Extension { minutes: 20 });
    server.call(extend.token(&server.submit)).await.ok::<Machine>();
    pass(&server, 6).await;
    assert_eq!(told(&dir).len(), 2, "another end is told anew");
    pass(&server, 15).await;
    assert_eq!(told(&dir)[2]["event"], "ended");
    let environment = std::fs::read_to_string(dir.join("environment")).unwrap();
    let cargo = environment.lines().any(|line| line.starts_with("CARGO"));
    assert!(!cargo, "nothing of the server's environment: {environment}");
}

#[tokio::test]
async fn what_could_not_be_told_is_tried_again_and_not_for_ever() {
    let server = server(KEEPS).await;
    server.enrol(&["m1"]).await;
    let dir = server.dir.path().to_owned();
    let broken = dir.join("broken");
    std::fs::write(&broken, "").unwrap();
    server.call(reserve(Some("kris")).token(&server.submit)).await.ok::<Machine>();
    pass(&server, 46).await;
    assert_eq!(
        notices::tick(&server.state).await.unwrap(),
        Next::At(server.clock_now().plus(std::time::Duration::from_secs(60))),
        "a minute later again"
    );
    std::fs::remove_file(&broken).unwrap();
    pass(&server, 1).await;
    assert_eq!(told(&dir).len(), 1);

    std::fs::write(&broken, "").unwrap();
    pass(&server, 14).await;
    for _ in 0..5 {
        pass(&server, 20).await;
    }
    assert_eq!(notices::tick(&server.state).await.unwrap(), Next::Woken, "given up");
    std::fs::remove_file(&broken).unwrap();
    pass(&server, 60).await;
    assert_eq!(told(&dir).len(), 1);
}

#[tokio::test]
async fn a_command_that_does_not_end_is_killed_with_all_that_it_started_and_tried_again() {
    let server = server(NEVER_ENDS).await;
    server.enrol(&["m1"]).await;
    let lives = server.dir.path().join("lives");
    nix::unistd::mkfifo(&lives, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut lives = tokio::net::unix::pipe::OpenOptions::new().open_receiver(lives).unwrap();
    server.call(reserve(Some("kris")).token(&server.submit)).await.ok::<Machine>();
    server.advance(46 * 60);
    machines::tick(&server.state).await.unwrap();
    let half_a_minute_passes = async {
        let mut up = [0; 3];
        lives.read_exact(&mut up).await.unwrap();
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(30)).await;
        tokio::time::resume();
    };
    let again = Next::At(server.clock_now().plus(Duration::from_secs(60)));
    let told =
        tokio::time::timeout(PATIENCE, async { tokio::join!(notices::tick(&server.state), half_a_minute_passes) });
    assert_eq!(told.await.unwrap().0.unwrap(), again);
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, lives.read_to_end(&mut rest));
    ended.await.expect("nobody has the pipe any more").unwrap();
    let metrics = server.get("/metrics").await;
    let metrics = String::from_utf8_lossy(&metrics.body).into_owned();
    assert!(metrics.contains(r#"crashyard_notices_total{outcome="failed"} 1"#), "{metrics}");
}

#[tokio::test]
async fn who_hands_back_in_time_or_did_not_want_it_is_told_nothing() {
    let server = server(KEEPS).await;
    server.enrol(&["m1"]).await;
    let dir = server.dir.path().to_owned();
    server.call(reserve(Some("kris")).token(&server.submit)).await.ok::<Machine>();
    server.advance(46 * 60);
    machines::tick(&server.state).await.unwrap();
    server.call(hand_back("m1").token(&server.submit)).await.ok::<Machine>();
    pass(&server, 0).await;
    server.call(reserve(None).token(&server.submit)).await.ok::<Machine>();
    pass(&server, 46).await;
    pass(&server, 20).await;
    assert!(told(&dir).is_empty(), "{:?}", told(&dir));
    server.call(reserve(Some("kris")).token(&server.submit)).await.ok::<Machine>();
    server.call(hand_back("m1").token(&server.admin)).await.ok::<Machine>();
    pass(&server, 0).await;
    assert_eq!(told(&dir)[0]["text"], "token:admin ended your time with m1.");
}

#[tokio::test]
async fn a_server_that_tells_nobody_says_so_and_an_address_is_one_line() {
    let server = Server::new().await;
    server.enrol(&["m1"]).await;
    let problem = server.call(reserve(Some("kris")).token(&server.submit)).await.problem(400, kind::INVALID);
    assert!(problem.detail.contains("notify_command"), "{}", problem.detail);
    let server = self::server(KEEPS).await;
    server.enrol(&["m1"]).await;
    server.call(reserve(Some("a\nb")).token(&server.submit)).await.problem(400, kind::INVALID);
}
