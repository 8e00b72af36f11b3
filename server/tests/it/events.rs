//! Event streams: gapless ids, resumed where the client was, ended when nothing more can come.

use crate::harness::{Call, Server, note};
use crashyard_protocol::agent::{Claim, ConsoleAck, ReleaseRequest, ReportsReply, Role};
use http_body_util::BodyExt as _;
use std::time::Duration;

/// One event as a browser sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Event {
    id: Option<u64>,
    name: Option<String>,
    data: String,
}

/// Reads events until `enough` says so, or the stream ends.
async fn read(response: axum::response::Response, enough: impl Fn(&[Event]) -> bool) -> Vec<Event> {
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    assert_eq!(response.headers()["x-accel-buffering"], "no");
    assert_eq!(response.headers()["cache-control"], "no-store");
    let mut body = response.into_body();
    let mut text = String::new();
    let mut events = Vec::new();
    let reading = async {
        while let Some(frame) = body.frame().await {
            let Ok(bytes) = frame.unwrap().into_data() else { continue };
            text.push_str(std::str::from_utf8(&bytes).unwrap());
            while let Some(end) = text.find("\n\n") {
                let block: String = text.drain(..end + 2).collect();
                let mut event = Event::default();
                for line in block.lines() {
                    match line.split_once(": ") {
                        Some(("id", id)) => event.id = Some(id.parse().unwrap()),
                        Some(("event", name)) => event.name = Some(name.into()),
                        Some(("data", data)) => event.data.push_str(data),
                        _ => {}
                    }
                }
                if event != Event::default() {
                    events.push(event);
                }
            }
            if enough(&events) {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), reading).await.expect("the stream says what is owed");
    events
}

fn ended(events: &[Event]) -> bool {
    events.last().is_some_and(|event| event.name.as_deref() == Some("complete"))
}

async fn finish(server: &Server, claim: &Claim) {
    let release = ReleaseRequest { healthy: true, detail: String::new() };
    let release = Call::post(format!("/agent/v1/attempts/{}/release", claim.attempt), &release);
    server.call(release.by_controller(server, claim)).await.no_content();
    server.advance(60);
    crashyard_server::passes::deadlines::tick(&server.state).await.unwrap();
}

#[tokio::test]
async fn a_run_is_told_from_its_submission_to_its_end_without_gaps() {
    let server = Server::with(|config| config.max_attempts = 1).await;
    let claim = server.claimed().await;
    let stream = server.open(Call::get(format!("/api/v1/runs/{}/events", claim.brief.run))).await;
    let (events, ()) = tokio::join!(read(stream, ended), async {
        server.report(&claim, Role::Controller, 0, note("power on")).await.ok::<ReportsReply>();
        finish(&server, &claim).await;
    });
    let ids: Vec<u64> = events.iter().filter_map(|event| event.id).collect();
    assert_eq!(ids, (1..=ids.len() as u64).collect::<Vec<_>>());
    let kinds: Vec<String> = events
        .iter()
        .filter(|event| event.id.is_some())
        .map(|event| serde_json::from_str::<serde_json::Value>(&event.data).unwrap()["kind"].as_str().unwrap().into())
        .collect();
    assert_eq!(kinds.first().map(String::as_str), Some("run_submitted"));
    assert_eq!(kinds.last().map(String::as_str), Some("run_done"));
    for kind in ["attempt_started", "report", "stage", "attempt_judged", "attempt_done", "job"] {
        assert!(kinds.iter().any(|other| other == kind), "{kind} in {kinds:?}");
    }
    assert!(ended(&events));
}

#[tokio::test]
async fn a_stream_goes_on_behind_the_last_event_the_client_saw() {
    let server = Server::new().await;
    let claim = server.claimed().await;
    let path = format!("/api/v1/runs/{}/events", claim.brief.run);
    let all = read(server.open(Call::get(&path)).await, |events| events.len() >= 3).await;
    let by_query = read(server.open(Call::get(format!("{path}?after=1"))).await, |events| events.len() >= 2).await;
    assert_eq!(by_query, all[1..]);
    // A browser repeats its first URL when it reconnects: what it saw last counts more.
    let resumed = Call::get(format!("{path}?after=1")).header("last-event-id", "2");
    let resumed = read(server.open(resumed).await, |events| !events.is_empty()).await;
    assert_eq!(resumed, all[2..]);
}

#[tokio::test]
async fn events_of_a_job_are_those_of_its_run_that_are_about_it() {
    let server = Server::with(|config| config.max_attempts = 1).await;
    let run = server.run(2).await;
    let enrolled = server.enrol(&["m1"]).await;
    let claim: Claim = server.call(server.claim_call(&enrolled, 0)).await.ok();
    finish(&server, &claim).await;
    let jobs = server.jobs(&run).await;
    let stream = server.open(Call::get(format!("/api/v1/jobs/{}/events", jobs[0].id))).await;
    let events = read(stream, ended).await;
    assert!(events.len() > 3);
    for event in events.iter().filter(|event| event.id.is_some()) {
        let event: serde_json::Value = serde_json::from_str(&event.data).unwrap();
        assert_eq!(event["job"], jobs[0].id.as_str());
    }
    server.get("/api/v1/jobs/01JDB4Q1W5Z8N6K3X0V7T2R9MF/events").await.problem(404, "not_found");
}

fn console_text(events: &[Event]) -> String {
    events
        .iter()
        .filter(|event| event.id.is_some())
        .map(|event| {
            serde_json::from_str::<serde_json::Value>(&event.data).unwrap()["text"].as_str().unwrap().to_owned()
        })
        .collect()
}

#[tokio::test]
async fn a_console_is_told_as_it_grows_and_cut_characters_are_put_together() {
    let server = Server::new().await;
    let claim = server.claimed().await;
    let path = format!("/api/v1/attempts/{}/console/serial0/events", claim.attempt);
    // Opened before the console exists.
    let stream = server.open(Call::get(&path)).await;
    let euro = "€".as_bytes();
    let (events, ()) = tokio::join!(read(stream, ended), async {
        server.put_console(&claim, 0, [b"price: ", &euro[..1]].concat()).await.ok::<ConsoleAck>();
        server.put_console(&claim, 8, [&euro[1..], b"5\xff\n"].concat()).await.ok::<ConsoleAck>();
        finish(&server, &claim).await;
    });
    assert_eq!(console_text(&events), "price: €5\u{fffd}\n");
    assert_eq!(events.iter().filter_map(|event| event.id).max(), Some(13));
    let again = read(server.open(Call::get(&path).header("last-event-id", "10")).await, ended).await;
    assert_eq!(console_text(&again), "5\u{fffd}\n");
}
