//! Which line of a console begins at which byte.
//!
//! Line numbers are the number of line ends before a byte, and nothing in the ledger counts them. They are counted
//! here, once for each byte, and remembered at regular marks. Consoles only grow, so a mark never becomes
//! wrong, and losing them all costs nothing but counting again.

use crate::app::AppState;
use crate::error::{AppError, AppResult};
use crate::ranges;
use crashyard_protocol::ArtifactId;
use futures::TryStreamExt;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Mutex as AsyncMutex;

/// Bytes between two marks.
const STEP: u64 = 1024 * 1024;
/// Consoles whose marks are kept (8 KiB for each GiB of log).
const KEPT: usize = 256;

/// The line ends before each multiple of [`STEP`], from `STEP` on.
type Marks = Arc<AsyncMutex<Vec<u64>>>;

/// The marks of the consoles people look at.
#[derive(Debug, Default)]
pub struct LineIndex(Mutex<HashMap<ArtifactId, Marks>>);

impl LineIndex {
    fn marks(&self, console: &ArtifactId) -> Marks {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= KEPT && !all.contains_key(console) {
            all.clear();
        }
        all.entry(console.clone()).or_default().clone()
    }

    /// The number of line ends in the first `offset` bytes of a console that has at least as many.
    pub async fn line_ends_before(&self, state: &AppState, console: &ArtifactId, offset: u64) -> AppResult<u64> {
        if offset == 0 {
            return Ok(0);
        }
        let marks = self.marks(console);
        // Whoever asks for the same console at the same time waits, and then finds it counted.
        let mut marks = marks.lock().await;
        let mut counter = Counter::resume(&marks, offset);
        let mut bytes = std::pin::pin!(ranges::stream(state.clone(), console.clone(), counter.at..offset));
        while let Some(piece) = bytes.try_next().await.map_err(|error| AppError::Internal(error.into()))? {
            counter.count(&piece, &mut marks);
        }
        Ok(counter.ends)
    }
}

/// Counts on from a mark.
struct Counter {
    at: u64,
    ends: u64,
}

impl Counter {
    fn resume(marks: &[u64], offset: u64) -> Self {
        let known = (marks.len() as u64).min(offset / STEP);
        let ends = usize::try_from(known).ok().and_then(|known| marks.get(known.checked_sub(1)?)).copied();
        Self { at: known * STEP, ends: ends.unwrap_or(0) }
    }

    fn count(&mut self, mut piece: &[u8], marks: &mut Vec<u64>) {
        while !piece.is_empty() {
            let next_mark = (self.at / STEP + 1) * STEP;
            let step = usize::try_from(next_mark - self.at).unwrap_or(usize::MAX).min(piece.len());
            let (now, later) = piece.split_at(step);
            self.ends += memchr::memchr_iter(b'\n', now).count() as u64;
            self.at += step as u64;
            if self.at == next_mark && marks.len() as u64 == self.at / STEP - 1 {
                marks.push(self.ends);
            }
            piece = later;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(lines: usize) -> Vec<u8> {
        (0..lines).flat_map(|line| format!("line {line} {}\n", "x".repeat(line % 97)).into_bytes()).collect()
    }

    #[test]
    fn counting_on_from_marks_gives_the_same_as_counting_from_the_start() {
        let log = log(60_000);
        let mut marks = Vec::new();
        for offset in [10, 1_500_000, 700_000, 1_048_576, 2_097_152, 3_000_001, 5, 2_097_153] {
            let mut counter = Counter::resume(&marks, offset);
            assert!(counter.at <= offset && offset - counter.at < STEP || marks.len() as u64 * STEP <= counter.at);
            let (from, to) = (usize::try_from(counter.at).unwrap(), usize::try_from(offset).unwrap());
            for piece in log[from..to].chunks(100_003) {
                counter.count(piece, &mut marks);
            }
            assert_eq!(counter.ends, log[..to].iter().filter(|byte| **byte == b'\n').count() as u64, "at {offset}");
        }
        assert_eq!(marks.len(), 2, "one mark for each whole step that was counted");
    }
}
