//! Consoles: bytes in order, repeated, overlapping, hostile.

use crate::harness::{Answer, Call, Server};
use bytes::Bytes;
use crashyard_protocol::agent::{Claim, ConsoleAck, ReleaseRequest};
use crashyard_protocol::api::Artifact;
use crashyard_protocol::problem::kind;
use crashyard_protocol::{ArtifactId, ArtifactState, StageName, StageState};
use crashyard_server::db::artifact::{self, Append, SegmentRow};
use crashyard_server::passes::{self, Next, compact};
use proptest::prelude::*;
use std::path::PathBuf;

async fn next_offset(answer: &Answer) -> u64 {
    answer.ok::<ConsoleAck>().next_offset
}

async fn console(server: &Server, claim: &Claim) -> Artifact {
    let artifacts: Vec<Artifact> = server.get(format!("/api/v1/attempts/{}/artifacts", claim.attempt)).await.ok();
    artifacts.into_iter().find(|artifact| artifact.name == "console-serial0").unwrap()
}

async fn content(server: &Server, claim: &Claim) -> Bytes {
    let id = console(server, claim).await.id;
    server.get(format!("/api/v1/artifacts/{id}/content")).await.body
}

#[tokio::test]
async fn bytes_are_appended_and_the_next_offset_is_said() {
    let server = Server::new().await;
    let claim = server.claimed().await;
    assert_eq!(next_offset(&server.put_console(&claim, 0, "hello ").await).await, 6);
    assert_eq!(next_offset(&server.put_console(&claim, 6, "world").await).await, 11);
    let path = format!("/agent/v1/attempts/{}/console/serial0", claim.attempt);
    let ack = server.call(Call::get(path).token(&server.controller)).await;
    assert_eq!(next_offset(&ack).await, 11);
    assert_eq!(content(&server, &claim).await, "hello world");
}

#[tokio::test]
async fn a_gap_is_refused_and_the_next_offset_named() {
    let server = Server::new().await;
    let claim = server.claimed().await;
    server.put_console(&claim, 0, "hello").await.ok::<ConsoleAck>();
    let problem = server.put_console(&claim, 7, "later").await.problem(409, kind::OFFSET_GAP);
    assert!(problem.detail.contains("ends at 5") && problem.next.contains('5'), "{problem:?}");
    assert_eq!(content(&server, &claim).await, "hello");
}

#[tokio::test]
async fn bytes_sent_again_are_accepted_and_other_bytes_are_not() {
    let server = Server::new().await;
    let claim = server.claimed().await;
    server.put_console(&claim, 0, "hello").await.ok::<ConsoleAck>();
    assert_eq!(next_offset(&server.put_console(&claim, 0, "hello").await).await, 5);
    assert_eq!(next_offset(&server.put_console(&claim, 1, "el").await).await, 5);
    assert_eq!(next_offset(&server.put_console(&claim, 3, "lo world").await).await, 11, "the rest is new");
    let problem = server.put_console(&claim, 3, "lo World").await.problem(409, kind::CONFLICT);
    assert!(problem.detail.contains("offset 6"), "{}", problem.detail);
    assert_eq!(next_offset(&server.put_console(&claim, 4, "").await).await, 11);
    assert_eq!(content(&server, &claim).await, "hello world");
}

#[tokio::test]
async fn one_write_is_bounded_and_so_is_the_whole() {
    let server = Server::with(|config| config.max_artifact_bytes = 8).await;
    let claim = server.claimed().await;
    let large = vec![b'x'; crashyard_protocol::agent::CONSOLE_WRITE_MAX + 1];
    server.put_console(&claim, 0, large).await.problem(413, kind::TOO_LARGE);
    server.put_console(&claim, 0, "12345678").await.ok::<ConsoleAck>();
    server.put_console(&claim, 8, "9").await.problem(413, kind::TOO_LARGE);
}

#[tokio::test]
async fn the_source_of_a_console_is_a_plain_word() {
    let server = Server::new().await;
    let claim = server.claimed().await;
    for source in ["..", "a%2Fb", "Serial", "", "a%00"] {
        let path = format!("/agent/v1/attempts/{}/console/{source}?offset=0", claim.attempt);
        let answer = server.call(Call::put(path, "x").by_controller(&server, &claim)).await;
        assert!(matches!(answer.status.as_u16(), 400 | 404 | 405), "{source:?}: {}", answer.status);
        assert_eq!(answer.header("content-type"), "application/problem+json", "{source:?}");
    }
}

#[tokio::test]
async fn hostile_bytes_come_back_as_they_were_and_as_a_download_only() {
    let server = Server::new().await;
    let claim = server.claimed().await;
    let hostile = b"<script>alert(1)</script>\x1b]0;owned\x07\x00\xff\n".to_vec();
    server.put_console(&claim, 0, hostile.clone()).await.ok::<ConsoleAck>();
    let id = console(&server, &claim).await.id;
    let answer = server.get(format!("/api/v1/artifacts/{id}/content")).await;
    assert_eq!(answer.body, hostile);
    assert_eq!(answer.header("x-content-type-options"), "nosniff");
    assert!(answer.header("content-security-policy").starts_with("sandbox"));
    assert!(answer.header("content-disposition").starts_with("attachment"));
    assert_eq!(answer.header("content-type"), "text/plain; charset=utf-8");
}

#[tokio::test]
async fn ranges_of_a_growing_console_can_be_read() {
    let server = Server::new().await;
    let claim = server.claimed().await;
    for (offset, piece) in [(0, "0123"), (4, "4567"), (8, "89")] {
        server.put_console(&claim, offset, piece).await.ok::<ConsoleAck>();
    }
    let path = format!("/api/v1/artifacts/{}/content", console(&server, &claim).await.id);
    let part = server.call(Call::get(&path).header("range", "bytes=3-8")).await;
    assert_eq!((part.status.as_u16(), &part.body[..]), (206, &b"345678"[..]));
    assert_eq!(part.header("content-range"), "bytes 3-8/10");
    let tail = server.call(Call::get(&path).header("range", "bytes=-2")).await;
    assert_eq!(tail.body, "89");
    let beyond = server.call(Call::get(&path).header("range", "bytes=10-")).await;
    assert_eq!((beyond.status.as_u16(), beyond.header("content-range")), (416, "bytes */10"));
    let same = server.call(Call::get(&path).header("if-none-match", part.header("etag"))).await;
    assert_eq!((same.status.as_u16(), same.body.len()), (304, 0));
    server.put_console(&claim, 10, "ab").await.ok::<ConsoleAck>();
    let grown = server.call(Call::get(&path).header("if-none-match", part.header("etag"))).await;
    assert_eq!(grown.body, "0123456789ab");
}

#[tokio::test]
async fn the_console_moves_the_stages_also_when_the_banner_comes_in_pieces() {
    let server = Server::new().await;
    let claim = server.claimed().await;
    let kernel = crashyard_protocol::agent::Report::Kernel {
        release: "6.1.0-test".into(),
        version: "#1 SMP".into(),
        build_id: Some("0123456789abcdef".into()),
        cpus_online: 2,
    };
    server.report(&claim, crashyard_protocol::agent::Role::Target, 0, kernel).await.ok::<serde_json::Value>();
    server.put_console(&claim, 0, "[    0.000000] Linux ver").await.ok::<ConsoleAck>();
    // The reader is a cache: another server, or this one after a restart, goes on where the recorded bytes end.
    let server = server.restarted().await;
    server.put_console(&claim, 24, "sion 6.1.0-test (gcc) #1 SMP\n").await.ok::<ConsoleAck>();
    let stages: Vec<crashyard_protocol::Stage> =
        server.get(format!("/api/v1/attempts/{}/stages", claim.attempt)).await.ok();
    assert_eq!((stages[0].name, stages[0].state), (StageName::Provisioned, StageState::Proven), "{stages:#?}");
    assert_eq!(stages[1].state, StageState::Active);
}

#[tokio::test]
async fn after_the_attempt_the_pieces_of_a_console_become_one_and_it_is_closed() {
    let server = Server::new().await;
    let claim = server.claimed().await;
    let text: String = (0..50).map(|line| format!("line {line}\n")).collect();
    let mut offset = 0;
    for line in text.split_inclusive('\n') {
        offset = next_offset(&server.put_console(&claim, offset, line.to_owned()).await).await;
    }
    assert_eq!(compact::tick(&server.state).await.unwrap(), Next::Woken, "not while it grows");
    released(&server, &claim).await;
    assert_eq!(compact::tick(&server.state).await.unwrap(), Next::Now);
    assert_eq!(compact::tick(&server.state).await.unwrap(), Next::Woken);
    let closed = console(&server, &claim).await;
    assert_eq!(closed.state, ArtifactState::Complete);
    assert_eq!(closed.blake3, Some(blake3::hash(text.as_bytes()).to_hex().to_string()));
    let segments = artifact::segments(&server.state.db, &closed.id).await.unwrap();
    assert_eq!(segments.len(), 1);
    assert_eq!(content(&server, &claim).await, text);
    assert_eq!(server.state.consoles.kept(), 0, "its reader is gone");
}

/// Ends an attempt.
async fn released(server: &Server, claim: &Claim) {
    let release = ReleaseRequest { healthy: true, detail: String::new() };
    let release = Call::post(format!("/agent/v1/attempts/{}/release", claim.attempt), &release);
    server.call(release.by_controller(server, claim)).await.no_content();
    // The judge may have asked for a moment of grace.
    server.advance(60);
    passes::deadlines::tick(&server.state).await.unwrap();
}

/// An attempt that is over, with a console of two pieces that are objects.
async fn of_two_objects(server: &Server) -> (Claim, Bytes) {
    let claim = server.claimed().await;
    let half = "[    0.100000] pci 0000:00:02.0: reg 0x10\n".repeat(250);
    let end = next_offset(&server.put_console(&claim, 0, half.clone()).await).await;
    server.put_console(&claim, end, half.clone()).await.ok::<ConsoleAck>();
    released(server, &claim).await;
    (claim, half.repeat(2).into())
}

/// The files in the blob store under an artifact's id.
fn objects(server: &Server, id: &ArtifactId) -> PathBuf {
    let id = id.as_str();
    server.dir.path().join("blobs").join(&id[id.len() - 2..]).join(id)
}

#[tokio::test]
async fn of_consoles_merged_together_only_the_one_that_cannot_be_read_steps_aside() {
    let server = Server::new().await;
    let (first, bytes) = of_two_objects(&server).await;
    let (lost, _) = of_two_objects(&server).await;
    let (last, _) = of_two_objects(&server).await;
    let (store, away) = (objects(&server, &console(&server, &lost).await.id), server.dir.path().join("away"));
    std::fs::rename(&store, &away).unwrap();
    assert_eq!(compact::tick(&server.state).await.unwrap(), Next::Now);
    for claim in [&first, &last] {
        let closed = console(&server, claim).await;
        assert_eq!(closed.blake3, Some(blake3::hash(&bytes).to_hex().to_string()), "in the same tick");
        assert_eq!(content(&server, claim).await, bytes);
        assert_eq!(objects(&server, &closed.id).read_dir().unwrap().count(), 1, "the pieces are gone");
    }
    assert!(matches!(compact::tick(&server.state).await.unwrap(), Next::At(_)));
    assert_eq!(console(&server, &lost).await.state, ArtifactState::Open);
    std::fs::rename(&away, &store).unwrap();
    server.advance(601);
    while compact::tick(&server.state).await.unwrap() == Next::Now {}
    assert_eq!(console(&server, &lost).await.state, ArtifactState::Complete);
    assert_eq!(content(&server, &lost).await, bytes);
}

#[tokio::test]
async fn two_servers_that_merge_the_same_consoles_at_once_lose_no_byte() {
    let server = Server::new().await;
    let (one, bytes) = of_two_objects(&server).await;
    let (two, _) = of_two_objects(&server).await;
    let other = server.restarted().await;
    let (first, second) = tokio::join!(compact::tick(&server.state), compact::tick(&other.state));
    assert_eq!((first.unwrap(), second.unwrap()), (Next::Now, Next::Now));
    for claim in [&one, &two] {
        assert_eq!(console(&other, claim).await.state, ArtifactState::Complete);
        assert_eq!(content(&other, claim).await, bytes);
    }
}

#[tokio::test]
async fn a_console_that_is_too_large_for_one_piece_becomes_few_and_one_in_one_piece_is_only_closed() {
    let server = Server::new().await;
    let of_one_piece = async || {
        let claim = server.claimed().await;
        server.put_console(&claim, 0, "first\n").await.ok::<ConsoleAck>();
        claim
    };
    let small = of_one_piece().await;
    released(&server, &small).await;
    let large = of_one_piece().await;
    let id = console(&server, &large).await.id;
    let (mut whole, mut rows) = (b"first\n".to_vec(), Vec::new());
    for letter in b"abcd" {
        let bytes = Bytes::from(vec![*letter; 6 << 20]);
        let row = SegmentRow {
            artifact_id: id.clone(),
            start_at: i64::try_from(whole.len()).unwrap(),
            length: 6 << 20,
            hash: blake3::hash(&bytes).to_hex().to_string(),
            received_at: server.clock_now(),
            bytes: None,
        };
        whole.extend(&bytes);
        let segment = server.state.blobs.keep(row, bytes).await.unwrap();
        rows.push(Append { attempt: large.attempt.clone(), epoch: large.epoch, segment });
    }
    let mut tx = server.state.db.begin().await.unwrap();
    assert!(artifact::append_all(&mut tx, &rows).await.unwrap().iter().all(Result::is_ok));
    tx.commit().await.unwrap();
    released(&server, &large).await;
    while compact::tick(&server.state).await.unwrap() == Next::Now {}
    let segments = artifact::segments(&server.state.db, &id).await.unwrap();
    let lengths: Vec<i64> = segments.iter().map(|segment| segment.length).collect();
    assert_eq!(lengths, [6 + (18 << 20), 6 << 20]);
    assert_eq!(console(&server, &large).await.blake3, Some(blake3::hash(&whole).to_hex().to_string()));
    assert!(content(&server, &large).await == whole);
    assert_eq!(objects(&server, &id).read_dir().unwrap().count(), 2);
    assert_eq!(console(&server, &small).await.blake3, Some(blake3::hash(b"first\n").to_hex().to_string()));
    assert_eq!(content(&server, &small).await, "first\n");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Invariant 2: any cutting and repetition of the same bytes gives the same bytes.
    #[test]
    fn any_cutting_and_repetition_gives_the_same_bytes(writes in prop::collection::vec((0_usize..400, 1_usize..200), 1..12)) {
        let bytes: Vec<u8> = (0..400_u16).map(|index| u8::try_from(index % 251).unwrap()).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let server = Server::new().await;
            let claim = server.claimed().await;
            let mut end = 0;
            for (start, length) in writes {
                let stop = (start + length).min(bytes.len());
                let answer = server.put_console(&claim, start as u64, bytes[start..stop].to_vec()).await;
                if start <= end {
                    end = end.max(stop);
                    prop_assert_eq!(answer.ok::<ConsoleAck>().next_offset, end as u64);
                } else {
                    answer.problem(409, kind::OFFSET_GAP);
                }
            }
            if end > 0 {
                prop_assert_eq!(&content(&server, &claim).await[..], &bytes[..end]);
            }
            Ok(())
        })?;
    }
}
