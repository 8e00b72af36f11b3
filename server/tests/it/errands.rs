//! What controllers do with idle machines: checks that people want, and powering off after a person had the machine.

use crate::fleet::{claim, hand_back, history, machine, release, reserve, set_state};
use crate::harness::{Answer, Call, Server};
use axum::http::{Method, StatusCode};
use crashyard_protocol::MachineState;
use crashyard_protocol::agent::{ClaimRequest, Enrolled, Errand, ErrandDone, Order};
use crashyard_protocol::api::{Check, Machine, NewCheck};
use crashyard_protocol::check::{Finding, Seen};
use crashyard_protocol::problem::kind;
use crashyard_server::passes::machines;
use std::time::Duration;

/// A claim by a controller that does errands.
fn ask(server: &Server, lab: &Enrolled, wait_seconds: u32) -> Call {
    let machines = lab.machines.values().cloned().collect();
    let request = ClaimRequest { controller: lab.controller.clone(), machines, wait_seconds, errands: true };
    Call::post("/agent/v1/claim", &request).token(&server.controller)
}

async fn errand(server: &Server, lab: &Enrolled) -> Option<Errand> {
    let answer = server.call(ask(server, lab, 0)).await;
    (answer.status != StatusCode::NO_CONTENT).then(|| answer.ok())
}

/// The controller powers a machine off that a person had.
pub async fn powered_off(server: &Server, lab: &Enrolled) {
    let off = errand(server, lab).await.expect("it is powered off first");
    assert_eq!(off.order, Order::Off);
    done(server, &off, &ok("the BMC says that it is off")).await.no_content();
}

async fn done(server: &Server, errand: &Errand, done: &ErrandDone) -> Answer {
    let call = Call::post(format!("/agent/v1/errands/{}", errand.errand), done);
    server.call(call.token(&server.controller)).await
}

fn ok(detail: &str) -> ErrandDone {
    ErrandDone { ok: true, detail: detail.into(), findings: Vec::new() }
}

fn failed(detail: &str) -> ErrandDone {
    ErrandDone { ok: false, ..ok(detail) }
}

fn want(cycle: bool) -> Call {
    Call::post("/api/v1/machines/m1/check", &NewCheck { cycle })
}

async fn check(server: &Server) -> Check {
    server.get("/api/v1/machines/m1/check").await.ok()
}

fn findings() -> Vec<Finding> {
    let finding = |capability: &str, seen, detail: &str| Finding {
        capability: capability.into(),
        seen,
        detail: detail.into(),
        needed: true,
    };
    vec![
        finding("power state", Seen::Works, "the BMC says that it is on"),
        finding("console serial", Seen::Fails, "it said \"<script>alert(1)</script>\u{1b}[31m\""),
    ]
}

async fn page(server: &Server) -> String {
    String::from_utf8(server.get("/machines/m1").await.body.to_vec()).unwrap()
}

#[tokio::test]
async fn a_check_comes_before_the_next_job_is_given_until_it_is_done_and_stays_with_the_machine() {
    let server = Server::new().await;
    let lab = server.enrol(&["m1"]).await;
    server.get("/api/v1/machines/m1/check").await.problem(404, kind::NOT_FOUND);
    server.call(want(false).token(&server.submit)).await.problem(403, kind::FORBIDDEN);
    let wanted: Check = server.call(want(false).token(&server.admin)).await.ok();
    assert_eq!(wanted.waits.as_deref(), Some("waiting for controller lab; the machine is idle"));
    let again: Check = server.call(want(false).token(&server.admin)).await.ok();
    assert_eq!(again.id, wanted.id, "it is not wanted twice");
    server.call(want(true).token(&server.admin)).await.problem(409, kind::CONFLICT);
    server.run(1).await;

    let given = errand(&server, &lab).await.unwrap();
    assert_eq!((&given.errand, given.order), (&wanted.id, Order::Check { cycle: false }));
    assert_eq!(check(&server).await.waits.as_deref(), Some("controller lab is at it"));
    // The server is killed, then the controller: whoever comes next is given it again.
    let server = server.restarted().await;
    assert_eq!(errand(&server, &lab).await.unwrap(), given);
    assert!(claim_is_refused_work(&server, &lab).await, "no job before it is done");

    let report = ErrandDone { findings: findings(), ..ok("") };
    for _ in 0..2 {
        done(&server, &given, &report).await.no_content();
    }
    let over = check(&server).await;
    assert_eq!((over.findings, over.failed, over.waits), (findings(), None, None));
    assert!(over.ended_at.is_some());
    let page = page(&server).await;
    assert!(page.contains("console serial") && page.contains("&#60;script&#62;"), "{page}");
    assert!(!page.contains("<script>alert") && !page.contains('\u{1b}'), "{page}");
    assert!(claim(&server, &lab).await.is_some(), "and the job gets the machine");
}

/// Whether a job is kept from a controller of this lab that asks again while it is at an errand.
async fn claim_is_refused_work(server: &Server, lab: &Enrolled) -> bool {
    let answer = server.call(ask(server, lab, 0)).await;
    answer.json::<serde_json::Value>().get("attempt").is_none()
}

#[tokio::test]
async fn a_claim_that_waits_is_told_at_once_and_so_is_who_waits_for_the_check() {
    let server = std::sync::Arc::new(Server::new().await);
    let lab = server.enrol(&["m1"]).await;
    let waits = tokio::spawn({
        let (server, lab) = (server.clone(), lab.clone());
        async move { server.call(ask(&server, &lab, 60)).await.ok::<Errand>() }
    });
    while server.state.wake.waiting() == 0 {
        tokio::task::yield_now().await;
    }
    server.call(want(true).token(&server.admin)).await.ok::<Check>();
    let given = tokio::time::timeout(Duration::from_secs(5), waits).await.expect("no poll is waited for").unwrap();
    assert_eq!(given.order, Order::Check { cycle: true });
    let hears = tokio::spawn({
        let server = server.clone();
        async move { server.get("/api/v1/machines/m1/check?wait_seconds=60").await.ok::<Check>() }
    });
    while server.state.wake.waiting() == 0 {
        tokio::task::yield_now().await;
    }
    done(&server, &given, &failed("the BMC is away")).await.no_content();
    let heard = tokio::time::timeout(Duration::from_secs(5), hears).await.expect("no poll is waited for").unwrap();
    assert_eq!(heard.failed.as_deref(), Some("the BMC is away"));
}

#[tokio::test]
async fn a_check_that_nobody_picks_up_says_what_it_waits_for_and_can_be_taken_back() {
    let server = Server::new().await;
    let claimed = server.claimed().await;
    let lab = server.enrol(&["m1"]).await;
    server.call(want(false).token(&server.admin)).await.ok::<Check>();
    let waits = check(&server).await.waits.unwrap();
    assert_eq!(waits, format!("waiting for controller lab; the machine is leased by attempt {}", claimed.attempt));
    assert!(machine(&server, "m1").await.errand.unwrap().contains("as token:admin wants it"));
    server.call(reserve("m1", 60).token(&server.submit)).await.ok::<Machine>();
    release(&server, &claimed).await.no_content();
    assert!(check(&server).await.waits.unwrap().contains("somebody has the machine (token:submit"));
    assert!(errand(&server, &lab).await.is_none(), "a person's console is not taken away");
    set_state(&server, "m1", MachineState::Quarantined).await.ok::<Machine>();
    powered_off(&server, &lab).await;
    assert_eq!(machine(&server, "m1").await.state, MachineState::Quarantined);
    server.advance(600);
    let silent = "controller lab is silent: nothing was heard of it for 10 minutes";
    assert_eq!(check(&server).await.waits.as_deref(), Some(silent));
    let page = page(&server).await;
    assert!(page.contains(silent), "{page}");

    let cancel = || Call::get("/api/v1/machines/m1/check").method(Method::DELETE);
    server.call(cancel().token(&server.submit)).await.problem(403, kind::FORBIDDEN);
    let cancelled: Check = server.call(cancel().token(&server.admin)).await.ok();
    assert_eq!(cancelled.failed.as_deref(), Some("token:admin took it back"));
    server.call(cancel().token(&server.admin)).await.problem(404, kind::NOT_FOUND);
    assert!(errand(&server, &lab).await.is_none());
}

#[tokio::test]
async fn a_quarantined_machine_can_be_checked() {
    let server = Server::new().await;
    let lab = server.enrol(&["m1"]).await;
    set_state(&server, "m1", MachineState::Quarantined).await.ok::<Machine>();
    server.call(want(false).token(&server.admin)).await.ok::<Check>();
    let given = errand(&server, &lab).await.unwrap();
    done(&server, &given, &ErrandDone { findings: findings(), ..ok("") }).await.no_content();
    assert_eq!(machine(&server, "m1").await.state, MachineState::Quarantined, "which decides nothing");
    let many = ErrandDone { findings: vec![findings().remove(0); 65], ..ok("") };
    done(&server, &given, &many).await.problem(400, kind::INVALID);
}

#[tokio::test]
async fn a_machine_that_a_person_had_is_powered_off_before_it_is_offered_again() {
    let server = Server::new().await;
    let lab = server.enrol(&["m1"]).await;
    server.call(reserve("m1", 60).token(&server.submit)).await.ok::<Machine>();
    server.run(1).await;
    server.advance(61 * 60);
    machines::tick(&server.state).await.unwrap();
    let back = machine(&server, "m1").await;
    assert_eq!(back.state, MachineState::Enrolled);
    assert_eq!(back.reason.as_deref(), Some("Its time was over; its controller powers it off before its next job"));
    let off = errand(&server, &lab).await.unwrap();
    assert_eq!(off.order, Order::Off);
    let server = server.restarted().await;
    assert_eq!(machine(&server, "m1").await.state, MachineState::Enrolled, "it is not offered while it runs");
    assert_eq!(errand(&server, &lab).await.unwrap(), off, "given again, whoever was killed");

    // Somebody wants it in this moment: they get it when it is off, and not while it is being powered off.
    let waits: Machine = server.call(reserve("m1", 60).token(&server.admin)).await.ok();
    assert!(waits.reservation.unwrap().began_at.is_none());
    for _ in 0..2 {
        done(&server, &off, &ok("the BMC says that it is off")).await.no_content();
    }
    assert_eq!(machine(&server, "m1").await.state, MachineState::Reserved);
    server.call(hand_back("m1").token(&server.admin)).await.ok::<Machine>();
    powered_off(&server, &lab).await;
    let told: Vec<_> = history(&server, "m1").await.into_iter().filter_map(|event| event.reason).collect();
    assert_eq!(told[0], "Powered off after a person had it: the BMC says that it is off");
    assert_eq!(told[1], "Handed back; its controller powers it off before its next job");
    assert!(claim(&server, &lab).await.is_some(), "and the job gets it");
}

#[tokio::test]
async fn a_machine_that_cannot_be_powered_off_is_not_trusted() {
    let server = Server::new().await;
    let lab = server.enrol(&["m1"]).await;
    server.call(reserve("m1", 60).token(&server.submit)).await.ok::<Machine>();
    server.run(1).await;
    server.call(hand_back("m1").token(&server.submit)).await.ok::<Machine>();
    let off = errand(&server, &lab).await.unwrap();
    done(&server, &off, &failed("the BMC says that it is still on")).await.no_content();
    let distrusted = machine(&server, "m1").await;
    assert_eq!(distrusted.state, MachineState::Quarantined);
    let why = "It could not be powered off after a person had it: the BMC says that it is still on";
    assert_eq!(distrusted.reason.as_deref(), Some(why));
    assert!(distrusted.quarantined_until.is_some());
    assert!(errand(&server, &lab).await.is_none() && claim(&server, &lab).await.is_none());
}

#[tokio::test]
async fn who_takes_a_machine_before_it_is_off_finds_it_as_it_was_left() {
    let server = Server::new().await;
    let lab = server.enrol(&["m1"]).await;
    server.call(reserve("m1", 60).token(&server.submit)).await.ok::<Machine>();
    server.call(hand_back("m1").token(&server.submit)).await.ok::<Machine>();
    let taken: Machine = server.call(reserve("m1", 60).token(&server.admin)).await.ok();
    assert_eq!((taken.state, taken.errand), (MachineState::Reserved, None));
    assert!(errand(&server, &lab).await.is_none(), "nobody powers it off under their hands");
}

#[tokio::test]
async fn who_waits_for_a_machine_whose_controller_is_gone_gets_it_all_the_same() {
    let server = Server::new().await;
    let lab = server.enrol(&["m1"]).await;
    server.call(want(true).token(&server.admin)).await.ok::<Check>();
    let given = errand(&server, &lab).await.unwrap();
    let waits: Machine = server.call(reserve("m1", 60).token(&server.submit)).await.ok();
    assert!(waits.reservation.unwrap().began_at.is_none(), "its controller switches it off and on");
    server.advance(601);
    machines::tick(&server.state).await.unwrap();
    assert_eq!(machine(&server, "m1").await.state, MachineState::Reserved);
    done(&server, &given, &failed("late")).await.no_content();
    assert_eq!(check(&server).await.failed.as_deref(), Some("late"));
}

#[tokio::test]
async fn a_controller_that_does_no_errands_keeps_no_machine_from_its_jobs() {
    let server = Server::new().await;
    let lab = server.enrol(&["m1"]).await;
    server.run(1).await;
    server.call(want(false).token(&server.admin)).await.ok::<Check>();
    server.call(reserve("m1", 60).token(&server.submit)).await.ok::<Machine>();
    server.call(hand_back("m1").token(&server.submit)).await.ok::<Machine>();
    for _ in 0..2 {
        assert!(claim(&server, &lab).await.is_none());
    }
    assert!(check(&server).await.failed.unwrap().contains("too old"));
    assert!(claim(&server, &lab).await.is_some());
}
