//! KDUMP, the compressed format of `makedumpfile` and QEMU (header version 6 and later).
//!
//! Layout, in blocks of 4 KiB: header, sub-header (and notes), bitmap 1 (pages of RAM), bitmap 2 (pages in the dump),
//! page descriptors (24 bytes: offset, size, flags, page flags), page data. The descriptor of a page is found by its rank:
//! how many bits of bitmap 2 come before it. The rank is kept for every 4096 bits, so a lookup reads 512 bytes of bitmap at
//! most, and the index of a 1 TiB machine takes 1 MiB. Neither bitmaps nor descriptors are held in memory.

use super::decompress::Decompressor;
use super::{Note, PAGE, PageCounts, PageState, notes};
use crate::bytes::{u32_at, u64_at};
use crate::error::{Error, Fault, Limits};
use crate::read_at::{ReadAt, read_full};
use std::cell::RefCell;

pub(super) const MAGIC: &[u8] = b"KDUMP   ";
/// Offsets in `struct disk_dump_header`: after the signature, the version and `struct new_utsname` (6 × 65 bytes).
const MACHINE_AT: usize = 12 + 4 * 65;
const STATUS_AT: usize = 424;
/// Bytes of `struct disk_dump_header`; the rest of its block need not be written.
const HEAD: usize = 464;
/// `DUMP_DH_COMPRESSED_INCOMPLETE`.
const INCOMPLETE: u32 = 0x8;
const DESC: u64 = 24;
/// Bytes of bitmap per entry of the rank index.
const STRIDE: u64 = 512;
/// Memory that a header may claim: 256 TiB, whose bitmap of 8 GiB is already seconds of reading.
const MAX_PFN: u64 = 1 << 36;

pub(super) struct Kdump<'a> {
    src: Box<dyn ReadAt + 'a>,
    status: u32,
    max_pfn: u64,
    /// Page numbers that this file is about; all, unless split.
    range: std::ops::Range<u64>,
    bitmap1: Option<u64>,
    bitmap2: u64,
    descriptors: u64,
    utsname: Vec<u8>,
    /// Set bits of bitmap 2 before each stride.
    rank: Vec<u64>,
    /// Pages of bitmap 2 before this file's range, and inside it.
    before: u64,
    pages: u64,
    state: RefCell<State>,
}

struct State {
    decompressor: Decompressor,
    packed: Vec<u8>,
    blocks: Vec<Option<(u64, Box<[u8; PAGE]>)>>,
}

impl<'a> Kdump<'a> {
    pub(super) fn open(src: Box<dyn ReadAt + 'a>, limits: &Limits) -> Result<(Self, Vec<Note>), Error> {
        let have = src.len();
        let mut head = vec![0u8; HEAD];
        if read_full(&src, 0, &mut head)? < head.len() {
            return Err(Error::Truncated { have, need: HEAD as u64 });
        }
        let version = u32_at(&head, 8);
        if !(6..=100).contains(&version) {
            return Err(Error::Unsupported(format!("KDUMP header version {version}; 6 and later are read")));
        }
        let machine = crate::bytes::text(&head[MACHINE_AT..MACHINE_AT + 65]);
        if machine != "x86_64" {
            return Err(Error::Unsupported(format!("a dump of {machine:?}; only x86_64 dumps are read")));
        }
        let field = |i: usize| u32_at(&head, STATUS_AT + 4 * i);
        let (status, block, sub_blocks, bitmap_blocks) = (field(0), field(1), field(2), field(3));
        if block != PAGE as u32 {
            return Err(Error::Unsupported(format!("KDUMP blocks of {block} bytes")));
        }
        let block = u64::from(block);
        let mut sub = vec![0u8; 128];
        if read_full(&src, block, &mut sub)? < sub.len() {
            return Err(Error::Truncated { have, need: block + 128 });
        }
        let (split, start, end, max_pfn) =
            (u32_at(&sub, 12) != 0, u64_at(&sub, 80), u64_at(&sub, 88), u64_at(&sub, 96));
        let bitmap_bytes = u64::from(bitmap_blocks) * block;
        if max_pfn > MAX_PFN {
            return Err(Error::Corrupt("the KDUMP header claims more memory than there can be"));
        }
        let bitmap1 = block * (1 + u64::from(sub_blocks));
        // Old writers keep a single bitmap: then it is the one of the pages in the dump.
        let two = bitmap_bytes / 2 * 8 >= max_pfn;
        let bitmap2 = if two { bitmap1 + bitmap_bytes / 2 } else { bitmap1 };
        let descriptors = bitmap1 + bitmap_bytes;
        if descriptors > have {
            return Err(Error::Truncated { have, need: descriptors });
        }
        let bits = (bitmap_bytes / if two { 2 } else { 1 }).saturating_mul(8).min(max_pfn);
        let mut found = Vec::new();
        for (name, at, size) in
            [("", u64_at(&sub, 48), u64_at(&sub, 56)), ("VMCOREINFO", u64_at(&sub, 32), u64_at(&sub, 40))]
        {
            if size == 0 || (!name.is_empty() && found.iter().any(|n: &Note| n.name == name)) {
                continue;
            }
            if size > limits.note_bytes {
                return Err(Error::Limit { what: "bytes of notes", limit: limits.note_bytes });
            }
            let end = at.checked_add(size).ok_or(Error::Corrupt("the notes are out of range"))?;
            if end > have {
                return Err(Error::Truncated { have, need: end });
            }
            let mut data = vec![0u8; size as usize];
            let got = read_full(&src, at, &mut data)?;
            data.truncate(got);
            if name.is_empty() {
                notes::parse(&data, &mut found);
            } else {
                found.push(Note { name: name.into(), kind: 0, desc: data });
            }
        }
        let mut this = Self {
            src,
            status,
            max_pfn: bits,
            range: if split { start..end.min(bits) } else { 0..bits },
            bitmap1: two.then_some(bitmap1),
            bitmap2,
            descriptors,
            utsname: head[12..STATUS_AT - 16].to_vec(),
            rank: Vec::new(),
            before: 0,
            pages: 0,
            state: RefCell::new(State {
                decompressor: Decompressor::new(),
                packed: Vec::new(),
                blocks: (0..16).map(|_| None).collect(),
            }),
        };
        this.rank = this.count_bits(this.bitmap2)?;
        let total = this.rank.last().copied().unwrap_or(0);
        this.pages = total;
        if split {
            let rank = |pfn| this.rank_before(&mut this.state.borrow_mut(), pfn).unwrap_or(total);
            let (before, after) = (rank(this.range.start), rank(this.range.end));
            (this.before, this.pages) = (before, after.saturating_sub(before));
        }
        Ok((this, found))
    }

    /// Running count of set bits at every stride, with the total last.
    fn count_bits(&self, bitmap: u64) -> Result<Vec<u64>, Error> {
        let bytes = self.max_pfn.div_ceil(8);
        let mut rank = Vec::with_capacity((bytes / STRIDE) as usize + 2);
        let (mut total, mut at) = (0u64, 0u64);
        let mut buf = vec![0u8; 64 << 10];
        rank.push(0);
        while at < bytes {
            let want = usize::try_from(bytes - at).unwrap_or(usize::MAX).min(buf.len());
            let got = read_full(&self.src, bitmap + at, &mut buf[..want])?;
            if got < want {
                return Err(Error::Truncated { have: self.src.len(), need: bitmap + at + want as u64 });
            }
            for stride in buf[..want].chunks(STRIDE as usize) {
                total += ones(stride);
                rank.push(total);
            }
            at += want as u64;
        }
        Ok(rank)
    }

    pub(super) fn belongs_with(&self, other: &Self) -> bool {
        self.utsname == other.utsname && self.max_pfn == other.max_pfn
    }

    /// One more than the highest page number of the whole dump.
    pub(super) fn max_pfn(&self) -> u64 {
        self.max_pfn
    }

    /// Page numbers that this file is about.
    pub(super) fn range(&self) -> &std::ops::Range<u64> {
        &self.range
    }

    pub(super) fn covers(&self, pfn: u64) -> bool {
        self.range.contains(&pfn)
    }

    pub(super) fn page(&self, pfn: u64, out: &mut [u8; PAGE]) -> Result<PageState, Fault> {
        let pa = pfn << 12;
        let state = &mut *self.state.borrow_mut();
        let Some(rank) = self.rank_of(state, pfn)? else {
            let known = match self.bitmap1 {
                Some(bitmap) if pfn < self.max_pfn => self.bit(state, bitmap, pfn)?,
                _ => false,
            };
            return Err(if known { Fault::Excluded(pa) } else { Fault::Absent(pa) });
        };
        let at = self.descriptors + DESC * rank.saturating_sub(self.before);
        let mut desc = [0u8; DESC as usize];
        self.small(state, at, &mut desc).ok_or(Fault::Damaged(pa))?;
        let (offset, size, flags) = (u64_at(&desc, 0), u32_at(&desc, 8) as usize, u32_at(&desc, 12));
        // Incompressible pages are stored raw, so a packed page is never much larger than a page.
        if size == 0 || size > 2 * PAGE {
            return Err(Fault::Damaged(pa));
        }
        state.packed.resize(size, 0);
        match read_full(&self.src, offset, &mut state.packed) {
            Ok(n) if n == size => {}
            _ => return Err(Fault::Damaged(pa)),
        }
        if !state.decompressor.page(flags, &state.packed, out) {
            return Err(Fault::Damaged(pa));
        }
        // The writer has one shared descriptor target for all-zero pages, right at the start of the data.
        let zero = offset == self.data_start() && out.iter().all(|&b| b == 0);
        Ok(if zero { PageState::Zero } else { PageState::Present })
    }

    fn data_start(&self) -> u64 {
        self.descriptors + DESC * self.pages
    }

    /// Index of the page among the pages of bitmap 2, if it is one of them.
    fn rank_of(&self, state: &mut State, pfn: u64) -> Result<Option<u64>, Fault> {
        if !self.covers(pfn) || !self.bit(state, self.bitmap2, pfn)? {
            return Ok(None);
        }
        self.rank_before(state, pfn).map(Some)
    }

    fn rank_before(&self, state: &mut State, pfn: u64) -> Result<u64, Fault> {
        let (byte, stride) = (pfn / 8, pfn / 8 / STRIDE);
        let mut bits = [0u8; STRIDE as usize];
        let lead = &mut bits[..(byte - stride * STRIDE) as usize + 1];
        let base = self.rank.get(stride as usize).copied().ok_or(Fault::Absent(pfn << 12))?;
        self.small(state, self.bitmap2 + stride * STRIDE, lead).ok_or(Fault::Damaged(pfn << 12))?;
        if let Some(last) = lead.last_mut() {
            *last &= (1u8 << (pfn % 8)) - 1;
        }
        Ok(base + ones(lead))
    }

    fn bit(&self, state: &mut State, bitmap: u64, pfn: u64) -> Result<bool, Fault> {
        let mut byte = [0u8; 1];
        self.small(state, bitmap + pfn / 8, &mut byte).ok_or(Fault::Damaged(pfn << 12))?;
        Ok(byte[0] >> (pfn % 8) & 1 == 1)
    }

    /// Reads a few bytes of bitmap or descriptors through a small cache of file blocks.
    fn small(&self, state: &mut State, at: u64, buf: &mut [u8]) -> Option<()> {
        let mut done = 0;
        while done < buf.len() {
            let pos = at.checked_add(done as u64)?;
            let (number, inside) = (pos / PAGE as u64, (pos % PAGE as u64) as usize);
            let slot = (number % state.blocks.len() as u64) as usize;
            let n = (buf.len() - done).min(PAGE - inside);
            let block = match &mut state.blocks[slot] {
                Some((have, block)) if *have == number => block,
                other => {
                    let mut block = Box::new([0u8; PAGE]);
                    let got = read_full(&self.src, number * PAGE as u64, &mut block[..]).ok()?;
                    if got < inside + n {
                        return None;
                    }
                    // A block of which only a part is there must not be remembered: its rest would read as zeros.
                    if got < PAGE {
                        buf[done..done + n].copy_from_slice(&block[inside..inside + n]);
                        done += n;
                        continue;
                    }
                    &mut other.insert((number, block)).1
                }
            };
            buf[done..done + n].copy_from_slice(&block[inside..inside + n]);
            done += n;
        }
        Some(())
    }

    pub(super) fn end_pfn(&self) -> u64 {
        self.range.end
    }

    pub(super) fn page_counts(&self) -> PageCounts {
        let present = self.pages;
        let total = self.rank.last().copied().unwrap_or(0);
        let ram = self.bitmap1.and_then(|b| self.count_bits(b).ok()).and_then(|r| r.last().copied()).unwrap_or(total);
        PageCounts { present, excluded: ram.saturating_sub(total) }
    }

    /// Compares the file with the end of the page data. Pages are written in order, so the last descriptor that is not a
    /// shared zero page tells where that is.
    pub(super) fn check_complete(&self) -> Result<(), Error> {
        if self.status & INCOMPLETE != 0 {
            return Err(Error::Incomplete);
        }
        let have = self.src.len();
        let data = self.data_start();
        if data > have {
            return Err(Error::Truncated { have, need: data });
        }
        let mut left = self.pages;
        // A long tail of zero pages says nothing; give up after a million of them rather than read gigabytes.
        let mut budget = 1u64 << 20;
        let mut buf = vec![0u8; (DESC * 1024) as usize];
        while left > 0 && budget > 0 {
            let n = left.min(1024).min(budget);
            let part = &mut buf[..(n * DESC) as usize];
            let at = self.descriptors + (left - n) * DESC;
            if read_full(&self.src, at, part)? < part.len() {
                return Err(Error::Truncated { have, need: at + part.len() as u64 });
            }
            let ends = part.chunks_exact(DESC as usize).map(|d| u64_at(d, 0).saturating_add(u64::from(u32_at(d, 8))));
            let need = ends.max().unwrap_or(0);
            if need > have {
                return Err(Error::Truncated { have, need });
            }
            // Anything beyond the shared zero page (one page at the start of the data) is a real page.
            if need > data + PAGE as u64 {
                return Ok(());
            }
            left -= n;
            budget -= n;
        }
        Ok(())
    }
}

fn ones(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let words: u64 = words.iter().map(|w| u64::from(u64::from_le_bytes(*w).count_ones())).sum();
    words + rest.iter().map(|b| u64::from(b.count_ones())).sum::<u64>()
}
