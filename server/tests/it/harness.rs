//! A server in process with a clock and randomness of the test's own, and the farm's usual objects.

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Method, Request, StatusCode};
use bytes::Bytes;
use crashyard_protocol::Scope;
use crashyard_protocol::agent::{
    CHUNK_BYTES, Claim, ClaimRequest, EPOCH_HEADER, EnrolRequest, Enrolled, MachineSpec, Numbered, Report, Reports,
    Role,
};
use crashyard_protocol::api::{Build, Job, NewBuild, NewPlan, NewRun, Policy, Run};
use crashyard_protocol::chunk::{chunk_hash, hex};
use crashyard_protocol::clock::{ManualClock, Timestamp};
use crashyard_protocol::problem::Problem;
use crashyard_server::app::AppState;
use crashyard_server::blobs::Blobs;
use crashyard_server::config::Config;
use crashyard_server::db::Db;
use crashyard_server::passes::presence;
use crashyard_server::{api, routes};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::time::Duration;
use tower::ServiceExt as _;

/// When tests begin: 2026-11-23 12:00 UTC.
pub const START: Timestamp = Timestamp(1_795_435_200_000);

/// A running server without a network.
pub struct Server {
    pub state: AppState,
    pub clock: ManualClock,
    pub admin: String,
    pub submit: String,
    pub controller: String,
    pub dir: Arc<tempfile::TempDir>,
    config: Config,
    router: Router,
}

/// An answer, read to its end.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn json<T: DeserializeOwned>(&self) -> T {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error} in {} {}", self.status, String::from_utf8_lossy(&self.body)))
    }

    /// The body of an answer that must be a success.
    #[track_caller]
    pub fn ok<T: DeserializeOwned>(&self) -> T {
        assert!(self.status.is_success(), "{} {}", self.status, String::from_utf8_lossy(&self.body));
        self.json()
    }

    #[track_caller]
    pub fn no_content(&self) {
        assert_eq!(self.status, StatusCode::NO_CONTENT, "{}", String::from_utf8_lossy(&self.body));
    }

    /// The problem of an answer that must be one, with this status and kind.
    #[track_caller]
    pub fn problem(&self, status: u16, kind: &str) -> Problem {
        let text = String::from_utf8_lossy(&self.body);
        assert_eq!(self.status.as_u16(), status, "{text}");
        assert_eq!(self.headers["content-type"], "application/problem+json", "{text}");
        let problem: Problem = self.json();
        assert_eq!((problem.kind.as_str(), problem.status), (kind, status), "{text}");
        assert!(!problem.detail.is_empty() && !problem.next.is_empty() && problem.request_id.is_some(), "{text}");
        problem
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

/// A request under construction.
#[derive(Clone, Debug)]
pub struct Call {
    method: Method,
    path: String,
    headers: Vec<(String, String)>,
    body: Bytes,
}

impl Call {
    pub fn get(path: impl Into<String>) -> Self {
        Self { method: Method::GET, path: path.into(), headers: Vec::new(), body: Bytes::new() }
    }

    pub fn post(path: impl Into<String>, body: &impl Serialize) -> Self {
        let body = serde_json::to_vec(body).unwrap().into();
        Self { method: Method::POST, path: path.into(), headers: Vec::new(), body }
    }

    pub fn put(path: impl Into<String>, body: impl Into<Bytes>) -> Self {
        Self { method: Method::PUT, path: path.into(), headers: Vec::new(), body: body.into() }
    }

    pub fn put_json(path: impl Into<String>, body: &impl Serialize) -> Self {
        Self::put(path, serde_json::to_vec(body).unwrap())
    }

    pub fn method(mut self, method: Method) -> Self {
        self.method = method;
        self
    }

    pub fn token(self, token: &str) -> Self {
        self.header("authorization", &format!("Bearer {token}"))
    }

    pub fn epoch(self, epoch: u64) -> Self {
        self.header(EPOCH_HEADER, &epoch.to_string())
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// As the attempt's controller, under its epoch.
    pub fn by_controller(self, server: &Server, claim: &Claim) -> Self {
        self.token(&server.controller).epoch(claim.epoch)
    }

    /// As target or capture agent, under the attempt's epoch.
    pub fn by_agent(self, claim: &Claim) -> Self {
        self.token(&claim.attempt_token).epoch(claim.epoch)
    }

    fn request(self) -> Request<Body> {
        let mut request = Request::builder().method(self.method).uri(self.path);
        for (name, value) in self.headers {
            request = request.header(name, value);
        }
        request.body(Body::from(self.body)).unwrap()
    }
}

impl Server {
    pub async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let blobs = Blobs::open(&format!("dir:{}", dir.path().join("blobs").display())).unwrap();
        Self::over(dir, blobs, change).await
    }

    /// A server with these blobs, and its database in `dir`.
    pub async fn over(dir: Arc<tempfile::TempDir>, blobs: Blobs, change: impl FnOnce(&mut Config)) -> Self {
        let mut config =
            Config { database_url: format!("sqlite:{}", dir.path().join("farm.db").display()), ..Config::default() };
        change(&mut config);
        let db = Db::open(&config.database_url, 4).await.unwrap();
        let clock = ManualClock::at(START);
        let state = state(db, blobs, &clock, &config, 1);
        let mut secrets = Vec::new();
        for scope in [Scope::Admin, Scope::Submit, Scope::Controller] {
            secrets.push(api::tokens::make(&state, scope.to_string(), scope, None).await.unwrap().1);
        }
        let [admin, submit, controller] = secrets.try_into().unwrap();
        let router = routes::router(state.clone());
        Self { state, clock, admin, submit, controller, dir, config, router }
    }

    /// Another server on the same database and blobs, as after a `kill -9`: nothing of the first one's memory is left.
    pub async fn restarted(&self) -> Self {
        let db = Db::open(&self.config.database_url, 4).await.unwrap();
        let state = state(db, self.state.blobs.clone(), &self.clock, &self.config, self.state.ids.next().random());
        crashyard_server::serve::start_work(&state).await.unwrap();
        Self {
            router: routes::router(state.clone()),
            state,
            clock: self.clock.clone(),
            admin: self.admin.clone(),
            submit: self.submit.clone(),
            controller: self.controller.clone(),
            dir: self.dir.clone(),
            config: self.config.clone(),
        }
    }

    pub fn clock_now(&self) -> Timestamp {
        self.state.now()
    }

    pub fn advance(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }

    /// Time passes, and the server says all along that it is up.
    pub async fn be_up_for(&self, seconds: u64) {
        for _ in 0..seconds / 5 {
            presence::tick(&self.state).await.unwrap();
            self.advance(5);
        }
        presence::tick(&self.state).await.unwrap();
    }

    pub async fn call(&self, call: Call) -> Answer {
        let response = self.router.clone().oneshot(call.request()).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = to_bytes(body, usize::MAX).await.unwrap();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    /// The answer's head and its body as it comes, for event streams.
    pub async fn open(&self, call: Call) -> axum::response::Response {
        self.router.clone().oneshot(call.request()).await.unwrap()
    }

    pub async fn get(&self, path: impl Into<String>) -> Answer {
        self.call(Call::get(path)).await
    }

    pub async fn build(&self) -> Build {
        let new = NewBuild {
            checkout: None,
            name: "linux 6.1".into(),
            architecture: "x86_64".into(),
            release: "6.1.0-test".into(),
            build_id: Some("0123456789abcdef".into()),
            config_name: None,
            cmdline: "quiet".into(),
        };
        self.call(Call::post("/api/v1/builds", &new).token(&self.submit)).await.ok()
    }

    /// Stores a scenario and a plan of it, and submits a run.
    pub async fn run(&self, repetitions: u32) -> Run {
        let build = self.build().await;
        self.plan("smoke", repetitions, &[]).await;
        let new = NewRun::new(build.id, "smoke");
        self.call(Call::post("/api/v1/runs", &new).token(&self.submit)).await.ok()
    }

    pub async fn plan(&self, name: &str, repetitions: u32, selector: &[(&str, &str)]) {
        let scenario = scenario("sysrq");
        self.call(Call::put_json("/api/v1/scenarios/sysrq", &scenario).token(&self.submit))
            .await
            .ok::<serde_json::Value>();
        let plan = NewPlan {
            name: name.into(),
            scenarios: vec!["sysrq".into()],
            selector: selector.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
            requires: Vec::new(),
            repetitions,
            policy: Policy::default(),
        };
        let put = Call::put_json(format!("/api/v1/plans/{name}"), &plan).token(&self.submit);
        self.call(put).await.ok::<serde_json::Value>();
    }

    pub async fn enrol(&self, machines: &[&str]) -> Enrolled {
        let request = EnrolRequest {
            name: "lab".into(),
            version: "1".into(),
            machines: machines
                .iter()
                .map(|name| MachineSpec { name: (*name).into(), driver: "fake".into(), labels: [].into() })
                .collect(),
        };
        self.call(Call::post("/agent/v1/enrol", &request).token(&self.controller)).await.ok()
    }

    pub fn claim_call(&self, enrolled: &Enrolled, wait_seconds: u32) -> Call {
        let machines = enrolled.machines.values().cloned().collect();
        let request = ClaimRequest { controller: enrolled.controller.clone(), machines, wait_seconds, errands: false };
        Call::post("/agent/v1/claim", &request).token(&self.controller)
    }

    /// A run of one job, and a machine that has it.
    pub async fn claimed(&self) -> Claim {
        self.run(1).await;
        let enrolled = self.enrol(&["m1"]).await;
        self.call(self.claim_call(&enrolled, 0)).await.ok()
    }

    pub async fn jobs(&self, run: &Run) -> Vec<Job> {
        self.get(format!("/api/v1/runs/{}/jobs", run.id)).await.ok()
    }

    pub async fn put_chunk(&self, claim: &Claim, name: &str, offset: u64, bytes: &[u8]) -> Answer {
        // There is no hash of nothing, nor for a place where no chunk may lie.
        let proper = !bytes.is_empty() && offset.is_multiple_of(CHUNK_BYTES);
        let hash = if proper { hex(&chunk_hash(offset, bytes)) } else { "0".repeat(64) };
        let path = format!("/agent/v1/attempts/{}/artifacts/{name}/chunks?offset={offset}&hash={hash}", claim.attempt);
        self.call(Call::put(path, bytes.to_vec()).by_agent(claim)).await
    }

    pub async fn put_console(&self, claim: &Claim, offset: u64, bytes: impl Into<Bytes>) -> Answer {
        let path = format!("/agent/v1/attempts/{}/console/serial0?offset={offset}", claim.attempt);
        self.call(Call::put(path, bytes).by_controller(self, claim)).await
    }

    pub async fn report(&self, claim: &Claim, by: Role, seq: u64, report: Report) -> Answer {
        let reports = Reports { by, reports: vec![Numbered { seq, report }] };
        let call = Call::post(format!("/agent/v1/attempts/{}/reports", claim.attempt), &reports);
        let call = if by == Role::Controller { call.by_controller(self, claim) } else { call.by_agent(claim) };
        self.call(call).await
    }
}

fn state(db: Db, blobs: Blobs, clock: &ManualClock, config: &Config, seed: u128) -> AppState {
    let random = StdRng::seed_from_u64(u64::try_from(seed & u128::from(u64::MAX)).unwrap());
    AppState::new(db, blobs, Arc::new(clock.clone()), Box::new(random), config.clone())
}

pub fn scenario(name: &str) -> serde_json::Value {
    serde_json::json!({
        "name": name, "title": "plain sysrq", "trigger": "sysrq-c", "expect": { "panic": "sysrq triggered crash" }
    })
}

pub fn note(text: &str) -> Report {
    Report::Note { text: text.into() }
}
