//! The farm under fire: agents and servers die between any two steps, messages are lost, halved and repeated, hours
//! pass. After every step the ledger must be sound; in the end everything owed must be there, and every byte that was
//! acknowledged must be the byte that was sent.
//!
//! All of it follows from a seed. `FARM_SEED=n` repeats one run; a failure names its seed.

use crashyard_protocol::api::{NewBuild, NewPlan, NewRun, Policy, Run, TokenWithSecret};
use crashyard_protocol::clock::{ManualClock, Timestamp};
use crashyard_protocol::{
    Boot, Capture, Deadlines, Expect, RunId, RunState, Scenario, Scope, Status, Trigger, VmxState,
};

use crashyard_server::app::AppState;
use crashyard_server::blobs::Blobs;
use crashyard_server::config::Config;
use crashyard_server::db::{Db, Pool};
use crashyard_server::{api, passes, routes, serve};
use crashyard_testkit::{FakeLab, Kill, Postgres, Progress, Wire};
use rand::rngs::{SmallRng, StdRng};
use rand::{RngExt as _, SeedableRng as _};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const JOBS: usize = 5;
const MACHINES: usize = 2;
/// Steps under fire.
const STEPS: usize = 500;
/// Steps in peace that are more than enough to finish everything.
const PATIENCE: usize = 20_000;
/// Of 100 requests, so many each are lost, lost on the way back, and delivered twice.
const FAULTS: u32 = 7;

#[tokio::test]
async fn nothing_is_lost_or_doubled_on_sqlite_whatever_dies_when() {
    for seed in seeds(6) {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", dir.path().join("farm.db").display());
        under_fire(seed, &url, dir.path()).await;
    }
}

#[tokio::test]
async fn nothing_is_lost_or_doubled_on_postgresql_whatever_dies_when() {
    let postgres = Postgres::start().unwrap();
    for seed in seeds(2) {
        let dir = tempfile::tempdir().unwrap();
        let url = postgres.database(&format!("farm{seed}")).unwrap();
        under_fire(seed, &url, dir.path()).await;
    }
}

fn seeds(count: u64) -> Vec<u64> {
    match std::env::var("FARM_SEED") {
        Ok(seed) => vec![seed.parse().expect("FARM_SEED is a number")],
        Err(_) => (1..=count).collect(),
    }
}

async fn under_fire(seed: u64, url: &str, dir: &Path) {
    eprintln!("FARM_SEED={seed}");
    let mut rng = SmallRng::seed_from_u64(seed);
    let clock = ManualClock::at(Timestamp(1_760_000_000_000));
    let mut server = start(url, dir, &clock, seed).await;
    let secret = |made: (_, String)| made.1;
    let admin = secret(api::tokens::make(&server, "admin".into(), Scope::Admin, None).await.unwrap());
    let mut wire = Wire::new(routes::router(server.clone()), seed, 0);
    let run = submit(&mut wire, &admin).await;
    let token: TokenWithSecret = {
        let new = crashyard_protocol::api::NewToken { name: "lab".into(), scope: Scope::Controller, expires_at: None };
        wire.post("/api/v1/tokens", &admin, None, &new).await.unwrap().json()
    };
    let mut lab = FakeLab::new("lab", MACHINES, &token.secret, seed);

    let mut wire = Wire::new(routes::router(server.clone()), seed, FAULTS);
    for step in 0..STEPS {
        match rng.random_range(0..100) {
            0..=1 => lab.kill(Kill::Controller),
            2..=4 => lab.kill(Kill::Agent),
            5..=6 => {
                server = restart(server, url, dir, &clock, seed + step as u64, &mut rng).await;
                wire.reconnect(routes::router(server.clone()));
            }
            7..=12 => tick(&server).await,
            _ => {
                lab.step(&mut wire).await;
            }
        }
        clock.advance(Duration::from_millis(rng.random_range(0..400)));
        ledger_is_sound(&server, seed, step).await;
    }

    let mut wire = Wire::new(routes::router(server.clone()), seed, 0);
    let mut left = PATIENCE;
    while run_of(&mut wire, &admin, &run).await.state != RunState::Done {
        if lab.step(&mut wire).await == Progress::Idle {
            clock.advance(Duration::from_secs(1));
        }
        clock.advance(Duration::from_millis(20));
        tick(&server).await;
        left = left.checked_sub(1).unwrap_or_else(|| panic!("FARM_SEED={seed}: the run does not end"));
    }
    ledger_is_sound(&server, seed, STEPS).await;
    everything_owed_is_there(&mut wire, &admin, &run, seed).await;
    acknowledged_bytes_are_the_sent_ones(&mut wire, &admin, &lab, seed).await;
}

async fn start(url: &str, dir: &Path, clock: &ManualClock, seed: u64) -> AppState {
    let db = Db::open(url, 4).await.unwrap();
    let blobs = Blobs::open(&format!("dir:{}", dir.join("blobs").display())).unwrap();
    let config = Config { lease_seconds: 30, ..Config::default() };
    let random = Box::new(StdRng::seed_from_u64(seed));
    let state = AppState::new(db, blobs, Arc::new(clock.clone()), random, config);
    serve::start_work(&state).await.unwrap();
    state
}

/// `kill -9`: nothing is closed or flushed. Sometimes it is back at once, sometimes after an hour.
async fn restart(old: AppState, url: &str, dir: &Path, clock: &ManualClock, seed: u64, rng: &mut SmallRng) -> AppState {
    drop(old);
    let away = if rng.random_bool(0.3) { Duration::from_secs(3600) } else { Duration::from_secs(2) };
    clock.advance(away);
    start(url, dir, clock, seed).await
}

async fn tick(server: &AppState) {
    passes::presence::tick(server).await.unwrap();
    passes::verify::tick(server).await.unwrap();
    passes::deadlines::tick(server).await.unwrap();
    passes::leases::tick(server).await.unwrap();
    passes::compact::tick(server).await.unwrap();
    passes::findings::tick(server).await.unwrap();
}

async fn submit(wire: &mut Wire, admin: &str) -> RunId {
    let build = NewBuild {
        checkout: None,
        name: "test".into(),
        architecture: "x86_64".into(),
        release: "6.1.0-test".into(),
        build_id: None,
        config_name: None,
        cmdline: String::new(),
    };
    let build: crashyard_protocol::api::Build = wire.post("/api/v1/builds", admin, None, &build).await.unwrap().json();
    for name in ["kernel", "initrd"] {
        upload(wire, admin, &format!("/api/v1/builds/{}/artifacts/{name}", build.id), name.as_bytes()).await;
    }
    let names: Vec<String> = (0..JOBS).map(|i| format!("story-{i}")).collect();
    for name in &names {
        let body = serde_json::to_vec(&scenario(name)).unwrap();
        let path = format!("/api/v1/scenarios/{name}");
        let answer = wire.call(axum::http::Method::PUT, &path, admin, None, body.into()).await.unwrap();
        assert!(answer.status.is_success(), "{answer:?}");
    }
    let selector = BTreeMap::from([("driver".to_owned(), "fake".to_owned())]);
    let plan = NewPlan {
        name: "all".into(),
        scenarios: names,
        selector,
        requires: Vec::new(),
        repetitions: 1,
        policy: Policy::default(),
    };
    let body = serde_json::to_vec(&plan).unwrap();
    let answer = wire.call(axum::http::Method::PUT, "/api/v1/plans/all", admin, None, body.into()).await.unwrap();
    assert!(answer.status.is_success(), "{answer:?}");
    let run = NewRun { key: Some("once".into()), ..NewRun::new(build.id, "all") };
    let first: Run = wire.post("/api/v1/runs", admin, None, &run).await.unwrap().json();
    let again: Run = wire.post("/api/v1/runs", admin, None, &run).await.unwrap().json();
    assert_eq!(first.id, again.id, "a repeated submission is the same run");
    first.id
}

async fn upload(wire: &mut Wire, token: &str, path: &str, bytes: &[u8]) {
    let hash = crashyard_protocol::chunk::hex(&crashyard_protocol::chunk::chunk_hash(0, bytes));
    let chunk = format!("{path}/chunks?offset=0&hash={hash}");
    let body = bytes::Bytes::copy_from_slice(bytes);
    let answer = wire.call(axum::http::Method::PUT, &chunk, token, None, body).await.unwrap();
    assert!(answer.status.is_success(), "{answer:?}");
    let done = crashyard_protocol::agent::CompleteRequest {
        size: bytes.len() as u64,
        blake3: blake3::hash(bytes).to_string(),
    };
    let answer = wire.post(&format!("{path}/complete"), token, None, &done).await.unwrap();
    assert!(answer.status.is_success(), "{answer:?}");
}

fn scenario(name: &str) -> Scenario {
    Scenario {
        name: name.to_owned(),
        title: "In memory".into(),
        vmx: VmxState::None,
        vmx_number: None,
        trigger: Trigger::SysrqC,
        cpu: None,
        boot: Boot::default(),
        capture: Capture::default(),
        expect: Expect { panic: "sysrq triggered crash".into() },
        deadlines: Deadlines::default(),
    }
}

async fn run_of(wire: &mut Wire, token: &str, run: &RunId) -> Run {
    let path = format!("/api/v1/runs/{run}");
    wire.call(axum::http::Method::GET, &path, token, None, bytes::Bytes::new()).await.unwrap().json()
}

/// What must hold in the ledger at any time.
async fn ledger_is_sound(server: &AppState, seed: u64, step: usize) {
    let rules = [
        (
            "a machine has at most one lease",
            "SELECT COUNT(*) FROM (SELECT machine_id FROM attempt WHERE state IN ('running', 'collecting') \
             GROUP BY machine_id HAVING COUNT(*) > 1) AS broken",
        ),
        (
            "a live attempt and its machine name each other, with one epoch",
            "SELECT COUNT(*) FROM attempt a JOIN machine m ON m.id = a.machine_id \
             WHERE a.state IN ('running', 'collecting') \
             AND (m.attempt_id IS NULL OR m.attempt_id <> a.id OR m.lease_epoch <> a.epoch)",
        ),
        (
            "a job has at most one live attempt",
            "SELECT COUNT(*) FROM (SELECT job_id FROM attempt WHERE state IN ('running', 'collecting') \
             GROUP BY job_id HAVING COUNT(*) > 1) AS broken",
        ),
        (
            "events are numbered without gaps",
            "SELECT COUNT(*) FROM run r WHERE r.last_event <> (SELECT COUNT(*) FROM event e WHERE e.run_id = r.id)",
        ),
        (
            "an attempt that ended has settled stages or a settled job",
            "SELECT COUNT(*) FROM job j WHERE j.state = 'queued' AND EXISTS (SELECT 1 FROM attempt a \
             WHERE a.job_id = j.id AND a.state IN ('running', 'collecting'))",
        ),
    ];
    for (rule, sql) in rules {
        let broken: i64 = match server.db.read() {
            Pool::Sqlite(lender) => {
                sqlx::query_scalar(sql).fetch_one(&mut *lender.lend().await.unwrap()).await.unwrap()
            }
            Pool::Postgres(lender) => {
                sqlx::query_scalar(sql).fetch_one(&mut *lender.lend().await.unwrap()).await.unwrap()
            }
        };
        assert_eq!(broken, 0, "FARM_SEED={seed}, step {step}: {rule}");
    }
}

async fn everything_owed_is_there(wire: &mut Wire, token: &str, run: &RunId, seed: u64) {
    let path = format!("/api/v1/runs/{run}/jobs");
    let answer = wire.call(axum::http::Method::GET, &path, token, None, bytes::Bytes::new()).await.unwrap();
    let jobs: Vec<crashyard_protocol::api::Job> = answer.json();
    assert_eq!(jobs.len(), JOBS, "FARM_SEED={seed}");
    for job in &jobs {
        // The dump is noise, so nothing may pass; what the lab did not deliver is a MISS.
        assert!(matches!(job.status, Status::Fail | Status::Error | Status::Miss), "FARM_SEED={seed}: {job:?}");
        assert!(job.reason.is_some(), "FARM_SEED={seed}: a verdict has a reason: {job:?}");
        assert!(!job.attempts.is_empty(), "FARM_SEED={seed}: {job:?}");
    }
}

async fn acknowledged_bytes_are_the_sent_ones(wire: &mut Wire, token: &str, lab: &FakeLab, seed: u64) {
    assert!(!lab.consoles.is_empty(), "FARM_SEED={seed}: nothing was recorded");
    for (attempt, console) in &lab.consoles {
        let found = content(wire, token, attempt, "console-serial").await.unwrap_or_default();
        assert!(console.starts_with(&found), "FARM_SEED={seed}: the console of {attempt} has other bytes");
    }
    for (attempt, dump) in &lab.dumps {
        let found = content(wire, token, attempt, "vmcore").await;
        assert!(found.as_ref() == Some(dump), "FARM_SEED={seed}: the acknowledged dump of {attempt} is not there");
    }
}

async fn content(wire: &mut Wire, token: &str, attempt: &str, name: &str) -> Option<Vec<u8>> {
    let path = format!("/api/v1/attempts/{attempt}");
    let answer = wire.call(axum::http::Method::GET, &path, token, None, bytes::Bytes::new()).await.unwrap();
    let attempt: crashyard_protocol::api::Attempt = answer.json();
    let artifact = attempt.artifacts.iter().find(|artifact| artifact.name == name)?;
    let path = format!("/api/v1/artifacts/{}/content", artifact.id);
    let answer = wire.call(axum::http::Method::GET, &path, token, None, bytes::Bytes::new()).await.unwrap();
    assert!(answer.status.is_success(), "{answer:?}");
    Some(answer.body.to_vec())
}
