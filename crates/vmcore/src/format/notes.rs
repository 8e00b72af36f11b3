//! ELF notes: VMCOREINFO, and the registers of every CPU (`NT_PRSTATUS`).

use crate::bytes::{u32_at, u64_at};

/// One ELF note.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// Its name, e.g. `CORE`, `VMCOREINFO`, `QEMU`.
    pub name: String,
    /// Its type; the name decides what that means.
    pub kind: u32,
    /// Its contents.
    pub desc: Vec<u8>,
}

/// `NT_PRSTATUS`.
const PRSTATUS: u32 = 1;
/// Offset of the registers in `struct elf_prstatus` of x86-64, and of the process id.
const REGS_AT: usize = 112;
const PID_AT: usize = 32;

/// General registers as in `struct user_regs_struct`, which is how the kernel and QEMU write them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Prstatus {
    pub pid: u32,
    /// r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss …
    pub regs: [u64; 21],
}

/// Splits a note section. Stops at the first thing that is no note; the kernel pads with zeros.
pub(crate) fn parse(data: &[u8], into: &mut Vec<Note>) {
    let mut at = 0usize;
    while at + 12 <= data.len() {
        let name_len = u32_at(data, at) as usize;
        let desc_len = u32_at(data, at + 4) as usize;
        let kind = u32_at(data, at + 8);
        if name_len == 0 && desc_len == 0 {
            break;
        }
        let name_at = at + 12;
        let Some(desc_at) = name_len.checked_next_multiple_of(4).and_then(|n| name_at.checked_add(n)) else { break };
        let Some(desc) = desc_at.checked_add(desc_len).and_then(|end| data.get(desc_at..end)) else { break };
        let name = crate::bytes::text(&data[name_at..name_at + name_len]);
        into.push(Note { name, kind, desc: desc.to_vec() });
        at = desc_at + desc_len.next_multiple_of(4);
    }
}

/// The registers in a note, when it is a `NT_PRSTATUS` note of an x86-64 CPU.
pub(crate) fn prstatus_of(note: &Note) -> Option<Prstatus> {
    if note.name != "CORE" || note.kind != PRSTATUS || note.desc.len() < REGS_AT + 21 * 8 {
        return None;
    }
    let mut regs = [0; 21];
    for (i, r) in regs.iter_mut().enumerate() {
        *r = u64_at(&note.desc, REGS_AT + 8 * i);
    }
    Some(Prstatus { pid: u32_at(&note.desc, PID_AT), regs })
}

/// Parses a raw note buffer, as the kernel keeps one per CPU in memory.
pub(crate) fn prstatus_in(data: &[u8]) -> Option<Prstatus> {
    let mut notes = Vec::new();
    parse(data, &mut notes);
    notes.iter().find_map(prstatus_of)
}
