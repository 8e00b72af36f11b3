//! ORC: for every instruction of the kernel, where the previous frame is (Documentation/arch/x86/orc-unwinder.rst).
//!
//! Two sorted arrays: 4-byte distances to instructions, and 6-byte entries. They are searched where they lie in the dump, so
//! a dump whose stacks touch few functions reads few of their pages.
//!
//! The layout changed with time. Where the bit fields are, BTF says (`type` and `end` before 6.4, `type` and `signal` since).
//! What the register numbers mean, nothing says: 7.x renumbered them. But nearly every entry computes its frame from the
//! stack pointer, so the most common number *is* the stack pointer.

use crate::btf::Btf;
use crate::bytes::u64_at;
use crate::error::Fault;
use crate::memory::Memory;

/// One ORC table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub ips: u64,
    pub entries: u64,
    pub count: u32,
}

const ENTRY: u64 = 6;

/// What an entry computes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reg {
    Undefined,
    PrevSp,
    Ax,
    Dx,
    Di,
    Bp,
    Sp,
    R10,
    R13,
    BpIndirect,
    SpIndirect,
}

/// What kind of frame it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FrameKind {
    Undefined,
    End,
    Call,
    Regs,
    PartialRegs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub sp_offset: i64,
    pub bp_offset: i64,
    pub sp: Reg,
    pub bp: Reg,
    pub kind: FrameKind,
    /// The frame was interrupted: its return address is the instruction itself, not the one after a call.
    pub signal: bool,
}

impl Entry {
    /// What the kernel assumes for code without ORC: a frame pointer.
    pub(crate) const FRAME_POINTER: Self =
        Self { sp_offset: 16, bp_offset: -16, sp: Reg::Bp, bp: Reg::PrevSp, kind: FrameKind::Call, signal: false };
    /// A call of address 0 has only pushed its return address.
    pub(crate) const NULL_CALL: Self =
        Self { sp_offset: 8, bp_offset: 0, sp: Reg::Sp, bp: Reg::Undefined, kind: FrameKind::Call, signal: false };
}

use Reg::{Ax, Bp, BpIndirect, Di, Dx, PrevSp, R10, R13, Sp, SpIndirect, Undefined};
const OLD: [Reg; 10] = [Undefined, PrevSp, Dx, Di, Bp, Sp, R10, R13, BpIndirect, SpIndirect];
const NEW: [Reg; 11] = [Undefined, Ax, Dx, Sp, Bp, Di, R10, R13, PrevSp, SpIndirect, BpIndirect];

/// Where a bit field of `struct orc_entry` is.
#[derive(Debug, Clone, Copy)]
struct Bits {
    at: u32,
    len: u32,
}

/// How to read the entries of one kernel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    sp_reg: Bits,
    bp_reg: Bits,
    kind: Bits,
    signal: Option<Bits>,
    end: Option<Bits>,
    renumbered: bool,
}

impl Layout {
    /// Finds out the layout; `place` is the kernel's own table. `modern` says whether the kernel has an `orc_header`, which
    /// decides when there is no BTF.
    pub(crate) fn detect(memory: &Memory, btf: Option<&Btf>, place: &Place, modern: bool) -> Self {
        let ty = btf.and_then(|b| b.composite("orc_entry"));
        let field = |name| {
            let member = btf?.member(ty?, name)?;
            Some(Bits { at: u32::try_from(member.bit_offset).ok()?, len: member.bits.unwrap_or(16).min(16) })
        };
        let guess = |at, len| Bits { at, len };
        let (signal, end) = match (ty, modern) {
            (Some(_), _) => (field("signal"), field("end")),
            (None, true) => (Some(guess(43, 1)), None),
            (None, false) => (None, Some(guess(42, 1))),
        };
        let mut layout = Self {
            sp_reg: field("sp_reg").unwrap_or(guess(32, 4)),
            bp_reg: field("bp_reg").unwrap_or(guess(36, 4)),
            kind: field("type").unwrap_or(guess(40, if end.is_none() { 3 } else { 2 })),
            signal,
            end,
            renumbered: false,
        };
        layout.renumbered = layout.is_renumbered(memory, place);
        layout
    }

    fn is_renumbered(&self, memory: &Memory, place: &Place) -> bool {
        let (mut old, mut new) = (0, 0);
        // Eight runs spread over the table: few pages, many functions.
        for run in 0..8u32 {
            for i in 0..64u32 {
                let index = (u64::from(place.count) * u64::from(run) / 8) as u32 + i;
                let mut raw = [0u8; 8];
                let at = place.entries.wrapping_add(u64::from(index) * ENTRY);
                if index >= place.count || memory.read(at, &mut raw[..ENTRY as usize]).is_err() {
                    continue;
                }
                match self.sp_reg.of(u64_at(&raw, 0)) {
                    5 => old += 1,
                    3 => new += 1,
                    _ => {}
                }
            }
        }
        new > old
    }

    fn decode(&self, raw: u64) -> Entry {
        let reg = |bits: Bits| {
            let number = bits.of(raw) as usize;
            let known = if self.renumbered { NEW.get(number) } else { OLD.get(number) };
            known.copied().unwrap_or(Undefined)
        };
        let flag = |bits: Option<Bits>| bits.map(|b| b.of(raw) != 0);
        let sp = reg(self.sp_reg);
        let number = self.kind.of(raw);
        let kind = match self.end {
            // Before 6.4 an undefined stack pointer means "unknown" or, with the end flag, "outermost frame".
            Some(_) => match number {
                _ if sp == Undefined && flag(self.end) == Some(true) => FrameKind::End,
                _ if sp == Undefined => FrameKind::Undefined,
                0 => FrameKind::Call,
                1 => FrameKind::Regs,
                2 => FrameKind::PartialRegs,
                _ => FrameKind::Undefined,
            },
            None => match number {
                1 => FrameKind::End,
                2 => FrameKind::Call,
                3 => FrameKind::Regs,
                4 => FrameKind::PartialRegs,
                _ => FrameKind::Undefined,
            },
        };
        let signal = flag(self.signal).unwrap_or(matches!(kind, FrameKind::Regs | FrameKind::PartialRegs));
        let offset = |at: u32| i64::from(((raw >> at) as u16).cast_signed());
        Entry { sp_offset: offset(0), bp_offset: offset(16), sp, bp: reg(self.bp_reg), kind, signal }
    }
}

impl Bits {
    fn of(self, raw: u64) -> u64 {
        (raw >> self.at.min(63)) & ((1 << self.len) - 1)
    }
}

/// Finds the entry for an instruction: the last one that starts at or before it.
pub(crate) fn find(memory: &Memory, layout: &Layout, place: &Place, ip: u64) -> Result<Option<Entry>, Fault> {
    let at = |i: u32| place.ips.wrapping_add(u64::from(i) * 4);
    let (mut low, mut high) = (0u32, place.count);
    while low < high {
        let middle = low + (high - low) / 2;
        let distance = i64::from(memory.u32(at(middle))?.cast_signed()).cast_unsigned();
        if at(middle).wrapping_add(distance) <= ip { low = middle + 1 } else { high = middle }
    }
    let Some(index) = low.checked_sub(1) else { return Ok(None) };
    let mut raw = [0u8; 8];
    memory.read(place.entries.wrapping_add(u64::from(index) * ENTRY), &mut raw[..ENTRY as usize])?;
    Ok(Some(layout.decode(u64_at(&raw, 0))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(renumbered: bool, end: bool) -> Layout {
        let bits = |at, len| Bits { at, len };
        Layout {
            sp_reg: bits(32, 4),
            bp_reg: bits(36, 4),
            kind: bits(40, if end { 2 } else { 3 }),
            signal: (!end).then_some(bits(43, 1)),
            end: end.then_some(bits(42, 1)),
            renumbered,
        }
    }

    fn raw(sp_offset: i16, bp_offset: i16, sp: u64, bp: u64, kind: u64) -> u64 {
        u64::from(sp_offset.cast_unsigned())
            | u64::from(bp_offset.cast_unsigned()) << 16
            | sp << 32
            | bp << 36
            | kind << 40
    }

    #[test]
    fn an_ordinary_call_frame_reads_the_same_in_every_layout() {
        let want = Entry { sp_offset: 40, bp_offset: -16, sp: Sp, bp: PrevSp, kind: FrameKind::Call, signal: false };
        assert_eq!(layout(false, true).decode(raw(40, -16, 5, 1, 0)), want);
        assert_eq!(layout(false, false).decode(raw(40, -16, 5, 1, 2)), want);
        assert_eq!(layout(true, false).decode(raw(40, -16, 3, 8, 2)), want);
    }

    #[test]
    fn an_undefined_stack_pointer_is_the_end_only_with_the_end_flag() {
        assert_eq!(layout(false, true).decode(raw(0, 0, 0, 0, 0)).kind, FrameKind::Undefined);
        assert_eq!(layout(false, true).decode(raw(0, 0, 0, 0, 4)).kind, FrameKind::End);
    }
}
