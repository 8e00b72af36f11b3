//! Puts the small pieces of finished consoles into few large ones, and closes the consoles with their hashes.
//!
//! A machine prints a line at a time, and each write is a row, or an object of the blob store. When the attempt is over, the
//! pieces are merged: large objects are written first, then the rows of several consoles are exchanged and the consoles closed,
//! in one transaction, then the small objects are removed. A crash at any point leaves every byte readable.
//!
//! One whose bytes cannot be read steps aside ([`super::aside`]).

use super::Next;
use super::aside::together;
use crate::app::AppState;
use crate::db::artifact::{self, ArtifactRow, SegmentRow, Whole};
use crate::db::{signed, unsigned};
use crate::error::{AppError, AppResult};
use crate::evidence::grouped;
use blake3::Hash;
use bytes::{Bytes, BytesMut};
use crashyard_protocol::ArtifactId;
use metrics::Label;
use std::mem;

/// Bytes after which a merged piece ends. As many are in memory at a time: of one console, or of several together.
const MERGED: u64 = 16 * 1024 * 1024;
/// Consoles in one tick.
const CONSOLES: usize = 32;

/// A console whose bytes lie in few pieces, in the row or durable, to which no row refers yet.
struct Merged {
    id: ArtifactId,
    size: i64,
    hash: String,
    /// In how many pieces they lay before.
    before: usize,
    pieces: Vec<SegmentRow>,
    /// Objects that nobody needs when the rows are exchanged.
    left: Vec<SegmentRow>,
}

/// Merges and closes consoles of attempts that are over: a large one, or several.
pub async fn tick(state: &AppState) -> AppResult<Next> {
    let now = state.now();
    let aside = state.unmerged.at(now);
    let limit = i64::try_from(aside.len() + CONSOLES).unwrap_or(i64::MAX);
    let mut group = artifact::finished_consoles(&state.db, limit).await?;
    group.retain(|console| !aside.contains_key(&console.id));
    if group.is_empty() {
        return Ok(aside.values().min().map_or(Next::Woken, |until| Next::At(*until)));
    }
    let mut bytes = 0;
    let fitting = group.iter().take(CONSOLES).take_while(|console| {
        bytes += unsigned(console.size);
        bytes <= MERGED
    });
    let count = fitting.count().max(1);
    group.truncate(count);
    let failed = together(state, group, |state, group| async move { merge_all(&state, group).await }).await;
    for (console, error) in failed {
        tracing::error!(artifact.id = %console.id, %error, "a console could not be merged; later again");
        state.metrics.add("crashyard_pass_failures_total", vec![Label::new("pass", "compact")], 1);
        state.unmerged.put(console.id, now);
    }
    Ok(Next::Now)
}

/// Merges and closes consoles; who could not be read, and why.
async fn merge_all(state: &AppState, consoles: Vec<ArtifactRow>) -> AppResult<Vec<(ArtifactRow, AppError)>> {
    let small: Vec<&ArtifactId> =
        consoles.iter().filter(|console| unsigned(console.size) <= MERGED).map(|console| &console.id).collect();
    let mut segments =
        grouped(artifact::segments_of(&state.db, &small).await?, |segment| Some(segment.artifact_id.clone()));
    let (mut merged, mut failed) = (Vec::new(), Vec::new());
    for console in consoles {
        let segments = segments.remove(&console.id).unwrap_or_default();
        match merge(state, &console, segments).await {
            Ok(one) => merged.push(one),
            Err(error) => failed.push((console, error)),
        }
    }
    exchange(state, &merged).await?;
    Ok(failed)
}

/// Merges a console; the segments of a large one are looked up as they are read.
async fn merge(state: &AppState, console: &ArtifactRow, mut segments: Vec<SegmentRow>) -> AppResult<Merged> {
    let (id, size) = (console.id.clone(), console.size);
    let mut merged = Merged { id, size, hash: String::new(), before: 0, pieces: Vec::new(), left: Vec::new() };
    let (mut hasher, mut at) = (blake3::Hasher::new(), 0);
    while at < unsigned(size) {
        if segments.is_empty() {
            segments = artifact::segments_in(&state.db, &console.id, at, at + MERGED, i64::MAX).await?;
        }
        if let [only] = segments.as_slice()
            && (only.start_at, only.length) == (0, size)
        {
            // Nothing is to be read: the hash of the piece is that of the console.
            return Ok(Merged { hash: only.hash.clone(), before: 1, pieces: segments, ..merged });
        }
        let bytes = read(state, at, &segments).await?;
        at += bytes.len() as u64;
        let hashed = bytes.clone();
        let hash;
        (hash, hasher) = tokio::task::spawn_blocking(move || {
            hasher.update(&hashed);
            (blake3::hash(&hashed), hasher)
        })
        .await?;
        merged.add(state, mem::take(&mut segments), bytes, hash).await?;
    }
    merged.hash = hasher.finalize().to_hex().to_string();
    Ok(merged)
}

/// The bytes of segments that lie one after another from `at` on.
async fn read(state: &AppState, at: u64, segments: &[SegmentRow]) -> AppResult<Bytes> {
    let mut bytes = BytesMut::new();
    for segment in segments {
        if unsigned(segment.start_at) != at + bytes.len() as u64 {
            break;
        }
        bytes.extend_from_slice(&state.blobs.read(segment, 0..unsigned(segment.length)).await?);
    }
    let end = segments.last().map_or(at, SegmentRow::end);
    if end == at || end != at + bytes.len() as u64 {
        return Err(AppError::Internal(anyhow::anyhow!("a console has no byte {}", at + bytes.len() as u64)));
    }
    Ok(bytes.freeze())
}

impl Merged {
    /// Makes one piece of segments.
    async fn add(&mut self, state: &AppState, old: Vec<SegmentRow>, bytes: Bytes, hash: Hash) -> AppResult<()> {
        self.before += old.len();
        let [first, .., last] = old.as_slice() else {
            self.pieces.extend(old);
            return Ok(());
        };
        let piece = SegmentRow {
            artifact_id: self.id.clone(),
            start_at: first.start_at,
            length: signed(bytes.len() as u64),
            hash: hash.to_hex().to_string(),
            // The last of its bytes came then.
            received_at: last.received_at,
            bytes: None,
        };
        self.pieces.push(state.blobs.keep(piece, bytes).await?);
        self.left.extend(old.into_iter().filter(|segment| segment.bytes.is_none()));
        Ok(())
    }
}

/// Exchanges rows, closes the consoles, and then removes what no row refers to any more. A console that another server has closed
/// meanwhile, or that has grown, is left as it is; the next tick looks at it again.
async fn exchange(state: &AppState, merged: &[Merged]) -> AppResult<()> {
    if merged.is_empty() {
        return Ok(());
    }
    let ids: Vec<&ArtifactId> = merged.iter().map(|one| &one.id).collect();
    let mut tx = state.db.begin().await?;
    let open = artifact::lock_open(&mut tx, &ids).await?;
    let merged: Vec<&Merged> = merged.iter().filter(|one| open.get(&one.id) == Some(&one.size)).collect();
    let changed: Vec<&Merged> = merged.iter().filter(|one| one.pieces.len() < one.before).copied().collect();
    let before = changed.iter().map(|one| one.before).sum();
    let pieces: Vec<&SegmentRow> = changed.iter().flat_map(|one| &one.pieces).collect();
    if !artifact::exchange_segments(&mut tx, before, &pieces).await? {
        return Ok(());
    }
    let at = state.now();
    let whole: Vec<Whole<'_>> = merged.iter().map(|one| Whole { artifact: &one.id, hash: &one.hash, at }).collect();
    artifact::complete_all(&mut tx, &whole).await?;
    tx.commit().await?;
    for segment in changed.iter().flat_map(|one| &one.left) {
        if let Err(error) = state.blobs.delete(segment).await {
            tracing::warn!(artifact.id = %segment.artifact_id, %error, "an object that nobody needs stays");
        }
    }
    Ok(())
}
