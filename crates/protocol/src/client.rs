//! The typed client of both APIs.
//!
//! One method for one operation, no retries and no policy: whether to try again is the caller's decision, and
//! [`ClientError::is_transient`] is what it needs to know.

use crate::agent::{
    Brief, Claim, ClaimRequest, CompleteRequest, ConsoleAck, EPOCH_HEADER, EnrolRequest, Enrolled, ErrandDone,
    KeyPress, Keys, ReleaseRequest, RenewReply, RenewRequest, Reports, ReportsReply, Role, Upload, Work,
};
use crate::problem::{Problem, kind};
use crate::{ArtifactId, AttemptId, BuildId, ErrandId, JobId, RunId, Scenario, SubmitterId, api};
use bytes::Bytes;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::{Serialize, de::DeserializeOwned};

/// What went wrong with a call.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server answered with a problem.
    #[error("{0}")]
    Problem(Box<Problem>),
    /// No usable answer: not reachable, cut off, or not this API.
    #[error("no answer from the server: {0}")]
    Transport(String),
}

impl ClientError {
    /// Whether the same call may succeed later without anybody changing anything.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Problem(problem) => problem.status >= 500 || problem.status == 429,
            Self::Transport(_) => true,
        }
    }

    /// Whether the lease is gone and the agent must stop acting on the machine.
    #[must_use]
    pub fn is_lease_lost(&self) -> bool {
        self.is(kind::LEASE_LOST) || self.is(kind::MACHINE_TAKEN)
    }

    /// Whether this is the given kind of problem.
    #[must_use]
    pub fn is(&self, kind: &str) -> bool {
        matches!(self, Self::Problem(problem) if problem.kind == kind)
    }
}

impl From<reqwest::Error> for ClientError {
    fn from(error: reqwest::Error) -> Self {
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        Self::Transport(text)
    }
}

type Answer<T> = Result<T, ClientError>;

/// How a client of a service at `base` is built. One that is reached without TLS needs no certificates of this system's,
/// and a small system (a capture kernel) has none.
pub fn builder(base: &str) -> reqwest::ClientBuilder {
    let builder = reqwest::Client::builder();
    if base.starts_with("http://") { builder.tls_certs_only([]) } else { builder }
}

/// A client with its server and its token.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    token: Option<String>,
    epoch: Option<u64>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("base", &self.base).field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

impl Client {
    /// A client for the server at `base` (`http://…` or `https://…`), with a bearer token where one is needed.
    ///
    /// # Panics
    ///
    /// With `https://`, on a system that has no certificates of authorities (Debian package ca-certificates).
    #[must_use]
    pub fn new(base: &str, token: Option<String>) -> Self {
        let http = builder(base).build().expect("a system with certificates (Debian package ca-certificates)");
        Self::with_http(http, base, token)
    }

    /// The same over a given HTTP client (timeouts, TLS roots).
    #[must_use]
    pub fn with_http(http: reqwest::Client, base: &str, token: Option<String>) -> Self {
        Self { http, base: base.trim_end_matches('/').to_owned(), token, epoch: None }
    }

    /// The same client acting inside an attempt: every request carries the lease epoch.
    #[must_use]
    pub fn at_epoch(&self, epoch: u64) -> Self {
        Self { epoch: Some(epoch), ..self.clone() }
    }

    /// The same client with another token.
    #[must_use]
    pub fn with_token(&self, token: &str) -> Self {
        Self { token: Some(token.to_owned()), ..self.clone() }
    }

    /// A request with base URL, token and epoch filled in, for what has no method of its own (event streams).
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let mut request = self.http.request(method, format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Some(epoch) = self.epoch {
            request = request.header(EPOCH_HEADER, epoch);
        }
        request
    }

    /// Sends a request; an answer that is not a success becomes a [`Problem`].
    pub async fn send(&self, request: RequestBuilder) -> Answer<Response> {
        let response = request.send().await?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let text = response.text().await.unwrap_or_default();
        Err(match serde_json::from_str::<Problem>(&text) {
            Ok(problem) => ClientError::Problem(Box::new(problem)),
            Err(_) => ClientError::Transport(format!("HTTP {status} that is not from Crashyard")),
        })
    }

    /// `GET`s JSON.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Answer<T> {
        Ok(self.send(self.request(Method::GET, path)).await?.json().await?)
    }

    /// `POST`s JSON and reads JSON.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Answer<T> {
        Ok(self.send(self.request(Method::POST, path).json(body)).await?.json().await?)
    }

    /// `PUT`s JSON and reads JSON.
    pub async fn put<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Answer<T> {
        Ok(self.send(self.request(Method::PUT, path).json(body)).await?.json().await?)
    }
}

/// A name as one part of a path.
fn segment(name: &str) -> String {
    let mut out = String::new();
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}

/// The REST API.
impl Client {
    /// Registers a tree.
    pub async fn create_tree(&self, tree: &api::NewTree) -> Answer<api::Tree> {
        self.post("/api/v1/trees", tree).await
    }

    /// Registers a checkout.
    pub async fn create_checkout(&self, checkout: &api::NewCheckout) -> Answer<api::Checkout> {
        self.post("/api/v1/checkouts", checkout).await
    }

    /// Submits a build.
    pub async fn create_build(&self, build: &api::NewBuild) -> Answer<api::Build> {
        self.post("/api/v1/builds", build).await
    }

    /// Submits a build under a key: repeating it returns the first one.
    pub async fn create_build_once(&self, build: &api::NewBuild, key: &str) -> Answer<api::Build> {
        let request = self.request(Method::POST, "/api/v1/builds").header("idempotency-key", key).json(build);
        Ok(self.send(request).await?.json().await?)
    }

    /// One build with its files.
    pub async fn build(&self, id: &BuildId) -> Answer<api::Build> {
        self.get(&format!("/api/v1/builds/{id}")).await
    }

    /// Builds, newest first, from behind `before` on.
    pub async fn builds(&self, before: Option<&str>) -> Answer<api::Page<api::Build>> {
        let before = before.map(|id| format!("&before={id}")).unwrap_or_default();
        self.get(&format!("/api/v1/builds?limit=200{before}")).await
    }

    /// How far the upload of a build's file is.
    pub async fn build_upload(&self, build: &BuildId, name: &str) -> Answer<Upload> {
        self.get(&format!("/api/v1/builds/{build}/artifacts/{name}")).await
    }

    /// Sends one chunk of a build's file.
    pub async fn put_build_chunk(
        &self,
        build: &BuildId,
        name: &str,
        offset: u64,
        hash: &str,
        body: Bytes,
    ) -> Answer<()> {
        self.put_bytes(&format!("/api/v1/builds/{build}/artifacts/{name}/chunks?offset={offset}&hash={hash}"), body)
            .await?;
        Ok(())
    }

    /// Closes the upload of a build's file.
    pub async fn complete_build_artifact(
        &self,
        build: &BuildId,
        name: &str,
        done: &CompleteRequest,
    ) -> Answer<api::Artifact> {
        self.post(&format!("/api/v1/builds/{build}/artifacts/{name}/complete"), done).await
    }

    /// Stores a scenario under its name.
    pub async fn put_scenario(&self, scenario: &Scenario) -> Answer<api::StoredScenario> {
        self.put(&format!("/api/v1/scenarios/{}", scenario.name), scenario).await
    }

    /// The stored scenario of this name.
    pub async fn scenario(&self, name: &str) -> Answer<api::StoredScenario> {
        self.get(&format!("/api/v1/scenarios/{name}")).await
    }

    /// Every item of a list, page after page.
    async fn pages<T: DeserializeOwned>(&self, path: &str) -> Answer<Vec<T>> {
        let mut all = Vec::new();
        let mut next = format!("{path}?limit=200");
        loop {
            let page: api::Page<T> = self.get(&next).await?;
            all.extend(page.items);
            match page.next {
                Some(before) => next = format!("{path}?limit=200&before={before}"),
                None => return Ok(all),
            }
        }
    }

    /// Every stored scenario, newest first.
    pub async fn scenarios(&self) -> Answer<Vec<api::StoredScenario>> {
        self.pages("/api/v1/scenarios").await
    }

    /// Stores a plan under its name.
    pub async fn put_plan(&self, plan: &api::NewPlan) -> Answer<api::Plan> {
        self.put(&format!("/api/v1/plans/{}", plan.name), plan).await
    }

    /// Every stored plan, newest first.
    pub async fn plans(&self) -> Answer<Vec<api::Plan>> {
        self.pages("/api/v1/plans").await
    }

    /// Submits a run.
    pub async fn create_run(&self, run: &api::NewRun) -> Answer<api::Run> {
        self.post("/api/v1/runs", run).await
    }

    /// One run.
    pub async fn run(&self, id: &RunId) -> Answer<api::Run> {
        self.get(&format!("/api/v1/runs/{id}")).await
    }

    /// The jobs of a run, in order.
    pub async fn run_jobs(&self, id: &RunId) -> Answer<Vec<api::Job>> {
        self.get(&format!("/api/v1/runs/{id}/jobs")).await
    }

    /// One attempt with its stages and artifacts.
    pub async fn attempt(&self, id: &AttemptId) -> Answer<api::Attempt> {
        self.get(&format!("/api/v1/attempts/{id}")).await
    }

    /// Makes a token.
    pub async fn create_token(&self, token: &api::NewToken) -> Answer<api::TokenWithSecret> {
        self.post("/api/v1/tokens", token).await
    }

    /// One job, with its attempts.
    pub async fn job(&self, id: &JobId) -> Answer<api::Job> {
        self.get(&format!("/api/v1/jobs/{id}")).await
    }

    /// Why a job waits.
    pub async fn waiting(&self, id: &JobId) -> Answer<api::Waiting> {
        self.get(&format!("/api/v1/jobs/{id}/waiting")).await
    }

    /// The same; held for some seconds while the job waits and nothing changes.
    pub async fn waiting_changed(&self, id: &JobId, wait_seconds: u32) -> Answer<api::Waiting> {
        self.get(&format!("/api/v1/jobs/{id}/waiting?wait_seconds={wait_seconds}")).await
    }

    /// Who shares the farm, by name.
    pub async fn submitters(&self) -> Answer<Vec<api::Submitter>> {
        self.get("/api/v1/submitters").await
    }

    /// What is owed and was not delivered.
    pub async fn owed(&self) -> Answer<Vec<api::Owed>> {
        self.get("/api/v1/owed").await
    }

    /// Every machine, newest first.
    pub async fn machines(&self) -> Answer<Vec<api::Machine>> {
        let mut machines = Vec::new();
        let mut path = "/api/v1/machines?limit=200".to_owned();
        loop {
            let page: api::Page<api::Machine> = self.get(&path).await?;
            machines.extend(page.items);
            match page.next {
                Some(next) => path = format!("/api/v1/machines?limit=200&before={next}"),
                None => return Ok(machines),
            }
        }
    }

    /// One machine, by name or id.
    pub async fn machine(&self, machine: &str) -> Answer<api::Machine> {
        self.get(&format!("/api/v1/machines/{}", segment(machine))).await
    }

    /// What happened to a machine, newest first.
    pub async fn machine_history(&self, machine: &str) -> Answer<Vec<api::MachineEvent>> {
        self.get(&format!("/api/v1/machines/{}/history", segment(machine))).await
    }

    /// Wants a machine's power and consoles tried; one that is wanted already is not wanted twice.
    pub async fn want_check(&self, machine: &str, new: &api::NewCheck) -> Answer<api::Check> {
        self.post(&format!("/api/v1/machines/{}/check", segment(machine)), new).await
    }

    /// The newest check of a machine; held for some seconds while it is not over and nothing changes.
    pub async fn check(&self, machine: &str, wait_seconds: u32) -> Answer<api::Check> {
        self.get(&format!("/api/v1/machines/{}/check?wait_seconds={wait_seconds}", segment(machine))).await
    }

    /// Takes back that a check is wanted.
    pub async fn cancel_check(&self, machine: &str) -> Answer<api::Check> {
        let path = format!("/api/v1/machines/{}/check", segment(machine));
        Ok(self.send(self.request(Method::DELETE, &path)).await?.json().await?)
    }

    /// What a machine is made of.
    pub async fn machine_inventory(&self, machine: &str) -> Answer<api::Inventory> {
        self.get(&format!("/api/v1/machines/{}/inventory", segment(machine))).await
    }

    /// What it takes to do an attempt again.
    pub async fn repro(&self, attempt: &AttemptId) -> Answer<api::Repro> {
        self.get(&format!("/api/v1/attempts/{attempt}/repro")).await
    }

    /// Two consoles of an attempt beside each other.
    pub async fn compared(&self, attempt: &AttemptId, first: &str, second: &str) -> Answer<api::Compared> {
        let (first, second) = (segment(first), segment(second));
        self.get(&format!("/api/v1/attempts/{attempt}/console/{first}/beside/{second}")).await
    }

    /// The text of an attempt's console as it grows, as an event stream.
    pub async fn console_text(&self, attempt: &AttemptId, source: &str) -> Answer<Response> {
        let path = format!("/api/v1/attempts/{attempt}/console/{}/events", segment(source));
        self.send(self.request(Method::GET, &path)).await
    }

    /// Types into a console of an attempt. Not to be repeated blindly: what is typed twice is typed twice.
    pub async fn press(&self, attempt: &AttemptId, source: &str, keys: &Keys) -> Answer<KeyPress> {
        self.post(&format!("/api/v1/attempts/{attempt}/console/{}/keys", segment(source)), keys).await
    }

    /// Takes a machine for a person.
    pub async fn reserve(&self, machine: &str, reservation: &api::NewReservation) -> Answer<api::Machine> {
        self.post(&format!("/api/v1/machines/{}/reservation", segment(machine)), reservation).await
    }

    /// Prolongs a reservation.
    pub async fn extend(&self, machine: &str, extension: &api::Extension) -> Answer<api::Machine> {
        self.put(&format!("/api/v1/machines/{}/reservation", segment(machine)), extension).await
    }

    /// Hands a machine back.
    pub async fn hand_back(&self, machine: &str) -> Answer<api::Machine> {
        let path = format!("/api/v1/machines/{}/reservation", segment(machine));
        Ok(self.send(self.request(Method::DELETE, &path)).await?.json().await?)
    }

    /// Puts a machine that nobody has into another state.
    pub async fn set_machine_state(&self, machine: &str, new: &api::NewMachineState) -> Answer<api::Machine> {
        self.put(&format!("/api/v1/machines/{}/state", segment(machine)), new).await
    }

    /// Sets a submitter's weight and limit.
    pub async fn set_submitter(&self, id: &SubmitterId, set: &api::SetSubmitter) -> Answer<api::Submitter> {
        self.put(&format!("/api/v1/submitters/{id}"), set).await
    }

    /// Holds a dump, so that no rule drops it.
    pub async fn hold_dump(&self, id: &ArtifactId, hold: &api::NewHold) -> Answer<api::Artifact> {
        self.put(&format!("/api/v1/artifacts/{id}/hold"), hold).await
    }

    /// Lets go of a held dump.
    pub async fn release_dump(&self, id: &ArtifactId) -> Answer<api::Artifact> {
        let request = self.request(Method::DELETE, &format!("/api/v1/artifacts/{id}/hold"));
        Ok(self.send(request).await?.json().await?)
    }

    /// Opens a download, from a byte offset on.
    pub async fn download(&self, id: &ArtifactId, from: u64) -> Answer<Response> {
        let mut request = self.request(Method::GET, &format!("/api/v1/artifacts/{id}/content"));
        if from > 0 {
            request = request.header(reqwest::header::RANGE, format!("bytes={from}-"));
        }
        self.send(request).await
    }

    async fn put_bytes(&self, path: &str, body: Bytes) -> Answer<Response> {
        self.send(self.request(Method::PUT, path).body(body)).await
    }
}

/// The agent API.
impl Client {
    /// Announces a controller and its machines.
    pub async fn enrol(&self, request: &EnrolRequest) -> Answer<Enrolled> {
        self.post("/agent/v1/enrol", request).await
    }

    /// Asks for a job, by a controller that does no errands; `None` when there was none in the time given.
    pub async fn claim(&self, request: &ClaimRequest) -> Answer<Option<Claim>> {
        self.work(request).await
    }

    /// Asks for work: a job, or an errand; `None` when there was none in the time given.
    pub async fn job_or_errand(&self, request: &ClaimRequest) -> Answer<Option<Work>> {
        self.work(request).await
    }

    async fn work<T: DeserializeOwned>(&self, request: &ClaimRequest) -> Answer<Option<T>> {
        let response = self.send(self.request(Method::POST, "/agent/v1/claim").json(request)).await?;
        if response.status() == StatusCode::NO_CONTENT {
            return Ok(None);
        }
        Ok(Some(response.json().await?))
    }

    /// Says what came of an errand; saying it again is harmless.
    pub async fn errand_done(&self, errand: &ErrandId, done: &ErrandDone) -> Answer<()> {
        self.send(self.request(Method::POST, &format!("/agent/v1/errands/{errand}")).json(done)).await?;
        Ok(())
    }

    /// What the attempt is to do.
    pub async fn brief(&self, attempt: &AttemptId) -> Answer<Brief> {
        self.get(&format!("/agent/v1/attempts/{attempt}/brief")).await
    }

    /// Renews the lease and learns what to do next.
    pub async fn renew(&self, attempt: &AttemptId, request: &RenewRequest) -> Answer<RenewReply> {
        self.post(&format!("/agent/v1/attempts/{attempt}/renew"), request).await
    }

    /// Hands in reports; handing them in again (a journal replayed) is harmless.
    pub async fn report(&self, attempt: &AttemptId, reports: &Reports) -> Answer<ReportsReply> {
        self.post(&format!("/agent/v1/attempts/{attempt}/reports"), reports).await
    }

    /// How many reports of one agent the server has: the next sequence number to use.
    pub async fn next_report(&self, attempt: &AttemptId, by: Role) -> Answer<u64> {
        self.get(&format!("/agent/v1/attempts/{attempt}/reports/{by}/next")).await
    }

    /// How far a console log is with the server.
    pub async fn console(&self, attempt: &AttemptId, source: &str) -> Answer<ConsoleAck> {
        self.get(&format!("/agent/v1/attempts/{attempt}/console/{source}")).await
    }

    /// Hands in console bytes that start at `offset`.
    pub async fn put_console(&self, attempt: &AttemptId, source: &str, offset: u64, body: Bytes) -> Answer<ConsoleAck> {
        let path = format!("/agent/v1/attempts/{attempt}/console/{source}?offset={offset}");
        Ok(self.put_bytes(&path, body).await?.json().await?)
    }

    /// How far an evidence upload is.
    pub async fn upload(&self, attempt: &AttemptId, name: &str) -> Answer<Upload> {
        self.get(&format!("/agent/v1/attempts/{attempt}/artifacts/{name}")).await
    }

    /// Sends one chunk of an evidence upload.
    pub async fn put_chunk(&self, attempt: &AttemptId, name: &str, offset: u64, hash: &str, body: Bytes) -> Answer<()> {
        let path = format!("/agent/v1/attempts/{attempt}/artifacts/{name}/chunks?offset={offset}&hash={hash}");
        self.put_bytes(&path, body).await?;
        Ok(())
    }

    /// Closes an evidence upload.
    pub async fn complete(&self, attempt: &AttemptId, name: &str, done: &CompleteRequest) -> Answer<api::Artifact> {
        self.post(&format!("/agent/v1/attempts/{attempt}/artifacts/{name}/complete"), done).await
    }

    /// What people typed from this number on.
    pub async fn keys(&self, attempt: &AttemptId, from: u64) -> Answer<Vec<KeyPress>> {
        self.get(&format!("/agent/v1/attempts/{attempt}/keys?from={from}")).await
    }

    /// Hands the lease back; the attempt is over.
    pub async fn release(&self, attempt: &AttemptId, request: &ReleaseRequest) -> Answer<()> {
        self.send(self.request(Method::POST, &format!("/agent/v1/attempts/{attempt}/release")).json(request)).await?;
        Ok(())
    }
}
