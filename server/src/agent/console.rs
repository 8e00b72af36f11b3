//! Consoles: bytes in order, each durable before it is acknowledged.
//!
//! "Durable" means: the bytes are in a row that is committed with a flush (SQLite `synchronous=FULL`, PostgreSQL's default), or,
//! where they are many, a flushed object of the blob store to which such a row refers.

use crate::app::AppState;
use crate::auth::{Acting, InAttempt};
use crate::blobs::IN_ROW;
use crate::consoles;
use crate::db::artifact::{self, Append, AppendOutcome, CONSOLE_PREFIX, Owner, SegmentRow};
use crate::db::{signed, unsigned};
use crate::error::{AppError, AppResult};
use crate::extract::{Body, Json, Path, Query};
use crate::judging;
use crate::opener::ToOpen;
use crate::ranges;
use crate::wake::Topic;
use axum::extract::State;
use bytes::Bytes;
use crashyard_protocol::agent::ConsoleAck;
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{ArtifactId, AttemptId};
use serde::Deserialize;

/// Where console bytes belong.
#[derive(Clone, Debug, Deserialize, utoipa::IntoParams)]
pub struct OffsetQuery {
    /// Offset of the first byte sent.
    pub offset: u64,
}

/// How far a console is.
#[utoipa::path(get, path = "/agent/v1/attempts/{attempt}/console/{source}", tag = "agent",
    params(("attempt" = String, Path), ("source" = String, Path)), responses((status = 200, body = ConsoleAck)))]
pub async fn get_console(
    caller: InAttempt,
    State(state): State<AppState>,
    Path((_attempt, source)): Path<(AttemptId, String)>,
) -> AppResult<Json<ConsoleAck>> {
    let owner = Owner::Attempt(caller.attempt.id);
    let console = artifact::find(&state.db, &owner, &console_name(&source)?).await?;
    Ok(Json(ConsoleAck { next_offset: console.map_or(0, |console| unsigned(console.size)) }))
}

/// Takes console bytes. Bytes the server has are accepted if they are the same; a gap is not.
#[utoipa::path(put, path = "/agent/v1/attempts/{attempt}/console/{source}", tag = "agent",
    params(("attempt" = String, Path), ("source" = String, Path), OffsetQuery),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, body = ConsoleAck)))]
pub async fn put_console(
    caller: Acting,
    State(state): State<AppState>,
    Path((_attempt, source)): Path<(AttemptId, String)>,
    Query(query): Query<OffsetQuery>,
    Body(bytes): Body,
) -> AppResult<Json<ConsoleAck>> {
    caller.controller_only()?;
    let name = console_name(&source)?;
    // One time for the row and the reader, so that reading the rows again gives the same facts.
    let at = state.now();
    // Of few bytes at a known end nothing needs to be looked up: registering them finds out whether that is right.
    let known = (bytes.len() <= IN_ROW).then(|| state.consoles.ending_at(&caller.attempt, &name, query.offset));
    let (console, mut size) = match known.flatten() {
        Some(console) => (console, query.offset),
        None => open(&state, &caller, &name).await?,
    };
    loop {
        let news = news(&state, &console, size, query.offset, &bytes).await?;
        if news.is_empty() {
            return Ok(Json(ConsoleAck { next_offset: size }));
        }
        match append(&state, &caller, &console, at, size, news.clone()).await? {
            AppendOutcome::Appended => {
                let next_offset = size + news.len() as u64;
                state.metrics.add("crashyard_console_bytes_total", Vec::new(), news.len() as u64);
                state.wake.wake(&Topic::Console(console.clone()));
                state.consoles.note(&caller.attempt, &name, &console);
                look(&state, &caller.attempt, &console, at, size, news).await;
                return Ok(Json(ConsoleAck { next_offset }));
            }
            // Somebody else appended in the meantime (the same bytes, sent twice): compare again.
            AppendOutcome::EndsAt(now) if now > size => size = now,
            AppendOutcome::EndsAt(_) => return Err(AppError::Conflict("this console is closed".into())),
        }
    }
}

fn console_name(source: &str) -> AppResult<String> {
    let fits = (1..=40).contains(&source.len())
        && source.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if !fits {
        return Err(AppError::Invalid(format!(
            "console source {source:?} must have 1 to 40 lower-case letters, digits or dashes"
        )));
    }
    Ok(format!("{CONSOLE_PREFIX}{source}"))
}

/// A console, and how many bytes it has; opened with its first byte.
async fn open(state: &AppState, caller: &Acting, name: &str) -> AppResult<(ArtifactId, u64)> {
    let end = artifact::console_end(&state.db, &caller.attempt, caller.epoch, name).await;
    if let Some(end) = end.map_err(|error| AppError::or_not_found(error, "attempt"))? {
        return Ok(end);
    }
    let opened = state.opener.ask(ToOpen {
        owner: Owner::Attempt(caller.attempt.clone()),
        epoch: Some(caller.epoch),
        name: name.to_owned(),
        id: ArtifactId::from_ulid(state.ids.next()),
        at: state.now(),
    });
    let opened = opened.await?;
    state.wake.wake(&Topic::Attempt(caller.attempt.clone()));
    Ok((opened.id, unsigned(opened.size)))
}

/// The part of the bytes that the server does not have; what it has must be the same.
async fn news(state: &AppState, console: &ArtifactId, size: u64, offset: u64, bytes: &Bytes) -> AppResult<Bytes> {
    if offset > size {
        return Err(AppError::OffsetGap { next: size, got: offset });
    }
    let end = offset.saturating_add(bytes.len() as u64);
    if end > state.config.max_artifact_bytes {
        let limit = state.config.max_artifact_bytes;
        return Err(AppError::TooLarge(format!("a console may have at most {limit} bytes on this server")));
    }
    let known = usize::try_from(size.min(end) - offset).unwrap_or(usize::MAX);
    if known > 0 {
        let stored = ranges::read(state, console, offset..size.min(end)).await?;
        if stored != bytes[..known] {
            let differs = stored.iter().zip(bytes.iter()).position(|(a, b)| a != b).unwrap_or(0);
            return Err(AppError::Conflict(format!(
                "the console already has another byte at offset {}",
                offset + differs as u64
            )));
        }
    }
    Ok(bytes.slice(known..))
}

async fn append(
    state: &AppState,
    caller: &Acting,
    console: &ArtifactId,
    at: Timestamp,
    start: u64,
    bytes: Bytes,
) -> AppResult<AppendOutcome> {
    let segment = SegmentRow {
        artifact_id: console.clone(),
        start_at: signed(start),
        length: signed(bytes.len() as u64),
        hash: blake3::hash(&bytes).to_hex().to_string(),
        received_at: at,
        bytes: None,
    };
    let segment = state.blobs.keep(segment, bytes).await?;
    let append = Append { attempt: caller.attempt.clone(), epoch: caller.epoch, segment };
    Ok(state.writer.ask(append).await?)
}

/// Reads the new bytes, and judges if they say anything that matters. The bytes are safe whatever happens here: what
/// fails is done again by a pass.
async fn look(state: &AppState, attempt: &AttemptId, console: &ArtifactId, at: Timestamp, offset: u64, bytes: Bytes) {
    let looked = async {
        if consoles::feed(state, attempt, console, at, offset, bytes).await? {
            judging::judge_attempt(state, attempt).await?;
        }
        Ok::<(), AppError>(())
    };
    if let Err(error) = looked.await {
        tracing::warn!(attempt.id = %attempt, %error, "console bytes recorded, and left to the next pass to judge");
        judging::later(state, attempt);
    }
}
