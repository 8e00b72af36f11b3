//! Enrolling, claiming, renewing, reporting, releasing.

use crate::harness::{Call, Server, note};
use crashyard_protocol::agent::{
    Claim, ClaimRequest, Directive, EnrolRequest, Enrolled, MachineSpec, ReleaseRequest, RenewReply, RenewRequest,
    Report, ReportsReply, Role,
};
use crashyard_protocol::api::{Attempt, EventBody, Machine};
use crashyard_protocol::problem::kind;
use crashyard_protocol::{AttemptState, JobState, MachineId, MachineState, Status, VmxState};
use crashyard_server::db;
use serde_json::json;
use std::time::Duration;

async fn machine(server: &Server, id: &MachineId) -> Machine {
    server.get(format!("/api/v1/machines/{id}")).await.ok()
}

async fn release(server: &Server, claim: &Claim, healthy: bool) -> crate::harness::Answer {
    let request = ReleaseRequest { healthy, detail: "checked".into() };
    let call = Call::post(format!("/agent/v1/attempts/{}/release", claim.attempt), &request);
    server.call(call.by_controller(server, claim)).await
}

#[tokio::test]
async fn enrolling_again_keeps_ids_and_takes_new_labels() {
    let server = Server::new().await;
    let first = server.enrol(&["m1", "m2"]).await;
    let again = server.enrol(&["m2"]).await;
    assert_eq!(again.controller, first.controller);
    assert_eq!(again.machines["m2"], first.machines["m2"]);
    // A machine that is no longer named stays known, and is not offered jobs.
    assert_eq!(machine(&server, &first.machines["m1"]).await.name, "m1");
    let claim = ClaimRequest {
        controller: first.controller,
        machines: vec![first.machines["m1"].clone()],
        wait_seconds: 0,
        errands: false,
    };
    let claim = Call::post("/agent/v1/claim", &claim).token(&server.controller);
    server.call(claim).await.problem(404, kind::NOT_FOUND);
}

#[tokio::test]
async fn a_machine_that_another_controller_announces_cannot_be_taken() {
    let server = Server::new().await;
    server.enrol(&["m1"]).await;
    let other = EnrolRequest {
        name: "other".into(),
        version: "1".into(),
        machines: vec![MachineSpec { name: "m1".into(), driver: "fake".into(), labels: [].into() }],
    };
    let enrol = Call::post("/agent/v1/enrol", &other).token(&server.controller);
    let refused: Enrolled = server.call(enrol.clone()).await.ok();
    assert!(refused.machines.is_empty() && refused.refused["m1"].contains("another controller"), "{refused:?}");
    server.enrol(&[]).await;
    let had: Enrolled = server.call(enrol).await.ok();
    assert!(had.machines.contains_key("m1") && had.refused.is_empty(), "{had:?}");
}

#[tokio::test]
async fn a_claim_gives_one_machine_one_job_and_says_what_to_do() {
    let server = Server::new().await;
    let run = server.run(2).await;
    let enrolled = server.enrol(&["m1"]).await;
    assert_eq!(machine(&server, &enrolled.machines["m1"]).await.state, MachineState::Enrolled);
    let claim: Claim = server.call(server.claim_call(&enrolled, 0)).await.ok();
    assert_eq!((claim.epoch, claim.lease_seconds), (1, 60));
    assert_eq!(
        claim.brief.marker,
        format!("crashyard: trigger job={} attempt={} scenario=sysrq", claim.brief.job, claim.attempt)
    );
    let leased = machine(&server, &claim.machine).await;
    assert_eq!((leased.state, leased.attempt.as_ref()), (MachineState::Leased, Some(&claim.attempt)));
    let jobs = server.jobs(&run).await;
    assert_eq!(jobs.iter().map(|job| job.state).collect::<Vec<_>>(), [JobState::Leased, JobState::Queued]);
    let attempt: Attempt = server.get(format!("/api/v1/attempts/{}", claim.attempt)).await.ok();
    assert_eq!((attempt.stages.len(), attempt.verdict), (8, Status::Miss), "everything owed is written down");
}

#[tokio::test]
async fn a_claim_waits_for_a_submission_and_is_woken_by_it() {
    let server = Server::new().await;
    let enrolled = server.enrol(&["m1"]).await;
    let claim = server.claim_call(&enrolled, 30);
    let (answer, run) = tokio::time::timeout(Duration::from_secs(20), async {
        tokio::join!(server.call(claim), async {
            // The claim listens before it looks, so a submission at any moment wakes it.
            while server.state.wake.waiting() == 0 {
                tokio::task::yield_now().await;
            }
            server.run(1).await
        })
    })
    .await
    .expect("woken long before the claim's own time is up");
    assert_eq!(answer.ok::<Claim>().brief.run, run.id);
    assert_eq!(server.state.wake.waiting(), 0, "nobody is left waiting");
}

#[tokio::test]
async fn a_claim_without_work_is_answered_with_nothing() {
    let server = Server::new().await;
    let enrolled = server.enrol(&["m1"]).await;
    server.call(server.claim_call(&enrolled, 0)).await.no_content();
    assert_eq!(machine(&server, &enrolled.machines["m1"]).await.state, MachineState::Available, "it was seen idle");
}

#[tokio::test]
async fn a_claim_whose_answer_was_lost_is_given_again_under_a_new_epoch() {
    let server = Server::new().await;
    server.run(2).await;
    let enrolled = server.enrol(&["m1"]).await;
    let first: Claim = server.call(server.claim_call(&enrolled, 0)).await.ok();
    let again: Claim = server.call(server.claim_call(&enrolled, 0)).await.ok();
    assert_eq!(
        (&again.attempt, again.epoch),
        (&first.attempt, 2),
        "the same attempt, and the first copy is fenced off"
    );
    let stale = server.report(&first, Role::Controller, 0, note("first copy")).await;
    stale.problem(409, kind::LEASE_LOST);
    server
        .call(Call::get(format!("/agent/v1/attempts/{}/brief", first.attempt)).by_agent(&first))
        .await
        .problem(401, kind::UNAUTHORIZED);
    server.report(&again, Role::Controller, 0, note("second copy")).await.ok::<ReportsReply>();
    // Once anything was done, a controller that calls the machine idle has forgotten something: no second lease.
    server.call(server.claim_call(&enrolled, 0)).await.no_content();
}

#[tokio::test]
async fn only_machines_that_a_selector_names_get_its_jobs() {
    let server = Server::new().await;
    let build = server.build().await;
    server.plan("only-m2", 1, &[("name", "m2"), ("driver", "fake")]).await;
    let run = json!({ "build": build.id, "plan": "only-m2" });
    server.call(Call::post("/api/v1/runs", &run).token(&server.submit)).await.ok::<serde_json::Value>();
    let enrolled = server.enrol(&["m1", "m2"]).await;
    let claim: Claim = server.call(server.claim_call(&enrolled, 0)).await.ok();
    assert_eq!(claim.machine, enrolled.machines["m2"]);
}

#[tokio::test]
async fn a_later_small_run_is_not_kept_waiting_by_a_large_one() {
    let server = Server::new().await;
    let large = server.run(100).await;
    server.advance(61);
    let small = server.run(1).await;
    let enrolled = server.enrol(&["m1", "m2", "m3"]).await;
    let mut runs = Vec::new();
    let mut idle = enrolled.clone();
    for _ in 0..3 {
        let claim: Claim = server.call(server.claim_call(&idle, 0)).await.ok();
        idle.machines.retain(|_, id| *id != claim.machine);
        runs.push(claim.brief.run);
    }
    assert_eq!(runs, [large.id.clone(), large.id.clone(), small.id]);
}

#[tokio::test]
async fn a_report_sent_again_is_ignored_and_another_under_its_number_is_a_conflict() {
    let server = Server::new().await;
    let claim = server.claimed().await;
    let power = |ok| Report::Power { action: "on".into(), ok, detail: "started".into() };
    for _ in 0..2 {
        let reply: ReportsReply = server.report(&claim, Role::Controller, 0, power(true)).await.ok();
        assert_eq!(reply.directive, Directive::Continue);
    }
    let problem = server.report(&claim, Role::Controller, 0, power(false)).await.problem(409, kind::CONFLICT);
    assert!(problem.detail.contains("report 0 of the controller"), "{}", problem.detail);
    let next = Call::get(format!("/agent/v1/attempts/{}/reports/controller/next", claim.attempt));
    assert_eq!(server.call(next.token(&server.controller)).await.ok::<u64>(), 1);
    let evidence: Vec<crashyard_protocol::api::Evidence> =
        server.get(format!("/api/v1/attempts/{}/evidence", claim.attempt)).await.ok();
    assert_eq!(evidence.len(), 1);
}

#[tokio::test]
async fn nul_characters_in_a_report_are_replaced_and_kept_from_the_database() {
    let server = Server::new().await;
    let claim = server.claimed().await;
    server.report(&claim, Role::Target, 0, note("a\0b")).await.ok::<ReportsReply>();
    server.report(&claim, Role::Target, 0, note("a\0b")).await.ok::<ReportsReply>();
    let evidence: Vec<crashyard_protocol::api::Evidence> =
        server.get(format!("/api/v1/attempts/{}/evidence", claim.attempt)).await.ok();
    assert_eq!(evidence[0].report, note("a\u{fffd}b"));
}

#[tokio::test]
async fn reports_of_an_attempt_that_cannot_be_judged_are_kept() {
    let server = Server::new().await;
    server.run(1).await;
    let enrolled = server.enrol(&["m1"]).await;
    let claim: Claim = server.call(server.claim_call(&enrolled, 0)).await.ok();
    let mut tx = server.state.db.begin().await.unwrap();
    db::attempt::set_dump_facts(&mut tx, &[(&claim.attempt, &json!("what no reader wrote"))]).await.unwrap();
    tx.commit().await.unwrap();
    let refused = server.report(&claim, Role::Target, 0, note("seen")).await;
    refused.problem(500, kind::INTERNAL);
    let kept = db::report::of_attempt(&server.state.db, &claim.attempt).await.unwrap();
    assert_eq!(kept.iter().map(|row| &row.body.0).collect::<Vec<_>>(), [&note("seen")]);
    let told = db::event::of_attempt(&server.state.db, &claim.attempt, 0, 100).await.unwrap();
    assert_eq!(
        told.iter().filter(|event| matches!(event.body.0, EventBody::Report { .. })).count(),
        1,
        "and told once"
    );
    let contradicts = server.report(&claim, Role::Target, 0, note("something else")).await;
    contradicts.problem(409, kind::CONFLICT);
}

pub async fn provision_and_arm(server: &Server, claim: &Claim) -> ReportsReply {
    server
        .put_console(claim, 0, "[    0.000000] Linux version 6.1.0-test (gcc) #1 SMP\n")
        .await
        .ok::<serde_json::Value>();
    let kernel = Report::Kernel {
        release: "6.1.0-test".into(),
        version: "#1 SMP".into(),
        build_id: Some("0123456789abcdef".into()),
        cpus_online: 2,
    };
    server.report(claim, Role::Target, 0, kernel).await.ok::<ReportsReply>();
    let step = Report::Step {
        name: "load-crash-kernel".into(),
        command: Some("kexec -p -s".into()),
        code: Some(0),
        ok: true,
        output: String::new(),
        took_ms: 10,
    };
    server.report(claim, Role::Target, 1, step).await.ok::<ReportsReply>();
    let armed = Report::Armed { crash_kernel_loaded: true, crash_kernel_bytes: 192 << 20, vmx: VmxState::None };
    server.report(claim, Role::Target, 2, armed).await.ok()
}

#[tokio::test]
async fn the_reply_to_the_armed_report_is_the_order_to_trigger() {
    let server = Server::new().await;
    let claim = server.claimed().await;
    assert_eq!(provision_and_arm(&server, &claim).await.directive, Directive::Trigger);
}

#[tokio::test]
async fn a_renewal_prolongs_the_lease_and_waits_for_the_verdict() {
    let server = Server::new().await;
    let claim = server.claimed().await;
    let renew = |wait_seconds| {
        Call::post(format!("/agent/v1/attempts/{}/renew", claim.attempt), &RenewRequest { wait_seconds, keys: None })
            .by_controller(&server, &claim)
    };
    let reply: RenewReply = server.call(renew(0)).await.ok();
    assert_eq!(reply, RenewReply { lease_seconds: 60, directive: Directive::Continue, keys: 0 });
    provision_and_arm(&server, &claim).await;
    // The machine dies without the marker: a held renewal learns of the verdict the moment the server has it.
    let ended = Report::MachineEnded { detail: "triple fault".into() };
    let judged = async {
        while server.state.wake.waiting() == 0 {
            tokio::task::yield_now().await;
        }
        server.report(&claim, Role::Controller, 0, ended).await.ok::<ReportsReply>();
        server.advance(60);
        crashyard_server::passes::deadlines::tick(&server.state).await.unwrap();
    };
    let (reply, ()) =
        tokio::time::timeout(Duration::from_secs(15), async { tokio::join!(server.call(renew(20)), judged) })
            .await
            .expect("woken by the verdict");
    assert_eq!(reply.ok::<RenewReply>().directive, Directive::Collect);
}

#[tokio::test]
async fn a_stale_epoch_is_refused_everywhere() {
    let server = Server::new().await;
    let mut claim = server.claimed().await;
    claim.epoch += 1;
    server.report(&claim, Role::Controller, 0, note("x")).await.problem(409, kind::LEASE_LOST);
    server.report(&claim, Role::Target, 0, note("x")).await.problem(409, kind::LEASE_LOST);
    server.put_console(&claim, 0, "x").await.problem(409, kind::LEASE_LOST);
    let renew = Call::post(
        format!("/agent/v1/attempts/{}/renew", claim.attempt),
        &RenewRequest { wait_seconds: 0, keys: None },
    );
    server.call(renew.by_controller(&server, &claim)).await.problem(409, kind::LEASE_LOST);
    release(&server, &claim, true).await.problem(409, kind::LEASE_LOST);
    let without = Call::post(
        format!("/agent/v1/attempts/{}/renew", claim.attempt),
        &RenewRequest { wait_seconds: 0, keys: None },
    );
    let problem = server.call(without.token(&server.controller)).await.problem(400, kind::INVALID);
    assert!(problem.detail.contains("crashyard-epoch"), "{}", problem.detail);
}

#[tokio::test]
async fn a_released_machine_is_free_and_its_attempt_over() {
    let server = Server::new().await;
    let claim = server.claimed().await;
    release(&server, &claim, true).await.no_content();
    release(&server, &claim, true).await.no_content();
    let attempt: Attempt = server.get(format!("/api/v1/attempts/{}", claim.attempt)).await.ok();
    assert_eq!(attempt.state, AttemptState::Done);
    assert_eq!(machine(&server, &claim.machine).await.state, MachineState::Available);
}

#[tokio::test]
async fn an_unhealthy_machine_is_quarantined_with_the_reason() {
    let server = Server::new().await;
    let claim = server.claimed().await;
    release(&server, &claim, false).await.no_content();
    let kept = machine(&server, &claim.machine).await;
    assert_eq!((kept.state, kept.reason.as_deref()), (MachineState::Quarantined, Some("checked")));
    let back = Call::put_json(format!("/api/v1/machines/{}/state", claim.machine), &json!({ "state": "available" }));
    server.call(back.clone().token(&server.submit)).await.problem(403, kind::FORBIDDEN);
    let back: Machine = server.call(back.token(&server.admin)).await.ok();
    assert_eq!((back.state, back.reason), (MachineState::Available, None));
}

#[tokio::test]
async fn a_run_is_done_when_every_job_has_had_its_tries() {
    let server = Server::with(|config| config.max_attempts = 2).await;
    let run = server.run(1).await;
    let enrolled = server.enrol(&["m1"]).await;
    for number in 1..=2 {
        let claim: Claim = server.call(server.claim_call(&enrolled, 0)).await.ok();
        let attempt: Attempt = server.get(format!("/api/v1/attempts/{}", claim.attempt)).await.ok();
        assert_eq!(attempt.number, number);
        release(&server, &claim, true).await.no_content();
        server.advance(60);
        crashyard_server::passes::deadlines::tick(&server.state).await.unwrap();
    }
    server.call(server.claim_call(&enrolled, 0)).await.no_content();
    let job = &server.jobs(&run).await[0];
    assert_eq!((job.state, job.status, job.attempts.len()), (JobState::Done, Status::Miss, 2), "{job:#?}");
    assert!(job.reason.is_some(), "a result that is missing says why");
    let run: crashyard_protocol::api::Run = server.get(format!("/api/v1/runs/{}", run.id)).await.ok();
    assert_eq!((run.state, run.status), (crashyard_protocol::RunState::Done, Status::Miss));
}
