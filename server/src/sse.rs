//! Server-sent events: a view on the ledger that follows it.
//!
//! A stream reads what is recorded behind the place the client names (`Last-Event-ID`, or `?after=` on the first
//! connect), sends it, and waits for a wake-up. So a client that reconnects, to this server or another, misses
//! nothing and sees nothing twice. It ends with a `complete` event when nothing more can come.

use crate::app::AppState;
use crate::db::artifact;
use crate::db::{self, unsigned};
use crate::error::AppResult;
use crate::ranges;
use crate::wake::{SAFETY, Topic};
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use crashyard_protocol::{ArtifactState, AttemptId, JobId, JobState, RunId, RunState};
use std::convert::Infallible;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Events read at a time, and events on their way to a client.
const PAGE: i64 = 200;
/// Console bytes in one event.
const CONSOLE_PIECE: u64 = 64 * 1024;
/// How often a silent stream says that it is alive.
const PING: Duration = Duration::from_secs(10);

/// Where a stream goes on: behind this event, or at this byte.
#[derive(Clone, Copy, Debug, Default)]
pub struct After(pub u64);

#[derive(serde::Deserialize)]
struct AfterQuery {
    after: Option<u64>,
}

impl FromRequestParts<AppState> for After {
    type Rejection = crate::error::AppError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> AppResult<Self> {
        let last = parts.headers.get("last-event-id").and_then(|value| value.to_str().ok()?.parse().ok());
        let query = crate::extract::Query::<AfterQuery>::from_request_parts(parts, state).await?;
        // A browser repeats the first URL when it reconnects, so what it saw last counts more.
        Ok(Self(last.or(query.0.after).unwrap_or(0)))
    }
}

type Sender = mpsc::Sender<Result<Event, Infallible>>;

/// Turns a producer of events into a response.
fn respond<F>(produce: impl FnOnce(Sender) -> F) -> Response
where
    F: Future<Output = ()> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(16);
    tokio::spawn(produce(sender));
    let stream = Sse::new(ReceiverStream::new(receiver)).keep_alive(KeepAlive::new().interval(PING).text("ping"));
    let mut response = stream.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // Proxies must not collect a stream before they pass it on.
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}

fn complete() -> Event {
    Event::default().event("complete").data("{}")
}

/// Events of a run; of one of its jobs, if one is named.
pub fn run_events(state: AppState, run: RunId, job: Option<JobId>, after: u64) -> Response {
    respond(|sender| async move {
        if let Err(error) = follow_run(&state, &run, job.as_ref(), after, &sender).await {
            // The client reconnects and goes on where it was.
            tracing::warn!(run.id = %run, %error, "event stream cut");
        }
    })
}

async fn follow_run(
    state: &AppState,
    run: &RunId,
    job: Option<&JobId>,
    mut after: u64,
    sender: &Sender,
) -> AppResult<()> {
    let mut waiter = state.wake.subscribe(Topic::Run(run.clone()));
    loop {
        // The end is looked up before the events: what ended the run is then among them.
        let over = match job {
            Some(job) => matches!(db::run::job(&state.db, job).await?.job.state, JobState::Done | JobState::Cancelled),
            None => db::run::get(&state.db, run).await?.state == RunState::Done,
        };
        loop {
            let events = db::event::of_run(&state.db, run, after, PAGE).await?;
            let Some(last) = events.last() else { break };
            after = unsigned(last.seq);
            for event in events.into_iter().filter(|event| job.is_none() || event.job_id.as_ref() == job) {
                let event = crate::api::wire::event(event);
                let text =
                    serde_json::to_string(&event).map_err(|error| crate::error::AppError::Internal(error.into()))?;
                if sender.send(Ok(Event::default().id(event.seq.to_string()).data(text))).await.is_err() {
                    return Ok(());
                }
            }
        }
        if over {
            let _ = sender.send(Ok(complete())).await;
            return Ok(());
        }
        if !wait(state, &mut waiter, sender).await {
            return Ok(());
        }
    }
}

/// Waits for news; `false` if the client or the server has gone.
async fn wait(state: &AppState, waiter: &mut crate::wake::Subscription, sender: &Sender) -> bool {
    tokio::select! {
        () = waiter.woken() => true,
        () = tokio::time::sleep(SAFETY) => true,
        () = sender.closed() => false,
        () = state.stop.cancelled() => false,
    }
}

/// The text of a console as it grows. Ids are the offsets at which the next event starts.
pub fn console_events(state: AppState, attempt: AttemptId, name: String, after: u64) -> Response {
    respond(|sender| async move {
        if let Err(error) = follow_console(&state, &attempt, &name, after, &sender).await {
            tracing::warn!(attempt.id = %attempt, %error, "console stream cut");
        }
    })
}

async fn follow_console(
    state: &AppState,
    attempt: &AttemptId,
    name: &str,
    mut offset: u64,
    sender: &Sender,
) -> AppResult<()> {
    let owner = artifact::Owner::Attempt(attempt.clone());
    // A console that does not exist yet is announced by the attempt; its own topic is listened to once it does.
    let mut opened = state.wake.subscribe(Topic::Attempt(attempt.clone()));
    let mut grown = None;
    loop {
        let over = !db::attempt::get(&state.db, attempt).await?.is_live();
        let console = artifact::find(&state.db, &owner, name).await?;
        if let (Some(console), None) = (&console, &grown) {
            grown = Some(state.wake.subscribe(Topic::Console(console.id.clone())));
            continue;
        }
        if let Some(console) = &console {
            let end = unsigned(console.size);
            let closed = over || console.state != ArtifactState::Open;
            while offset < end {
                let bytes = ranges::read(state, &console.id, offset..end.min(offset + CONSOLE_PIECE)).await?;
                let whole = offset + bytes.len() as u64 == end;
                let bytes = &bytes[..bytes.len() - if whole && closed { 0 } else { cut_character(&bytes) }];
                if bytes.is_empty() {
                    break;
                }
                let text = serde_json::json!({ "offset": offset, "text": String::from_utf8_lossy(bytes) }).to_string();
                offset += bytes.len() as u64;
                if sender.send(Ok(Event::default().id(offset.to_string()).data(text))).await.is_err() {
                    return Ok(());
                }
            }
        }
        if over {
            let _ = sender.send(Ok(complete())).await;
            return Ok(());
        }
        let waiter = grown.as_mut().unwrap_or(&mut opened);
        if !wait(state, waiter, sender).await {
            return Ok(());
        }
    }
}

/// How many bytes at the end are the beginning of a character whose rest has not come.
fn cut_character(bytes: &[u8]) -> usize {
    for back in 1..=bytes.len().min(3) {
        let byte = bytes[bytes.len() - back];
        let needs = match byte {
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            // In the middle of a character: look further back.
            0x80..=0xbf => continue,
            _ => return 0,
        };
        return if needs > back { back } else { 0 };
    }
    0
}

#[cfg(test)]
mod tests {
    use super::cut_character;

    #[test]
    fn a_character_that_is_cut_waits_for_its_rest() {
        let euro = "x€".as_bytes();
        assert_eq!(cut_character(euro), 0);
        assert_eq!(cut_character(&euro[..3]), 2);
        assert_eq!(cut_character(&euro[..2]), 1);
        assert_eq!(cut_character(b"plain"), 0);
        assert_eq!(cut_character(&[0x80, 0x80, 0x80, 0x80]), 0, "garbage does not wait for ever");
        assert_eq!(cut_character(&[b'a', 0xff]), 0);
        assert_eq!(cut_character(&[]), 0);
    }
}
