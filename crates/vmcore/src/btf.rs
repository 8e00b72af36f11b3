//! BTF: the types of the kernel and of its modules (Documentation/bpf/btf.rst).
//!
//! A type section is a list of records, a string section holds the names. Modules carry *split* BTF: their type ids and
//! string offsets continue those of the kernel. The bytes are kept as they are; an index holds the position of each type, and
//! a hash index finds structs, unions, enums and typedefs by name.

use crate::bytes::{u16_at, u32_at};
use crate::names::NameIndex;
use std::sync::Arc;

const MAGIC: u16 = 0xeb9f;
/// How many typedefs, qualifiers and arrays a chain may have before it is taken for a loop.
const MAX_CHAIN: usize = 32;

/// Number of a type; 0 is `void`.
pub type TypeId = u32;

/// What a type is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `void`, or an id that does not exist.
    Void,
    /// An integer.
    Int,
    /// A pointer.
    Pointer,
    /// An array.
    Array,
    /// A struct.
    Struct,
    /// A union.
    Union,
    /// An enum of 32 or fewer bits.
    Enum,
    /// An enum of 64 bits.
    Enum64,
    /// A typedef or a qualifier.
    Alias,
    /// A variable of a data section.
    Variable,
    /// Floating point.
    Float,
    /// Anything else (functions, prototypes, forward declarations, data sections).
    Other,
}

/// A member of a struct or union.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Bits from the start of the outermost struct asked about.
    pub bit_offset: u64,
    /// Its width in bits when it is a bit field.
    pub bits: Option<u32>,
    /// Its type.
    pub ty: TypeId,
}

/// Types of the kernel, or of one module on top of the kernel's.
#[derive(Debug)]
pub struct Btf {
    base: Option<Arc<Btf>>,
    data: Vec<u8>,
    strings: std::ops::Range<usize>,
    /// Position of each type record, from `first_id` on.
    types: Vec<u32>,
    first_id: u32,
    first_string: u32,
    index: NameIndex,
}

/// The fixed part of a type record.
#[derive(Clone, Copy)]
struct Record {
    name: u32,
    kind: u32,
    flag: bool,
    len: usize,
    /// Size in bytes, or the id of another type.
    size: u32,
    /// Position of what follows the fixed part.
    more: usize,
}

impl Btf {
    /// Parses BTF; with `base`, as split BTF on top of it. `None` when the bytes are no BTF.
    pub fn parse(data: Vec<u8>, base: Option<Arc<Btf>>) -> Option<Self> {
        if u16_at(&data, 0) != MAGIC || data.get(2) != Some(&1) {
            return None;
        }
        let header = u32_at(&data, 4) as usize;
        let section = |at: usize| {
            let start = header.checked_add(u32_at(&data, at) as usize)?;
            let end = start.checked_add(u32_at(&data, at + 4) as usize)?;
            (header >= 24 && end <= data.len()).then_some(start..end)
        };
        let (records, strings) = (section(8)?, section(16)?);
        let first_id = base.as_ref().map_or(1, |b| b.first_id + b.types.len() as u32);
        let first_string = base.as_ref().map_or(0, |b| b.first_string + b.strings.len() as u32);
        let mut types = Vec::with_capacity(records.len() / 32);
        let mut at = records.start;
        while at + 12 <= records.end {
            let record = record_at(&data, at);
            let next = record.more.checked_add(trailing(record.kind, record.len)?)?;
            if next > records.end {
                return None;
            }
            types.push(u32::try_from(at).ok()?);
            at = next;
        }
        let mut btf = Self { base, data, strings, types, first_id, first_string, index: NameIndex::default() };
        btf.index = btf.index_names();
        btf.data.shrink_to_fit();
        Some(btf)
    }

    fn index_names(&self) -> NameIndex {
        let named = |r: &Record| r.name != 0 && matches!(r.kind, 4 | 5 | 6 | 8 | 14 | 19);
        let count = self.types.iter().filter(|&&at| named(&record_at(&self.data, at as usize))).count();
        let mut index = NameIndex::with_capacity(count);
        for (i, &at) in self.types.iter().enumerate() {
            let record = record_at(&self.data, at as usize);
            if named(&record) {
                index.add(self.string(record.name), self.first_id + i as u32);
            }
        }
        index
    }

    /// Number of types, those of the base included.
    pub fn len(&self) -> u32 {
        self.first_id + self.types.len() as u32
    }

    /// True when there is no type but `void`.
    pub fn is_empty(&self) -> bool {
        self.len() <= 1
    }

    pub(crate) fn bytes(&self) -> usize {
        self.data.len() + self.types.len() * 4 + self.index.bytes()
    }

    pub(crate) fn raw(&self) -> &[u8] {
        &self.data
    }

    fn string(&self, offset: u32) -> &[u8] {
        let Some(own) = offset.checked_sub(self.first_string) else {
            return self.base.as_ref().map_or(&[], |b| b.string(offset));
        };
        let section = &self.data[self.strings.clone()];
        let tail = section.get(own as usize..).unwrap_or_default();
        // A name longer than this is no C identifier; it also keeps a string section without NULs from costing much.
        let tail = &tail[..tail.len().min(512)];
        &tail[..tail.iter().position(|&b| b == 0).unwrap_or(0)]
    }

    fn record(&self, id: TypeId) -> Option<(&Btf, Record)> {
        match id.checked_sub(self.first_id) {
            Some(own) => Some((self, record_at(&self.data, *self.types.get(own as usize)? as usize))),
            None => self.base.as_ref()?.record(id),
        }
    }

    /// Finds a type by name: `find(Kind::Struct, "task_struct")`.
    pub fn find(&self, kind: Kind, name: &str) -> Option<TypeId> {
        let own = self.index.find(name.as_bytes(), |id| {
            let of_kind = || self.kind(id) == kind;
            self.record(id).is_some_and(|(btf, r)| btf.string(r.name) == name.as_bytes() && of_kind())
        });
        own.or_else(|| self.base.as_ref()?.find(kind, name))
    }

    /// Finds a struct or union by name.
    pub fn composite(&self, name: &str) -> Option<TypeId> {
        self.find(Kind::Struct, name).or_else(|| self.find(Kind::Union, name))
    }

    /// The name of a type; empty when it has none.
    pub fn name(&self, id: TypeId) -> String {
        self.record(id).map_or_else(String::new, |(b, r)| String::from_utf8_lossy(b.string(r.name)).into_owned())
    }

    /// What a type is.
    pub fn kind(&self, id: TypeId) -> Kind {
        match self.record(id).map_or(0, |(_, r)| r.kind) {
            0 => Kind::Void,
            1 => Kind::Int,
            2 => Kind::Pointer,
            3 => Kind::Array,
            4 => Kind::Struct,
            5 => Kind::Union,
            6 => Kind::Enum,
            8..=11 | 18 => Kind::Alias,
            14 => Kind::Variable,
            16 => Kind::Float,
            19 => Kind::Enum64,
            _ => Kind::Other,
        }
    }

    /// Follows typedefs and qualifiers to what they stand for.
    pub fn strip(&self, mut id: TypeId) -> TypeId {
        for _ in 0..MAX_CHAIN {
            match self.record(id) {
                Some((_, r)) if matches!(r.kind, 8..=11 | 18) => id = r.size,
                _ => return id,
            }
        }
        0
    }

    /// What a pointer points to, or an array is of.
    pub fn target(&self, id: TypeId) -> Option<TypeId> {
        let (btf, record) = self.record(self.strip(id))?;
        match record.kind {
            2 => Some(record.size),
            3 => Some(u32_at(&btf.data, record.more)),
            _ => None,
        }
    }

    /// Elements of an array.
    pub fn array_len(&self, id: TypeId) -> Option<u32> {
        let (btf, record) = self.record(self.strip(id))?;
        (record.kind == 3).then(|| u32_at(&btf.data, record.more + 8))
    }

    /// Size in bytes.
    pub fn size(&self, id: TypeId) -> Option<u64> {
        let mut id = self.strip(id);
        let mut times = 1u64;
        for _ in 0..MAX_CHAIN {
            let (btf, record) = self.record(id)?;
            match record.kind {
                1 | 4 | 5 | 6 | 16 | 19 => return times.checked_mul(u64::from(record.size)),
                2 => return times.checked_mul(8),
                3 => {
                    times = times.checked_mul(u64::from(u32_at(&btf.data, record.more + 8)))?;
                    id = self.strip(u32_at(&btf.data, record.more));
                }
                _ => return None,
            }
        }
        None
    }

    /// True for integers with a sign.
    pub fn is_signed(&self, id: TypeId) -> bool {
        self.record(self.strip(id)).is_some_and(|(btf, r)| match r.kind {
            1 => u32_at(&btf.data, r.more) >> 24 & 1 == 1,
            6 | 19 => r.flag,
            _ => false,
        })
    }

    /// Members of a struct or union in order, anonymous ones with an empty name.
    pub fn members(&self, id: TypeId) -> Vec<(String, Member)> {
        let Some((btf, record)) = self.record(self.strip(id)).filter(|(_, r)| matches!(r.kind, 4 | 5)) else {
            return Vec::new();
        };
        let name = |i| String::from_utf8_lossy(btf.string(u32_at(&btf.data, record.more + 12 * i))).into_owned();
        (0..record.len).map(|i| (name(i), btf.member_at(&record, i))).collect()
    }

    fn member_at(&self, record: &Record, i: usize) -> Member {
        let at = record.more + 12 * i;
        let (ty, offset) = (u32_at(&self.data, at + 4), u32_at(&self.data, at + 8));
        match record.flag {
            true => {
                Member { bit_offset: u64::from(offset & 0x00ff_ffff), bits: Some(offset >> 24).filter(|&b| b != 0), ty }
            }
            false => Member { bit_offset: u64::from(offset), bits: None, ty },
        }
    }

    /// Finds a member by name, inside anonymous structs and unions too.
    pub fn member(&self, id: TypeId, name: &str) -> Option<Member> {
        self.member_in(id, name.as_bytes(), 0, &mut (1 << 17))
    }

    fn member_in(&self, id: TypeId, name: &[u8], depth: usize, budget: &mut u32) -> Option<Member> {
        let (btf, record) = self.record(self.strip(id)).filter(|(_, r)| matches!(r.kind, 4 | 5))?;
        // Structs may nest without end and have 65,535 members each, if the bytes are hostile.
        *budget = budget.checked_sub(record.len as u32 + 1).filter(|_| depth <= 8)?;
        let name_of = |i: usize| btf.string(u32_at(&btf.data, record.more + 12 * i));
        if let Some(i) = (0..record.len).find(|&i| name_of(i) == name) {
            return Some(btf.member_at(&record, i));
        }
        for i in (0..record.len).filter(|&i| name_of(i).is_empty()) {
            let outer = btf.member_at(&record, i);
            if let Some(inner) = self.member_in(outer.ty, name, depth + 1, budget) {
                return Some(Member { bit_offset: outer.bit_offset + inner.bit_offset, ..inner });
            }
        }
        None
    }

    /// Follows a path of members: `path(task, "thread.sp")`. `None` at the first name that does not exist.
    pub fn path(&self, id: TypeId, path: &str) -> Option<Member> {
        let mut at = Member { bit_offset: 0, bits: None, ty: id };
        for name in path.split('.') {
            let next = self.member(at.ty, name)?;
            at = Member { bit_offset: at.bit_offset + next.bit_offset, ..next };
        }
        Some(at)
    }

    /// Names and values of an enum.
    pub fn enumerators(&self, id: TypeId) -> Vec<(String, i64)> {
        let Some((btf, r)) = self.record(self.strip(id)) else { return Vec::new() };
        let name = |at| String::from_utf8_lossy(btf.string(u32_at(&btf.data, at))).into_owned();
        let word = |at| u32_at(&btf.data, at);
        match r.kind {
            6 => {
                (0..r.len).map(|i| r.more + 8 * i).map(|at| (name(at), i64::from(word(at + 4).cast_signed()))).collect()
            }
            19 => (0..r.len)
                .map(|i| r.more + 12 * i)
                .map(|at| (name(at), (u64::from(word(at + 4)) | u64::from(word(at + 8)) << 32).cast_signed()))
                .collect(),
            _ => Vec::new(),
        }
    }

    /// The type of a variable that BTF knows (in most kernels: per-CPU variables).
    pub fn variable(&self, name: &str) -> Option<TypeId> {
        let (_, record) = self.record(self.find(Kind::Variable, name)?)?;
        Some(record.size)
    }
}

fn record_at(data: &[u8], at: usize) -> Record {
    let info = u32_at(data, at + 4);
    Record {
        name: u32_at(data, at),
        kind: (info >> 24) & 31,
        flag: info >> 31 == 1,
        len: (info & 0xffff) as usize,
        size: u32_at(data, at + 8),
        more: at + 12,
    }
}

/// Bytes after the fixed part of a record; `None` for a kind this does not know, whose length is therefore unknown.
fn trailing(kind: u32, len: usize) -> Option<usize> {
    Some(match kind {
        2 | 7..=12 | 16 | 18 => 0,
        1 | 14 | 17 => 4,
        3 => 12,
        4 | 5 | 15 | 19 => 12 * len,
        6 | 13 => 8 * len,
        _ => return None,
    })
}
