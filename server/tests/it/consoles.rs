//! Consoles: bytes in order, repeated, overlapping, hostile.

use crate::harness::{Answer, Call, Server};
use crashyard_protocol::agent::{Claim, ConsoleAck, ReleaseRequest};
use crashyard_protocol::api::Artifact;
use crashyard_protocol::problem::kind;
use crashyard_protocol::{ArtifactState, StageName, StageState};
use crashyard_server::passes::{Next, compact};
use proptest::prelude::*;

async fn next_offset(answer: &Answer) -> u64 {
    answer.ok::<ConsoleAck>().next_offset
}

async fn console(server: &Server, claim: &Claim) -> Artifact {
    let artifacts: Vec<Artifact> = server.get(format!("/api/v1/attempts/{}/artifacts", claim.attempt)).await.ok();
    artifacts.into_iter().find(|artifact| artifact.name == "console-serial0").unwrap()
}

async fn content(server: &Server, claim: &Claim) -> bytes::Bytes {
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
    let release = ReleaseRequest { healthy: true, detail: String::new() };
    let release = Call::post(format!("/agent/v1/attempts/{}/release", claim.attempt), &release);
    server.call(release.by_controller(&server, &claim)).await.no_content();
    // The judge may have asked for a moment of grace.
    server.advance(60);
    crashyard_server::passes::deadlines::tick(&server.state).await.unwrap();
    assert_eq!(compact::tick(&server.state).await.unwrap(), Next::Now);
    assert_eq!(compact::tick(&server.state).await.unwrap(), Next::Woken);
    let closed = console(&server, &claim).await;
    assert_eq!(closed.state, ArtifactState::Complete);
    assert_eq!(closed.blake3, Some(blake3::hash(text.as_bytes()).to_hex().to_string()));
    let segments = crashyard_server::db::artifact::segments(&server.state.db, &closed.id).await.unwrap();
    assert_eq!(segments.len(), 1);
    assert_eq!(content(&server, &claim).await, text);
    assert_eq!(server.state.consoles.kept(), 0, "its reader is gone");
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
