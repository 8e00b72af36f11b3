//! What consoles say, kept up to date while they grow.
//!
//! The reader of each live console stays in memory, so that a write costs reading its own bytes and not the whole log.
//! It is a cache and nothing more: a reader that is missing or behind catches up from the recorded segments, with the
//! times at which the server had them, and comes to the same facts (after a restart, or when another server took the
//! bytes).

use crate::app::AppState;
use crate::db::artifact::{self, ArtifactRow};
use crate::db::unsigned;
use crate::error::AppResult;
use crate::triage::{ConsoleFacts, ConsoleReader, Intent};
use bytes::Bytes;
use crashyard_protocol::ArtifactId;
use crashyard_protocol::clock::Timestamp;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

/// Pieces larger than this are read on a thread of their own, so that they hold up nobody's request.
const INLINE: usize = 64 * 1024;
/// Segments fetched from the ledger at a time while catching up.
const PAGE: i64 = 256;

type Shared = Arc<AsyncMutex<ConsoleReader>>;

/// The readers of live consoles.
#[derive(Debug, Default)]
pub struct Consoles(Mutex<HashMap<ArtifactId, Shared>>);

impl Consoles {
    fn reader(&self, artifact: &ArtifactId, intent: &Intent) -> Shared {
        let mut readers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = || Arc::new(AsyncMutex::new(ConsoleReader::new(intent.clone())));
        readers.entry(artifact.clone()).or_insert_with(fresh).clone()
    }

    /// Forgets a console that will not grow any more.
    pub fn forget(&self, artifact: &ArtifactId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(artifact);
    }

    /// How many consoles are kept.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

/// Takes bytes that were just recorded; `true` if they say anything the contract asks about.
pub async fn feed(
    state: &AppState,
    console: &ArtifactId,
    intent: &Intent,
    at: Timestamp,
    offset: u64,
    bytes: Bytes,
) -> AppResult<bool> {
    let mut reader = state.consoles.reader(console, intent).lock_owned().await;
    let mut news = false;
    if reader.next_offset() < offset {
        (reader, news) = catch_up(state, console, reader, offset).await?;
    }
    Ok(read(reader, at, offset, bytes).await?.1 || news)
}

/// What a console says up to what is recorded now.
pub async fn facts(state: &AppState, console: &ArtifactRow, intent: &Intent) -> AppResult<ConsoleFacts> {
    let end = unsigned(console.size);
    let mut reader = state.consoles.reader(&console.id, intent).lock_owned().await;
    if reader.next_offset() < end {
        reader = catch_up(state, &console.id, reader, end).await?.0;
    }
    Ok(reader.facts().clone())
}

async fn catch_up(
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
