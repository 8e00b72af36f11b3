//! Machines in the hands of people, machines that are not trusted, and failures that are put to the proof.

use crate::agent_api::provision_and_arm;
use crate::errands::powered_off;
use crate::harness::{Answer, Call, Server};
use crate::leases::settle;
use crashyard_protocol::agent::{
    Claim, Directive, EnrolRequest, Enrolled, KeyPress, Keys, MachineSpec, ReleaseRequest, RenewReply, RenewRequest,
    Report, ReportsReply, Role,
};
use crashyard_protocol::api::{
    Attempt, Compared, Extension, Inventory, Job, Machine, MachineEvent, NewMachineState, NewPlan, NewReservation,
    NewRun, Owed, OwedKind, Page, Policy, Repro, Run, Waiting,
};
use crashyard_protocol::problem::kind;
use crashyard_protocol::{AttemptState, JobState, MachineState, Priority, Purpose, Status};
use crashyard_server::passes::{Next, health, machines};

pub async fn machine(server: &Server, name: &str) -> Machine {
    server.get(format!("/api/v1/machines/{name}")).await.ok()
}

pub async fn history(server: &Server, name: &str) -> Vec<MachineEvent> {
    server.get(format!("/api/v1/machines/{name}/history")).await.ok()
}

pub fn reserve(name: &str, minutes: u32) -> Call {
    let new = NewReservation { minutes, reason: "debugs the VMXON fault".into(), notify: None };
    Call::post(format!("/api/v1/machines/{name}/reservation"), &new)
}

pub fn hand_back(name: &str) -> Call {
    Call::get(format!("/api/v1/machines/{name}/reservation")).method(axum::http::Method::DELETE)
}

pub async fn claim(server: &Server, lab: &Enrolled) -> Option<Claim> {
    let answer = server.call(server.claim_call(lab, 0)).await;
    (answer.status != axum::http::StatusCode::NO_CONTENT).then(|| answer.ok())
}

/// Only this machine of the lab asks.
fn only(lab: &Enrolled, name: &str) -> Enrolled {
    let mut lab = lab.clone();
    lab.machines.retain(|other, _| other == name);
    lab
}

pub async fn release(server: &Server, claim: &Claim) -> Answer {
    let release = ReleaseRequest { healthy: true, detail: String::new() };
    let release = Call::post(format!("/agent/v1/attempts/{}/release", claim.attempt), &release);
    server.call(release.by_controller(server, claim)).await
}

async fn directive(server: &Server, claim: &Claim) -> Directive {
    let renew = Call::post(
        format!("/agent/v1/attempts/{}/renew", claim.attempt),
        &RenewRequest { wait_seconds: 0, keys: None },
    );
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
    powered_off(&server, &lab).await;
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
    assert_eq!(states, [Leased, Enrolled, Enrolled, Reserved, Reserved]);
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
async fn who_gets_a_machine_shortly_before_the_end_is_warned_at_once() {
    let server = Server::new().await;
    let claimed = server.claimed().await;
    server.call(reserve("m1", 10).token(&server.submit)).await.ok::<Machine>();
    machines::tick(&server.state).await.unwrap();
    assert!(!machine(&server, "m1").await.reservation.unwrap().warned, "there is nothing to lose yet");
    server.advance(4 * 60);
    release(&server, &claimed).await.no_content();
    machines::tick(&server.state).await.unwrap();
    assert!(machine(&server, "m1").await.reservation.unwrap().warned);
    let told = history(&server, "m1").await;
    assert_eq!(told[0].reason.as_deref(), Some("token:submit loses it in 6 minutes unless it is extended"));
    let next = machines::tick(&server.state).await.unwrap();
    assert_eq!(next, Next::At(machine(&server, "m1").await.reservation.unwrap().until), "once is enough");
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

pub async fn set_state(server: &Server, name: &str, state: MachineState) -> Answer {
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
    server.call(reserve("m1", 60).token(&server.submit)).await.ok::<Machine>();
    a_reservation_shows_beside_the_silence(&server, job).await;
    server.call(hand_back("m1").token(&server.submit)).await.ok::<Machine>();
    powered_off(&server, &lab).await;
    assert!(claim(&server, &lab).await.is_some());
    assert!(machine(&server, "m1").await.reachable);
}

async fn a_reservation_shows_beside_the_silence(server: &Server, job: &Job) {
    let why: Waiting = server.get(format!("/api/v1/jobs/{}/waiting", job.id)).await.ok();
    for wanted in ["1 unknown, because nothing was heard of its controller since", "and before that reserved since"] {
        assert!(why.summary.contains(wanted), "{}", why.summary);
    }
    assert!(why.summary.contains("(token:submit: debugs the VMXON fault)"), "{}", why.summary);
    let shown = &why.machines[0];
    assert!(shown.silent_since.is_some() && shown.until.is_some(), "{shown:?}");
    assert_eq!(shown.state, MachineState::Reserved);
    for (page, state) in [(format!("/jobs/{}/waiting", job.id), "reserved"), ("/machines".into(), "was reserved")] {
        let page = String::from_utf8(server.get(page).await.body.to_vec()).unwrap();
        for wanted in ["unknown", state, "nothing was heard of its controller", "debugs the VMXON fault"] {
            assert!(page.contains(wanted), "{wanted} in {page}");
        }
    }
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
    let back = machine(&server, "m1").await;
    assert_eq!((back.state, back.reason.as_deref()), (MachineState::Quarantined, Some("the fan")));
    assert_eq!(back.quarantined_until, None, "who may submit does not lift what an administrator decided");
    set_state(&server, "m1", MachineState::Available).await.ok::<Machine>();
}

#[tokio::test]
async fn a_machine_that_could_not_be_returned_is_not_trusted_after_a_reservation_either() {
    let server = Server::new().await;
    let claimed = server.claimed().await;
    server.call(reserve("m1", 30).token(&server.submit)).await.ok::<Machine>();
    let unhealthy = ReleaseRequest { healthy: false, detail: "still on after power-off".into() };
    let unhealthy = Call::post(format!("/agent/v1/attempts/{}/release", claimed.attempt), &unhealthy);
    server.call(unhealthy.by_controller(&server, &claimed)).await.no_content();
    assert_eq!(machine(&server, "m1").await.state, MachineState::Reserved, "people may look at what is broken");
    server.advance(31 * 60);
    machines::tick(&server.state).await.unwrap();
    let back = machine(&server, "m1").await;
    assert_eq!((back.state, back.reason.as_deref()), (MachineState::Quarantined, Some("still on after power-off")));
    assert!(
        history(&server, "m1").await[0].reason.as_deref().unwrap().starts_with("Its time was over, and quarantined")
    );
}

pub async fn enrol_as(server: &Server, controller: &str, machines: &[&str]) -> Enrolled {
    let machines = machines
        .iter()
        .map(|name| MachineSpec { name: (*name).into(), driver: "fake".into(), labels: [].into() })
        .collect();
    let request = EnrolRequest { name: controller.into(), version: "1".into(), machines };
    server.call(Call::post("/agent/v1/enrol", &request).token(&server.controller)).await.ok()
}

#[tokio::test]
async fn a_machine_moves_when_its_controller_is_gone_and_the_old_one_must_leave_it_alone() {
    let server = Server::new().await;
    server.run(2).await;
    let old = server.enrol(&["m1"]).await;
    let first = claim(&server, &old).await.unwrap();
    server.put_console(&first, 0, "x").await.ok::<serde_json::Value>();
    let refused = enrol_as(&server, "spare", &["m1", "m2"]).await;
    assert!(refused.refused["m1"].contains("another controller"), "{refused:?}");
    assert!(refused.machines.contains_key("m2"), "the others do not wait for that");
    // Its host dies: the lease runs out, and after three minutes of silence the machine may be had by the spare.
    server.be_up_for(61).await;
    settle(&server).await;
    assert!(enrol_as(&server, "spare", &["m1"]).await.refused.contains_key("m1"), "a short silence is none");
    server.be_up_for(200).await;
    let new = enrol_as(&server, "spare", &["m1"]).await;
    assert!(new.refused.is_empty(), "{new:?}");
    let told = history(&server, "m1").await;
    assert!(told.iter().any(|event| event.reason.as_deref() == Some("Moved here from the controller lab")), "{told:?}");
    let second = claim(&server, &new).await.unwrap();
    assert!(second.epoch > first.epoch);
    // The old one comes back with its journal.
    let renew = Call::post(
        format!("/agent/v1/attempts/{}/renew", first.attempt),
        &RenewRequest { wait_seconds: 0, keys: None },
    );
    let problem = server.call(renew.by_controller(&server, &first)).await.problem(409, kind::MACHINE_TAKEN);
    assert!(problem.detail.contains("m1 belongs to the controller spare now"), "{}", problem.detail);
    server.put_console(&first, 1, "y").await.problem(409, kind::LEASE_LOST);
    let back = server.enrol(&["m1"]).await;
    assert!(back.machines.is_empty() && back.refused.contains_key("m1"), "{back:?}");
    assert_eq!(directive(&server, &second).await, Directive::Continue, "the new attempt is not disturbed");
}

#[tokio::test]
async fn a_controller_that_comes_back_late_leaves_a_machine_alone_that_a_person_has() {
    let server = Server::new().await;
    let claimed = server.claimed().await;
    server.put_console(&claimed, 0, "x").await.ok::<serde_json::Value>();
    server.be_up_for(61).await;
    settle(&server).await;
    let renew = Call::post(
        format!("/agent/v1/attempts/{}/renew", claimed.attempt),
        &RenewRequest { wait_seconds: 0, keys: None },
    );
    server.call(renew.clone().by_controller(&server, &claimed)).await.problem(409, kind::LEASE_LOST);
    server.call(reserve("m1", 60).token(&server.submit)).await.ok::<Machine>();
    server.call(renew.by_controller(&server, &claimed)).await.problem(409, kind::MACHINE_TAKEN);
}

fn inventory(facts: &[(&str, &str)]) -> Report {
    let facts = facts.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Report::Inventory { facts }
}

#[tokio::test]
async fn what_a_machine_is_made_of_becomes_labels_and_what_changes_is_told() {
    let server = Server::new().await;
    let lab = server.enrol(&["m1"]).await;
    server.run(2).await;
    let first = claim(&server, &lab).await.unwrap();
    let cpu = [("cpu.vendor", "GenuineIntel"), ("cpu.vmx", "yes"), ("msr.0x48b", "0x0000008200000000")];
    let card = [
        ("network.0000:02:00.0.name", "eth0"),
        ("network.0000:02:00.0.driver", "igb"),
        ("network.0000:02:00.0.mbit", "1000"),
    ];
    let found = inventory(&[&cpu[..], &card, &[("cpu.microcode", "0x1"), ("memory.mib", "65536")]].concat());
    for _ in 0..2 {
        server.report(&first, Role::Target, 0, found.clone()).await.ok::<ReportsReply>();
    }
    let known: Inventory = server.get("/api/v1/machines/m1/inventory").await.ok();
    assert_eq!((known.facts["memory.mib"].as_str(), known.attempt), ("65536", Some(first.attempt.clone())));
    assert_eq!(machine(&server, "m1").await.labels["vmx.unrestricted"], "true");
    let page = String::from_utf8(server.get("/machines/m1").await.body.to_vec()).unwrap();
    assert!(page.contains(">eth0: igb, 1000 Mbit/s, at 0000:02:00.0<"), "{page}");
    assert!(history(&server, "m1").await.iter().all(|event| !event.reason.as_deref().unwrap_or("").contains("Not as")));
    release(&server, &first).await.no_content();

    // A plan may ask for what nobody configured.
    let plan = NewPlan {
        name: "unrestricted".into(),
        scenarios: vec!["sysrq".into()],
        selector: [].into(),
        requires: vec!["vmx.unrestricted".into(), "memory_mib >= 32768".into()],
        repetitions: 1,
        policy: Policy::default(),
    };
    server
        .call(Call::put_json("/api/v1/plans/unrestricted", &plan).token(&server.submit))
        .await
        .ok::<serde_json::Value>();
    let build = server.build().await;
    let new = NewRun { priority: Some(Priority::Urgent), ..NewRun::new(build.id, "unrestricted") };
    let run: Run = server.call(Call::post("/api/v1/runs", &new).token(&server.submit)).await.ok();
    let second = claim(&server, &lab).await.unwrap();
    assert_eq!(second.brief.run, run.id, "the machine satisfies it");

    // A DIMM died, and somebody updated the microcode.
    let changed = inventory(&[("cpu.microcode", "0x2"), ("memory.mib", "32768")]);
    server.report(&second, Role::Target, 0, changed).await.ok::<ReportsReply>();
    let told = history(&server, "m1").await;
    let told = told.iter().filter_map(|event| event.reason.as_deref()).find(|why| why.starts_with("Not as it was"));
    assert_eq!(told, Some("Not as it was: cpu.microcode is 0x2, was 0x1; memory.mib is 32768, was 65536"));
    // What comes late from an attempt that has the machine no more is not believed.
    let known: Inventory = server.get("/api/v1/machines/m1/inventory").await.ok();
    assert_eq!((known.facts["memory.mib"].as_str(), known.facts.len()), ("32768", 8));
}

/// A farm whose machines are checked by the plan `health`.
async fn checked_farm() -> (Server, Enrolled) {
    let server = Server::with(|config| config.health_plan = "health".into()).await;
    let lab = server.enrol(&["m1", "m2"]).await;
    assert!(claim(&server, &lab).await.is_none(), "both are idle");
    assert!(health::tick(&server.state).await.is_ok(), "a plan that is not there is said in the log");
    server.plan("smoke", 1, &[]).await;
    let plan = NewPlan {
        name: "health".into(),
        scenarios: vec!["sysrq".into()],
        selector: [].into(),
        requires: Vec::new(),
        repetitions: 1,
        policy: Policy { known_good: Some(server.build().await.id), ..Policy::default() },
    };
    server.call(Call::put_json("/api/v1/plans/health", &plan).token(&server.submit)).await.ok::<serde_json::Value>();
    (server, lab)
}

async fn runs(server: &Server) -> Vec<Run> {
    server.get("/api/v1/runs").await.ok::<Page<Run>>().items
}

#[tokio::test]
async fn every_machine_is_checked_once_in_a_while_and_at_once_when_it_gave_reason() {
    let (server, lab) = checked_farm().await;
    health::tick(&server.state).await.unwrap();
    health::tick(&server.state).await.unwrap();
    let names: Vec<_> = runs(&server).await.into_iter().map(|run| run.name).collect();
    assert_eq!(names.len(), 2, "each machine once, however often the pass runs: {names:?}");
    assert!(names.contains(&"health of m1".to_owned()) && names.contains(&"health of m2".to_owned()), "{names:?}");
    let check = claim(&server, &only(&lab, "m2")).await.unwrap();
    assert_eq!(attempt(&server, &check).await.machine_name, "m2");
    // It dies as it should not: this kernel does elsewhere.
    dies_wrongly(&server, &check).await;
    release(&server, &check).await.no_content();
    let bad = machine(&server, "m2").await;
    assert_eq!(bad.state, MachineState::Quarantined);
    assert!(bad.reason.as_deref().unwrap().starts_with("Its health check got FAIL at panicked: "), "{bad:?}");
    assert!(bad.quarantined_until.is_some(), "for a while");
    assert_eq!(machine(&server, "m1").await.state, MachineState::Available, "m1's check is its own");

    // Its time is over: it is back on probation, and checked before anything else.
    server.be_up_for(3700).await;
    machines::tick(&server.state).await.unwrap();
    server.enrol(&["m1", "m2"]).await;
    assert!(claim(&server, &only(&lab, "m2")).await.is_none());
    health::tick(&server.state).await.unwrap();
    let again = claim(&server, &only(&lab, "m2")).await.unwrap();
    let run: Run = server.get(format!("/api/v1/runs/{}", again.brief.run)).await.ok();
    assert_eq!((run.name.as_str(), runs(&server).await.len()), ("health of m2", 3));
}

#[tokio::test]
async fn who_is_never_idle_is_checked_too_and_who_a_person_had_before_it_gets_a_job() {
    let (server, lab) = checked_farm().await;
    server.run(6).await;
    let next = async |name: &str| {
        let claimed = claim(&server, &only(&lab, name)).await.unwrap();
        let run: Run = server.get(format!("/api/v1/runs/{}", claimed.brief.run)).await.ok();
        (claimed, run.name)
    };
    // The lab fails on m1, which has its next job at once.
    let (failed, _) = next("m1").await;
    release(&server, &failed).await.no_content();
    server.advance(1);
    let (busy, name) = next("m1").await;
    assert_eq!(name, "linux 6.1 · smoke");
    // A person has m2 for a while, and leaves it who knows how.
    server.call(reserve("m2", 60).token(&server.submit)).await.ok::<Machine>();
    server.call(hand_back("m2").token(&server.submit)).await.ok::<Machine>();
    powered_off(&server, &only(&lab, "m2")).await;
    let (also_busy, _) = next("m2").await;

    server.advance(1);
    for _ in 0..2 {
        health::tick(&server.state).await.unwrap();
    }
    assert_eq!(runs(&server).await.len(), 3, "one check each");
    for (busy, name) in [(busy, "m1"), (also_busy, "m2")] {
        release(&server, &busy).await.no_content();
        assert_eq!(next(name).await.1, format!("health of {name}"), "before all other jobs");
    }
}

#[tokio::test]
async fn a_check_whose_machine_goes_away_ends_and_holds_nobody_up() {
    let (server, _) = checked_farm().await;
    health::tick(&server.state).await.unwrap();
    set_state(&server, "m1", MachineState::Retired).await.ok::<Machine>();
    machines::tick(&server.state).await.unwrap();
    let all = runs(&server).await;
    let run = all.iter().find(|run| run.name == "health of m1").unwrap();
    let job = &server.jobs(run).await[0];
    assert_eq!((job.state, job.status), (JobState::Done, Status::Miss));
    assert_eq!(job.reason.as_deref(), Some("not tried, because m1 is retired"));
}

#[tokio::test]
async fn two_servers_check_a_machine_once() {
    let (server, _) = checked_farm().await;
    let other = server.restarted().await;
    let (one, two) = tokio::join!(health::tick(&server.state), health::tick(&other.state));
    one.unwrap();
    two.unwrap();
    assert_eq!(runs(&server).await.len(), 2);
}

#[tokio::test]
async fn a_machine_that_fails_differently_from_its_siblings_is_pointed_out() {
    let server = Server::with(|config| (config.quarantine_failures, config.max_attempts) = (0, 1)).await;
    let lab = server.enrol(&["m1", "m2"]).await;
    server.run(24).await;
    for round in 0..24 {
        let name = if round % 2 == 0 { "m1" } else { "m2" };
        let claimed = claim(&server, &only(&lab, name)).await.unwrap();
        if name == "m1" {
            dies_wrongly(&server, &claimed).await;
        }
        release(&server, &claimed).await.no_content();
    }
    health::tick(&server.state).await.unwrap();
    let found = machine(&server, "m1").await.differs.unwrap();
    assert_eq!(found, "FAIL at panicked in 12 of 12 attempts; others in 0 of 12 at the same tests");
    let page = String::from_utf8(server.get("/machines").await.body.to_vec()).unwrap();
    assert!(page.contains("Fails differently: FAIL at panicked in 12 of 12"), "{page}");
    server.advance(15 * 24 * 3600);
    health::tick(&server.state).await.unwrap();
    assert_eq!(machine(&server, "m1").await.differs, None, "what is long ago is forgiven");
}

#[tokio::test]
async fn an_attempt_can_be_done_again_from_what_is_known_of_it() {
    let server = Server::new().await;
    let claimed = server.claimed().await;
    let found = inventory(&[("cpu.microcode", "0x1"), ("kernel.cmdline", "console=ttyS0 quiet")]);
    server.report(&claimed, Role::Target, 0, found).await.ok::<ReportsReply>();
    let repro: Repro = server.get(format!("/api/v1/attempts/{}/repro", claimed.attempt)).await.ok();
    assert_eq!((repro.machine.as_str(), repro.facts["cpu.microcode"].as_str()), ("m1", "0x1"));
    assert_eq!((&repro.build.id, repro.scenario.name.as_str()), (&claimed.brief.build.id, "sysrq"));
    assert!(repro.steps.iter().any(|step| step.contains("sysrq-c, on any CPU")), "{:?}", repro.steps);
    assert!(repro.left_open.iter().any(|one| one.contains("Which CPU crashes")), "{:?}", repro.left_open);
    // The commands are true: what they send is taken.
    let plan = format!("repro-{}", claimed.attempt);
    let submit = format!("crashyard submit {} --plan {plan} --wait", repro.build.id);
    assert!(repro.commands.contains(&submit), "{:?}", repro.commands);
    let stored = put_plan_of(&server, &repro).await;
    assert_eq!((stored.name.as_str(), stored.scenarios.as_slice()), (plan.as_str(), ["sysrq".to_owned()].as_slice()));
    assert_eq!((&stored.selector["name"], stored.policy.hold_minutes), (&"m1".to_owned(), 120));
    let new = NewRun::new(repro.build.id.clone(), &plan);
    server.call(Call::post("/api/v1/runs", &new).token(&server.submit)).await.ok::<Run>();

    // The scenario of that name becomes another one: the attempt's own is stored beside it.
    let mut changed = crate::harness::scenario("sysrq");
    changed["cpu"] = 1.into();
    let put = Call::put_json("/api/v1/scenarios/sysrq", &changed).token(&server.submit);
    server.call(put).await.ok::<serde_json::Value>();
    let repro: Repro = server.get(format!("/api/v1/attempts/{}/repro", claimed.attempt)).await.ok();
    let own = format!("repro-{}", claimed.attempt.as_str().to_lowercase());
    assert!(
        repro.commands.iter().any(|line| line.ends_with(&format!("scenario put /dev/stdin --as {own}"))),
        "{:?}",
        repro.commands
    );
    let mut scenario = repro.scenario.clone();
    scenario.name.clone_from(&own);
    let put = Call::put_json(format!("/api/v1/scenarios/{own}"), &scenario).token(&server.submit);
    server.call(put).await.ok::<serde_json::Value>();
    assert_eq!(put_plan_of(&server, &repro).await.scenarios, [own]);
}

/// Stores the plan that the commands of a repro store.
async fn put_plan_of(server: &Server, repro: &Repro) -> NewPlan {
    let line = repro.commands.iter().find(|line| line.contains("crashyard plan put /dev/stdin")).unwrap();
    let words = line.split_once('|').unwrap().0;
    let text: Vec<&str> = words.split('\'').skip(3).step_by(2).collect();
    let plan: NewPlan = toml::from_str(&text.join("\n")).unwrap();
    let put = Call::put_json(format!("/api/v1/plans/{}", plan.name), &plan).token(&server.submit);
    server.call(put).await.ok::<serde_json::Value>();
    plan
}

#[tokio::test]
async fn what_one_console_did_not_hear_is_filled_in_from_the_other() {
    let server = Server::new().await;
    let claimed = server.claimed().await;
    let put = async |source: &str, text: &str| {
        let path = format!("/agent/v1/attempts/{}/console/{source}?offset=0", claimed.attempt);
        server.call(Call::put(path, text.to_owned()).by_controller(&server, &claimed)).await.ok::<serde_json::Value>()
    };
    put("serial", "[    1.000000] one\r\n[    3.000000] three\r\n").await;
    put("net", "[    1.000000] one\n[    2.000000] two\n").await;
    let path =
        |first: &str, second: &str| format!("/api/v1/attempts/{}/console/{first}/beside/{second}", claimed.attempt);
    let compared: Compared = server.get(path("serial", "net")).await.ok();
    let lines: Vec<_> = compared.lines.iter().map(|line| (line.text.as_str(), line.first, line.second)).collect();
    let wanted = [
        ("[    1.000000] one", true, true),
        ("[    2.000000] two", false, true),
        ("[    3.000000] three", true, false),
    ];
    assert_eq!(lines, wanted);
    server.get(path("serial", "other")).await.problem(404, kind::NOT_FOUND);

    let page = async |path: String| String::from_utf8(server.get(path).await.body.to_vec()).unwrap();
    let beside = format!("/attempts/{}/console/serial/beside/net", claimed.attempt);
    let both = page(beside.clone()).await;
    assert!(both.contains("filled in from net") && both.contains("only serial heard it"), "{both}");
    for whole in [format!("/attempts/{}", claimed.attempt), format!("/attempts/{}/console/serial", claimed.attempt)] {
        let whole = page(whole).await;
        assert!(whole.contains(&format!("href=\"{beside}\"")), "{whole}");
    }
    assert_eq!(server.get(format!("{beside}x")).await.status.as_u16(), 404);
}

async fn press(server: &Server, claim: &Claim, keys: &Keys) -> Answer {
    let path = format!("/api/v1/attempts/{}/console/serial/keys", claim.attempt);
    server.call(Call::post(path, keys).token(&server.submit)).await
}

async fn pressed(server: &Server, claim: &Claim, from: u64) -> Vec<KeyPress> {
    let path = format!("/agent/v1/attempts/{}/keys?from={from}", claim.attempt);
    server.call(Call::get(path).by_controller(server, claim)).await.ok()
}

#[tokio::test]
async fn what_people_type_is_kept_with_their_name_and_handed_to_the_controller_in_order() {
    let server = Server::new().await;
    let claimed = server.claimed().await;
    assert_eq!(pressed(&server, &claimed, 0).await, []);
    press(&server, &claimed, &Keys::Sysrq('t')).await.ok::<KeyPress>();
    let second: KeyPress = press(&server, &claimed, &Keys::Text("root\n".into())).await.ok();
    assert_eq!((second.number, second.by.as_str()), (1, "token:submit"));
    let all = pressed(&server, &claimed, 0).await;
    assert_eq!(all.iter().map(|one| one.number).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(pressed(&server, &claimed, 0).await, all, "a lost answer is given again");
    assert_eq!(pressed(&server, &claimed, 1).await, all[1..]);
    let KeyPress { number, source, by, keys } = all[0].clone();
    let done = Report::Typed { number, source, by, keys, ok: true, detail: "the console took it".into() };
    server.report(&claimed, Role::Controller, 0, done).await.ok::<ReportsReply>();
    let page = server.get(format!("/attempts/{}", claimed.attempt)).await;
    assert!(String::from_utf8(page.body.to_vec()).unwrap().contains("SysRq t at serial"), "and the page shows it");

    for wrong in [Keys::Text(String::new()), Keys::Text("x".repeat(5000)), Keys::Sysrq('\n')] {
        press(&server, &claimed, &wrong).await.problem(400, kind::INVALID);
    }
    let keys = Call::get(format!("/agent/v1/attempts/{}/keys?from=0", claimed.attempt));
    server.call(keys.by_agent(&claimed)).await.problem(403, kind::FORBIDDEN);
    release(&server, &claimed).await.no_content();
    press(&server, &claimed, &Keys::Break).await.problem(409, kind::CONFLICT);
    let kept: Vec<KeyPress> = server.get(format!("/api/v1/attempts/{}/keys", claimed.attempt)).await.ok();
    assert_eq!(kept, all);
}

#[tokio::test]
async fn a_renewal_that_is_held_says_at_once_that_somebody_typed() {
    let server = Server::new().await;
    let claimed = server.claimed().await;
    let renew = |keys| {
        let path = format!("/agent/v1/attempts/{}/renew", claimed.attempt);
        Call::post(path, &RenewRequest { wait_seconds: 20, keys }).by_controller(&server, &claimed)
    };
    let (held, _) = tokio::join!(server.call(renew(Some(0))), async {
        tokio::task::yield_now().await;
        press(&server, &claimed, &Keys::Break).await.ok::<KeyPress>()
    });
    assert_eq!(held.ok::<RenewReply>().keys, 1);
    assert_eq!(server.call(renew(Some(0))).await.ok::<RenewReply>().keys, 1, "and again, until the controller knows");
    assert_eq!(pressed(&server, &claimed, 0).await.len(), 1);
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
