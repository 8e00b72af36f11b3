//! What consoles say, kept up to date while they grow.
//!
//! The reader of each live console stays in memory, so that a write costs reading its own bytes and not the whole log.
//! It is a cache and nothing more: a reader that is missing or behind catches up from the recorded segments, with the
//! times at which the server had them, and comes to the same facts (after a restart, or when another server took the
//! bytes).
//!
//! A reader is let go when its attempt is over; at a server that is not told, because another one settled the attempt, when nobody
//! has asked for it for a while.

use crate::app::AppState;
use crate::db::artifact::{self, ArtifactRow};
use crate::db::unsigned;
use crate::error::AppResult;
use crate::triage::{ConsoleFacts, ConsoleReader, Intent};
use bytes::Bytes;
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{ArtifactId, AttemptId};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};
use tokio::time::Instant;

/// Pieces larger than this are read on a thread of their own, so that they hold up nobody's request.
const INLINE: usize = 64 * 1024;
/// Segments fetched from the ledger at a time while catching up.
const PAGE: i64 = 256;

/// How long a reader is kept that nobody asks for; every judgement of its attempt asks.
const IDLE: Duration = Duration::from_secs(600);

type Shared = Arc<AsyncMutex<ConsoleReader>>;

#[derive(Debug)]
struct Kept {
    reader: Shared,
    used: Instant,
}

/// The readers of live consoles.
#[derive(Debug, Default)]
pub struct Consoles {
    readers: Mutex<HashMap<ArtifactId, Kept>>,
    of_attempts: Mutex<HashMap<AttemptId, HashMap<String, ArtifactId>>>,
}

impl Consoles {
    fn readers(&self) -> MutexGuard<'_, HashMap<ArtifactId, Kept>> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kept_reader(&self, artifact: &ArtifactId) -> Option<Shared> {
        let mut readers = self.readers();
        let kept = readers.get_mut(artifact)?;
        kept.used = Instant::now();
        Some(kept.reader.clone())
    }

    fn reader(&self, artifact: &ArtifactId, intent: Intent) -> Shared {
        let fresh = || Kept { reader: Arc::new(AsyncMutex::new(ConsoleReader::new(intent))), used: Instant::now() };
        self.readers().entry(artifact.clone()).or_insert_with(fresh).reader.clone()
    }

    /// What a console says, if it was read up to `end` and nobody is reading on at the moment.
    #[must_use]
    pub fn peek(&self, artifact: &ArtifactId, end: u64) -> Option<ConsoleFacts> {
        let reader = self.kept_reader(artifact)?;
        let reader = reader.try_lock().ok()?;
        (reader.next_offset() >= end).then(|| reader.facts().clone())
    }

    /// The console of this name, if it was read up to exactly `end`.
    #[must_use]
    pub fn ending_at(&self, attempt: &AttemptId, name: &str, end: u64) -> Option<ArtifactId> {
        let known = self.of_attempts.lock().unwrap_or_else(PoisonError::into_inner);
        let console = known.get(attempt)?.get(name)?.clone();
        drop(known);
        let reader = self.kept_reader(&console)?;
        let reader = reader.try_lock().ok()?;
        (reader.next_offset() == end).then_some(console)
    }

    /// Notes which console an attempt has under a name.
    pub fn note(&self, attempt: &AttemptId, name: &str, console: &ArtifactId) {
        let mut known = self.of_attempts.lock().unwrap_or_else(PoisonError::into_inner);
        let consoles = known.entry(attempt.clone()).or_default();
        if !consoles.contains_key(name) {
            consoles.insert(name.to_owned(), console.clone());
        }
    }

    /// Forgets which consoles an attempt has.
    pub fn forget_attempt(&self, attempt: &AttemptId) {
        self.of_attempts.lock().unwrap_or_else(PoisonError::into_inner).remove(attempt);
    }

    /// Forgets a console that will not grow any more.
    pub fn forget(&self, artifact: &ArtifactId) {
        self.readers().remove(artifact);
    }

    /// Forgets consoles that nobody has asked for, and attempts that have no others.
    pub fn forget_idle(&self, now: Instant) {
        let mut readers = self.readers();
        readers.retain(|_, kept| now.duration_since(kept.used) < IDLE);
        let mut known = self.of_attempts.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, consoles| consoles.values().any(|console| readers.contains_key(console)));
    }

    /// How many consoles are kept.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.readers().len()
    }
}

async fn reader(state: &AppState, attempt: &AttemptId, console: &ArtifactId) -> AppResult<Shared> {
    if let Some(kept) = state.consoles.kept_reader(console) {
        return Ok(kept);
    }
    let terms = state.terms.of(&state.db, attempt).await?;
    Ok(state.consoles.reader(console, Intent::new(attempt, &terms.scenario)))
}

/// Takes bytes that were just recorded; `true` if they say anything the contract asks about.
pub async fn feed(
    state: &AppState,
    attempt: &AttemptId,
    console: &ArtifactId,
    at: Timestamp,
    offset: u64,
    bytes: Bytes,
) -> AppResult<bool> {
    let mut reader = reader(state, attempt, console).await?.lock_owned().await;
    let mut news = false;
    if reader.next_offset() < offset {
        (reader, news) = read_on(state, console, reader, offset).await?;
    }
    Ok(read(reader, at, offset, bytes).await?.1 || news)
}

/// Reads a console up to what is recorded now.
pub async fn catch_up(state: &AppState, attempt: &AttemptId, console: &ArtifactRow) -> AppResult<()> {
    let end = unsigned(console.size);
    let reader = reader(state, attempt, &console.id).await?.lock_owned().await;
    if reader.next_offset() < end {
        read_on(state, &console.id, reader, end).await?;
    }
    Ok(())
}

async fn read_on(
    state: &AppState,
    console: &ArtifactId,
    mut reader: OwnedMutexGuard<ConsoleReader>,
    end: u64,
) -> AppResult<(OwnedMutexGuard<ConsoleReader>, bool)> {
    let mut news = false;
    while reader.next_offset() < end {
        let segments = artifact::segments_in(&state.db, console, reader.next_offset(), end, PAGE).await?;
        let before = reader.next_offset();
        for segment in segments.into_iter().filter(|segment| segment.end() > before) {
            let bytes = state.blobs.read(&segment, 0..unsigned(segment.length)).await?;
            let (back, said) = read(reader, segment.received_at, unsigned(segment.start_at), bytes).await?;
            (reader, news) = (back, news || said);
        }
        if reader.next_offset() == before {
            break;
        }
    }
    Ok((reader, news))
}

/// Hands the reader back, and whether the bytes said anything.
async fn read(
    mut reader: OwnedMutexGuard<ConsoleReader>,
    at: Timestamp,
    offset: u64,
    bytes: Bytes,
) -> AppResult<(OwnedMutexGuard<ConsoleReader>, bool)> {
    if bytes.len() <= INLINE {
        let news = reader.feed(at, offset, &bytes);
        return Ok((reader, news));
    }
    Ok(tokio::task::spawn_blocking(move || {
        let news = reader.feed(at, offset, &bytes);
        (reader, news)
    })
    .await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ulid::Ulid;

    #[tokio::test(start_paused = true)]
    async fn a_console_that_nobody_asks_for_is_let_go_and_one_that_is_asked_for_stays() {
        let consoles = Consoles::default();
        let [quiet, read] = [1, 2].map(|number| {
            let attempt = AttemptId::from_ulid(Ulid::from_parts(number, 1));
            let console = ArtifactId::from_ulid(Ulid::from_parts(number, 2));
            consoles.note(&attempt, "console-serial", &console);
            consoles.reader(&console, Intent { attempt: attempt.clone(), panic: String::new(), oops: false });
            (attempt, console)
        });
        tokio::time::advance(IDLE / 2).await;
        assert!(consoles.peek(&read.1, 0).is_some());
        tokio::time::advance(IDLE / 2).await;
        consoles.forget_idle(Instant::now());
        assert!(consoles.peek(&quiet.1, 0).is_none());
        assert_eq!(consoles.ending_at(&read.0, "console-serial", 0), Some(read.1));
        let known = consoles.of_attempts.lock().unwrap();
        assert!(!known.contains_key(&quiet.0) && known.contains_key(&read.0));
    }
}
