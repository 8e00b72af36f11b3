//! The fake server: one job, honest bookkeeping, and a moment before and after everything it does.

use super::world::{BOOT, EMULATOR, PANIC, World};
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use crashyard_protocol::agent::{
    ArtifactBrief, Brief, BuildBrief, Chunk, Claim, CompleteRequest, ConsoleAck, Directive, EPOCH_HEADER, Enrolled,
    Errand, ErrandDone, KeyPress, Keys, Numbered, Order, ReleaseRequest, RenewReply, RenewRequest, Report, Reports,
    ReportsReply, Role, Upload,
};
use crashyard_protocol::api::Artifact;
use crashyard_protocol::chunk::{chunk_hash, hex};
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::problem::{Problem, kind};
use crashyard_protocol::{
    ArtifactId, ArtifactState, AttemptId, Boot, BuildId, Capture, ControllerId, Deadlines, ErrandId, Expect, JobId,
    MachineId, RunId, Scenario, Trigger, VmxState,
};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Notify;

pub struct Server {
    pub url: String,
    pub shared: Arc<Shared>,
}

pub struct Shared {
    world: Arc<World>,
    /// Kernel and initramfs of the one build.
    build: [Vec<u8>; 2],
    pub books: Mutex<Books>,
    idle: Notify,
    /// Told of every change.
    pub news: Notify,
}

/// What the server knows.
#[derive(Default)]
pub struct Books {
    /// Epoch and attempt of each claim that was given; the last one counts.
    claims: Vec<(u64, AttemptId)>,
    /// Of the controller.
    pub reports: Vec<Numbered>,
    pub console: Vec<u8>,
    /// By name, and whether it was closed.
    pub logs: BTreeMap<String, (Vec<u8>, bool)>,
    /// Nothing more will come of the machine.
    judged: bool,
    /// It is not there any more.
    ended: bool,
    pub released: u32,
    /// The machine is to be powered off before its job.
    pub off_wanted: bool,
    /// How often a controller said that it had done that.
    pub off_done: u32,
    /// The lease is over, and how that is said.
    lost: Option<&'static str>,
}

impl Books {
    /// Whether the machine is wanted back: when it is judged and what was typed is told, or when it is gone.
    fn collect(&self) -> bool {
        self.ended || self.judged && self.reports.iter().any(|one| matches!(one.report, Report::Typed { .. }))
    }
}

fn ulid<T: From2>(n: u128) -> T {
    T::from2(ulid::Ulid(n))
}

/// Ids from numbers.
trait From2 {
    fn from2(ulid: ulid::Ulid) -> Self;
}
macro_rules! from2 {
    ($($id:ident),*) => {$(impl From2 for $id { fn from2(ulid: ulid::Ulid) -> Self { Self::from_ulid(ulid) } })*};
}
from2!(ArtifactId, AttemptId, BuildId, ControllerId, ErrandId, JobId, MachineId, RunId);

impl Server {
    pub async fn start(world: &Arc<World>) -> Self {
        Self::with_build(world, [b"the kernel".to_vec(), b"the initrd".to_vec()]).await
    }

    /// The same with a kernel and an initramfs that are some.
    pub async fn with_build(world: &Arc<World>, build: [Vec<u8>; 2]) -> Self {
        let shared = Arc::new(Shared {
            world: world.clone(),
            build,
            books: Mutex::default(),
            idle: Notify::new(),
            news: Notify::new(),
        });
        let attempt = "/agent/v1/attempts/{attempt}";
        let router = Router::new()
            .route("/agent/v1/enrol", post(enrol))
            .route("/agent/v1/claim", post(claim))
            .route("/api/v1/artifacts/{id}/content", get(download))
            .route("/agent/v1/errands/{errand}", post(errand_done))
            .route(&format!("{attempt}/renew"), post(renew))
            .route(&format!("{attempt}/keys"), get(keys))
            .route(&format!("{attempt}/reports"), post(reports))
            .route(&format!("{attempt}/console/{{source}}"), get(console).put(put_console))
            .route(&format!("{attempt}/artifacts/{{name}}"), get(upload))
            .route(&format!("{attempt}/artifacts/{{name}}/chunks"), put(chunk))
            .route(&format!("{attempt}/artifacts/{{name}}/complete"), post(complete))
            .route(&format!("{attempt}/release"), post(release))
            .with_state(shared.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, shared }
    }

    /// Returns when a controller with nothing left to do asks for more.
    pub async fn idle(&self) {
        self.shared.idle.notified().await;
    }

    /// Wants the machine powered off before its job.
    pub fn want_off(&self) {
        self.shared.books.lock().unwrap().off_wanted = true;
    }

    /// Ends the lease; this kind of problem says so.
    pub fn lose_lease(&self, kind: &'static str) {
        self.shared.books.lock().unwrap().lost = Some(kind);
        self.shared.news.notify_waiters();
    }

    /// What must be true when all is over.
    pub fn check(&self, world: &World, story: &str) {
        let books = self.shared.books.lock().unwrap();
        let machines = world.machines.lock().unwrap();
        assert!(books.released >= 1, "{story}: released");
        let offs = world.idle_offs.load(std::sync::atomic::Ordering::SeqCst);
        assert!(books.off_done >= 1 && offs >= 1 && !books.off_wanted, "{story}: powered off before its job");
        assert!(!machines.values().any(|life| life.running), "{story}: a machine runs on");
        let last = &books.claims.last().unwrap().1;
        for (directory, life) in machines.iter() {
            let current = directory.ends_with(last.as_str());
            assert!(current || life.on == 0, "{story}: a lease that nobody wrote down was acted on");
            if current {
                assert_eq!(life.on, 1, "{story}: powered on once");
                assert!(life.nmi <= 1 && life.off >= 1, "{story}: {life:?}");
                let sent = String::from_utf8_lossy(&books.console).into_owned();
                assert_eq!(sent, String::from_utf8_lossy(&life.console), "{story}: the console is whole");
            }
        }
        let log = (EMULATOR.as_bytes().to_vec(), true);
        assert_eq!(books.logs.get("emulator.log"), Some(&log), "{story}: the emulator's log was collected, and closed");
        let has = |wanted: &dyn Fn(&Report) -> bool| books.reports.iter().filter(|one| wanted(&one.report)).count();
        assert_eq!(
            has(&|report| matches!(report, Report::Power { action, ok: true, .. } if action == "on")),
            1,
            "{story}"
        );
        assert_eq!(has(&|report| matches!(report, Report::Power { action, .. } if action == "nmi")), 1, "{story}");
        assert_eq!(has(&|report| matches!(report, Report::Typed { .. })), 1, "{story}: what was typed is told once");
        let typed = machines.values().map(|life| life.typed).sum::<u32>();
        assert!(
            has(&|report| matches!(report, Report::Typed { ok: true, .. })) <= typed as usize,
            "{story}: and truly"
        );
        assert_eq!(
            has(&|report| matches!(report, Report::Power { action, ok: true, .. } if action == "off")),
            1,
            "{story}"
        );
        assert_eq!(has(&|report| matches!(report, Report::Health { healthy: true, .. })), 1, "{story}");
    }
}

type S = State<Arc<Shared>>;

impl Shared {
    /// Refuses whoever is not the newest claim's holder.
    #[expect(clippy::result_large_err, reason = "an answer is what the error is here")]
    fn check(&self, attempt: &AttemptId, headers: &HeaderMap) -> Result<(), Response> {
        let epoch: Option<u64> = headers.get(EPOCH_HEADER).and_then(|value| value.to_str().ok()?.parse().ok());
        let books = self.books.lock().unwrap();
        if let Some(kind) = books.lost {
            return Err(problem(409, kind));
        }
        match (books.claims.last(), epoch) {
            (Some((current, holder)), Some(epoch)) if *current == epoch && holder == attempt => Ok(()),
            _ => Err(problem(409, kind::LEASE_LOST)),
        }
    }

    /// Takes effect between two moments.
    async fn act<T>(&self, effect: impl FnOnce(&mut Books) -> T) -> T {
        self.world.moment().await;
        let result = effect(&mut self.books.lock().unwrap());
        self.news.notify_waiters();
        self.world.moment().await;
        result
    }
}

fn problem(status: u16, kind: &str) -> Response {
    let text = String::new();
    let problem =
        Problem { kind: kind.into(), title: text.clone(), status, detail: text.clone(), next: text, request_id: None };
    (StatusCode::from_u16(status).unwrap(), Json(problem)).into_response()
}

async fn enrol(State(shared): S) -> Json<Enrolled> {
    shared.act(|_| ()).await;
    let machines = BTreeMap::from([("m1".to_owned(), ulid(1))]);
    Json(Enrolled { controller: ulid(2), machines, refused: [].into(), lease_seconds: 60 })
}

async fn claim(State(shared): S) -> Response {
    let over = |books: &Books| books.released > 0 || books.lost.is_some();
    if over(&shared.books.lock().unwrap()) {
        shared.idle.notify_one();
        std::future::pending::<()>().await;
    }
    if shared.books.lock().unwrap().off_wanted {
        let errand = shared.act(|_| Errand { errand: ulid(3), machine: ulid(1), order: Order::Off }).await;
        return Json(errand).into_response();
    }
    // Whoever holds an attempt works on it before asking for another. So an earlier claim's answer was lost with the
    // controller that asked, its lease has run out, and the job is placed again.
    let claim = shared
        .act(|books| {
            let epoch = books.claims.len() as u64 + 1;
            let attempt: AttemptId = ulid(100 + u128::from(epoch));
            books.claims.push((epoch, attempt.clone()));
            Claim {
                attempt: attempt.clone(),
                machine: ulid(1),
                epoch,
                lease_seconds: 60,
                attempt_token: "attempt".into(),
                brief: brief(attempt, &shared.build),
            }
        })
        .await;
    Json(claim).into_response()
}

async fn errand_done(State(shared): S, Path(errand): Path<ErrandId>, Json(done): Json<ErrandDone>) -> StatusCode {
    assert_eq!((errand, done.ok, done.detail.as_str()), (ulid(3), true, "off"));
    shared
        .act(|books| {
            books.off_wanted = false;
            books.off_done += 1;
        })
        .await;
    StatusCode::NO_CONTENT
}

fn brief(attempt: AttemptId, [kernel, initrd]: &[Vec<u8>; 2]) -> Brief {
    let artifact = |name: &str, n, content: &[u8]| ArtifactBrief {
        name: name.into(),
        id: ulid(n),
        size: content.len() as u64,
        blake3: blake3::hash(content).to_hex().to_string(),
    };
    Brief {
        attempt,
        job: ulid(3),
        run: ulid(4),
        scenario: Scenario {
            name: "nmi".into(),
            title: String::new(),
            vmx: VmxState::None,
            vmx_number: None,
            trigger: Trigger::Nmi,
            cpu: None,
            boot: Boot::default(),
            capture: Capture::default(),
            expect: Expect { panic: "NMI".into() },
            deadlines: Deadlines::default(),
        },
        build: BuildBrief {
            id: ulid(5),
            release: "1".into(),
            build_id: None,
            artifacts: vec![artifact("kernel", 10, kernel), artifact("initrd", 11, initrd)],
        },
        marker: BOOT.lines().nth(1).unwrap().to_owned(),
    }
}

async fn download(State(shared): S, Path(id): Path<ArtifactId>) -> Vec<u8> {
    shared.act(|_| ()).await;
    shared.build[usize::from(id != ulid(10))].clone()
}

async fn renew(
    State(shared): S,
    Path(attempt): Path<AttemptId>,
    headers: HeaderMap,
    Json(request): Json<RenewRequest>,
) -> Result<Json<RenewReply>, Response> {
    shared.check(&attempt, &headers)?;
    let over = || {
        let books = shared.books.lock().unwrap();
        books.collect() || books.lost.is_some() || request.keys == Some(0)
    };
    let changed = async {
        loop {
            let mut news = std::pin::pin!(shared.news.notified());
            news.as_mut().enable();
            if over() {
                return;
            }
            news.await;
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(request.wait_seconds.into()), changed).await;
    shared.check(&attempt, &headers)?;
    let collect = shared.books.lock().unwrap().collect();
    let directive = if collect { Directive::Collect } else { Directive::Continue };
    Ok(Json(RenewReply { lease_seconds: 60, directive, keys: 1 }))
}

/// Somebody typed something before the machine was on; there is nothing behind it.
async fn keys(
    State(shared): S,
    Path(attempt): Path<AttemptId>,
    Query(at): Query<Asked>,
    headers: HeaderMap,
) -> Result<Json<Vec<KeyPress>>, Response> {
    shared.check(&attempt, &headers)?;
    assert_eq!(at.from, 0, "renewals say that there is no more");
    shared.act(|_| ()).await;
    let press = KeyPress { number: 0, source: "serial".into(), by: "token:kris".into(), keys: Keys::Sysrq('t') };
    Ok(Json(vec![press]))
}

#[derive(serde::Deserialize)]
struct Asked {
    from: u64,
}

async fn reports(
    State(shared): S,
    Path(attempt): Path<AttemptId>,
    headers: HeaderMap,
    Json(request): Json<Reports>,
) -> Result<Json<ReportsReply>, Response> {
    shared.check(&attempt, &headers)?;
    assert_eq!(request.by, Role::Controller);
    shared
        .act(|books| {
            for report in request.reports {
                match books.reports.get(usize::try_from(report.seq).unwrap()) {
                    Some(known) => assert_eq!(known, &report, "a number is used for two reports"),
                    None => {
                        assert_eq!(report.seq, books.reports.len() as u64, "a number is left out");
                        // The NMI was not sent, so nothing more will come: judged.
                        books.judged |=
                            matches!(&report.report, Report::Power { action, ok: false, .. } if action == "nmi");
                        books.ended |= matches!(&report.report, Report::MachineEnded { .. });
                        books.reports.push(report);
                    }
                }
            }
        })
        .await;
    Ok(Json(ReportsReply { directive: Directive::Continue }))
}

async fn console(
    State(shared): S,
    Path((attempt, _source)): Path<(AttemptId, String)>,
    headers: HeaderMap,
) -> Result<Json<ConsoleAck>, Response> {
    shared.check(&attempt, &headers)?;
    Ok(Json(ConsoleAck { next_offset: shared.books.lock().unwrap().console.len() as u64 }))
}

#[derive(serde::Deserialize)]
struct Offset {
    offset: u64,
    hash: Option<String>,
}

async fn put_console(
    State(shared): S,
    Path((attempt, _source)): Path<(AttemptId, String)>,
    Query(at): Query<Offset>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<ConsoleAck>, Response> {
    shared.check(&attempt, &headers)?;
    let next_offset = shared
        .act(|books| {
            let offset = usize::try_from(at.offset).unwrap();
            assert!(offset <= books.console.len(), "a gap in the console");
            let overlap = (books.console.len() - offset).min(body.len());
            assert_eq!(&books.console[offset..offset + overlap], &body[..overlap], "the console changed its mind");
            books.console.extend_from_slice(&body[overlap..]);
            books.judged |= books.console.ends_with(PANIC.as_bytes());
            books.console.len() as u64
        })
        .await;
    Ok(Json(ConsoleAck { next_offset }))
}

async fn upload(
    State(shared): S,
    Path((attempt, name)): Path<(AttemptId, String)>,
    headers: HeaderMap,
) -> Result<Json<Upload>, Response> {
    shared.check(&attempt, &headers)?;
    let books = shared.books.lock().unwrap();
    let log = books.logs.get(&name);
    let chunks =
        log.iter().map(|(log, _)| Chunk { offset: 0, length: log.len() as u64, hash: hex(&chunk_hash(0, log)) });
    let complete = log.is_some_and(|(_, complete)| *complete);
    Ok(Json(Upload { artifact: ulid(20), complete, chunks: chunks.collect() }))
}

async fn chunk(
    State(shared): S,
    Path((attempt, name)): Path<(AttemptId, String)>,
    Query(at): Query<Offset>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<StatusCode, Response> {
    shared.check(&attempt, &headers)?;
    assert_eq!(at.offset, 0, "a small log is one chunk");
    assert_eq!(at.hash, Some(hex(&chunk_hash(0, &body))));
    let log = (body.to_vec(), false);
    shared.act(|books| assert_eq!(books.logs.insert(name, log), None, "sent although the server has it")).await;
    Ok(StatusCode::NO_CONTENT)
}

async fn complete(
    State(shared): S,
    Path((attempt, name)): Path<(AttemptId, String)>,
    headers: HeaderMap,
    Json(done): Json<CompleteRequest>,
) -> Result<Json<Artifact>, Response> {
    shared.check(&attempt, &headers)?;
    shared
        .act(|books| {
            let (log, complete) = books.logs.get_mut(&name).unwrap();
            assert_eq!(done.blake3, blake3::hash(log).to_hex().to_string());
            *complete = true;
        })
        .await;
    Ok(Json(Artifact {
        id: ulid(20),
        build: None,
        attempt: Some(attempt),
        name,
        state: ArtifactState::Complete,
        size: done.size,
        blake3: Some(done.blake3),
        created_at: Timestamp(0),
        held: None,
        dropped: None,
    }))
}

async fn release(
    State(shared): S,
    Path(attempt): Path<AttemptId>,
    headers: HeaderMap,
    Json(request): Json<ReleaseRequest>,
) -> Result<StatusCode, Response> {
    shared.check(&attempt, &headers)?;
    assert!(request.healthy, "{}", request.detail);
    assert!(!shared.world.anything_runs(), "released while it runs");
    shared.act(|books| books.released += 1).await;
    Ok(StatusCode::NO_CONTENT)
}
