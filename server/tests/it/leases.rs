//! Leases that run out, servers that were away, and what a `kill -9` between two steps leaves behind.

use crate::harness::{Call, Server, note};
use crashyard_protocol::agent::{Claim, ReleaseRequest, RenewReply, RenewRequest, ReportsReply, Role};
use crashyard_protocol::api::{Attempt, Machine};
use crashyard_protocol::problem::kind;
use crashyard_protocol::{AttemptState, JobState, MachineState, StageName, Status};
use crashyard_server::passes::{deadlines, leases, verify};
use crashyard_server::{db, routes};
use crashyard_testkit::{FakeLab, Wire};

async fn attempt(server: &Server, claim: &Claim) -> Attempt {
    server.get(format!("/api/v1/attempts/{}", claim.attempt)).await.ok()
}

pub async fn settle(server: &Server) {
    leases::tick(&server.state).await.unwrap();
    server.advance(15);
    deadlines::tick(&server.state).await.unwrap();
}

#[tokio::test]
async fn a_lease_that_runs_out_gives_the_job_to_another_machine_and_keeps_the_evidence() {
    let server = Server::new().await;
    let run = server.run(1).await;
    let enrolled = server.enrol(&["m1", "m2"]).await;
    let claim: Claim = server.call(server.claim_call(&enrolled, 0)).await.ok();
    server.put_console(&claim, 0, "booting\n").await.ok::<serde_json::Value>();
    server.advance(61);
    settle(&server).await;
    let lost = attempt(&server, &claim).await;
    assert_eq!((lost.state, lost.artifacts.len()), (AttemptState::Lost, 1));
    assert_eq!(server.jobs(&run).await[0].state, JobState::Queued);
    server.report(&claim, Role::Target, 0, note("late")).await.problem(409, kind::LEASE_LOST);
    server.put_console(&claim, 8, "late\n").await.problem(409, kind::LEASE_LOST);
    let machine: Machine = server.get(format!("/api/v1/machines/{}", claim.machine)).await.ok();
    assert_eq!(machine.state, MachineState::Enrolled, "until its controller calls it idle");
    let again: Claim = server.call(server.claim_call(&enrolled, 0)).await.ok();
    assert_ne!(again.attempt, claim.attempt);
    assert_eq!(again.brief.job, claim.brief.job);
}

#[tokio::test]
async fn leases_that_run_out_together_end_in_one_commit_and_one_that_is_renewed_stays() {
    let server = Server::new().await;
    let run = server.run(4).await;
    let enrolled = server.enrol(&["m1", "m2", "m3", "m4"]).await;
    let mut claims = Vec::new();
    for machine in 0..4 {
        claims.push(server.call(server.claim_call(&enrolled, machine)).await.ok::<Claim>());
    }
    server.advance(30);
    let renew = Call::post(
        format!("/agent/v1/attempts/{}/renew", claims[2].attempt),
        &RenewRequest { wait_seconds: 0, keys: None },
    );
    server.call(renew.by_controller(&server, &claims[2])).await.ok::<RenewReply>();
    server.advance(31);
    settle(&server).await;
    let mut finished = Vec::new();
    for claim in &claims {
        let now = attempt(&server, claim).await;
        finished.push((now.state, now.finished_at));
    }
    let running = finished.remove(2);
    assert_eq!(running, (AttemptState::Running, None));
    assert!(finished.iter().all(|one| one.0 == AttemptState::Lost && *one == finished[0]), "at one time: {finished:?}");
    let jobs = server.jobs(&run).await;
    assert_eq!(jobs.iter().filter(|job| job.state == JobState::Queued).count(), 3, "and each has another try");
}

#[tokio::test]
async fn nobody_is_declared_lost_until_this_server_was_up_for_one_lease() {
    let server = Server::new().await;
    let claim = server.claimed().await;
    server.be_up_for(5).await;
    server.advance(3600);
    let server = server.restarted().await;
    settle(&server).await;
    assert_eq!(attempt(&server, &claim).await.state, AttemptState::Running);
    // The controller was there all the time and renews as soon as it can.
    let renew = Call::post(
        format!("/agent/v1/attempts/{}/renew", claim.attempt),
        &RenewRequest { wait_seconds: 0, keys: None },
    );
    server.call(renew.by_controller(&server, &claim)).await.ok::<RenewReply>();
    server.advance(59);
    settle(&server).await;
    assert_eq!(attempt(&server, &claim).await.state, AttemptState::Running);
}

#[tokio::test]
async fn stages_do_not_age_while_no_server_was_up() {
    let server = Server::new().await;
    let claim = server.claimed().await;
    server.be_up_for(100).await;
    // Down for an hour; the stage `provisioned` may take 300 s.
    server.advance(3600);
    let server = server.restarted().await;
    deadlines::tick(&server.state).await.unwrap();
    assert!(attempt(&server, &claim).await.stages[0].settled_at.is_none(), "200 s are left");
    server.be_up_for(300).await;
    deadlines::tick(&server.state).await.unwrap();
    let judged = attempt(&server, &claim).await;
    assert!(judged.stages[0].settled_at.is_some(), "{judged:#?}");
    assert_eq!(judged.state, AttemptState::Collecting);
}

#[tokio::test]
async fn evidence_written_right_before_a_kill_is_judged_after_the_restart() {
    let server = Server::new().await;
    let claim = server.claimed().await;
    server
        .put_console(&claim, 0, "[    0.000000] Linux version 6.1.0-test (gcc) #1 SMP\n")
        .await
        .ok::<serde_json::Value>();
    // Recorded, and the server dies before it judges: the row is there, and no judgement of it.
    let report = db::report::ReportRow {
        attempt_id: claim.attempt.clone(),
        role: Role::Target,
        seq: 0,
        body: sqlx::types::Json(crashyard_protocol::agent::Report::Kernel {
            release: "6.1.0-test".into(),
            version: "#1 SMP".into(),
            build_id: Some("0123456789abcdef".into()),
            cpus_online: 2,
        }),
        received_at: server.state.now(),
    };
    let mut tx = server.state.db.begin().await.unwrap();
    db::report::record_all(&mut tx, &[report]).await.unwrap();
    tx.commit().await.unwrap();
    let server = server.restarted().await;
    deadlines::tick(&server.state).await.unwrap();
    let stages = attempt(&server, &claim).await.stages;
    assert_eq!(stages[0].state, crashyard_protocol::StageState::Proven, "{stages:#?}");
}

/// Plays an attempt until its dump is whole with the server, and no further.
async fn dumped(server: &Server) -> FakeLab {
    let mut wire = Wire::new(routes::router(server.state.clone()), 1, 0);
    let mut lab = FakeLab::new("lab", 1, &server.controller, 1);
    while lab.dumps.is_empty() {
        lab.step(&mut wire).await;
        deadlines::tick(&server.state).await.unwrap();
        server.clock.advance(std::time::Duration::from_millis(20));
    }
    lab
}

#[tokio::test]
async fn a_dump_that_was_whole_when_the_lease_was_lost_is_read_and_decides() {
    let server = Server::with(|config| config.max_attempts = 1).await;
    let run = server.run(1).await;
    dumped(&server).await;
    server.be_up_for(65).await;
    settle(&server).await;
    let job = &server.jobs(&run).await[0];
    assert_eq!(job.state, JobState::Leased, "the dump is there, so its judge waits for it to be read");
    let lost: Attempt = server.get(format!("/api/v1/attempts/{}", job.attempts[0])).await.ok();
    assert_eq!((lost.state, lost.verdict), (AttemptState::Lost, Status::Miss));

    verify::tick(&server.state).await.unwrap();
    // The lab in memory sends noise: that is what the kernel did, and no lost lease excuses it.
    let job = &server.jobs(&run).await[0];
    assert_eq!((job.state, job.status, job.blamed_stage), (JobState::Done, Status::Fail, Some(StageName::Verified)));
    assert!(job.reason.as_deref().is_some_and(|reason| reason.contains("not a crash dump")), "{job:?}");
    assert_eq!(verify::tick(&server.state).await.unwrap(), crashyard_server::passes::Next::Woken, "once");
}

#[tokio::test]
async fn a_dump_that_nobody_reads_in_time_keeps_a_lost_attempt_from_its_end_no_longer_than_that() {
    let server = Server::with(|config| config.max_attempts = 1).await;
    let run = server.run(1).await;
    dumped(&server).await;
    server.be_up_for(130).await;
    settle(&server).await;
    let job = &server.jobs(&run).await[0];
    assert_eq!((job.state, job.status, job.blamed_stage), (JobState::Done, Status::Error, Some(StageName::Verified)));
    // What is settled stays, so there is nothing to read it for.
    assert_eq!(verify::tick(&server.state).await.unwrap(), crashyard_server::passes::Next::Woken);
}

#[tokio::test]
async fn an_attempt_that_ended_right_before_a_kill_is_settled_after_the_restart() {
    let server = Server::with(|config| config.max_attempts = 1).await;
    let run = server.run(1).await;
    let enrolled = server.enrol(&["m1"]).await;
    let claim: Claim = server.call(server.claim_call(&enrolled, 0)).await.ok();
    let end = db::lease::End::Released { epoch: claim.epoch, healthy: true, detail: "" };
    let mut tx = server.state.db.begin().await.unwrap();
    let rule = server.state.config.care().rule;
    db::lease::end(&mut tx, &[(&claim.attempt, end)], &rule, server.state.now()).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(server.jobs(&run).await[0].state, JobState::Leased);
    let server = server.restarted().await;
    settle(&server).await;
    assert_eq!(server.jobs(&run).await[0].state, JobState::Done);
}

#[tokio::test]
async fn of_leases_that_are_handed_back_at_once_one_that_is_refused_spoils_no_other() {
    let server = Server::new().await;
    server.run(4).await;
    let enrolled = server.enrol(&["m1", "m2", "m3", "m4"]).await;
    let mut claims = Vec::new();
    for _ in 0..4 {
        claims.push(server.call(server.claim_call(&enrolled, 0)).await.ok::<Claim>());
    }
    claims[1].epoch += 1;
    let release = |claim: &Claim, healthy| {
        let release = ReleaseRequest { healthy, detail: "looked at".into() };
        let call = Call::post(format!("/agent/v1/attempts/{}/release", claim.attempt), &release);
        server.call(call.by_controller(&server, claim))
    };
    let calls = claims.iter().map(|claim| release(claim, claim.attempt != claims[2].attempt));
    let answers = futures::future::join_all(calls).await;
    for (claim, answer) in claims.iter().zip(&answers) {
        if claim.attempt == claims[1].attempt {
            answer.problem(409, kind::LEASE_LOST);
        } else {
            answer.no_content();
        }
    }
    let mut states = Vec::new();
    for claim in &claims {
        let machine: Machine = server.get(format!("/api/v1/machines/{}", claim.machine)).await.ok();
        states.push((attempt(&server, claim).await.state, machine.state));
    }
    let over = |machine| (AttemptState::Done, machine);
    let held = (AttemptState::Running, MachineState::Leased);
    let (free, set_aside) = (over(MachineState::Available), over(MachineState::Quarantined));
    assert_eq!(states, [free, held, set_aside, free]);
    release(&claims[0], true).await.no_content();
}

#[tokio::test]
async fn passes_may_run_twice_and_at_any_time() {
    let server = Server::new().await;
    let claim = server.claimed().await;
    server.report(&claim, Role::Controller, 0, note("x")).await.ok::<ReportsReply>();
    let release = ReleaseRequest { healthy: true, detail: String::new() };
    let release = Call::post(format!("/agent/v1/attempts/{}/release", claim.attempt), &release);
    server.call(release.by_controller(&server, &claim)).await.no_content();
    server.advance(120);
    let mut last = None;
    for _ in 0..3 {
        deadlines::tick(&server.state).await.unwrap();
        leases::tick(&server.state).await.unwrap();
        crashyard_server::passes::verify::tick(&server.state).await.unwrap();
        crashyard_server::passes::compact::tick(&server.state).await.unwrap();
        let run: crashyard_protocol::api::Run = server.get(format!("/api/v1/runs/{}", claim.brief.run)).await.ok();
        assert!(last.is_none_or(|last| last == run.last_event), "nothing happens twice");
        last = Some(run.last_event);
    }
}
