//! Flattened dumps: a dump as a list of writes, for a pipe that cannot seek.
//!
//! `makedumpfile -F` and QEMU's `kdump-*` write a 4 KiB header and then (offset, size, data) records in big-endian, some
//! of them out of order and overwriting earlier ones, ended by (-1, -1). This keeps an index of the records, sorted and
//! without overlaps (a later write wins), and reads through it. Memory grows with the number of records, not with the dump.

use crate::error::{Error, Limits};
use crate::read_at::{ReadAt, read_full};
use std::collections::BTreeMap;
use std::io;

pub(super) const MAGIC: &[u8] = b"makedumpfile\0";
const HEADER: u64 = 4096;
/// A hole of this size in a stream that has not ended may be data that is still to come.
const HOLE: u64 = 4096;
/// How much is read at a time to find record headers.
const WINDOW: usize = 16 << 10;

#[derive(Debug, Clone, Copy)]
struct Piece {
    end: u64,
    /// Offset in the flattened file of this piece's first byte.
    at: u64,
}

pub(super) struct Flattened<'a> {
    src: Box<dyn ReadAt + 'a>,
    /// Start offset in the rearranged dump → piece; sorted, no two overlap.
    starts: Vec<u64>,
    pieces: Vec<Piece>,
    len: u64,
    /// The stream ends before its last record: bytes that are there, and those that are needed to go on.
    cut: Option<(u64, u64)>,
}

impl<'a> Flattened<'a> {
    /// Indexes a stream, as far as it goes; [`Self::cut`] says whether that is to its end.
    pub(super) fn open(src: Box<dyn ReadAt + 'a>, limits: &Limits) -> Result<Self, Error> {
        let have = src.len();
        let mut map: BTreeMap<u64, Piece> = BTreeMap::new();
        let mut window = vec![0u8; WINDOW];
        let (mut window_at, mut window_len) = (0u64, 0usize);
        let mut at = HEADER;
        let mut records = 0u64;
        let mut cut = None;
        loop {
            if at < window_at || at + 16 > window_at + window_len as u64 {
                window_at = at;
                window_len = read_full(&src, at, &mut window)?;
            }
            let offset_in = (at - window_at) as usize;
            let Some(head) = window[..window_len].get(offset_in..).and_then(|w| w.first_chunk::<16>()) else {
                cut = Some((have, at.saturating_add(16)));
                break;
            };
            let (start, size) = record(head);
            if start == -1 && size == -1 {
                break;
            }
            if start < 0 || size < 0 {
                return Err(Error::Corrupt("a record of the flattened dump has a negative offset or size"));
            }
            let (start, size, data) = (start as u64, size as u64, at + 16);
            let next = data.checked_add(size).ok_or(Error::Corrupt("a flattened record is out of range"))?;
            records += 1;
            if records > limits.chunks {
                return Err(Error::Limit { what: "records of a flattened dump", limit: limits.chunks });
            }
            start.checked_add(size).ok_or(Error::Corrupt("a flattened record is out of range"))?;
            // Of the record in which a stream is cut, what is there counts.
            let there = size.min(have.saturating_sub(data));
            if there > 0 {
                insert(&mut map, start, Piece { end: start + there, at: data });
            }
            if next > have {
                cut = Some((have, next));
                break;
            }
            at = next;
        }
        let len = map.last_key_value().map_or(0, |(_, p)| p.end);
        let (starts, pieces) = map.into_iter().unzip();
        Ok(Self { src, starts, pieces, len, cut })
    }

    /// Says where a stream ends that has no end mark.
    pub(super) fn cut(&self) -> Option<(u64, u64)> {
        self.cut
    }
}

fn record(head: &[u8; 16]) -> (i64, i64) {
    let (a, b) = head.split_at(8);
    let be = |s: &[u8]| s.first_chunk().map_or(0, |b| i64::from_be_bytes(*b));
    (be(a), be(b))
}

/// Puts a write over what is there: cuts or splits the pieces it overlaps.
fn insert(map: &mut BTreeMap<u64, Piece>, start: u64, piece: Piece) {
    if let Some((&before, &old)) = map.range(..start).next_back()
        && old.end > start
    {
        map.insert(before, Piece { end: start, ..old });
        if old.end > piece.end {
            map.insert(piece.end, Piece { end: old.end, at: old.at + (piece.end - before) });
        }
    }
    while let Some((&next, &old)) = map.range(start..piece.end).next() {
        map.remove(&next);
        if old.end > piece.end {
            map.insert(piece.end, Piece { end: old.end, at: old.at + (piece.end - next) });
        }
    }
    map.insert(start, piece);
}

impl ReadAt for Flattened<'_> {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        if offset >= self.len || buf.is_empty() {
            return Ok(0);
        }
        let after = self.starts.partition_point(|&s| s <= offset);
        if let Some(i) = after.checked_sub(1)
            && self.pieces[i].end > offset
        {
            let n = buf.len().min(usize::try_from(self.pieces[i].end - offset).unwrap_or(usize::MAX));
            return self.src.read_at(self.pieces[i].at + (offset - self.starts[i]), &mut buf[..n]);
        }
        // A hole that nobody wrote: a seek over it leaves zeros in the rearranged file.
        let hole_end = self.starts.get(after).copied().unwrap_or(self.len);
        let hole_start = after.checked_sub(1).map_or(0, |i| self.pieces[i].end);
        if self.cut.is_some() && hole_end - hole_start >= HOLE {
            // It may still be written. Small ones are the gaps that writers leave behind headers and bitmaps.
            return Ok(0);
        }
        let n = buf.len().min(usize::try_from(hole_end - offset).unwrap_or(usize::MAX));
        buf[..n].fill(0);
        Ok(n)
    }

    fn len(&self) -> u64 {
        self.len
    }
}
