//! Little-endian fields out of byte slices; out of range reads as 0, never as a panic.
//!
//! Callers check lengths where a zero would be mistaken for data.

pub(crate) fn u16_at(d: &[u8], at: usize) -> u16 {
    d.get(at..).and_then(|s| s.first_chunk()).map_or(0, |b| u16::from_le_bytes(*b))
}

pub(crate) fn u32_at(d: &[u8], at: usize) -> u32 {
    d.get(at..).and_then(|s| s.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b))
}

pub(crate) fn u64_at(d: &[u8], at: usize) -> u64 {
    d.get(at..).and_then(|s| s.first_chunk()).map_or(0, |b| u64::from_le_bytes(*b))
}

/// The bytes up to the first NUL, as text; bytes that are not UTF-8 become U+FFFD.
pub(crate) fn text(d: &[u8]) -> String {
    let end = d.iter().position(|&b| b == 0).unwrap_or(d.len());
    String::from_utf8_lossy(&d[..end]).into_owned()
}
