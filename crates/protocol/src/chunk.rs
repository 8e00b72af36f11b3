//! Hashes of uploads: BLAKE3, computed once per byte.
//!
//! BLAKE3 is a tree hash. A chunk is an aligned subtree of the whole, so the hash that guards a chunk on the wire
//! is the subtree's *chaining value*, and the hash of the whole is the root over the chunks' chaining values: nobody
//! reads a 1 GiB dump twice to learn its `b3sum`. A chaining value depends on the chunk's position, so a chunk stored
//! at the wrong offset is noticed as well. (BLAKE3 paper, section 2.1; `blake3::hazmat`.)

use crate::agent::CHUNK_BYTES;
use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use std::fmt::Write as _;

/// The chaining value of one chunk that starts at `offset`, a multiple of [`CHUNK_BYTES`].
#[must_use]
pub fn chunk_hash(offset: u64, bytes: &[u8]) -> ChainingValue {
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(offset);
    hasher.update(bytes);
    hasher.finalize_non_root()
}

/// The BLAKE3 hash of the whole, from the chaining values of its chunks in order.
///
/// `None` with fewer than two chunks: the root of a single subtree needs its bytes, which are few.
#[must_use]
pub fn whole_hash(chunks: &[ChainingValue]) -> Option<blake3::Hash> {
    if chunks.len() < 2 {
        return None;
    }
    let (left, right) = chunks.split_at(left_len(chunks.len()));
    Some(merge_subtrees_root(&subtree(left), &subtree(right), Mode::Hash))
}

fn subtree(chunks: &[ChainingValue]) -> ChainingValue {
    if let [one] = chunks {
        return *one;
    }
    let (left, right) = chunks.split_at(left_len(chunks.len()));
    merge_subtrees_non_root(&subtree(left), &subtree(right), Mode::Hash)
}

/// The left subtree is the largest full one that leaves something to the right.
fn left_len(chunks: usize) -> usize {
    chunks.next_power_of_two() / 2
}

/// Lower-case hex.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Reads 64 hex digits.
#[must_use]
pub fn from_hex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 {
        return None;
    }
    let mut out = [0; 32];
    for (byte, pair) in out.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(out)
}

/// Whether a chunk may lie here: aligned, not empty, not larger than a chunk.
#[must_use]
pub fn is_well_placed(offset: u64, length: u64) -> bool {
    offset.is_multiple_of(CHUNK_BYTES) && length > 0 && length <= CHUNK_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_hash_from_chunks_is_the_hash_of_the_bytes() {
        let chunk = usize::try_from(CHUNK_BYTES).unwrap();
        let bytes: Vec<u8> = (0..chunk * 3 + 777).map(|i| u8::try_from(i % 251).unwrap()).collect();
        for size in [chunk + 1, chunk * 2, chunk * 2 + 1, chunk * 3, bytes.len()] {
            let whole = &bytes[..size];
            let values: Vec<_> =
                whole.chunks(chunk).enumerate().map(|(i, c)| chunk_hash((i * chunk) as u64, c)).collect();
            assert_eq!(whole_hash(&values), Some(blake3::hash(whole)), "{size} bytes");
        }
    }

    #[test]
    fn a_chunk_at_another_place_has_another_hash() {
        assert_ne!(chunk_hash(0, b"same"), chunk_hash(CHUNK_BYTES, b"same"));
    }

    #[test]
    fn hex_reads_back() {
        let bytes = *blake3::hash(b"x").as_bytes();
        assert_eq!(from_hex(&hex(&bytes)), Some(bytes));
        assert_eq!(from_hex("zz"), None);
    }
}
