//! Which full dumps stay: by rule, by a person's word, and whatever a server that dies in the middle leaves behind.

use crate::harness::{Answer, Call, Server};
use crate::synthetic::{PLAIN, dump as container, world};
use axum::http::Method;
use crashyard_protocol::agent::{CHUNK_BYTES, Claim, CompleteRequest, Enrolled, ReleaseRequest};
use crashyard_protocol::api::{Artifact, Attempt, NewHold};
use crashyard_protocol::problem::kind;
use crashyard_protocol::{ArtifactId, ArtifactState};
use crashyard_server::config::Config;
use crashyard_server::db::{artifact, dump};
use crashyard_server::passes::{Next, deadlines, dumps, findings, glimpse, leases};
use std::path::Path;

fn bytes() -> Vec<u8> {
    container::elf(&world(PLAIN).contents, false)
}

/// A farm with this policy and nothing else that would drop a dump.
async fn farm(change: impl FnOnce(&mut Config)) -> (Server, Enrolled) {
    let server = Server::with(|config| {
        (config.keep_dumps_each, config.keep_dumps_days, config.max_dumps_bytes) = (0, 0, 0);
        change(config);
    })
    .await;
    server.run(8).await;
    let enrolled = server.enrol(&["m1"]).await;
    (server, enrolled)
}

/// One attempt that leaves this dump behind and is over, settled and read.
async fn crash(server: &Server, enrolled: &Enrolled, bytes: &[u8]) -> ArtifactId {
    let claim: Claim = server.call(server.claim_call(enrolled, 0)).await.ok();
    server.put_chunk(&claim, "vmcore", 0, bytes).await.no_content();
    let done = CompleteRequest { size: bytes.len() as u64, blake3: blake3::hash(bytes).to_hex().to_string() };
    let path = format!("/agent/v1/attempts/{}/artifacts/vmcore/complete", claim.attempt);
    let dump: Artifact = server.call(Call::post(path, &done).by_agent(&claim)).await.ok();
    let release = ReleaseRequest { healthy: true, detail: String::new() };
    let release = Call::post(format!("/agent/v1/attempts/{}/release", claim.attempt), &release);
    server.call(release.by_controller(server, &claim)).await.no_content();
    server.advance(20);
    deadlines::tick(&server.state).await.unwrap();
    leases::tick(&server.state).await.unwrap();
    while findings::tick(&server.state).await.unwrap() == Next::Now {}
    dump.id
}

/// Lets the policy do everything that it would do now.
async fn tidy(server: &Server) -> Next {
    loop {
        let next = dumps::tick(&server.state).await.unwrap();
        if next != Next::Now {
            return next;
        }
    }
}

async fn get(server: &Server, id: &ArtifactId) -> Artifact {
    server.get(format!("/api/v1/artifacts/{id}")).await.ok()
}

async fn states(server: &Server, ids: &[ArtifactId]) -> Vec<ArtifactState> {
    let mut states = Vec::new();
    for id in ids {
        states.push(get(server, id).await.state);
    }
    states
}

async fn hold(server: &Server, id: &ArtifactId) -> Answer {
    let hold = NewHold { reason: "a colleague looks at it".into() };
    server.call(Call::put_json(format!("/api/v1/artifacts/{id}/hold"), &hold).token(&server.submit)).await
}

/// Objects in the blob store that belong to an artifact.
fn objects(server: &Server, id: &ArtifactId) -> usize {
    fn count(dir: &Path, id: &str) -> usize {
        let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        entries
            .map(|path| if path.is_dir() { count(&path, id) } else { path.to_str().unwrap().contains(id).into() })
            .sum()
    }
    count(&server.dir.path().join("blobs"), id.as_str())
}

use ArtifactState::{Complete, Dropped};

#[tokio::test]
async fn the_first_dumps_of_a_kind_stay_and_what_is_dropped_leaves_hash_size_and_reason() {
    let (server, enrolled) = farm(|config| config.keep_dumps_each = 2).await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(crash(&server, &enrolled, &bytes()).await);
    }
    assert_eq!(objects(&server, &ids[2]), 1);
    assert_eq!(tidy(&server).await, Next::Woken);
    assert_eq!(states(&server, &ids).await, [Complete, Complete, Dropped]);
    let dropped = get(&server, &ids[2]).await;
    assert_eq!((dropped.size, dropped.blake3), (bytes().len() as u64, get(&server, &ids[0]).await.blake3));
    let why = dropped.dropped.unwrap().reason;
    assert!(why.contains("2 others of the same crash are kept"), "{why}");
    assert_eq!((objects(&server, &ids[2]), objects(&server, &ids[0])), (0, 1));
    assert!(artifact::segments(&server.state.db, &ids[2]).await.unwrap().is_empty());
    let problem = server.get(format!("/api/v1/artifacts/{}/content", ids[2])).await.problem(404, kind::NOT_FOUND);
    assert!(problem.detail.contains(&why), "{}", problem.detail);
    // The capsule stays, and so does the page with the reason.
    let attempt = dropped.attempt.unwrap();
    let full: Attempt = server.get(format!("/api/v1/attempts/{attempt}")).await.ok();
    let capsule = full.artifacts.iter().find(|file| file.name.starts_with("found-capsule")).unwrap();
    assert_eq!(server.get(format!("/api/v1/artifacts/{}/content", capsule.id)).await.status, 200);
    let page = server.get(format!("/attempts/{attempt}")).await;
    assert!(String::from_utf8_lossy(&page.body).contains(&why));
    // Nothing more happens.
    assert_eq!(tidy(&server).await, Next::Woken);
}

#[tokio::test]
async fn a_dump_that_no_reader_understands_is_never_one_too_many() {
    let (server, enrolled) = farm(|config| config.keep_dumps_each = 1).await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(crash(&server, &enrolled, b"not a dump").await);
    }
    tidy(&server).await;
    assert_eq!(states(&server, &ids).await, [Complete; 3]);
}

#[tokio::test]
async fn old_dumps_go_on_their_day_and_not_before() {
    let (server, enrolled) = farm(|config| config.keep_dumps_days = 2).await;
    let id = crash(&server, &enrolled, &bytes()).await;
    let Next::At(day) = tidy(&server).await else { panic!("it has a day") };
    server.clock.advance(day.since(server.clock_now()) - std::time::Duration::from_millis(1));
    assert_eq!(tidy(&server).await, Next::At(day));
    server.clock.advance(std::time::Duration::from_millis(1));
    assert_eq!(tidy(&server).await, Next::Woken);
    assert_eq!(states(&server, &[id]).await, [Dropped]);
}

#[tokio::test]
async fn over_the_quota_the_oldest_go_until_the_rest_fits() {
    let size = bytes().len() as u64;
    let (server, enrolled) = farm(|config| {
        // What is kept is the question, not the machine, on which these attempts end without a result.
        (config.max_dumps_bytes, config.quarantine_failures) = (2 * size, 0);
    })
    .await;
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(crash(&server, &enrolled, &bytes()).await);
    }
    tidy(&server).await;
    assert_eq!(states(&server, &ids).await, [Dropped, Dropped, Complete, Complete]);
    let why = get(&server, &ids[0]).await.dropped.unwrap().reason;
    assert!(why.contains("max_dumps_bytes"), "{why}");
}

#[tokio::test]
async fn a_held_dump_is_never_dropped_and_a_released_one_is_again_like_others() {
    let (server, enrolled) = farm(|config| {
        (config.keep_dumps_each, config.keep_dumps_days, config.max_dumps_bytes) = (1, 1, 1);
    })
    .await;
    let ids = [crash(&server, &enrolled, &bytes()).await, crash(&server, &enrolled, &bytes()).await];
    for id in &ids {
        assert_eq!(hold(&server, id).await.ok::<Artifact>().held.unwrap().by, "submit");
    }
    server.advance(100 * 86_400);
    assert_eq!(tidy(&server).await, Next::Woken);
    assert_eq!(states(&server, &ids).await, [Complete; 2]);
    let release = Call::get(format!("/api/v1/artifacts/{}/hold", ids[0])).method(Method::DELETE);
    server.call(release.clone()).await.problem(401, kind::UNAUTHORIZED);
    assert_eq!(server.call(release.token(&server.submit)).await.ok::<Artifact>().held, None);
    tidy(&server).await;
    assert_eq!(states(&server, &ids).await, [Dropped, Complete]);
    hold(&server, &ids[0]).await.problem(409, kind::CONFLICT);
    let console = server.build().await;
    let stray = ArtifactId::from_ulid(server.state.ids.next());
    hold(&server, &stray).await.problem(404, kind::NOT_FOUND);
    assert!(console.artifacts.is_empty());
}

#[tokio::test]
async fn a_hold_between_the_look_and_the_write_wins() {
    let (server, enrolled) = farm(|_| {}).await;
    let id = crash(&server, &enrolled, &bytes()).await;
    hold(&server, &id).await.ok::<Artifact>();
    let mut tx = server.state.db.begin().await.unwrap();
    assert!(!dump::drop_one(&mut tx, &id, "decided before the hold", server.clock_now()).await.unwrap());
    tx.commit().await.unwrap();
    assert_eq!((states(&server, std::slice::from_ref(&id)).await, objects(&server, &id)), (vec![Complete], 1));
}

#[tokio::test]
async fn a_server_killed_at_any_step_of_dropping_leaves_a_record_and_the_next_one_goes_on() {
    for killed_after in ["the record", "the first bytes", "the last bytes"] {
        let (server, enrolled) = farm(|_| {}).await;
        // Two chunks, so that there is a middle; each large enough to be an object.
        let claim: Claim = server.call(server.claim_call(&enrolled, 0)).await.ok();
        let whole = [vec![1; usize::try_from(CHUNK_BYTES).unwrap()], vec![2; 10_000]].concat();
        let (first, second) = whole.split_at(usize::try_from(CHUNK_BYTES).unwrap());
        server.put_chunk(&claim, "vmcore", 0, first).await.no_content();
        server.put_chunk(&claim, "vmcore", CHUNK_BYTES, second).await.no_content();
        let done = CompleteRequest { size: whole.len() as u64, blake3: blake3::hash(&whole).to_hex().to_string() };
        let path = format!("/agent/v1/attempts/{}/artifacts/vmcore/complete", claim.attempt);
        let id = server.call(Call::post(path, &done).by_agent(&claim)).await.ok::<Artifact>().id;
        assert_eq!(objects(&server, &id), 2);

        let mut tx = server.state.db.begin().await.unwrap();
        assert!(dump::drop_one(&mut tx, &id, "a reason", server.clock_now()).await.unwrap());
        tx.commit().await.unwrap();
        let segments = artifact::segments(&server.state.db, &id).await.unwrap();
        let gone = match killed_after {
            "the record" => 0,
            "the first bytes" => 1,
            _ => 2,
        };
        for segment in &segments[..gone] {
            server.state.blobs.delete(segment).await.unwrap();
        }

        let server = server.restarted().await;
        let said = get(&server, &id).await;
        assert_eq!((said.state, said.size), (Dropped, whole.len() as u64), "killed after {killed_after}");
        assert_eq!(said.dropped.unwrap().reason, "a reason");
        tidy(&server).await;
        assert_eq!(objects(&server, &id), 0, "killed after {killed_after}");
        assert!(dump::dropping(&server.state.db, 10).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn dumps_of_attempts_that_go_on_are_left_alone() {
    let (server, enrolled) = farm(|config| (config.keep_dumps_days, config.max_dumps_bytes) = (1, 1)).await;
    let claim: Claim = server.call(server.claim_call(&enrolled, 0)).await.ok();
    server.put_chunk(&claim, "vmcore", 0, &bytes()).await.no_content();
    let done = CompleteRequest { size: bytes().len() as u64, blake3: blake3::hash(&bytes()).to_hex().to_string() };
    let path = format!("/agent/v1/attempts/{}/artifacts/vmcore/complete", claim.attempt);
    let id = server.call(Call::post(path, &done).by_agent(&claim)).await.ok::<Artifact>().id;
    server.advance(3 * 86_400);
    assert_eq!(tidy(&server).await, Next::Woken);
    assert_eq!(states(&server, &[id]).await, [Complete]);
}

#[tokio::test]
async fn a_dump_that_arrives_is_read_as_far_as_it_goes_and_shown_as_partial() {
    let (server, enrolled) = farm(|_| {}).await;
    let claim: Claim = server.call(server.claim_call(&enrolled, 0)).await.ok();
    // The kernel's memory lies at the start; what is still to come is something else.
    let mut first = bytes();
    first.resize(usize::try_from(CHUNK_BYTES).unwrap(), 0);
    // A later chunk alone says nothing.
    server.put_chunk(&claim, "vmcore", CHUNK_BYTES, &vec![7; first.len()]).await.no_content();
    assert_eq!(glimpse::tick(&server.state).await.unwrap(), Next::Now);
    assert_eq!(glimpse::tick(&server.state).await.unwrap(), Next::Woken, "looked at once, until it has grown");
    let page = || async {
        let page = server.get(format!("/attempts/{}", claim.attempt)).await;
        String::from_utf8_lossy(&page.body).into_owned()
    };
    assert!(!page().await.contains("glimpse-title"));
    server.put_chunk(&claim, "vmcore", 0, &first).await.no_content();
    server.put_chunk(&claim, "vmcore", 2 * CHUNK_BYTES, &first).await.no_content();
    server.put_chunk(&claim, "vmcore", 3 * CHUNK_BYTES, &first).await.no_content();
    assert_eq!(glimpse::tick(&server.state).await.unwrap(), Next::Now);
    let html = page().await;
    let wanted = crashyard_vmcore::capsule(&bytes(), &crashyard_vmcore::Options::default()).unwrap();
    assert!(html.contains("glimpse-title") && html.contains("partial"), "{html}");
    assert!(html.contains(&wanted.release));
    let frames =
        &wanted.stack(wanted.cpus.iter().find(|cpu| Some(cpu.cpu) == wanted.panic_cpu).unwrap().stack).unwrap().frames;
    assert!(html.contains(frames[0].symbol.as_ref().unwrap().as_str()), "the panic stack");
    assert!(html.contains(&wanted.dmesg.last().unwrap().text), "the end of the log");
    server.put_chunk(&claim, "vmcore", 4 * CHUNK_BYTES, &first).await.no_content();
    server.put_chunk(&claim, "vmcore", 5 * CHUNK_BYTES, &first).await.no_content();
    assert_eq!(glimpse::tick(&server.state).await.unwrap(), Next::Woken, "the panic was seen");
}

#[tokio::test]
async fn a_dump_that_never_became_whole_still_has_a_capsule() {
    let (server, enrolled) = farm(|_| {}).await;
    let claim: Claim = server.call(server.claim_call(&enrolled, 0)).await.ok();
    let mut first = bytes();
    first.resize(usize::try_from(CHUNK_BYTES).unwrap(), 0);
    server.put_chunk(&claim, "vmcore", 0, &first).await.no_content();
    server.advance(120);
    leases::tick(&server.state).await.unwrap();
    server.advance(20);
    deadlines::tick(&server.state).await.unwrap();
    while findings::tick(&server.state).await.unwrap() == Next::Now {}
    let full: Attempt = server.get(format!("/api/v1/attempts/{}", claim.attempt)).await.ok();
    assert!(full.artifacts.iter().any(|file| file.name.starts_with("found-capsule")), "{:?}", full.artifacts);
}
