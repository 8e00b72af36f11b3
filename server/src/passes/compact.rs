//! Puts the small pieces of a finished console into few large ones, and closes it with its hash.
//!
//! A machine prints a line at a time, and each write is a row, or an object of the blob store. When the attempt is over, the
//! pieces are merged: the large object is written first, then the rows are exchanged in one transaction, then the
//! small objects are removed. A crash at any point leaves every byte readable.

use super::Next;
use crate::app::AppState;
use crate::db::artifact::{self, ArtifactRow, SegmentRow};
use crate::db::{signed, unsigned};
use crate::error::{AppError, AppResult};
use crate::ranges;
use bytes::BytesMut;

/// Bytes of a merged piece.
const MERGED: u64 = 16 * 1024 * 1024;
/// Consoles in one tick.
const CONSOLES: i64 = 8;

/// Merges and closes consoles of attempts that are over.
pub async fn tick(state: &AppState) -> AppResult<Next> {
    let consoles = artifact::finished_consoles(&state.db, CONSOLES).await?;
    if consoles.is_empty() {
        return Ok(Next::Woken);
    }
    for console in &consoles {
        merge(state, console).await?;
        close(state, console).await?;
    }
    Ok(Next::Now)
}

async fn merge(state: &AppState, console: &ArtifactRow) -> AppResult<()> {
    let segments = artifact::segments(&state.db, &console.id).await?;
    let mut group: Vec<SegmentRow> = Vec::new();
    let mut length = 0;
    for segment in segments {
        if length + unsigned(segment.length) > MERGED && !group.is_empty() {
            merge_group(state, &group).await?;
            group.clear();
            length = 0;
        }
        length += unsigned(segment.length);
        group.push(segment);
    }
    merge_group(state, &group).await
}

async fn merge_group(state: &AppState, group: &[SegmentRow]) -> AppResult<()> {
    let [first, .., last] = group else { return Ok(()) };
    let mut bytes = BytesMut::new();
    for segment in group {
        bytes.extend_from_slice(&state.blobs.read(segment, 0..unsigned(segment.length)).await?);
    }
    let bytes = bytes.freeze();
    let merged = SegmentRow {
        artifact_id: first.artifact_id.clone(),
        start_at: first.start_at,
        length: signed(bytes.len() as u64),
        hash: blake3::hash(&bytes).to_hex().to_string(),
        // The last of its bytes came then.
        received_at: last.received_at,
        bytes: None,
    };
    let merged = state.blobs.keep(merged, bytes).await?;
    let mut tx = state.db.begin().await?;
    if !artifact::merge_segments(&mut tx, group, &merged).await? {
        // Another server merges this console; its pieces are as good.
        return Ok(());
    }
    tx.commit().await?;
    for segment in group {
        state.blobs.delete(segment).await?;
    }
    Ok(())
}

async fn close(state: &AppState, console: &ArtifactRow) -> AppResult<()> {
    let size = unsigned(console.size);
    let mut hasher = blake3::Hasher::new();
    let mut at = 0;
    while at < size {
        let end = size.min(at + MERGED);
        let bytes = ranges::read(state, &console.id, at..end).await?;
        hasher = tokio::task::spawn_blocking(move || {
            hasher.update(&bytes);
            hasher
        })
        .await
        .map_err(AppError::from)?;
        at = end;
    }
    let mut tx = state.db.begin().await?;
    artifact::complete(&mut tx, &console.id, &hasher.finalize().to_hex(), state.now()).await?;
    tx.commit().await?;
    Ok(())
}
