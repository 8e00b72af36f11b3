//! Uploads in chunks: any order, repeated, wrong, too large.

use crate::harness::{Answer, Call, Server};
use crashyard_protocol::agent::{CHUNK_BYTES, Claim, CompleteRequest, Upload};
use crashyard_protocol::api::Artifact;
use crashyard_protocol::chunk::{chunk_hash, hex};
use crashyard_protocol::problem::kind;

const CHUNK: usize = CHUNK_BYTES as usize;

fn noise(length: usize) -> Vec<u8> {
    (0..length).map(|index| u8::try_from((index * 31 + index / 251) % 256).unwrap()).collect()
}

async fn complete(server: &Server, claim: &Claim, name: &str, size: u64, blake3: &str) -> Answer {
    let path = format!("/agent/v1/attempts/{}/artifacts/{name}/complete", claim.attempt);
    let request = CompleteRequest { size, blake3: blake3.into() };
    server.call(Call::post(path, &request).by_agent(claim)).await
}

async fn upload(server: &Server, claim: &Claim, name: &str) -> Upload {
    let path = format!("/agent/v1/attempts/{}/artifacts/{name}", claim.attempt);
    server.call(Call::get(path).by_agent(claim)).await.ok()
}

#[tokio::test]
async fn chunks_in_any_order_and_repeated_become_the_same_bytes() {
    let server = Server::new().await;
    let claim = server.claimed().await;
    let bytes = noise(2 * CHUNK + 4711);
    for index in [2, 0, 2, 1, 0] {
        let start = index * CHUNK;
        let chunk = &bytes[start..bytes.len().min(start + CHUNK)];
        server.put_chunk(&claim, "vmcore", start as u64, chunk).await.no_content();
    }
    let progress = upload(&server, &claim, "vmcore").await;
    assert_eq!(progress.chunks.iter().map(|chunk| chunk.offset).collect::<Vec<_>>(), [0, CHUNK_BYTES, 2 * CHUNK_BYTES]);
    let whole = blake3::hash(&bytes).to_hex().to_string();
    let done: Artifact = complete(&server, &claim, "vmcore", bytes.len() as u64, &whole).await.ok();
    assert_eq!((done.size, done.blake3.as_deref()), (bytes.len() as u64, Some(whole.as_str())));
    let again: Artifact = complete(&server, &claim, "vmcore", bytes.len() as u64, &whole).await.ok();
    assert_eq!(again, done, "closing again is harmless");
    let read = server.get(format!("/api/v1/artifacts/{}/content", done.id)).await;
    assert!(read.body == bytes, "the bytes read are the bytes sent");
}

#[tokio::test]
async fn files_of_one_chunk_and_of_none_are_closed_with_their_hash() {
    let server = Server::new().await;
    let claim = server.claimed().await;
    server.put_chunk(&claim, "small", 0, b"few bytes").await.no_content();
    let hash = blake3::hash(b"few bytes").to_hex().to_string();
    complete(&server, &claim, "small", 9, &hash).await.ok::<Artifact>();
    let empty = blake3::hash(b"").to_hex().to_string();
    let done: Artifact = complete(&server, &claim, "empty", 0, &empty).await.ok();
    assert_eq!(server.get(format!("/api/v1/artifacts/{}/content", done.id)).await.body, "");
}

#[tokio::test]
async fn a_chunk_with_the_wrong_hash_is_not_stored() {
    let server = Server::new().await;
    let claim = server.claimed().await;
    let hash = hex(&chunk_hash(0, b"other"));
    let path = format!("/agent/v1/attempts/{}/artifacts/vmcore/chunks?offset=0&hash={hash}", claim.attempt);
    server.call(Call::put(path, "bytes").by_agent(&claim)).await.problem(422, kind::HASH_MISMATCH);
    assert!(upload(&server, &claim, "vmcore").await.chunks.is_empty());
    let path = format!("/agent/v1/attempts/{}/artifacts/vmcore/chunks?offset=0&hash=zz", claim.attempt);
    server.call(Call::put(path, "bytes").by_agent(&claim)).await.problem(400, kind::INVALID);
}

#[tokio::test]
async fn other_bytes_at_the_same_offset_are_a_conflict() {
    let server = Server::new().await;
    let claim = server.claimed().await;
    server.put_chunk(&claim, "vmcore", 0, b"first").await.no_content();
    let problem = server.put_chunk(&claim, "vmcore", 0, b"other").await.problem(409, kind::CONFLICT);
    assert!(problem.detail.contains("other bytes at 0"), "{}", problem.detail);
    let problem = server.put_chunk(&claim, "vmcore", CHUNK_BYTES, b"behind").await.problem(409, kind::CONFLICT);
    assert!(problem.detail.contains("ends at 5"), "{}", problem.detail);
}

#[tokio::test]
async fn a_short_chunk_cannot_stand_before_another() {
    let server = Server::new().await;
    let claim = server.claimed().await;
    server.put_chunk(&claim, "vmcore", CHUNK_BYTES, &noise(CHUNK)).await.no_content();
    server.put_chunk(&claim, "vmcore", 0, b"short").await.problem(409, kind::CONFLICT);
}

#[tokio::test]
async fn misaligned_empty_and_oversized_chunks_are_refused() {
    let server = Server::new().await;
    let claim = server.claimed().await;
    server.put_chunk(&claim, "vmcore", 17, b"bytes").await.problem(400, kind::INVALID);
    server.put_chunk(&claim, "vmcore", 0, b"").await.problem(400, kind::INVALID);
    server.put_chunk(&claim, "vmcore", 0, &noise(CHUNK + 1)).await.problem(413, kind::TOO_LARGE);
    server.put_chunk(&claim, "vmcore", u64::MAX - u64::MAX % CHUNK_BYTES, b"x").await.problem(413, kind::TOO_LARGE);
}

#[tokio::test]
async fn a_file_beyond_the_limit_is_refused_before_its_first_byte_is_kept() {
    let server = Server::with(|config| config.max_artifact_bytes = 8 << 30).await;
    let claim = server.claimed().await;
    let ten_gb = 10_u64 << 30;
    let hash = hex(&chunk_hash(0, b"x"));
    let path =
        format!("/agent/v1/attempts/{}/artifacts/vmcore/chunks?offset=0&hash={hash}&size={ten_gb}", claim.attempt);
    server.call(Call::put(path, "x").by_agent(&claim)).await.problem(413, kind::TOO_LARGE);
    complete(&server, &claim, "vmcore", ten_gb, &"0".repeat(64)).await.problem(413, kind::TOO_LARGE);
    server.put_chunk(&claim, "vmcore", 8 << 30, b"x").await.problem(413, kind::TOO_LARGE);
    assert_eq!(artifacts(&server, &claim).await, [], "nothing was registered");
}

async fn artifacts(server: &Server, claim: &Claim) -> Vec<Artifact> {
    server.get(format!("/api/v1/attempts/{}/artifacts", claim.attempt)).await.ok()
}

#[tokio::test]
async fn a_chunk_beyond_the_declared_size_is_refused() {
    let server = Server::new().await;
    let claim = server.claimed().await;
    let hash = hex(&chunk_hash(0, b"four"));
    let path = format!("/agent/v1/attempts/{}/artifacts/vmcore/chunks?offset=0&hash={hash}&size=3", claim.attempt);
    let problem = server.call(Call::put(path, "four").by_agent(&claim)).await.problem(400, kind::INVALID);
    assert!(problem.detail.contains("beyond the declared 3 bytes"), "{}", problem.detail);
}

#[tokio::test]
async fn all_files_of_an_attempt_together_have_a_quota() {
    let server = Server::with(|config| config.max_attempt_bytes = 10).await;
    let claim = server.claimed().await;
    server.put_chunk(&claim, "one", 0, b"six---").await.no_content();
    server.put_chunk(&claim, "two", 0, b"five-").await.problem(413, kind::TOO_LARGE);
    server.put_chunk(&claim, "two", 0, b"four").await.no_content();
}

#[tokio::test]
async fn an_upload_is_not_closed_with_missing_or_other_bytes() {
    let server = Server::new().await;
    let claim = server.claimed().await;
    let bytes = noise(2 * CHUNK);
    server.put_chunk(&claim, "vmcore", CHUNK_BYTES, &bytes[CHUNK..]).await.no_content();
    let whole = blake3::hash(&bytes).to_hex().to_string();
    let problem = complete(&server, &claim, "vmcore", bytes.len() as u64, &whole).await.problem(409, kind::CONFLICT);
    assert!(problem.detail.contains("from offset 0 on are missing"), "{}", problem.detail);
    server.put_chunk(&claim, "vmcore", 0, &bytes[..CHUNK]).await.no_content();
    complete(&server, &claim, "vmcore", bytes.len() as u64, &"0".repeat(64)).await.problem(422, kind::HASH_MISMATCH);
    complete(&server, &claim, "vmcore", CHUNK_BYTES, &whole).await.problem(422, kind::HASH_MISMATCH);
    complete(&server, &claim, "vmcore", bytes.len() as u64, &whole).await.ok::<Artifact>();
    complete(&server, &claim, "vmcore", 1, &whole).await.problem(409, kind::CONFLICT);
}

#[tokio::test]
async fn names_that_try_tricks_are_refused_and_make_no_file() {
    let server = Server::new().await;
    let claim = server.claimed().await;
    for name in ["..%2F..%2Fetc%2Fpasswd", "%2Fetc%2Fpasswd", "..", ".hidden", "a%00b", "a%0ab", "%C3%A4", "a%5Cb"] {
        let answer = server.put_chunk(&claim, name, 0, b"x").await;
        assert!(matches!(answer.status.as_u16(), 400 | 404), "{name}: {}", answer.status);
        assert_eq!(answer.header("content-type"), "application/problem+json", "{name}");
    }
    server.put_chunk(&claim, "console-serial0", 0, b"forged").await.problem(400, kind::INVALID);
    assert_eq!(artifacts(&server, &claim).await, []);
}

#[tokio::test]
async fn a_stale_epoch_uploads_nothing() {
    let server = Server::new().await;
    let mut claim = server.claimed().await;
    claim.epoch += 1;
    server.put_chunk(&claim, "vmcore", 0, b"x").await.problem(409, kind::LEASE_LOST);
}

#[tokio::test]
async fn an_upload_goes_on_where_it_was_after_the_server_was_killed() {
    let server = Server::new().await;
    let claim = server.claimed().await;
    let bytes = noise(2 * CHUNK + 5);
    server.put_chunk(&claim, "vmcore", 0, &bytes[..CHUNK]).await.no_content();
    let server = server.restarted().await;
    let had: Vec<u64> = upload(&server, &claim, "vmcore").await.chunks.iter().map(|chunk| chunk.offset).collect();
    assert_eq!(had, [0]);
    server.put_chunk(&claim, "vmcore", CHUNK_BYTES, &bytes[CHUNK..2 * CHUNK]).await.no_content();
    server.put_chunk(&claim, "vmcore", 2 * CHUNK_BYTES, &bytes[2 * CHUNK..]).await.no_content();
    let whole = blake3::hash(&bytes).to_hex().to_string();
    complete(&server, &claim, "vmcore", bytes.len() as u64, &whole).await.ok::<Artifact>();
}

#[tokio::test]
async fn files_of_a_build_are_uploaded_the_same_way_and_handed_to_attempts() {
    let server = Server::new().await;
    let build = server.build().await;
    let hash = hex(&chunk_hash(0, b"bzImage"));
    let base = format!("/api/v1/builds/{}/artifacts/kernel", build.id);
    let put = Call::put(format!("{base}/chunks?offset=0&hash={hash}"), "bzImage").token(&server.submit);
    server.call(put).await.no_content();
    server.plan("smoke", 1, &[]).await;
    let run = serde_json::json!({ "build": build.id, "plan": "smoke" });
    let submit = Call::post("/api/v1/runs", &run).token(&server.submit);
    let problem = server.call(submit.clone()).await.problem(409, kind::CONFLICT);
    assert!(problem.detail.contains("kernel"), "an open upload is named: {}", problem.detail);
    let done = CompleteRequest { size: 7, blake3: blake3::hash(b"bzImage").to_hex().to_string() };
    server.call(Call::post(format!("{base}/complete"), &done).token(&server.submit)).await.ok::<Artifact>();
    server.call(submit).await.ok::<serde_json::Value>();
    let enrolled = server.enrol(&["m1"]).await;
    let claim: Claim = server.call(server.claim_call(&enrolled, 0)).await.ok();
    assert_eq!(claim.brief.build.artifacts[0].name, "kernel");
    assert_eq!(claim.brief.scenario.boot.cmdline, "quiet", "what the kernel needs on every boot");
}
