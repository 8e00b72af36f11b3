//! Crashes that nobody asked for become signatures, once, whoever reads their consoles and how often.

use crate::harness::{Call, Server};
use crashyard_crashlog::RULE_VERSION;
use crashyard_protocol::SignatureId;
use crashyard_protocol::agent::{Claim, ReleaseRequest};
use crashyard_protocol::api::{Attempt, Page, Signature};
use crashyard_protocol::problem::kind;
use crashyard_server::db::Tx;
use crashyard_server::db::signature::{self, NewPlace, NewSignature};
use crashyard_server::findings;
use crashyard_server::passes::Next;
use crashyard_server::passes::findings::tick;

const TITLE: &str = "BUG: unable to handle kernel paging request in own_vmclear";

/// A console of this attempt: the crash it asked for, and one on the way that it did not.
fn console(claim: &Claim) -> String {
    let lines = [
        format!("crashyard: trigger job=J attempt={} scenario=sysrq", claim.attempt),
        "sysrq: Trigger a crash".into(),
        "Kernel panic - not syncing: sysrq triggered crash".into(),
        "CPU: 4 PID: 77 Comm: run.sh Not tainted 7.3.4-own #1".into(),
        "Call Trace:".into(),
        " dump_stack_lvl+0x5d/0x80".into(),
        " panic+0x6b/0x70".into(),
        " sysrq_handle_crash+0x16/0x20".into(),
        " own_write+0x1/0x2".into(),
        "BUG: unable to handle page fault for address: ffffffffffffffc8".into(),
        "CPU: 4 PID: 77 Comm: run.sh Not tainted 7.3.4-own #1".into(),
        "RIP: 0010:own_vmclear+0x57/0xd0 [own_vmx]".into(),
        "Call Trace:".into(),
        " own_crash_shutdown+0x45/0x190".into(),
        " __crash_kexec+0x61/0x130".into(),
        "---[ end trace 0000000000000000 ]---".into(),
    ];
    lines.iter().enumerate().map(|(i, line)| format!("[    1.{i:06}] {line}\n")).collect()
}

/// An attempt that is over, with that console.
async fn crashed(server: &Server) -> Claim {
    crashed_after(server, "").await
}

/// The same with something printed before.
async fn crashed_after(server: &Server, before: &str) -> Claim {
    let claim = server.claimed().await;
    server.put_console(&claim, 0, before.to_owned() + &console(&claim)).await.ok::<serde_json::Value>();
    let release = ReleaseRequest { healthy: true, detail: String::new() };
    let release = Call::post(format!("/agent/v1/attempts/{}/release", claim.attempt), &release);
    server.call(release.by_controller(server, &claim)).await.no_content();
    claim
}

async fn signatures(server: &Server, query: &str) -> Vec<Signature> {
    server.get(format!("/api/v1/signatures{query}")).await.ok::<Page<Signature>>().items
}

#[tokio::test]
async fn a_crash_nobody_asked_for_is_a_signature_with_its_console_line() {
    let server = Server::new().await;
    assert_eq!(signatures(&server, "").await, []);
    let claim = crashed(&server).await;
    tick(&server.state).await.unwrap();
    let found = signatures(&server, "").await;
    assert_eq!(found.iter().map(|s| s.title.as_str()).collect::<Vec<_>>(), [TITLE], "the intended one is none");
    let signature = &found[0];
    assert_eq!((signature.kind.as_str(), signature.module.as_deref()), ("page_fault", Some("own_vmx")));
    assert_eq!(signature.frames, ["own_vmclear", "own_crash_shutdown", "__crash_kexec"]);
    assert_eq!((signature.attempts, signature.reports, signature.seen.len()), (1, 1, 1));
    let seen = &signature.seen[0];
    assert_eq!((&seen.attempt, seen.source.as_str(), seen.line, seen.number), (&claim.attempt, "serial0", 10, 1));
    let one: Signature = server.get(format!("/api/v1/signatures/{}", signature.id)).await.ok();
    assert_eq!(one, *signature);
    server.get("/api/v1/signatures/01JDB4Q1W5Z8N6K3X0V7T2R9MF").await.problem(404, kind::NOT_FOUND);

    let page = server.get("/signatures").await;
    let html = String::from_utf8(page.body.to_vec()).unwrap();
    assert!(html.contains(TITLE), "{html}");
    let href = format!("/attempts/{}/console/serial0?at={}#L10", claim.attempt, seen.start);
    assert!(html.contains(&href), "{href} in {html}");
}

#[tokio::test]
async fn an_attempt_whose_console_cannot_be_read_steps_aside_and_comes_back() {
    let server = Server::new().await;
    // As many bytes as make an object that can be lost.
    let long = "[    0.100000] pci 0000:00:02.0: reg 0x10\n".repeat(300);
    let (_, lost) = (crashed(&server).await, crashed_after(&server, &long).await);
    let lost: Attempt = server.get(format!("/api/v1/attempts/{}", lost.attempt)).await.ok();
    let console = lost.artifacts[0].id.as_str();
    let blobs = server.dir.path().join("blobs").join(&console[console.len() - 2..]).join(console);
    let away = server.dir.path().join("away");
    std::fs::rename(&blobs, &away).unwrap();
    let mut next = Next::Now;
    while next == Next::Now {
        next = tick(&server.state).await.unwrap();
    }
    assert!(matches!(next, Next::At(_)), "{next:?}");
    assert_eq!(signatures(&server, "").await[0].attempts, 1, "the older attempt was read meanwhile");
    std::fs::rename(&away, &blobs).unwrap();
    server.advance(601);
    while tick(&server.state).await.unwrap() == Next::Now {}
    assert_eq!(signatures(&server, "").await[0].attempts, 2);
}

#[tokio::test]
async fn of_attempts_read_together_only_the_one_that_cannot_be_read_steps_aside() {
    let server = Server::new().await;
    let long = "[    0.100000] pci 0000:00:02.0: reg 0x10\n".repeat(300);
    crashed(&server).await;
    crashed_after(&server, &long).await;
    std::fs::remove_dir_all(server.dir.path().join("blobs")).unwrap();
    crashed(&server).await;
    assert_eq!(tick(&server.state).await.unwrap(), Next::Now);
    assert_eq!(signatures(&server, "").await[0].attempts, 2, "in the same tick");
    assert!(matches!(tick(&server.state).await.unwrap(), Next::At(_)));
}

#[tokio::test]
async fn a_write_that_one_attempt_spoils_is_done_for_each_of_the_others() {
    let server = Server::new().await;
    let attempts = [crashed(&server).await, crashed(&server).await, crashed(&server).await];
    let change = async |text: String| {
        let mut tx = server.state.db.begin().await.unwrap();
        let Tx::Sqlite(connection) = &mut tx else { panic!("this is SQLite") };
        sqlx::query(sqlx::AssertSqlSafe(text)).execute(&mut **connection).await.unwrap();
        tx.commit().await.unwrap();
    };
    let spoiled = &attempts[1].attempt;
    let refuse = "BEGIN SELECT RAISE(ABORT, 'not this one'); END";
    change(format!("CREATE TRIGGER t BEFORE INSERT ON artifact WHEN NEW.attempt_id = '{spoiled}' {refuse}")).await;
    let mut next = Next::Now;
    while next == Next::Now {
        next = tick(&server.state).await.unwrap();
    }
    assert!(matches!(next, Next::At(_)), "{next:?}");
    assert_eq!(signatures(&server, "").await[0].attempts, 2);
    change("DROP TRIGGER t".into()).await;
    server.advance(601);
    while tick(&server.state).await.unwrap() == Next::Now {}
    assert_eq!(signatures(&server, "").await[0].attempts, 3);
}

#[tokio::test]
async fn reading_again_changes_no_signature_and_other_rules_have_their_own() {
    let server = Server::new().await;
    let claim = crashed(&server).await;
    tick(&server.state).await.unwrap();
    let before = signatures(&server, "").await;
    let failed = findings::read_all(&server.state, std::slice::from_ref(&claim.attempt)).await.unwrap();
    assert!(failed.is_empty(), "{failed:?}");
    assert_eq!(signatures(&server, "").await, before);
    let other = before[0].rules + 1;
    assert_eq!(signatures(&server, &format!("?rules={other}")).await, []);
    assert_eq!(signatures(&server, &format!("?rules={}", before[0].rules)).await, before);
}

#[tokio::test]
async fn better_rules_leave_what_older_ones_have_filed_where_it_is() {
    let server = Server::new().await;
    let claim = crashed(&server).await;
    let attempt: Attempt = server.get(format!("/api/v1/attempts/{}", claim.attempt)).await.ok();
    let console = attempt.artifacts.iter().find(|file| file.name == "console-serial0").unwrap();
    let old = NewSignature {
        id: SignatureId::from_ulid(server.state.ids.next()),
        rule_version: i64::from(RULE_VERSION) - 1,
        fingerprint: "as it was".into(),
        title: "an older title of the same crash".into(),
        kind: "page_fault".into(),
        frame: None,
        module: None,
        frames: vec!["own_vmclear".into()],
    };
    let place = NewPlace {
        artifact_id: console.id.clone(),
        attempt_id: claim.attempt.clone(),
        source: "serial0".into(),
        start_at: 1,
        line: 2,
        reports: 3,
        seen_at: attempt.started_at,
    };
    let mut tx = server.state.db.begin().await.unwrap();
    signature::record_all(&mut tx, &[&(old, place)]).await.unwrap();
    tx.commit().await.unwrap();
    let query = format!("?rules={}", RULE_VERSION - 1);
    let before = signatures(&server, &query).await;
    assert_eq!((before.len(), before[0].title.as_str()), (1, "an older title of the same crash"));
    tick(&server.state).await.unwrap();
    assert_eq!(signatures(&server, &query).await, before);
    assert_eq!(signatures(&server, "").await[0].title, TITLE);
}
