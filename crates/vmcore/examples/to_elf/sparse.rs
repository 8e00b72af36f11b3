//! Writes the memory of any dump as an ELF core, with holes where there is nothing.

use crashyard_vmcore::{Dump, Limits, PAGE};
use std::error::Error;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// Where pages begin; headers and notes lie before.
const HEADERS: u64 = 1 << 20;

/// Rewrites `input` as `output`, which also claims `extra_gb` of memory that is one hole on disk.
pub fn write(input: &Path, output: &Path, extra_gb: u64) -> Result<(), Box<dyn Error>> {
    let source = File::open(input)?;
    let dump = Dump::open(&source, &Limits::default())?;
    let out = File::create(output)?;
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    let mut page = [0u8; PAGE];
    for pfn in 0..dump.end_pfn() {
        if dump.page(pfn, &mut page).is_ok() {
            // A page of zeroes is a hole as well.
            if page.iter().any(|byte| *byte != 0) {
                out.write_all_at(&page, HEADERS + pfn * PAGE as u64)?;
            }
            match ranges.last_mut() {
                Some((_, end)) if *end == pfn => *end += 1,
                _ => ranges.push((pfn, pfn + 1)),
            }
        }
    }
    if extra_gb > 0 {
        let start = dump.end_pfn().max(1 << 20);
        ranges.push((start, start + (extra_gb << 30) / PAGE as u64));
    }
    let notes = notes(&dump);
    // One program header more than the format can count in 16 bits would need PN_XNUM; this does not go there.
    let headers = ranges.len() as u64 + 1;
    let notes_at = 64 + 56 * headers;
    if headers > 0xfffe || notes_at + notes.len() as u64 > HEADERS {
        return Err("the dump has too many separate ranges to be written so".into());
    }
    let mut head = b"\x7fELF\x02\x01\x01".to_vec();
    head.resize(16, 0);
    head.extend([4u16, 62].iter().flat_map(|v| v.to_le_bytes()));
    head.extend(1u32.to_le_bytes());
    head.extend([0u64, 64, 0].iter().flat_map(|v| v.to_le_bytes()));
    head.extend(0u32.to_le_bytes());
    let count = u16::try_from(headers)?;
    head.extend([64u16, 56, count, 0, 0, 0].iter().flat_map(|v| v.to_le_bytes()));
    let mut phdr = |kind: u32, offset: u64, start: u64, len: u64| {
        head.extend(kind.to_le_bytes());
        head.extend(0u32.to_le_bytes());
        head.extend([offset, 0, start, len, len, 0].iter().flat_map(|v| v.to_le_bytes()));
    };
    phdr(4, notes_at, 0, notes.len() as u64);
    let mut size = HEADERS;
    for (start, end) in ranges {
        let (from, to) = (start * PAGE as u64, end * PAGE as u64);
        phdr(1, HEADERS + from, from, to - from);
        size = HEADERS + to;
    }
    head.extend(notes);
    out.write_all_at(&head, 0)?;
    out.set_len(size)?;
    Ok(())
}

/// The notes of a dump as an ELF file has them.
fn notes(dump: &Dump) -> Vec<u8> {
    let mut notes = Vec::new();
    for note in dump.notes() {
        let name = format!("{}\0", note.name);
        for number in [name.len(), note.desc.len()] {
            notes.extend(u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes());
        }
        notes.extend(note.kind.to_le_bytes());
        for part in [name.as_bytes(), &note.desc] {
            notes.extend(part);
            notes.resize(notes.len().next_multiple_of(4), 0);
        }
    }
    notes
}
