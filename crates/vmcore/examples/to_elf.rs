//! Rewrites any dump as a sparse ELF core that gdb, crash and drgn open: `to_elf DUMP OUT [EXTRA_GB]`.
//!
//! With EXTRA_GB the file also claims that much memory which is one hole on disk: how the engine is shown not to care about
//! the size of a dump.

use crashyard_vmcore::{Dump, Limits, PAGE};
use std::fs::File;
use std::os::unix::fs::FileExt as _;

const HEADERS: u64 = 1 << 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args_os().skip(1);
    let (Some(input), Some(output)) = (args.next(), args.next()) else {
        return Err("usage: to_elf DUMP OUT [EXTRA_GB]".into());
    };
    let extra: u64 = args.next().and_then(|gb| gb.into_string().ok()).map_or(Ok(0), |gb| gb.parse())?;
    let source = File::open(input)?;
    let dump = Dump::open(&source, &Limits::default())?;
    let out = File::create(output)?;

    let mut ranges: Vec<(u64, u64)> = Vec::new();
    let mut page = [0u8; PAGE];
    for pfn in 0..dump.end_pfn() {
        if dump.page(pfn, &mut page).is_ok() {
            out.write_all_at(&page, HEADERS + pfn * PAGE as u64)?;
            match ranges.last_mut() {
                Some((_, end)) if *end == pfn => *end += 1,
                _ => ranges.push((pfn, pfn + 1)),
            }
        }
    }
    if extra > 0 {
        let start = dump.end_pfn().max(1 << 20);
        ranges.push((start, start + (extra << 30) / PAGE as u64));
    }
    let mut notes = Vec::new();
    for note in dump.notes() {
        let name = format!("{}\0", note.name);
        notes.extend((name.len() as u32).to_le_bytes());
        notes.extend((note.desc.len() as u32).to_le_bytes());
        notes.extend(note.kind.to_le_bytes());
        for part in [name.as_bytes(), &note.desc] {
            notes.extend(part);
            notes.resize(notes.len().next_multiple_of(4), 0);
        }
    }
    // One program header more than the format can count in 16 bits would need PN_XNUM; merge instead of going there.
    let headers = ranges.len() as u64 + 1;
    let notes_at = 64 + 56 * headers;
    if headers > 0xfffe || notes_at + notes.len() as u64 > HEADERS {
        return Err("the dump has too many separate ranges for this example".into());
    }
    let mut head = b"\x7fELF\x02\x01\x01".to_vec();
    head.resize(16, 0);
    head.extend([4u16, 62].iter().flat_map(|v| v.to_le_bytes()));
    head.extend(1u32.to_le_bytes());
    head.extend([0u64, 64, 0].iter().flat_map(|v| v.to_le_bytes()));
    head.extend(0u32.to_le_bytes());
    head.extend([64u16, 56, headers as u16, 0, 0, 0].iter().flat_map(|v| v.to_le_bytes()));
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
