//! ELF64 cores: `/proc/vmcore`, QEMU `dump-guest-memory`, `makedumpfile -E`.
//!
//! Program headers are taken as three lists: ranges with data, ranges whose data was left out (`p_memsz > p_filesz`, how
//! `makedumpfile -E` writes filtered pages) and notes. Segments may overlap (the kernel text appears twice in
//! `/proc/vmcore`, and QEMU with paging lists a page once per mapping); data ranges are cut so that they do not, and a page
//! lookup is one binary search. More than 65,534 program headers are counted in section header 0 (`PN_XNUM`).

use super::{Note, PAGE, PageCounts, PageState, notes};
use crate::bytes::{u16_at, u32_at, u64_at};
use crate::error::{Error, Fault, Limits};
use crate::read_at::{ReadAt, read_full};

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const PN_XNUM: u16 = 0xffff;
const EM_X86_64: u16 = 62;
const PHDR: u64 = 56;

/// `start..end` in physical addresses; `offset` in the file belongs to `start`.
#[derive(Debug, Clone, Copy)]
struct Range {
    start: u64,
    end: u64,
    offset: u64,
}

pub(super) struct Elf<'a> {
    src: Box<dyn ReadAt + 'a>,
    data: Vec<Range>,
    left_out: Vec<Range>,
    need: u64,
}

impl<'a> Elf<'a> {
    pub(super) fn open(src: Box<dyn ReadAt + 'a>, limits: &Limits) -> Result<(Self, Vec<Note>), Error> {
        let mut head = [0u8; 64];
        let got = read_full(&src, 0, &mut head)?;
        if got < head.len() {
            return Err(Error::Truncated { have: src.len(), need: 64 });
        }
        if head[4] != 2 || head[5] != 1 {
            return Err(Error::Unsupported("an ELF dump that is not 64-bit little-endian".into()));
        }
        let machine = u16_at(&head, 18);
        if machine != EM_X86_64 {
            return Err(Error::Unsupported(format!("ELF machine {machine}; only x86-64 dumps are read")));
        }
        if u16_at(&head, 54) != PHDR as u16 {
            return Err(Error::Corrupt("ELF program headers have an odd size"));
        }
        let table = u64_at(&head, 32);
        let count = match u16_at(&head, 56) {
            PN_XNUM => {
                let mut section = [0u8; 64];
                let at = u64_at(&head, 40);
                if read_full(&src, at, &mut section)? < section.len() {
                    return Err(Error::Truncated { have: src.len(), need: at.saturating_add(64) });
                }
                u64::from(u32_at(&section, 44))
            }
            n => u64::from(n),
        };
        if count > limits.segments {
            return Err(Error::Limit { what: "ELF segments", limit: limits.segments });
        }
        let end = table.checked_add(count * PHDR).ok_or(Error::Corrupt("ELF program headers are out of range"))?;
        if end > src.len() {
            return Err(Error::Truncated { have: src.len(), need: end });
        }
        let mut phdrs = vec![0u8; (count * PHDR) as usize];
        let got = read_full(&src, table, &mut phdrs)?;
        if got < phdrs.len() {
            return Err(Error::Truncated { have: table + got as u64, need: end });
        }
        Self::from_headers(src, &phdrs, limits)
    }

    fn from_headers(src: Box<dyn ReadAt + 'a>, phdrs: &[u8], limits: &Limits) -> Result<(Self, Vec<Note>), Error> {
        let (mut data, mut left_out, mut found, mut need) = (Vec::new(), Vec::new(), Vec::new(), 0u64);
        let mut note_budget = limits.note_bytes;
        for ph in phdrs.chunks_exact(PHDR as usize) {
            let (kind, offset, start) = (u32_at(ph, 0), u64_at(ph, 8), u64_at(ph, 24));
            let (file, memory) = (u64_at(ph, 32), u64_at(ph, 40));
            match kind {
                PT_NOTE => {
                    note_budget = note_budget
                        .checked_sub(file)
                        .ok_or(Error::Limit { what: "bytes of notes", limit: limits.note_bytes })?;
                    let end = offset.checked_add(file).ok_or(Error::Corrupt("a note segment is out of range"))?;
                    if end > src.len() {
                        return Err(Error::Truncated { have: src.len(), need: end });
                    }
                    let mut section = vec![0u8; file as usize];
                    let got = read_full(&src, offset, &mut section)?;
                    notes::parse(&section[..got], &mut found);
                }
                // QEMU marks segments without a physical address with all ones.
                PT_LOAD if start != u64::MAX => {
                    let out_of_range = Error::Corrupt("a memory segment is out of range");
                    let (Some(data_end), Some(end), Some(file_end)) =
                        (start.checked_add(file), start.checked_add(memory), offset.checked_add(file))
                    else {
                        return Err(out_of_range);
                    };
                    if file > 0 {
                        need = need.max(file_end);
                        data.push(Range { start, end: data_end, offset });
                    }
                    if end > data_end {
                        left_out.push(Range { start: data_end, end, offset: 0 });
                    }
                }
                _ => {}
            }
        }
        Ok((Self { src, data: disjoint(data), left_out: disjoint(left_out), need }, found))
    }

    pub(super) fn page(&self, pfn: u64, out: &mut [u8; PAGE]) -> Result<PageState, Fault> {
        let pa = pfn << 12;
        let end = pa.checked_add(PAGE as u64).ok_or(Fault::Absent(pa))?;
        let first = self.data.partition_point(|r| r.end <= pa);
        let mut any = false;
        for r in self.data[first..].iter().take_while(|r| r.start < end) {
            // Segments need not start or end on a page: the BIOS memory map does not.
            let (from, to) = (r.start.max(pa), r.end.min(end));
            if !any {
                out.fill(0);
                any = true;
            }
            let part = &mut out[(from - pa) as usize..(to - pa) as usize];
            match read_full(&self.src, r.offset + (from - r.start), part) {
                Ok(n) if n == part.len() => {}
                _ => return Err(Fault::Damaged(pa)),
            }
        }
        if any {
            return Ok(PageState::Present);
        }
        let hole = self.left_out.partition_point(|r| r.end <= pa);
        match self.left_out.get(hole) {
            Some(r) if r.start < end => Err(Fault::Excluded(pa)),
            _ => Err(Fault::Absent(pa)),
        }
    }

    pub(super) fn end_pfn(&self) -> u64 {
        let end = |ranges: &[Range]| ranges.last().map_or(0, |r| r.end.div_ceil(PAGE as u64));
        end(&self.data).max(end(&self.left_out))
    }

    pub(super) fn page_counts(&self) -> PageCounts {
        let pages = |ranges: &[Range]| ranges.iter().map(|r| (r.end - r.start) / PAGE as u64).sum();
        PageCounts { present: pages(&self.data), excluded: pages(&self.left_out) }
    }

    pub(super) fn check_complete(&self) -> Result<(), Error> {
        let have = self.src.len();
        if have < self.need { Err(Error::Truncated { have, need: self.need }) } else { Ok(()) }
    }
}

/// Sorts ranges by address and cuts off what an earlier one already covers.
fn disjoint(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.sort_by_key(|r| (r.start, std::cmp::Reverse(r.end)));
    let mut covered = 0u64;
    ranges.retain_mut(|r| {
        if r.start < covered {
            let cut = covered.min(r.end) - r.start;
            r.start += cut;
            r.offset = r.offset.saturating_add(cut);
        }
        covered = covered.max(r.end);
        r.start < r.end
    });
    ranges
}
