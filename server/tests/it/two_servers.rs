//! Two servers on one PostgreSQL: what one is told wakes who waits at the other, and no job is placed twice.

use crate::harness::{Call, Server};
use crashyard_protocol::agent::{Claim, ClaimRequest, EnrolRequest, Enrolled, MachineSpec};
use crashyard_protocol::api::NewRun;
use crashyard_server::relay;
use crashyard_server::wake::Topic;
use std::collections::BTreeSet;
use std::sync::Arc;

struct Two {
    one: Server,
    two: Server,
    // Last: the database goes when nobody uses it any more.
    _postgres: crashyard_testkit::Postgres,
}

async fn two() -> Two {
    let postgres = crashyard_testkit::Postgres::start().unwrap();
    let url = postgres.database("farm").unwrap();
    let one = Server::with(|config| config.database_url = url).await;
    let two = one.restarted().await;
    Two { one, two, _postgres: postgres }
}

impl Two {
    async fn listening(self) -> Self {
        for server in [&self.one, &self.two] {
            relay::start(&server.state).await.unwrap().detach_all();
        }
        self
    }

    async fn end(self) {
        for server in [&self.one, &self.two] {
            server.state.stop.cancel();
            server.state.db.close().await;
        }
    }
}

async fn enrol(server: &Server, name: &str, machines: usize) -> Enrolled {
    let machines = (0..machines).map(|index| MachineSpec {
        name: format!("{name}-{index}"),
        driver: "fake".into(),
        labels: [].into(),
    });
    let request = EnrolRequest { name: name.into(), version: "1".into(), machines: machines.collect() };
    server.call(Call::post("/agent/v1/enrol", &request).token(&server.controller)).await.ok()
}

#[tokio::test]
async fn a_submission_at_one_server_wakes_a_claim_that_waits_at_the_other() {
    let farm = two().await.listening().await;
    let lab = enrol(&farm.two, "lab", 1).await;
    let machine = lab.machines["lab-0"].clone();
    // Somebody who only listens and never looks by itself: nothing but the other server's word ends this wait.
    let mut listener = farm.two.state.wake.subscribe(Topic::Machine(machine.clone()));
    farm.one.run(1).await;
    listener.woken().await;
    let claim: Claim = farm.two.call(farm.two.claim_call(&lab, 0)).await.ok();
    assert_eq!(claim.machine, machine);
    // And the other way, for what people watch: the run's page at one server, the verdict at the other.
    let mut watcher = farm.one.state.wake.subscribe(Topic::Run(claim.brief.run.clone()));
    farm.two.state.wake.wake(&Topic::Run(claim.brief.run.clone()));
    watcher.woken().await;
    farm.end().await;
}

#[tokio::test]
async fn two_servers_that_claim_at_once_place_no_job_twice_and_leave_none() {
    const EACH: usize = 12;
    let farm = two().await;
    let labs = [enrol(&farm.one, "a", EACH).await, enrol(&farm.two, "b", EACH).await];
    farm.one.plan("smoke", u32::try_from(2 * EACH).unwrap(), &[]).await;
    let build = farm.one.build().await;
    let new = NewRun::new(build.id, "smoke");
    farm.one.call(Call::post("/api/v1/runs", &new).token(&farm.one.submit)).await.ok::<serde_json::Value>();
    let farm = Arc::new(farm);
    let mut claims = tokio::task::JoinSet::new();
    for (at, lab) in labs.iter().enumerate() {
        for machine in lab.machines.values() {
            let request = ClaimRequest {
                controller: lab.controller.clone(),
                machines: vec![machine.clone()],
                wait_seconds: 60,
                errands: false,
            };
            let farm = farm.clone();
            claims.spawn(async move {
                let server = if at == 0 { &farm.one } else { &farm.two };
                let claim: Claim =
                    server.call(Call::post("/agent/v1/claim", &request).token(&server.controller)).await.ok();
                (claim.brief.job, claim.machine)
            });
        }
    }
    let placed = claims.join_all().await;
    let jobs: BTreeSet<_> = placed.iter().map(|(job, _)| job).collect();
    let machines: BTreeSet<_> = placed.iter().map(|(_, machine)| machine).collect();
    assert_eq!((jobs.len(), machines.len()), (2 * EACH, 2 * EACH));
    Arc::into_inner(farm).unwrap().end().await;
}
