//! Placement as clients see it: selectors with constraints, priorities, deadlines, shares.

use crate::harness::{Call, Server};
use crashyard_protocol::agent::{Claim, EnrolRequest, Enrolled, MachineSpec, ReleaseRequest};
use crashyard_protocol::api::{
    Job, Machine, NewPlan, NewRun, Page, Plan, Policy, Run, SetSubmitter, Submitter, Waiting,
};
use crashyard_protocol::{JobState, MachineState, Priority, Status};
use crashyard_server::passes;

async fn enrol(server: &Server, machines: &[(&str, &[(&str, &str)])]) -> Enrolled {
    let machines = machines.iter().map(|(name, labels)| MachineSpec {
        name: (*name).into(),
        driver: "fake".into(),
        labels: labels.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
    });
    let request = EnrolRequest { name: "lab".into(), version: "1".into(), machines: machines.collect() };
    server.call(Call::post("/agent/v1/enrol", &request).token(&server.controller)).await.ok()
}

fn plan(requires: &[&str]) -> NewPlan {
    NewPlan {
        name: "wanted".into(),
        scenarios: vec!["sysrq".into()],
        selector: [].into(),
        requires: requires.iter().map(|text| (*text).to_owned()).collect(),
        repetitions: 1,
        policy: Policy::default(),
    }
}

async fn put_plan(server: &Server, requires: &[&str]) -> crate::harness::Answer {
    server.plan("smoke", 1, &[]).await;
    server.call(Call::put_json("/api/v1/plans/wanted", &plan(requires)).token(&server.submit)).await
}

async fn submit(server: &Server, new: impl FnOnce(NewRun) -> NewRun) -> Run {
    let build = server.build().await;
    let new = new(NewRun::new(build.id, "wanted"));
    server.call(Call::post("/api/v1/runs", &new).token(&server.submit)).await.ok()
}

/// Claims for the machines of a lab that are idle, as a controller does.
async fn claim(server: &Server, lab: &Enrolled) -> Option<Claim> {
    let mut lab = lab.clone();
    let busy: Page<Machine> = server.get("/api/v1/machines").await.ok();
    lab.machines.retain(|_, id| busy.items.iter().any(|machine| machine.id == *id && machine.attempt.is_none()));
    let answer = server.call(server.claim_call(&lab, 0)).await;
    (answer.status.as_u16() == 200).then(|| answer.ok())
}

async fn release(server: &Server, claim: &Claim) {
    let done = ReleaseRequest { healthy: true, detail: String::new() };
    let call = Call::post(format!("/agent/v1/attempts/{}/release", claim.attempt), &done);
    server.call(call.by_controller(server, claim)).await.no_content();
}

#[tokio::test]
async fn a_job_gets_a_machine_that_satisfies_every_constraint_of_its_plan() {
    let server = Server::new().await;
    let stored: Plan = put_plan(&server, &["memory_mib>=4096", "vmx.unrestricted", "firmware != bios"]).await.ok();
    assert_eq!(stored.plan.requires.len(), 3);
    let big = [("memory_mib", "8192"), ("vmx.unrestricted", "1"), ("firmware", "efi")];
    let small = [("memory_mib", "512"), ("vmx.unrestricted", "1"), ("firmware", "efi")];
    let old = [("memory_mib", "8192"), ("vmx.unrestricted", "1"), ("firmware", "bios")];
    // One selector is older than the machines, and is the same when it comes again in other words.
    let first = submit(&server, |new| new).await;
    let lab = enrol(&server, &[("big", &big), ("small", &small), ("old", &old)]).await;
    assert_eq!(claim(&server, &lab).await.unwrap().machine, lab.machines["big"]);
    let job: Job = server.jobs(&first).await.remove(0);
    assert_eq!(job.requires, ["firmware != bios", "memory_mib >= 4096", "vmx.unrestricted"]);
    submit(&server, |new| new).await;
    assert!(claim(&server, &lab).await.is_none(), "no other machine has it all");
    // And one is younger than the machines.
    put_plan(&server, &["memory_mib < 1024"]).await.ok::<Plan>();
    submit(&server, |new| new).await;
    assert_eq!(claim(&server, &lab).await.unwrap().machine, lab.machines["small"]);
}

#[tokio::test]
async fn a_constraint_that_cannot_be_read_is_refused_when_the_plan_is_stored() {
    let server = Server::new().await;
    let problem = put_plan(&server, &["memory_mib >= lots"]).await.problem(400, "invalid");
    assert!(problem.detail.contains("\"lots\" is not a number"), "{}", problem.detail);
    let problem = put_plan(&server, &["vendor = intel", "vendor = amd"]).await.problem(400, "invalid");
    assert!(problem.detail.contains("no machine can have"), "{}", problem.detail);
}

#[tokio::test]
async fn what_is_urgent_is_placed_before_what_was_submitted_earlier() {
    let server = Server::new().await;
    put_plan(&server, &[]).await.ok::<Plan>();
    let bulk = submit(&server, |new| NewRun { priority: Some(Priority::Bulk), ..new }).await;
    let normal = submit(&server, |new| new).await;
    let urgent = submit(&server, |new| NewRun { priority: Some(Priority::Urgent), ..new }).await;
    let lab = enrol(&server, &[("m1", &[]), ("m2", &[]), ("m3", &[])]).await;
    for run in [urgent, normal, bulk] {
        assert_eq!(claim(&server, &lab).await.unwrap().brief.run, run.id);
    }
}

#[tokio::test]
async fn a_job_that_no_machine_takes_in_time_ends_as_miss_and_says_so() {
    let server = Server::new().await;
    put_plan(&server, &[]).await.ok::<Plan>();
    let run = submit(&server, |new| NewRun { start_within_seconds: Some(60), ..new }).await;
    passes::queue::tick(&server.state).await.unwrap();
    assert_eq!(server.jobs(&run).await[0].state, JobState::Queued);
    server.advance(60);
    passes::queue::tick(&server.state).await.unwrap();
    let job = server.jobs(&run).await.remove(0);
    assert_eq!((job.state, job.status), (JobState::Done, Status::Miss));
    assert!(job.reason.unwrap().contains("no machine took it before its deadline: it waited 60 s"));
    let lab = enrol(&server, &[("m1", &[])]).await;
    assert!(claim(&server, &lab).await.is_none());
    let late = NewRun { start_within_seconds: Some(0), ..NewRun::new(run.build, "wanted") };
    server.call(Call::post("/api/v1/runs", &late).token(&server.submit)).await.problem(400, "invalid");
}

#[tokio::test]
async fn a_limited_submitter_gets_its_next_machine_when_one_is_back() {
    let server = Server::new().await;
    put_plan(&server, &[]).await.ok::<Plan>();
    for _ in 0..3 {
        submit(&server, |new| new).await;
    }
    let all: Vec<Submitter> = server.get("/api/v1/submitters").await.ok();
    assert_eq!((all.len(), all[0].name.as_str(), all[0].waiting), (1, "token:submit", true));
    let path = format!("/api/v1/submitters/{}", all[0].id);
    let set = SetSubmitter { weight: 3, max_machines: Some(1) };
    server.call(Call::put_json(&path, &set).token(&server.submit)).await.problem(403, "forbidden");
    let now: Submitter = server.call(Call::put_json(&path, &set).token(&server.admin)).await.ok();
    assert_eq!((now.weight, now.max_machines), (3, Some(1)));
    let lab = enrol(&server, &[("m1", &[]), ("m2", &[])]).await;
    let first = claim(&server, &lab).await.unwrap();
    assert!(claim(&server, &lab).await.is_none());
    // The machine that waits is woken, not only the one that came back.
    let other = lab.machines.values().find(|id| **id != first.machine).unwrap();
    let mut waiter = server.state.wake.subscribe(crashyard_server::wake::Topic::Machine(other.clone()));
    server.advance(30);
    release(&server, &first).await;
    crate::leases::settle(&server).await;
    waiter.woken().await;
    assert!(claim(&server, &lab).await.is_some());
    let all: Vec<Submitter> = server.get("/api/v1/submitters").await.ok();
    assert_eq!((all[0].machines, all[0].machine_seconds), (1, 30));
}

#[tokio::test]
async fn a_waiting_job_says_what_it_asks_for_where_the_machines_are_and_who_comes_first() {
    let server = Server::new().await;
    put_plan(&server, &["vmx.unrestricted", "memory_mib >= 4096"]).await.ok::<Plan>();
    let first = submit(&server, |new| new).await;
    let run = submit(&server, |new| NewRun { start_within_seconds: Some(7200), ..new }).await;
    let job = server.jobs(&run).await.remove(0).id;
    let path = format!("/api/v1/jobs/{job}/waiting");
    let nobody: Waiting = server.get(&path).await.ok();
    assert!(nobody.summary.starts_with("no machine is enrolled; 1 jobs before it"), "{}", nobody.summary);

    let good = [("vmx.unrestricted", "1"), ("memory_mib", "8192")];
    let small = [("vmx.unrestricted", "1"), ("memory_mib", "512")];
    let lab = enrol(&server, &[("plain", &[]), ("small", &small), ("big", &good), ("sick", &good)]).await;
    let set = serde_json::json!({ "state": "quarantined", "reason": "fan" });
    let sick = format!("/api/v1/machines/{}/state", lab.machines["sick"]);
    server.call(Call::put_json(sick, &set).token(&server.admin)).await.ok::<Machine>();
    let claimed = claim(&server, &lab).await.unwrap();
    assert_eq!((claimed.machine.clone(), claimed.brief.run.clone()), (lab.machines["big"].clone(), first.id));
    let urgent = submit(&server, |new| NewRun { priority: Some(Priority::Urgent), ..new }).await;

    let waiting: Waiting = server.get(&path).await.ok();
    let constraints: Vec<_> =
        waiting.constraints.iter().map(|one| (one.constraint.as_str(), one.satisfied_by)).collect();
    assert_eq!(constraints, [("memory_mib >= 4096", 2), ("vmx.unrestricted", 3)]);
    let fails: Vec<_> = waiting.constraints[0].fails.iter().map(|fail| fail.found.as_str()).collect();
    assert_eq!(fails, ["it has no label memory_mib", "memory_mib is 512"]);
    let machines: Vec<_> = waiting.machines.iter().map(|one| (one.name.as_str(), one.state)).collect();
    assert_eq!(machines, [("big", MachineState::Leased), ("sick", MachineState::Quarantined)]);
    assert_eq!((waiting.before, waiting.ahead.len(), waiting.ahead[0].first), (0, 1, true));
    assert!(
        waiting.summary.contains("1 quarantined since") && waiting.summary.contains("(fan)"),
        "{}",
        waiting.summary
    );
    assert_eq!(waiting.expected_start, None, "no such job has ended yet");
    server.advance(600);
    release(&server, &claimed).await;
    crate::leases::settle(&server).await;
    // One machine, two jobs first (the lab did not deliver, so the first one is tried again), ten minutes each.
    let waiting: Waiting = server.get(&path).await.ok();
    assert_eq!(waiting.expected_start, Some(server.clock_now().plus(std::time::Duration::from_secs(1200))));
    assert!(waiting.summary.ends_with("expected to start in about 20 m"), "{}", waiting.summary);
    let page = server.get(format!("/jobs/{job}/waiting")).await;
    let page = String::from_utf8(page.body.to_vec()).unwrap();
    assert!(page.contains("vmx.unrestricted") && page.contains("fan") && page.contains("comes first"), "{page}");
    assert!(page.contains("data-page=\"list\"") && page.contains("id=\"list\""), "and looks again by itself: {page}");
    let run_page = server.get(format!("/runs/{}", urgent.id)).await;
    let link = format!("/jobs/{}/waiting", server.jobs(&urgent).await[0].id);
    assert!(String::from_utf8(run_page.body.to_vec()).unwrap().contains(&link));
    claim(&server, &lab).await.unwrap();
    claim(&server, &lab).await;
    let urgent: Waiting = server.get(format!("/api/v1{link}")).await.ok();
    assert!(urgent.summary.starts_with("It is not waiting"), "{}", urgent.summary);
}
