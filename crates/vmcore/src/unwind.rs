//! Stacks, unwound as the kernel itself would, from ORC.
//!
//! The step rules follow `unwind_next_frame()` of arch/x86/kernel/unwind_orc.c. A frame says how it was found: `interrupted`
//! when its address was saved by an interrupt, exception or NMI (the instruction itself, not a return address), `guess` when
//! no ORC entry vouches for it.
//!
//! One hole matters to everybody: `__crash_kexec`, where the registers of the panicking CPU are saved, is marked as having a
//! non-standard stack and has no ORC. There the stack is searched upwards for a word that follows a call instruction and from
//! which ORC reaches the end of a stack; the first such word is the caller. The same is done above a tracer's trampoline whose
//! original return address is not in the dump.

use crate::error::Fault;
use crate::hooks::{self, Return};
use crate::kernel::Kernel;
use crate::orc::{Entry, FrameKind, Reg};
use serde::{Deserialize, Serialize};

/// Words of stack that the search for a caller looks at.
const SCAN_WORDS: u64 = 512;

/// One frame, innermost first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawFrame {
    /// Address of the instruction, or of the one after the call.
    pub pc: u64,
    /// Saved by an interrupt, exception, NMI or the crash itself.
    pub interrupted: bool,
    /// Found without the help of ORC.
    pub guess: bool,
}

/// Why a stack ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StackEnd {
    /// At the entry from user mode.
    User,
    /// At the outermost kernel frame.
    Bottom,
    /// In code that has no unwind information.
    NoOrc,
    /// A page of the stack or of the unwind tables is not in the dump.
    Missing,
    /// The frames do not progress: the stack is corrupt.
    Corrupt,
    /// There were more frames than the limit.
    Limit,
}

/// A stack without names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawStack {
    /// Frames, innermost first; kernel frames only.
    pub frames: Vec<RawFrame>,
    /// Why it ends.
    pub end: StackEnd,
}

impl RawStack {
    /// The kernel stack of a CPU in user mode: empty.
    pub(crate) fn user() -> Self {
        Self { frames: Vec::new(), end: StackEnd::User }
    }
}

/// General registers in the order of `struct pt_regs`.
pub(crate) type PtRegs = [u64; 21];
const R13_AT: usize = 2;
const BP_AT: usize = 4;
const R10_AT: usize = 7;
const AX_AT: usize = 10;
const DX_AT: usize = 12;
const DI_AT: usize = 14;
pub(crate) const IP_AT: usize = 16;
pub(crate) const CS_AT: usize = 17;
pub(crate) const SP_AT: usize = 19;

/// Where an unwind starts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Start {
    pub ip: u64,
    pub sp: u64,
    pub bp: u64,
    pub regs: Option<PtRegs>,
    /// `ip` is the instruction itself, not a return address.
    pub signal: bool,
    /// The thread whose stack it is, for return addresses that probes have replaced.
    pub task: Option<u64>,
}

impl Start {
    /// From the registers of a CPU.
    pub(crate) fn of_cpu(regs: &PtRegs, task: Option<u64>) -> Self {
        Self { ip: regs[IP_AT], sp: regs[SP_AT], bp: regs[BP_AT], regs: Some(*regs), signal: true, task }
    }
}

/// True when the saved code segment is that of user mode.
pub(crate) fn is_user(cs: u64) -> bool {
    cs & 3 == 3
}

/// Unwinds from the registers of a CPU, with the search for a caller where ORC has a hole.
pub(crate) fn from_cpu(kernel: &Kernel, start: &Start) -> RawStack {
    let (stack, mut lost) = walk(kernel, start);
    if stack.frames.len() == 1 && stack.end == StackEnd::NoOrc {
        lost = Some(start.sp);
    }
    search_on(kernel, start, stack, lost)
}

/// Unwinds by ORC, with the search for a caller where a tracer's trampoline hides it.
pub(crate) fn unwind(kernel: &Kernel, start: &Start) -> RawStack {
    let (stack, lost) = walk(kernel, start);
    search_on(kernel, start, stack, lost)
}

/// Goes on where the caller was lost, above `lost` in the stack, as often as that happens.
fn search_on(kernel: &Kernel, start: &Start, mut stack: RawStack, mut lost: Option<u64>) -> RawStack {
    while let Some(sp) = lost {
        let Some((rest, next)) = search(kernel, start, sp) else { break };
        let found = stack.frames.len();
        stack.frames.extend(rest.frames);
        stack.frames[found].guess = true;
        (stack.end, lost) = (rest.end, next);
        let most = kernel.limits().frames as usize;
        if stack.frames.len() > most {
            stack.frames.truncate(most);
            stack.end = StackEnd::Limit;
            break;
        }
    }
    stack
}

/// The first word above `sp` that can be a return address and from which ORC reaches the end of a stack, or the next trampoline.
fn search(kernel: &Kernel, start: &Start, sp: u64) -> Option<(RawStack, Option<u64>)> {
    for word in 0..SCAN_WORDS {
        let at = sp.wrapping_add(word * 8);
        let candidate = kernel.memory().u64(at).ok().filter(|_| kernel.may_scan())?;
        if !kernel.is_text(candidate) || !follows_call(kernel, candidate) {
            continue;
        }
        let from = Start { ip: candidate, sp: at.wrapping_add(8), regs: None, signal: false, ..*start };
        let (rest, lost) = walk(kernel, &from);
        if lost.is_some() || matches!(rest.end, StackEnd::User | StackEnd::Bottom) {
            return Some((rest, lost));
        }
    }
    None
}

/// A return address comes right after `call rel32`, or after an indirect call of 2 to 7 bytes.
fn follows_call(kernel: &Kernel, address: u64) -> bool {
    let mut before = [0u8; 7];
    if kernel.memory().read(address.wrapping_sub(7), &mut before).is_err() {
        return false;
    }
    before[2] == 0xe8 || (2..=7).any(|len| before[7 - len] == 0xff && before[8 - len] & 0x38 == 0x10)
}

struct State<'k, 'a> {
    kernel: &'k Kernel<'a>,
    ip: u64,
    sp: u64,
    bp: u64,
    signal: bool,
    guess: bool,
    regs: Option<PtRegs>,
    task: Option<u64>,
    /// `ip` is a tracer's trampoline and not the caller.
    lost: bool,
}

/// Unwinds by ORC alone; where a trampoline hides the caller, also returns the stack pointer of that caller.
fn walk(kernel: &Kernel, start: &Start) -> (RawStack, Option<u64>) {
    let interrupted = start.regs.is_some();
    let mut state = State {
        kernel,
        ip: start.ip,
        sp: start.sp,
        bp: start.bp,
        signal: start.signal,
        guess: false,
        regs: start.regs,
        task: start.task,
        lost: false,
    };
    let mut frames = vec![RawFrame { pc: start.ip, interrupted, guess: false }];
    let end = loop {
        if frames.len() as u32 >= kernel.limits().frames {
            break StackEnd::Limit;
        }
        let (before_ip, before_sp) = (state.ip, state.sp);
        match state.step() {
            Ok(None) => {}
            Ok(Some(end)) => break end,
            Err(_) => break StackEnd::Missing,
        }
        if (state.ip, state.sp) == (before_ip, before_sp) {
            break StackEnd::Corrupt;
        }
        // After a guess anything may come out; what is no code is no frame.
        if !kernel.is_text(state.ip) && (state.guess || !state.signal) {
            break StackEnd::Corrupt;
        }
        frames.push(RawFrame { pc: state.ip, interrupted: state.signal, guess: state.guess || state.lost });
        if state.lost {
            break StackEnd::NoOrc;
        }
    };
    (RawStack { frames, end }, state.lost.then_some(state.sp))
}

impl State<'_, '_> {
    fn entry(&mut self) -> Result<Entry, Fault> {
        if self.ip == 0 {
            return Ok(Entry::NULL_CALL);
        }
        let at = if self.signal { self.ip } else { self.ip.wrapping_sub(1) };
        match self.kernel.orc(at)? {
            Some(entry) => {
                self.guess = false;
                Ok(entry)
            }
            None => {
                self.guess = true;
                Ok(Entry::FRAME_POINTER)
            }
        }
    }

    fn register(&self, index: usize) -> Option<u64> {
        self.regs.map(|r| r[index])
    }

    /// Goes to the caller's frame; `Some` when there is none.
    fn step(&mut self) -> Result<Option<StackEnd>, Fault> {
        let memory = self.kernel.memory();
        let entry = self.entry()?;
        let end = match entry.kind {
            FrameKind::End => Some(StackEnd::Bottom),
            FrameKind::Undefined => Some(StackEnd::NoOrc),
            _ => None,
        };
        if end.is_some() {
            let returning = self.task.and_then(|task| hooks::returning(self.kernel, task, self.ip, self.sp));
            let Some((ip, slot)) = returning else { return Ok(end) };
            self.return_to(ip, slot);
            self.regs = None;
            return Ok(None);
        }
        let plus = |base: u64| base.wrapping_add_signed(entry.sp_offset);
        let cfa = match entry.sp {
            Reg::Sp => Some(plus(self.sp)),
            Reg::Bp => Some(plus(self.bp)),
            Reg::SpIndirect => Some(plus(memory.u64(self.sp)?)),
            Reg::BpIndirect => Some(memory.u64(plus(self.bp))?),
            Reg::R10 => self.register(R10_AT),
            Reg::R13 => self.register(R13_AT),
            Reg::Di => self.register(DI_AT),
            Reg::Dx => self.register(DX_AT),
            Reg::Ax => self.register(AX_AT),
            Reg::PrevSp | Reg::Undefined => None,
        };
        let Some(cfa) = cfa else { return Ok(Some(StackEnd::NoOrc)) };
        match entry.kind {
            FrameKind::Regs => {
                let mut raw = [0u8; 168];
                memory.read(cfa, &mut raw)?;
                let mut regs: PtRegs = [0; 21];
                for (r, bytes) in regs.iter_mut().zip(raw.as_chunks::<8>().0) {
                    *r = u64::from_le_bytes(*bytes);
                }
                if is_user(regs[CS_AT]) {
                    return Ok(Some(StackEnd::User));
                }
                (self.ip, self.sp, self.regs) = (regs[IP_AT], regs[SP_AT], Some(regs));
                self.signal = true;
            }
            FrameKind::PartialRegs => {
                let word = |i: u64| memory.u64(cfa.wrapping_add(8 * i));
                if is_user(word(1)?) {
                    return Ok(Some(StackEnd::User));
                }
                (self.ip, self.sp) = (word(0)?, word(3)?);
                self.signal = true;
            }
            _ => {
                let slot = cfa.wrapping_sub(8);
                self.return_to(memory.u64(slot)?, slot);
            }
        }
        match entry.bp {
            Reg::PrevSp => self.bp = memory.u64(cfa.wrapping_add_signed(entry.bp_offset))?,
            Reg::Bp => self.bp = memory.u64(self.bp.wrapping_add_signed(entry.bp_offset))?,
            _ => self.bp = self.register(BP_AT).unwrap_or(self.bp),
        }
        if entry.kind == FrameKind::Call {
            self.regs = None;
        }
        Ok(None)
    }

    /// Goes to the frame that the return address at `slot` leads to.
    fn return_to(&mut self, ip: u64, slot: u64) {
        (self.ip, self.lost) = match hooks::original(self.kernel, self.task, ip, slot) {
            Return::To(ip) => (ip, false),
            Return::Lost(trampoline) => (trampoline, true),
        };
        self.sp = slot.wrapping_add(8);
        self.signal = false;
    }
}
