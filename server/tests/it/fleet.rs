//! Machines in the hands of people, machines that are not trusted, and failures that are put to the proof.

use crate::agent_api::provision_and_arm;
use crate::harness::{Answer, Call, Server};
use crate::leases::settle;
use crashyard_protocol::agent::{Claim, Directive, Enrolled, ReleaseRequest, RenewReply, RenewRequest, ReportsReply};
use crashyard_protocol::api::{
    Attempt, Extension, Machine, MachineEvent, NewMachineState, NewReservation, NewRun, Owed, OwedKind, Policy, Run,
    Waiting,
};
use crashyard_protocol::problem::kind;
use crashyard_protocol::{AttemptState, JobState, MachineState, Priority, Purpose, Status};
use crashyard_server::passes::{Next, machines};

async fn machine(server: &Server, name: &str) -> Machine {
    server.get(format!("/api/v1/machines/{name}")).await.ok()
}

async fn history(server: &Server, name: &str) -> Vec<MachineEvent> {
    server.get(format!("/api/v1/machines/{name}/history")).await.ok()
}

fn reserve(name: &str, minutes: u32) -> Call {
    let new = NewReservation { minutes, reason: "debugs the VMXON fault".into() };
    Call::post(format!("/api/v1/machines/{name}/reservation"), &new)
}

fn hand_back(name: &str) -> Call {
    Call::get(format!("/api/v1/machines/{name}/reservation")).method(axum::http::Method::DELETE)
}

async fn claim(server: &Server, lab: &Enrolled) -> Option<Claim> {
    let answer = server.call(server.claim_call(lab, 0)).await;
    (answer.status != axum::http::StatusCode::NO_CONTENT).then(|| answer.ok())
}

/// Only this machine of the lab asks.
fn only(lab: &Enrolled, name: &str) -> Enrolled {
    let mut lab = lab.clone();
    lab.machines.retain(|other, _| other == name);
    lab
}

async fn release(server: &Server, claim: &Claim) -> Answer {
    let release = ReleaseRequest { healthy: true, detail: String::new() };
    let release = Call::post(format!("/agent/v1/attempts/{}/release", claim.attempt), &release);
    server.call(release.by_controller(server, claim)).await
}

async fn directive(server: &Server, claim: &Claim) -> Directive {
    let renew = Call::post(format!("/agent/v1/attempts/{}/renew", claim.attempt), &RenewRequest { wait_seconds: 0 });
    server.call(renew.by_controller(server, claim)).await.ok::<RenewReply>().directive
}

/// The kernel dies of something else than what it was asked to die of: a FAIL.
async fn dies_wrongly(server: &Server, claim: &Claim) {
    provision_and_arm(server, claim).await;
    let banner = "[    0.000000] Linux version 6.1.0-test (gcc) #1 SMP\n".len() as u64;
    let text = format!("[    5.0] {}\n[    5.1] Kernel panic - not syncing: something else\n", claim.brief.marker);
    server.put_console(claim, banner, text).await.ok::<serde_json::Value>();
    server.advance(60);
    crashyard_server::passes::deadlines::tick(&server.state).await.unwrap();
}

async fn attempt(server: &Server, claim: &Claim) -> Attempt {
    server.get(format!("/api/v1/attempts/{}", claim.attempt)).await.ok()
}

async fn submit(server: &Server, change: impl FnOnce(NewRun) -> NewRun) -> Run {
    let build = server.build().await;
    server.plan("smoke", 1, &[]).await;
    let new = change(NewRun::new(build.id, "smoke"));
    server.call(Call::post("/api/v1/runs", &new).token(&server.submit)).await.ok()
}

#[tokio::test]
async fn a_person_takes_a_free_machine_prolongs_it_is_warned_and_loses_it() {
    let server = Server::new().await;
    let lab = server.enrol(&["m1"]).await;
    server.run(1).await;
    reserve_is_for_those_who_may_submit(&server).await;
    let taken: Machine = server.call(reserve("m1", 60).token(&server.submit)).await.ok();
    let reservation = taken.reservation.clone().unwrap();
    assert_eq!((taken.state, reservation.owner.as_str()), (MachineState::Reserved, "token:submit"));
    assert!(claim(&server, &lab).await.is_none(), "the job waits");
    let problem = server.call(reserve("m1", 60).token(&server.admin)).await.problem(409, kind::CONFLICT);
    assert!(problem.detail.contains("token:submit") && problem.detail.contains("VMXON"), "{}", problem.detail);

    let next = machines::tick(&server.state).await.unwrap();
    let notice = machines::NOTICE;
    assert_eq!(next, Next::At(crashyard_protocol::clock::Timestamp(reservation.until.0 - notice.as_millis() as i64)));
    server.advance(46 * 60);
    machines::tick(&server.state).await.unwrap();
    assert!(machine(&server, "m1").await.reservation.unwrap().warned);
    let told = history(&server, "m1").await;
    assert_eq!(told[0].reason.as_deref(), Some("token:submit loses it in 14 minutes unless it is extended"));
    let extend = Call::put_json("/api/v1/machines/m1/reservation", &Extension { minutes: 120 });
    let extended: Machine = server.call(extend.token(&server.submit)).await.ok();
    assert!(!extended.reservation.unwrap().warned, "there is time again");
    server.advance(120 * 60);
    machines::tick(&server.state).await.unwrap();
    let free = machine(&server, "m1").await;
    assert!(free.reservation.is_none() && free.state == MachineState::Enrolled, "{free:?}");
    assert!(claim(&server, &lab).await.is_some(), "and the job gets it");
    let page = server.get("/machines/m1").await;
    let page = String::from_utf8(page.body.to_vec()).unwrap();
    for wanted in ["token:submit loses it in 14 minutes", "debugs the VMXON fault", "Its time was over", "plain sysrq"]
    {
        assert!(page.contains(wanted), "{wanted} in {page}");
    }
    assert_eq!(server.get("/machines/m9").await.status.as_u16(), 404);
    let states: Vec<_> = history(&server, "m1").await.into_iter().map(|event| event.state).collect();
    use MachineState::{Enrolled, Leased, Reserved};
    assert_eq!(states, [Leased, Enrolled, Reserved, Reserved]);
}

async fn reserve_is_for_those_who_may_submit(server: &Server) {
    server.call(reserve("m1", 60).token(&server.controller)).await.problem(403, kind::FORBIDDEN);
    server.call(reserve("m1", 0).token(&server.submit)).await.problem(400, kind::INVALID);
    server.call(reserve("m1", 60 * 24 * 365).token(&server.submit)).await.problem(400, kind::INVALID);
    server.call(reserve("m9", 60).token(&server.submit)).await.problem(404, kind::NOT_FOUND);
    server.call(hand_back("m1").token(&server.submit)).await.problem(404, kind::NOT_FOUND);
}

#[tokio::test]
async fn a_busy_machine_is_theirs_when_its_attempt_is_over_and_only_they_hand_it_back() {
    let server = Server::new().await;
    let claimed = server.claimed().await;
    let waits: Machine = server.call(reserve("m1", 60).token(&server.admin)).await.ok();
    assert_eq!((waits.state, waits.reservation.unwrap().began_at), (MachineState::Leased, None));
    assert_eq!(directive(&server, &claimed).await, Directive::Continue, "an attempt is not disturbed");
    release(&server, &claimed).await.no_content();
    let got = machine(&server, "m1").await;
    assert_eq!(got.state, MachineState::Reserved);
    assert_eq!(got.reason.as_deref(), Some("token:admin: debugs the VMXON fault"));
    server.call(hand_back("m1").token(&server.submit)).await.problem(409, kind::CONFLICT);
    server.call(hand_back("m1").token(&server.admin)).await.ok::<Machine>();
    assert_eq!(machine(&server, "m1").await.state, MachineState::Enrolled);
}

#[tokio::test]
async fn a_failed_jobs_machine_is_kept_as_it_is_until_somebody_has_looked() {
    let server = Server::new().await;
    let lab = server.enrol(&["m1"]).await;
    let policy = Policy { hold_minutes: 30, ..Policy::default() };
    let run = submit(&server, |new| NewRun { policy: Some(policy), ..new }).await;
    let claimed = claim(&server, &lab).await.unwrap();
    dies_wrongly(&server, &claimed).await;
    let held = attempt(&server, &claimed).await;
    assert_eq!((held.state, held.verdict), (AttemptState::Collecting, Status::Fail));
    assert!(held.held_until.is_some());
    assert_eq!(directive(&server, &claimed).await, Directive::Continue, "nobody powers it off");
    let kept = machine(&server, "m1").await;
    assert_eq!((kept.state, kept.attempt.as_ref()), (MachineState::Held, Some(&claimed.attempt)));
    assert!(kept.reason.unwrap().contains("held after FAIL at panicked"));
    let job = &server.jobs(&run).await[0];
    assert_eq!((job.state, job.status), (JobState::Done, Status::Fail), "the verdict does not wait");

    server.advance(20 * 60);
    crashyard_server::passes::deadlines::tick(&server.state).await.unwrap();
    let returned = attempt(&server, &claimed).await.stages.pop().unwrap();
    assert!(returned.settled_at.is_none(), "a machine that is kept is not late: {returned:?}");
    server.call(hand_back("m1").token(&server.submit)).await.ok::<Machine>();
    assert_eq!(directive(&server, &claimed).await, Directive::Collect);
    assert_eq!(machine(&server, "m1").await.state, MachineState::Leased);
    release(&server, &claimed).await.no_content();
    assert_eq!(machine(&server, "m1").await.state, MachineState::Available);
    assert_eq!(server.jobs(&run).await[0].attempts.len(), 1);
}

#[tokio::test]
async fn a_hold_ends_by_itself() {
    let server = Server::new().await;
    let lab = server.enrol(&["m1"]).await;
    let policy = Policy { hold_minutes: 30, ..Policy::default() };
    submit(&server, |new| NewRun { policy: Some(policy), ..new }).await;
    let claimed = claim(&server, &lab).await.unwrap();
    dies_wrongly(&server, &claimed).await;
    server.advance(30 * 60);
    assert_eq!(directive(&server, &claimed).await, Directive::Collect, "even where the pass is late");
    machines::tick(&server.state).await.unwrap();
    assert_eq!(machine(&server, "m1").await.state, MachineState::Leased);
}

#[tokio::test]
async fn what_the_lab_does_not_deliver_is_tried_on_another_machine() {
    let server = Server::new().await;
    let lab = server.enrol(&["m1", "m2"]).await;
    let run = server.run(1).await;
    let first = claim(&server, &only(&lab, "m1")).await.unwrap();
    release(&server, &first).await.no_content();
    let job = &server.jobs(&run).await[0];
    assert_eq!((job.state, job.status), (JobState::Queued, Status::Miss));
    assert!(job.reason.as_deref().unwrap().starts_with("MISS on m1"), "{job:?}");
    assert!(claim(&server, &only(&lab, "m1")).await.is_none(), "not there again");
    let why: Waiting = server.get(format!("/api/v1/jobs/{}/waiting", job.id)).await.ok();
    assert!(why.summary.contains("not on m1"), "{}", why.summary);
    let second = claim(&server, &only(&lab, "m2")).await.unwrap();
    assert_eq!(attempt(&server, &second).await.number, 2);
}

#[tokio::test]
async fn where_the_other_machine_goes_away_the_first_one_is_tried_again() {
    let server = Server::new().await;
    let lab = server.enrol(&["m1", "m2"]).await;
    server.run(1).await;
    let first = claim(&server, &only(&lab, "m1")).await.unwrap();
    release(&server, &first).await.no_content();
    set_state(&server, "m2", MachineState::Retired).await.ok::<Machine>();
    machines::tick(&server.state).await.unwrap();
    assert!(claim(&server, &only(&lab, "m1")).await.is_some());
}

async fn set_state(server: &Server, name: &str, state: MachineState) -> Answer {
    let new = NewMachineState { state, reason: Some("the fan".into()) };
    server.call(Call::put_json(format!("/api/v1/machines/{name}/state"), &new).token(&server.admin)).await
}

#[tokio::test]
async fn a_fail_is_compared_with_a_known_good_kernel_there_and_tried_elsewhere_before_it_is_final() {
    let server = Server::new().await;
    let lab = server.enrol(&["m1", "m2"]).await;
    let good = server.build().await;
    let policy = Policy { known_good: Some(good.id.clone()), elsewhere: true, ..Policy::default() };
    let run = submit(&server, |new| NewRun { policy: Some(policy), ..new }).await;
    let first = claim(&server, &only(&lab, "m1")).await.unwrap();
    dies_wrongly(&server, &first).await;
    release(&server, &first).await.no_content();
    assert_eq!(server.jobs(&run).await[0].state, JobState::Queued, "not final");

    assert!(claim(&server, &only(&lab, "m2")).await.is_none(), "the comparison is made where it failed");
    let control = claim(&server, &only(&lab, "m1")).await.unwrap();
    assert_eq!((&control.brief.build.id, &control.brief.job), (&good.id, &first.brief.job));
    let shown = attempt(&server, &control).await;
    assert_eq!((shown.purpose, &shown.build), (Purpose::KnownGood, &good.id));
    // It dies of the same: the machine or the test is at fault.
    dies_wrongly(&server, &control).await;
    release(&server, &control).await.no_content();
    let job = &server.jobs(&run).await[0];
    assert_eq!((job.state, job.status, job.attempts.len()), (JobState::Done, Status::Error, 2));
    assert!(job.reason.as_deref().unwrap().contains("known-good kernel does not pass on m1 either"), "{job:?}");
    let suspect = machine(&server, "m1").await;
    assert_eq!(suspect.state, MachineState::Quarantined);
    assert!(suspect.reason.unwrap().contains("a known-good kernel got FAIL"));
}

#[tokio::test]
async fn a_comparison_that_cannot_be_made_leaves_the_fail() {
    let server = Server::new().await;
    let lab = server.enrol(&["m1"]).await;
    let good = server.build().await;
    let policy = Policy { known_good: Some(good.id), ..Policy::default() };
    let run = submit(&server, |new| NewRun { policy: Some(policy), ..new }).await;
    let first = claim(&server, &lab).await.unwrap();
    dies_wrongly(&server, &first).await;
    release(&server, &first).await.no_content();
    set_state(&server, "m1", MachineState::Retired).await.ok::<Machine>();
    machines::tick(&server.state).await.unwrap();
    let job = &server.jobs(&run).await[0];
    assert_eq!((job.state, job.status), (JobState::Done, Status::Fail));
    assert!(job.reason.as_deref().unwrap().ends_with("because m1 is retired"), "{job:?}");
}

#[tokio::test]
async fn a_policy_that_cannot_be_kept_is_refused() {
    let server = Server::new().await;
    let run = server.run(1).await;
    let unknown = serde_json::json!({ "known_good": "01JDB4Q1W5Z8N6K3X0V7T2R9MF" });
    for (policy, status) in [
        (unknown, 404),
        (serde_json::json!({ "tries": 0 }), 400),
        (serde_json::json!({ "hold_minutes": 1_000_000 }), 400),
        (serde_json::json!({ "retries": 3 }), 400),
    ] {
        let new = serde_json::json!({ "build": run.build, "plan": "smoke", "policy": policy });
        let answer = server.call(Call::post("/api/v1/runs", &new).token(&server.submit)).await;
        assert_eq!(answer.status.as_u16(), status, "{policy}");
    }
}

#[tokio::test]
async fn a_machine_that_fails_again_and_again_is_quarantined_and_returns_on_probation() {
    let server = Server::with(|config| (config.quarantine_failures, config.max_attempts) = (2, 9)).await;
    let lab = server.enrol(&["m1"]).await;
    server.run(9).await;
    for _ in 0..2 {
        let lost = claim(&server, &lab).await.unwrap();
        server.put_console(&lost, 0, "x").await.ok::<serde_json::Value>();
        server.advance(61);
        settle(&server).await;
    }
    let bad = machine(&server, "m1").await;
    assert_eq!(bad.state, MachineState::Quarantined, "{bad:?}");
    assert!(bad.reason.as_deref().unwrap().starts_with("2 of its last 2 attempts"), "{bad:?}");
    assert!(claim(&server, &lab).await.is_none());
    server.advance(60 * 60);
    machines::tick(&server.state).await.unwrap();
    let back = machine(&server, "m1").await;
    assert!(back.on_probation && back.state == MachineState::Enrolled, "{back:?}");
    let again = claim(&server, &lab).await.unwrap();
    release(&server, &again).await.no_content();
    let bad = machine(&server, "m1").await;
    assert!(bad.reason.as_deref().unwrap().starts_with("On probation: 1 of its last 1"), "{bad:?}");
    assert_eq!(bad.quarantined_until.unwrap().since(server.clock_now()).as_secs(), 2 * 3600, "twice as long");
    set_state(&server, "m1", MachineState::Available).await.ok::<Machine>();
    assert!(claim(&server, &lab).await.is_some(), "a person knows better");
}

#[tokio::test]
async fn a_preemptible_attempt_gives_way_before_it_is_armed_and_never_after() {
    let server = Server::new().await;
    let lab = server.enrol(&["m1"]).await;
    let policy = Policy { preemptible: true, tries: Some(1), ..Policy::default() };
    let bulk = async || {
        let policy = policy.clone();
        submit(&server, |new| NewRun { policy: Some(policy), priority: Some(Priority::Bulk), ..new }).await
    };
    let first_run = bulk().await;
    let first = claim(&server, &lab).await.unwrap();
    let urgent = submit(&server, |new| NewRun { priority: Some(Priority::Urgent), ..new }).await;
    assert_eq!(directive(&server, &first).await, Directive::Collect);
    assert_eq!(attempt(&server, &first).await.reason.as_deref(), Some("Gave way to a job of priority urgent"));
    let reply: ReportsReply = provision_and_arm(&server, &first).await;
    assert_eq!(reply.directive, Directive::Collect, "whatever comes late, it is not told to crash");
    release(&server, &first).await.no_content();
    let job = &server.jobs(&first_run).await[0];
    assert_eq!((job.state, job.status), (JobState::Queued, Status::Miss), "its only try was not used up: {job:?}");
    assert_eq!(machine(&server, "m1").await.state, MachineState::Available, "and the machine is not to blame");
    let second = claim(&server, &lab).await.unwrap();
    assert_eq!(second.brief.run, urgent.id);
    release(&server, &second).await.no_content();

    let third = claim(&server, &lab).await.unwrap();
    provision_and_arm(&server, &third).await;
    submit(&server, |new| NewRun { priority: Some(Priority::Urgent), ..new }).await;
    assert_eq!(directive(&server, &third).await, Directive::Continue, "it is armed");
}

#[tokio::test]
async fn a_person_who_reserves_a_machine_need_not_wait_for_a_preemptible_job() {
    let server = Server::new().await;
    let lab = server.enrol(&["m1"]).await;
    let policy = Policy { preemptible: true, ..Policy::default() };
    submit(&server, |new| NewRun { policy: Some(policy), ..new }).await;
    let claimed = claim(&server, &lab).await.unwrap();
    server.call(reserve("m1", 60).token(&server.submit)).await.ok::<Machine>();
    assert_eq!(directive(&server, &claimed).await, Directive::Collect);
    release(&server, &claimed).await.no_content();
    assert_eq!(machine(&server, "m1").await.state, MachineState::Reserved);
}

#[tokio::test]
async fn a_machine_whose_controller_is_silent_is_not_reachable() {
    let server = Server::new().await;
    let lab = server.enrol(&["m1"]).await;
    assert!(claim(&server, &lab).await.is_none());
    assert!(machine(&server, "m1").await.reachable);
    server.advance(181);
    assert!(!machine(&server, "m1").await.reachable);
    let page = String::from_utf8(server.get("/machines").await.body.to_vec()).unwrap();
    assert!(page.contains("data-state=\"unknown\"") && page.contains("href=\"/machines/m1\""), "{page}");
    let run = server.run(1).await;
    let job = &server.jobs(&run).await[0];
    let why: Waiting = server.get(format!("/api/v1/jobs/{}/waiting", job.id)).await.ok();
    assert!(why.summary.contains("unknown, because nothing was heard of its controller"), "{}", why.summary);
    assert!(claim(&server, &lab).await.is_some());
    assert!(machine(&server, "m1").await.reachable);
}

#[tokio::test]
async fn only_people_with_authority_decide_and_only_what_people_may() {
    let server = Server::new().await;
    server.enrol(&["m1"]).await;
    for state in [MachineState::Leased, MachineState::Held, MachineState::Reserved, MachineState::Enrolled] {
        set_state(&server, "m1", state).await.problem(400, kind::INVALID);
    }
    set_state(&server, "m1", MachineState::Quarantined).await.ok::<Machine>();
    let event = &history(&server, "m1").await[0];
    assert_eq!((event.by.as_str(), event.reason.as_deref()), ("token:admin", Some("the fan")));
    server.call(reserve("m1", 5).token(&server.submit)).await.ok::<Machine>();
    assert_eq!(machine(&server, "m1").await.state, MachineState::Reserved, "people may work on what is broken");
    server.call(hand_back("m1").token(&server.submit)).await.ok::<Machine>();
    assert_eq!(machine(&server, "m1").await.state, MachineState::Enrolled);
}

#[tokio::test]
async fn what_is_owed_for_long_is_said_when_asked_and_once_a_day() {
    let server = Server::new().await;
    let run = server.run(1).await;
    assert_eq!(server.get("/api/v1/owed").await.ok::<Vec<Owed>>(), []);
    let next = crashyard_server::passes::owed::tick(&server.state).await.unwrap();
    server.advance(25 * 3600);
    let owed: Vec<Owed> = server.get("/api/v1/owed").await.ok();
    let job = server.jobs(&run).await[0].id.to_string();
    assert_eq!(owed.iter().map(|one| (one.kind, &one.id)).collect::<Vec<_>>(), [(OwedKind::JobWaits, &job)]);
    assert_ne!(crashyard_server::passes::owed::tick(&server.state).await.unwrap(), next);
    let metrics = String::from_utf8(server.get("/metrics").await.body.to_vec()).unwrap();
    assert!(metrics.contains("crashyard_owed{kind=\"job-waits\"} 1"), "{metrics}");
}
