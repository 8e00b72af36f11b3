//! Kallsyms: the kernel's own symbol table, as it lies in memory.
//!
//! Names are compressed with 256 tokens (scripts/kallsyms.c): a length (one byte, or two when bit 7 is set), then that many
//! token numbers; the first decoded character is the symbol type. Addresses come in three encodings:
//!
//! * **relative**: unsigned 32-bit offsets from `kallsyms_relative_base`;
//! * **absolute per-CPU** (`CONFIG_KALLSYMS_ABSOLUTE_PERCPU`, x86-64 SMP): offsets ≥ 0 are absolute values, negative ones
//!   count back from the base: `base - 1 - offset`;
//! * **place-relative** (7.x; VMCOREINFO has no `kallsyms_relative_base`): signed distance from the entry itself.
//!
//! The tables are kept as they are. Names are decoded when asked for; the addresses are in rising order, as the kernel's own
//! binary search needs them to be, and a table that is not is refused.

use crate::bytes::{u16_at, u32_at};
use crate::error::{Fault, Limits};
use crate::memory::Memory;
use crate::names::NameIndex;

/// Names per entry of the position index.
const STEP: usize = 64;
/// The kernel's own bound for a symbol name is 512.
const MAX_NAME: usize = 512;

/// How addresses are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// Unsigned offset from a base.
    Relative,
    /// Absolute when positive, from a base when negative.
    AbsolutePercpu,
    /// Signed distance from the entry's own address.
    PlaceRelative,
}

/// The parts that are the same in every boot of one kernel, ready for use.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    names: Vec<u8>,
    offsets: Vec<u8>,
    tokens: Vec<Vec<u8>>,
    /// Position in `names` of every `STEP`th name.
    marks: Vec<u32>,
    index: NameIndex,
    count: u32,
    encoding: Encoding,
}

/// The symbol table of one dump: the table and where this boot put it.
pub struct Kallsyms {
    table: std::sync::Arc<Table>,
    /// Relative base, or the address of the offsets.
    base: u64,
}

/// Where the tables are in one dump.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    names: u64,
    offsets: u64,
    token_table: u64,
    token_index: u64,
    base: u64,
    count: u32,
    has_base: bool,
}

impl Place {
    pub(crate) fn find(memory: &Memory) -> Result<Self, Fault> {
        let info = memory.info();
        let symbol = |name| info.symbol(name).ok_or(Fault::NoSuch(name));
        let offsets = symbol("kallsyms_offsets")?;
        let relative = info.symbol("kallsyms_relative_base");
        Ok(Self {
            names: symbol("kallsyms_names")?,
            offsets,
            token_table: symbol("kallsyms_token_table")?,
            token_index: symbol("kallsyms_token_index")?,
            base: relative.map_or(Ok(offsets), |va| memory.u64(va))?,
            count: memory.u32(symbol("kallsyms_num_syms")?)?,
            has_base: relative.is_some(),
        })
    }
}

impl Table {
    pub(crate) fn load(memory: &Memory, place: &Place, limits: &Limits) -> Result<Self, Fault> {
        let bound = limits.table_bytes;
        let offsets = memory.read_table(place.offsets, u64::from(place.count) * 4, bound)?;
        // The names have no length of their own; some later table of the read-only data always follows.
        let after = [place.token_table, place.offsets, place.token_index];
        let end = after.into_iter().filter(|&a| a > place.names).min().unwrap_or(place.names + (8 << 20));
        let names = memory.read_table(place.names, end - place.names, bound)?;
        let tokens = tokens(memory, place)?;
        Self::new(names, offsets, tokens, place.count, place.has_base).ok_or(Fault::Damaged(place.names))
    }

    fn new(names: Vec<u8>, offsets: Vec<u8>, tokens: Vec<Vec<u8>>, count: u32, has_base: bool) -> Option<Self> {
        let negative = |o: &[u8; 4]| i32::from_le_bytes(*o) < 0;
        let encoding = match has_base {
            false => Encoding::PlaceRelative,
            true if offsets.as_chunks::<4>().0.iter().any(negative) => Encoding::AbsolutePercpu,
            true => Encoding::Relative,
        };
        let mut index = NameIndex::with_capacity(count as usize);
        let mut marks = Vec::with_capacity(count as usize / STEP + 1);
        let mut name = Vec::with_capacity(MAX_NAME);
        let mut at = 0usize;
        for i in 0..count {
            if (i as usize).is_multiple_of(STEP) {
                marks.push(u32::try_from(at).ok()?);
            }
            at = decode(&names, at, &tokens, &mut name)?;
            if name.len() > 1 {
                index.add(&name[1..], i);
            }
        }
        let mut names = names;
        names.truncate(at);
        names.shrink_to_fit();
        Some(Self { names, offsets, tokens, marks, index, count, encoding })
    }

    /// Decodes the name of one symbol, type letter first.
    fn name_into(&self, entry: u32, out: &mut Vec<u8>) -> Option<()> {
        let mut at = *self.marks.get(entry as usize / STEP)? as usize;
        for _ in 0..entry as usize % STEP {
            let (len, body) = length(&self.names, at)?;
            at = body + len;
        }
        decode(&self.names, at, &self.tokens, out).map(|_| ())
    }

    pub(crate) fn bytes(&self) -> usize {
        self.names.len() + self.offsets.len() + self.marks.len() * 4 + self.index.bytes()
    }

    /// Says whether a few places of the tables are the same in this dump; see `tables.rs`.
    pub(crate) fn agrees_with(&self, memory: &Memory, place: &Place) -> bool {
        self.count == place.count
            && place.has_base == (self.encoding != Encoding::PlaceRelative)
            && crate::tables::samples_agree(memory, place.names, &self.names)
            && crate::tables::samples_agree(memory, place.offsets, &self.offsets)
    }
}

fn length(names: &[u8], at: usize) -> Option<(usize, usize)> {
    let first = *names.get(at)? as usize;
    match first & 0x80 {
        0 => Some((first, at + 1)),
        _ => Some((first & 0x7f | (*names.get(at + 1)? as usize) << 7, at + 2)),
    }
}

/// Decodes the name at `at` and says where the next one starts.
fn decode(names: &[u8], at: usize, tokens: &[Vec<u8>], out: &mut Vec<u8>) -> Option<usize> {
    let (len, body) = length(names, at)?;
    out.clear();
    for &token in names.get(body..body + len)? {
        let text = tokens.get(token as usize)?;
        if out.len() + text.len() > MAX_NAME {
            return None;
        }
        out.extend_from_slice(text);
    }
    Some(body + len)
}

/// The 256 tokens; each is NUL-terminated in the table.
fn tokens(memory: &Memory, place: &Place) -> Result<Vec<Vec<u8>>, Fault> {
    let index = memory.read_table(place.token_index, 512, 512)?;
    let starts: Vec<usize> = (0..256).map(|i| u16_at(&index, 2 * i) as usize).collect();
    let most = starts.iter().max().copied().unwrap_or(0);
    let table = memory.read_table(place.token_table, most as u64 + 64, 1 << 17)?;
    let token = |&start: &usize| table[start..].iter().copied().take_while(|&b| b != 0).take(MAX_NAME).collect();
    Ok(starts.iter().map(token).collect())
}

impl Kallsyms {
    pub(crate) fn new(table: std::sync::Arc<Table>, place: &Place) -> Self {
        let base = if place.has_base { place.base } else { place.offsets };
        Self { table, base }
    }

    pub(crate) fn table(&self) -> std::sync::Arc<Table> {
        self.table.clone()
    }

    /// Number of symbols.
    pub fn len(&self) -> u32 {
        self.table.count
    }

    /// True when the kernel has no symbols at all.
    pub fn is_empty(&self) -> bool {
        self.table.count == 0
    }

    /// How this kernel stores addresses.
    pub fn encoding(&self) -> Encoding {
        self.table.encoding
    }

    fn address(&self, entry: u32) -> u64 {
        let raw = u32_at(&self.table.offsets, entry as usize * 4);
        let signed = i64::from(raw.cast_signed()).cast_unsigned();
        match self.table.encoding {
            Encoding::Relative => self.base.wrapping_add(u64::from(raw)),
            Encoding::AbsolutePercpu if raw.cast_signed() >= 0 => u64::from(raw),
            Encoding::AbsolutePercpu => self.base.wrapping_sub(1).wrapping_sub(signed),
            Encoding::PlaceRelative => self.base.wrapping_add(u64::from(entry) * 4).wrapping_add(signed),
        }
    }

    fn name(&self, entry: u32) -> Option<String> {
        let mut name = Vec::new();
        self.table.name_into(entry, &mut name)?;
        Some(String::from_utf8_lossy(name.get(1..)?).into_owned())
    }

    /// Address of a symbol.
    pub fn lookup(&self, name: &str) -> Option<u64> {
        let mut have = Vec::new();
        let same = |entry| self.table.name_into(entry, &mut have).is_some() && have.get(1..) == Some(name.as_bytes());
        self.table.index.find(name.as_bytes(), same).map(|entry| self.address(entry))
    }

    /// The symbol an address lies in: name and start. Of several names at one address, the first, as the kernel prints it.
    pub fn symbolise(&self, va: u64) -> Option<(String, u64)> {
        let start = self.address(self.partition_point(|a| a <= va).checked_sub(1)?);
        let entry = self.partition_point(|a| a < start);
        Some((self.name(entry)?, start))
    }

    /// Number of symbols before the first one whose address does not satisfy `before`.
    fn partition_point(&self, before: impl Fn(u64) -> bool) -> u32 {
        let (mut low, mut high) = (0u32, self.table.count);
        while low < high {
            let middle = low + (high - low) / 2;
            if before(self.address(middle)) { low = middle + 1 } else { high = middle }
        }
        low
    }

    /// All symbols in table order: address, type letter, name.
    pub fn iter(&self) -> impl Iterator<Item = (u64, char, String)> + '_ {
        let mut raw = Vec::new();
        let mut at = 0usize;
        (0..self.table.count).map_while(move |entry| {
            at = decode(&self.table.names, at, &self.table.tokens, &mut raw)?;
            let kind = raw.first().map_or('?', |&b| char::from(b));
            Some((self.address(entry), kind, String::from_utf8_lossy(raw.get(1..)?).into_owned()))
        })
    }
}
