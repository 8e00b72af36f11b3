//! Dump formats: from a file to physical pages and notes.
//!
//! Three containers carry the same thing. An **ELF** core (`/proc/vmcore`, QEMU, `makedumpfile -E`) maps physical ranges to
//! file ranges. A **KDUMP** file (`makedumpfile`, QEMU) has two bitmaps and one descriptor per kept page. A **flattened**
//! file (`makedumpfile -F`, QEMU `kdump-*`) is either of these as a list of writes in any order; [`flat::Flattened`] puts
//! an index over it and is itself a `ReadAt`, so nothing is copied.
//!
//! A page is present, zero, excluded (it existed, the filter dropped it) or absent (no memory there, or not in this dump).
//! These stay apart to the end: "excluded" tells a person to choose another dump level, "absent" points at a bad address.

mod decompress;
mod elf;
mod flat;
mod kdump;
mod notes;

use crate::error::{Error, Fault, Limits};
use crate::read_at::{ReadAt, read_full};
use serde::{Deserialize, Serialize};

pub use notes::Note;
pub(crate) use notes::{Prstatus, prstatus_in, prstatus_of};

/// Bytes of a page. x86-64 has no other base page size.
pub const PAGE: usize = 4096;

/// The container a dump came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// ELF64 core.
    Elf,
    /// ELF64 core as a flattened stream.
    FlattenedElf,
    /// KDUMP, the compressed format of `makedumpfile`.
    Kdump,
    /// KDUMP as a flattened stream.
    FlattenedKdump,
}

/// How many pages the dump has and has not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageCounts {
    /// Pages whose contents are in the dump.
    pub present: u64,
    /// Pages of RAM that were filtered out.
    pub excluded: u64,
}

/// What is known about one page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageState {
    /// Its contents are in the dump.
    Present,
    /// It is in the dump and was stored as "all zero".
    Zero,
}

/// An open dump: physical pages and notes.
pub struct Dump<'a> {
    format: Format,
    body: Body<'a>,
    notes: Vec<Note>,
    /// Where a flattened stream ends too early: bytes there, bytes needed.
    cut: Option<(u64, u64)>,
}

enum Body<'a> {
    Elf(elf::Elf<'a>),
    Kdump(Vec<kdump::Kdump<'a>>),
}

/// A flattened dump as the file that it stands for, for tools that cannot read streams; `None` for any other file.
///
/// Nothing is copied: the answer reads through an index. Stretches that nobody wrote read as zeros.
///
/// # Errors
/// [`Error::Truncated`] of a stream without its end, and [`Error::Corrupt`] of a broken one.
pub fn rearranged<'a>(src: &'a dyn ReadAt, limits: &Limits) -> Result<Option<impl ReadAt + 'a>, Error> {
    let mut magic = [0u8; 16];
    let got = read_full(src, 0, &mut magic)?;
    if !magic[..got].starts_with(flat::MAGIC) {
        return Ok(None);
    }
    let flat = flat::Flattened::open(Box::new(src), limits)?;
    match flat.cut() {
        Some((have, need)) => Err(Error::Truncated { have, need }),
        None => Ok(Some(flat)),
    }
}

impl<'a> Dump<'a> {
    /// Opens a dump that must be whole.
    ///
    /// # Errors
    /// See [`Error`]; a dump that ends too early is [`Error::Truncated`].
    pub fn open(src: &'a dyn ReadAt, limits: &Limits) -> Result<Self, Error> {
        let dump = Self::open_partial(src, limits)?;
        dump.check_complete()?;
        Ok(dump)
    }

    /// Opens a dump that may still be arriving: what is not there yet reads as damaged pages.
    ///
    /// # Errors
    /// When even the headers are missing or wrong.
    pub fn open_partial(src: &'a dyn ReadAt, limits: &Limits) -> Result<Self, Error> {
        let mut magic = [0u8; 16];
        let got = read_full(src, 0, &mut magic)?;
        if got < magic.len() {
            return Err(Error::NotADump);
        }
        if magic.starts_with(flat::MAGIC) {
            let flat = flat::Flattened::open(Box::new(src), limits)?;
            let got = read_full(&flat, 0, &mut magic)?;
            let cut = flat.cut();
            // Without even a header in it, that the stream is cut says more than that it is no dump.
            return match Self::open_plain(Box::new(flat), &magic[..got], true, limits) {
                Ok(dump) => Ok(Self { cut, ..dump }),
                Err(error) => Err(cut.map_or(error, |(have, need)| Error::Truncated { have, need })),
            };
        }
        Self::open_plain(Box::new(src), &magic, false, limits)
    }

    fn open_plain(src: Box<dyn ReadAt + 'a>, magic: &[u8], flat: bool, limits: &Limits) -> Result<Self, Error> {
        if magic.starts_with(b"\x7fELF") {
            let (elf, notes) = elf::Elf::open(src, limits)?;
            let format = if flat { Format::FlattenedElf } else { Format::Elf };
            Ok(Self { format, body: Body::Elf(elf), notes, cut: None })
        } else if magic.starts_with(kdump::MAGIC) {
            let (kdump, notes) = kdump::Kdump::open(src, limits)?;
            let format = if flat { Format::FlattenedKdump } else { Format::Kdump };
            Ok(Self { format, body: Body::Kdump(vec![kdump]), notes, cut: None })
        } else {
            Err(Error::NotADump)
        }
    }

    /// Opens the parts of a dump that `makedumpfile --split` wrote, in any order. [`Dump::elsewhere`] tells of those that are not
    /// among them.
    ///
    /// # Errors
    /// As [`Dump::open`], or when the parts are not parts of one dump.
    pub fn open_split(parts: &[&'a dyn ReadAt], limits: &Limits) -> Result<Self, Error> {
        const NOT_OF_ONE: Error = Error::Corrupt("the files are not parts of one split KDUMP dump");
        let mut all: Option<Self> = None;
        for part in parts {
            let mut next = Self::open(*part, limits)?;
            let Some(first) = &mut all else {
                all = Some(next);
                continue;
            };
            match (&mut first.body, &mut next.body) {
                (Body::Kdump(have), Body::Kdump(more)) if have[0].belongs_with(&more[0]) => have.append(more),
                _ => return Err(NOT_OF_ONE),
            }
            // Two crashes of one kernel differ in their time at least.
            if matches!((first.vmcoreinfo(), next.vmcoreinfo()), (Some(one), Some(other)) if one != other) {
                return Err(NOT_OF_ONE);
            }
            // Only one part carries the notes.
            if first.notes.is_empty() {
                first.notes = next.notes;
            }
        }
        all.ok_or(Error::NotADump)
    }

    /// Pages that belong to parts of a split dump that were not given.
    pub fn elsewhere(&self) -> u64 {
        let Body::Kdump(parts) = &self.body else { return 0 };
        let mut ranges: Vec<_> = parts.iter().map(kdump::Kdump::range).collect();
        ranges.sort_by_key(|range| range.start);
        let (mut covered, mut gaps) = (0, 0);
        for range in ranges.iter().filter(|range| !range.is_empty()) {
            gaps += range.start.saturating_sub(covered);
            covered = covered.max(range.end);
        }
        gaps + parts.iter().map(kdump::Kdump::max_pfn).max().unwrap_or(0).saturating_sub(covered)
    }

    /// The container.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The notes: name, type and contents.
    pub fn notes(&self) -> &[Note] {
        &self.notes
    }

    /// One more than the highest page number the dump can have.
    pub fn end_pfn(&self) -> u64 {
        match &self.body {
            Body::Elf(elf) => elf.end_pfn(),
            Body::Kdump(parts) => parts.iter().map(kdump::Kdump::end_pfn).max().unwrap_or(0),
        }
    }

    /// Text of the VMCOREINFO note.
    pub(crate) fn vmcoreinfo(&self) -> Option<&[u8]> {
        self.notes.iter().find(|n| n.name == "VMCOREINFO" && !n.desc.is_empty()).map(|n| n.desc.as_slice())
    }

    /// Reads one physical page.
    ///
    /// # Errors
    /// [`Fault::Excluded`], [`Fault::Absent`] or [`Fault::Damaged`].
    pub fn page(&self, pfn: u64, out: &mut [u8; PAGE]) -> Result<PageState, Fault> {
        match &self.body {
            Body::Elf(elf) => elf.page(pfn, out),
            Body::Kdump(parts) => {
                let part = parts.iter().find(|p| p.covers(pfn)).ok_or(Fault::Absent(pfn << 12))?;
                part.page(pfn, out)
            }
        }
    }

    /// Counts pages; costs a pass over the bitmaps of a KDUMP dump (32 KiB for each GiB of memory).
    pub fn page_counts(&self) -> PageCounts {
        match &self.body {
            Body::Elf(elf) => elf.page_counts(),
            Body::Kdump(parts) => parts.iter().fold(PageCounts::default(), |sum, part| {
                let counts = part.page_counts();
                PageCounts { present: sum.present + counts.present, excluded: sum.excluded.max(counts.excluded) }
            }),
        }
    }

    /// Says whether the file holds all that its headers promise.
    ///
    /// # Errors
    /// [`Error::Truncated`] or [`Error::Incomplete`].
    pub fn check_complete(&self) -> Result<(), Error> {
        if let Some((have, need)) = self.cut {
            return Err(Error::Truncated { have, need });
        }
        match &self.body {
            Body::Elf(elf) => elf.check_complete(),
            Body::Kdump(parts) => parts.iter().try_for_each(kdump::Kdump::check_complete),
        }
    }
}
