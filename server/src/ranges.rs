//! Reads artifacts: bytes of any range, over however many segments they lie in.

use crate::app::AppState;
use crate::blobs::{BlobError, Blobs};
use crate::db::artifact::{self, SegmentRow};
use crate::db::unsigned;
use crate::error::{AppError, AppResult};
use bytes::{Bytes, BytesMut};
use crashyard_protocol::ArtifactId;
use crashyard_vmcore::ReadAt;
use futures::Stream;
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::PoisonError;
use tokio::runtime::Handle;

/// Bytes read from the blob store at a time.
const PIECE: u64 = 1024 * 1024;
/// Segments fetched from the ledger at a time.
const PAGE: i64 = 256;

/// Reads a range into memory; the caller bounds its length.
pub async fn read(state: &AppState, id: &ArtifactId, range: Range<u64>) -> AppResult<Bytes> {
    read_on(state, id, range, &mut VecDeque::new()).await
}

/// The same with segments that are known already, and those that are looked up are kept there for the range that follows.
pub async fn read_on(
    state: &AppState,
    id: &ArtifactId,
    range: Range<u64>,
    segments: &mut VecDeque<SegmentRow>,
) -> AppResult<Bytes> {
    let mut out = BytesMut::new();
    let mut at = range.start;
    while at < range.end {
        let piece = next(state, id, at, range.end, segments).await?;
        at += piece.len() as u64;
        out.extend_from_slice(&piece);
    }
    Ok(out.freeze())
}

/// Streams a range, one piece in memory at a time.
pub fn stream(state: AppState, id: ArtifactId, range: Range<u64>) -> impl Stream<Item = io::Result<Bytes>> {
    let start = (state, id, range, VecDeque::new());
    futures::stream::try_unfold(start, |(state, id, mut range, mut segments)| async move {
        if range.is_empty() {
            return Ok(None);
        }
        let piece = next(&state, &id, range.start, range.end, &mut segments).await;
        let piece = piece.map_err(|error| io::Error::other(error.to_string()))?;
        range.start += piece.len() as u64;
        Ok(Some((piece, (state, id, range, segments))))
    })
}

/// The bytes from `at` on, as many as lie together. Segments are looked up many at a time and kept for the next call.
async fn next(
    state: &AppState,
    id: &ArtifactId,
    at: u64,
    end: u64,
    segments: &mut VecDeque<SegmentRow>,
) -> AppResult<Bytes> {
    while segments.front().is_some_and(|segment| segment.end() <= at) {
        segments.pop_front();
    }
    if segments.is_empty() {
        *segments = artifact::segments_in(&state.db, id, at, end, PAGE).await?.into();
    }
    if let Some(segment) = segments.front().filter(|segment| unsigned(segment.start_at) <= at && at < segment.end()) {
        match piece_of(&state.blobs, segment, at, end).await {
            // The console was compacted while it was read: its bytes are elsewhere now.
            Err(BlobError::Missing(_)) => segments.clear(),
            other => return Ok(other?),
        }
    }
    piece(state, id, at, end).await
}

async fn piece(state: &AppState, id: &ArtifactId, at: u64, end: u64) -> AppResult<Bytes> {
    let mut last = None;
    // Twice, because compaction may exchange the object between looking it up and reading it.
    for _ in 0..2 {
        let segments = artifact::segments_in(&state.db, id, at, at + 1, 1).await?;
        let segment = segments
            .first()
            .filter(|segment| segment.end() > at)
            .ok_or_else(|| AppError::Internal(anyhow::anyhow!("artifact {id} has no byte {at}")))?;
        match piece_of(&state.blobs, segment, at, end).await {
            Err(error @ BlobError::Missing(_)) => last = Some(error),
            other => return Ok(other?),
        }
    }
    Err(last.map_or_else(|| AppError::not_found("byte"), AppError::from))
}

async fn piece_of(blobs: &Blobs, segment: &SegmentRow, at: u64, end: u64) -> Result<Bytes, BlobError> {
    let start = unsigned(segment.start_at);
    let stop = segment.end().min(end).min(at + PIECE);
    blobs.read(segment, at - start..stop - start).await
}

/// An artifact as the engines read it: synchronous, at any offset, with the last pieces kept.
///
/// For a thread of its own; the bytes themselves are fetched by the runtime.
pub struct Stored {
    blobs: Blobs,
    segments: Vec<SegmentRow>,
    runtime: Handle,
    kept: Mutex<Vec<(u64, Bytes)>>,
    failed: Mutex<Option<io::Error>>,
}

/// Pieces kept in memory while a dump is read: 64 MiB.
const KEPT: usize = 64;

impl Stored {
    /// A complete artifact's bytes.
    pub async fn open(state: &AppState, id: &ArtifactId) -> AppResult<Self> {
        Ok(Self::over(state, artifact::segments(&state.db, id).await?))
    }

    /// The bytes of an artifact that is still arriving, from its start to the first that is missing.
    pub async fn open_prefix(state: &AppState, id: &ArtifactId) -> AppResult<Self> {
        let mut segments = artifact::segments(&state.db, id).await?;
        let mut next = 0;
        let there = segments.iter().take_while(|segment| {
            let follows = unsigned(segment.start_at) == next;
            next = segment.end();
            follows
        });
        let count = there.count();
        segments.truncate(count);
        Ok(Self::over(state, segments))
    }

    fn over(state: &AppState, segments: Vec<SegmentRow>) -> Self {
        Self {
            blobs: state.blobs.clone(),
            segments,
            runtime: Handle::current(),
            kept: Mutex::default(),
            failed: Mutex::default(),
        }
    }

    /// The first failure of the store while reading. The engines take unreadable bytes for missing ones; after a
    /// failure of the store, what they found says nothing about the dump.
    #[must_use]
    pub fn failure(&self) -> Option<io::Error> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The piece that contains `offset`: its start and its bytes.
    fn piece(&self, offset: u64) -> io::Result<(u64, Bytes)> {
        let start = offset - offset % PIECE;
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = kept.iter().position(|(at, _)| *at == start) {
            let found = kept.remove(at);
            kept.push(found.clone());
            return Ok(found);
        }
        let index = self.segments.partition_point(|segment| segment.end() <= offset);
        let Some(segment) = self.segments.get(index) else { return Ok((start, Bytes::new())) };
        // Chunks are aligned to more than a piece, so a piece never lies in two segments.
        let first = start.max(unsigned(segment.start_at));
        let bytes =
            self.runtime.block_on(piece_of(&self.blobs, segment, first, first + PIECE)).map_err(io::Error::other)?;
        if kept.len() >= KEPT {
            kept.remove(0);
        }
        kept.push((first, bytes.clone()));
        Ok((first, bytes))
    }
}

impl ReadAt for Stored {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        match self.piece(offset) {
            Ok((start, bytes)) => {
                let skip = usize::try_from(offset - start).unwrap_or(usize::MAX);
                let from = bytes.get(skip..).unwrap_or_default();
                let count = from.len().min(buf.len());
                buf[..count].copy_from_slice(&from[..count]);
                Ok(count)
            }
            Err(error) => {
                let text = error.to_string();
                self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                Err(io::Error::other(text))
            }
        }
    }

    fn len(&self) -> u64 {
        self.segments.last().map_or(0, SegmentRow::end)
    }
}
