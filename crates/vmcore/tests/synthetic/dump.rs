//! Writes dumps in every container: ELF, KDUMP with each kind of page, and both flattened.

use std::collections::{BTreeMap, BTreeSet};

pub const PAGE: usize = 4096;
pub type Pages = BTreeMap<u64, Box<[u8; PAGE]>>;

/// What a dump is made of.
#[derive(Clone)]
pub struct Contents {
    pub pages: Pages,
    /// Pages that exist but are filtered out.
    pub excluded: BTreeSet<u64>,
    /// (name, type, contents)
    pub notes: Vec<(String, u32, Vec<u8>)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    Raw,
    Zlib,
    Lzo,
    Snappy,
    Zstd,
}

pub const PACKINGS: [Packing; 5] = [Packing::Raw, Packing::Zlib, Packing::Lzo, Packing::Snappy, Packing::Zstd];

pub fn notes(contents: &Contents) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, kind, desc) in &contents.notes {
        let name = format!("{name}\0");
        out.extend((name.len() as u32).to_le_bytes());
        out.extend((desc.len() as u32).to_le_bytes());
        out.extend(kind.to_le_bytes());
        for part in [name.as_bytes(), desc] {
            out.extend(part);
            out.resize(out.len().next_multiple_of(4), 0);
        }
    }
    out
}

/// An ELF core; with `many`, the number of headers is in section header 0 as for more than 65,534 of them.
pub fn elf(contents: &Contents, many: bool) -> Vec<u8> {
    let notes = notes(contents);
    let mut ranges: Vec<(u64, u64, bool)> = Vec::new();
    let all = contents.pages.keys().map(|&p| (p, true)).chain(contents.excluded.iter().map(|&p| (p, false)));
    for (pfn, here) in all.collect::<BTreeSet<_>>() {
        match ranges.last_mut() {
            Some((_, end, same)) if *end == pfn && *same == here => *end += 1,
            _ => ranges.push((pfn, pfn + 1, here)),
        }
    }
    let count = ranges.len() + 1;
    let table = 64 + if many { 64 } else { 0 };
    let notes_at = table + 56 * count;
    let mut data_at = (notes_at + notes.len()).next_multiple_of(PAGE);
    let mut out = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    out.extend([4u16, 62].iter().flat_map(|v| v.to_le_bytes()));
    out.extend(1u32.to_le_bytes());
    out.extend([0u64, table as u64, if many { 64 } else { 0 }].iter().flat_map(|v| v.to_le_bytes()));
    out.extend(0u32.to_le_bytes());
    let stored = if many { 0xffff } else { count as u16 };
    out.extend([64u16, 56, stored, 64, u16::from(many), 0].iter().flat_map(|v| v.to_le_bytes()));
    if many {
        let mut section = [0u8; 64];
        section[44..48].copy_from_slice(&(count as u32).to_le_bytes());
        out.extend(section);
    }
    let mut phdr = |kind: u32, offset: usize, start: u64, file: u64, memory: u64| {
        out.extend(kind.to_le_bytes());
        out.extend(0u32.to_le_bytes());
        out.extend([offset as u64, 0, start, file, memory, 0].iter().flat_map(|v| v.to_le_bytes()));
    };
    phdr(4, notes_at, 0, notes.len() as u64, notes.len() as u64);
    for &(start, end, here) in &ranges {
        let len = (end - start) * PAGE as u64;
        phdr(1, data_at, start * PAGE as u64, if here { len } else { 0 }, len);
        data_at += if here { len as usize } else { 0 };
    }
    out.extend(&notes);
    out.resize(out.len().next_multiple_of(PAGE), 0);
    for page in contents.pages.values() {
        out.extend(page.iter());
    }
    out
}

fn pack(page: &[u8; PAGE], packing: Packing) -> (u32, Vec<u8>) {
    match packing {
        Packing::Raw => (0, page.to_vec()),
        Packing::Zlib => {
            let mut z = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
            std::io::Write::write_all(&mut z, page).unwrap();
            (1, z.finish().unwrap())
        }
        // One literal run of 4096 = 3 + 15 + 15 * 255 + 253 bytes, and the end mark.
        Packing::Lzo => (2, [&[0; 16][..], &[253], page, &[17, 0, 0]].concat()),
        Packing::Snappy => (4, snap::raw::Encoder::new().compress_vec(page).unwrap()),
        Packing::Zstd => (0x20, zstd::bulk::compress(page, 1).unwrap()),
    }
}

/// A KDUMP file; `part` restricts it to a range of pages, as `--split` does.
#[expect(clippy::needless_pass_by_value, reason = "ranges are written in place by the tests")]
pub fn kdump(contents: &Contents, packing: Packing, part: Option<std::ops::Range<u64>>) -> Vec<u8> {
    let last = contents.pages.keys().chain(&contents.excluded).max().copied().unwrap_or(0);
    let max_pfn = last + 1;
    let half = (max_pfn.div_ceil(8) as usize).next_multiple_of(PAGE);
    let sub_blocks = 1 + (128 + notes(contents).len() + vmcoreinfo(contents).len()).div_ceil(PAGE);
    let mut out = vec![0u8; PAGE * (1 + sub_blocks)];
    out[..8].copy_from_slice(b"KDUMP   ");
    out[8..12].copy_from_slice(&6u32.to_le_bytes());
    out[12 + 4 * 65..12 + 4 * 65 + 6].copy_from_slice(b"x86_64");
    let header = [0u32, PAGE as u32, sub_blocks as u32, (2 * half / PAGE) as u32, max_pfn as u32];
    for (i, v) in header.iter().enumerate() {
        out[424 + 4 * i..428 + 4 * i].copy_from_slice(&v.to_le_bytes());
    }
    let mut put = |at: usize, v: u64| out[PAGE + at..PAGE + at + 8].copy_from_slice(&v.to_le_bytes());
    let (info, all_notes) = (vmcoreinfo(contents), notes(contents));
    let info_at = PAGE + 128;
    for (at, v) in [(32, info_at), (40, info.len()), (48, info_at + info.len()), (56, all_notes.len())] {
        put(at, v as u64);
    }
    put(96, max_pfn);
    if let Some(part) = &part {
        put(8, 1 << 32);
        put(80, part.start);
        put(88, part.end);
    }
    out[info_at..info_at + info.len()].copy_from_slice(&info);
    out[info_at + info.len()..info_at + info.len() + all_notes.len()].copy_from_slice(&all_notes);
    let (mut one, mut two) = (vec![0u8; half], vec![0u8; half]);
    for pfn in contents.pages.keys() {
        two[*pfn as usize / 8] |= 1 << (pfn % 8);
    }
    for pfn in contents.pages.keys().chain(&contents.excluded) {
        one[*pfn as usize / 8] |= 1 << (pfn % 8);
    }
    out.extend(one);
    out.extend(two);
    let mine: Vec<_> = contents.pages.iter().filter(|(p, _)| part.as_ref().is_none_or(|r| r.contains(p))).collect();
    let zeros_at = out.len() + 24 * mine.len();
    // The writer puts one page of zeros first and lets every zero page point to it.
    let mut data = pack(&[0; PAGE], packing).1;
    let zero_len = data.len();
    for (_, page) in mine {
        let zero = page.iter().all(|&b| b == 0);
        let (flags, packed) = pack(page, packing);
        let at = if zero { zeros_at } else { zeros_at + data.len() };
        out.extend((at as u64).to_le_bytes());
        out.extend((if zero { zero_len } else { packed.len() } as u32).to_le_bytes());
        out.extend(flags.to_le_bytes());
        out.extend(0u64.to_le_bytes());
        if !zero {
            data.extend(packed);
        }
    }
    out.extend(data);
    out
}

fn vmcoreinfo(contents: &Contents) -> Vec<u8> {
    contents.notes.iter().find(|n| n.0 == "VMCOREINFO").map(|n| n.2.clone()).unwrap_or_default()
}

/// Flattens a dump: pieces out of order, and one piece written twice, first wrongly.
pub fn flatten(dump: &[u8]) -> Vec<u8> {
    let mut out = b"makedumpfile\0\0\0\0".to_vec();
    out.extend([1u64, 1].iter().flat_map(|v| v.to_be_bytes()));
    out.resize(PAGE, 0);
    let mut record = |at: usize, data: &[u8]| {
        out.extend((at as u64).to_be_bytes());
        out.extend((data.len() as u64).to_be_bytes());
        out.extend(data);
    };
    record(100, &vec![0xaa; dump.len().min(20_000) - 100]);
    let pieces: Vec<_> = dump.chunks(10_007).enumerate().collect();
    for (i, piece) in pieces.iter().rev() {
        record(i * 10_007, piece);
    }
    out.extend([u64::MAX; 2].iter().flat_map(|v| v.to_be_bytes()));
    out
}

/// A flattened dump as `makedumpfile -F` sends it: from the start to the end.
pub fn stream(dump: &[u8]) -> Vec<u8> {
    let mut out = b"makedumpfile\0\0\0\0".to_vec();
    out.extend([1u64, 1].iter().flat_map(|v| v.to_be_bytes()));
    out.resize(PAGE, 0);
    for (i, piece) in dump.chunks(10_007).enumerate() {
        out.extend(((i * 10_007) as u64).to_be_bytes());
        out.extend((piece.len() as u64).to_be_bytes());
        out.extend(piece);
    }
    out.extend([u64::MAX; 2].iter().flat_map(|v| v.to_be_bytes()));
    out
}
