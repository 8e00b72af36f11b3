//! The stacks of a report: which lines announce one, which entries belong to it, and what is wrong with it.
//!
//! One walk over the collected lines. The small lines between the stacks are handed to [`details`] on the way, because
//! whether registers are the kernel's depends on which stack they stand in.

use memchr::memmem::find;

use crate::build::Collected;
use crate::model::{Frame, Report};
use crate::trace::{self, Pointer};
use crate::{details, disasm, normal};

/// Kinds of lines that announce a stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Label {
    /// The trace of the report itself.
    Main,
    /// Another stack that explains it.
    Side,
}

/// Whether a line announces a stack.
pub fn label(text: &[u8]) -> Option<Label> {
    let t = text.trim_ascii();
    if !matches!(
        t.first()?,
        b'A' | b'B'
            | b'C'
            | b'F'
            | b'I'
            | b'L'
            | b'M'
            | b'N'
            | b'P'
            | b'S'
            | b'U'
            | b'-'
            | b'.'
            | b'k'
            | b'p'
            | b'r'
            | b'w'
            | b's'
            | b'b'
            | b'{'
            | b't'
    ) {
        return None;
    }
    let side = [
        &b"Allocated by task"[..],
        b"Allocated:",
        b"Freed by task",
        b"Freed:",
        b"Uninit was ",
        b"Last potentially related",
        b"Second to last potentially",
        b"Local variable",
        b"Memory was marked",
        b"Bytes ",
        b"-> #",
        b"Last call_rcu",
        b"Preemption disabled at",
        b"NMI backtrace for cpu",
        b"Sending NMI",
        b"kfence-#",
        b"Allocated in ",
        b"Freed in ",
        b"INFO: Allocated in ",
        b"INFO: Freed in ",
        b"page last allocated ",
        b"page last free ",
        b"read to 0x",
        b"write to 0x",
    ];
    let first = t.first();
    let begins = |words: &[&[u8]]| words.iter().any(|w| w.first() == first && t.starts_with(w));
    if begins(&side) {
        return Some(Label::Side);
    }
    let became =
        t.ends_with(b"at:") && (find(t, b"which became ").is_some() || find(t, b"state was registered").is_some());
    if became {
        return Some(Label::Side);
    }
    let main = [
        &b"Call Trace:"[..],
        b"Call trace:",
        b"Backtrace:",
        b"stack backtrace:",
        b"backtrace:",
        b"Call Trace (",
        b"backtrace (",
        b"Stack trace:",
        b"Stack backtrace:",
    ];
    begins(&main).then_some(Label::Main)
}

/// A stack being collected.
#[derive(Debug, Default)]
pub struct Raw {
    /// The line that announced it.
    pub label: String,
    /// It is the report's own, not one that explains it.
    pub main: bool,
    /// A line announced it.
    pub announced: bool,
    /// Its entries, top first.
    pub frames: Vec<Frame>,
    /// Which of them instruction-pointer lines gave.
    pub pointers: Vec<usize>,
    /// The instruction pointer above it was in no function: nothing inside the trace replaces it.
    pub wild: bool,
    /// An instruction pointer inside the trace; it counts only if the trace goes on after it.
    pub pending: Option<Frame>,
}

/// Most entries of one stack and most stacks that are kept.
const MAX_FRAMES: usize = 256;
const MAX_STACKS: usize = 64;

/// What the walk noticed about the soundness of the report.
#[derive(Debug, Default)]
pub struct Signs {
    /// A trace was announced and no entry followed within a few lines.
    pub empty_trace: Option<&'static str>,
    /// Anything that announces a trace.
    pub announced: bool,
    /// Fault injection printed its own trace into this one.
    pub mixed: bool,
    /// Width of x86 code, once an instruction pointer told.
    pub bits: Option<u32>,
}

/// How many lines after the announcement of a trace its first entry must come.
const ANNOUNCED_WITHIN: usize = 15;

/// Walks over the lines of a report: its stacks and its signs; details go into the report.
pub fn walk(collected: &Collected, r: &mut Report) -> (Vec<Raw>, Signs) {
    let mut stacks: Vec<Raw> = Vec::new();
    let mut signs = Signs::default();
    let mut open = false;
    let mut over = false;
    let mut wild = false;
    let mut user = false;
    let mut since_label: Option<usize> = None;
    let mut seen = std::collections::BTreeSet::new();
    for (n, item) in collected.items.iter().enumerate() {
        let text = &collected.text[item.range.clone()];
        let t = text.trim_ascii_start();
        if item.entry
            && let Some(e) = trace::entry(text)
        {
            since_label = None;
            if !open || stacks.is_empty() {
                if stacks.len() == MAX_STACKS {
                    continue;
                }
                stacks.push(Raw { main: !over, wild, frames: Vec::with_capacity(24), ..Raw::default() });
                open = true;
            }
            signs.mixed |= n > 0
                && (e.function.starts_with(b"should_fail") || e.function.starts_with(b"should_failslab"))
                && e.reliable;
            let stack = stacks.last_mut().expect("one was pushed if there was none");
            if let Some(p) = stack.pending.take() {
                stack.pointers.push(stack.frames.len());
                stack.frames.push(p);
            }
            if stack.frames.len() < MAX_FRAMES {
                let frame = e.to_frame();
                // Most architectures begin the trace with the instruction pointer that they have printed already.
                let again = stack.pointers == [0]
                    && stack.frames.len() == 1
                    && frame.reliable
                    && same(&frame, &stack.frames[0]);
                if !again {
                    stack.frames.push(frame);
                }
            }
            continue;
        }
        if n > 0 {
            details::line(text, r, user);
        }
        if let Some(left) = since_label {
            if left == 0 || label(text).is_some() {
                signs.empty_trace = Some("a stack trace is announced but has no entries");
                since_label = None;
            } else {
                since_label = Some(left - 1);
            }
            if find(text, b"(stack is not available)").is_some() {
                since_label = None;
                signs.empty_trace = None;
            }
        }
        match t.first() {
            Some(b'-') if t.starts_with(b"---[ end") => {
                over = true;
                open = false;
                continue;
            }
            Some(b'S') if t.starts_with(b"Showing ") => open = false,
            // s390 repeats where it came from, below the trace.
            Some(b'L') if t.starts_with(b"Last Breaking-Event-Address") => {
                over = true;
                open = false;
                continue;
            }
            Some(b'C') if t.starts_with(b"Code: ") => {
                if r.code.is_none() && !over && !user {
                    let bits = signs.bits.filter(|_| cfg_x86(r));
                    r.code = Some(disasm::code(&t[6..], bits));
                }
                continue;
            }
            Some(b'#') if is_lock(t) => {
                lock(t, r);
                continue;
            }
            _ => {}
        }
        if let Some(p) = trace::pointer(text) {
            if t.starts_with(b"RIP") {
                signs.bits.get_or_insert(64);
            } else if t.starts_with(b"EIP") {
                signs.bits.get_or_insert(32);
            }
            if over {
                continue;
            }
            user = p == Pointer::User;
            match p {
                Pointer::Kernel(e) => pointer(e.to_frame(), &mut stacks, &mut open),
                Pointer::User => open = false,
                Pointer::Nowhere => wild |= stacks.is_empty(),
            }
            continue;
        }
        if let Some(kind) = label(text) {
            let main = kind == Label::Main;
            // lockdep says "stack backtrace:" and then dumps the usual way.
            let announces =
                main && !t.starts_with(b"stack backtrace") || !main && matches!(t.first(), Some(b'A' | b'F'));
            if announces {
                signs.announced = true;
                // Later traces may be cut without harm.
                if seen.insert(t.first().copied().unwrap_or_default()) {
                    since_label = Some(ANNOUNCED_WITHIN);
                }
            }
            // An instruction pointer alone belongs to the trace announced after it.
            let continues =
                main && open && stacks.last().is_some_and(|s| s.frames.len() <= 1 && s.main && !s.announced);
            if continues {
                stacks.last_mut().expect("just looked at").announced = true;
            } else if stacks.len() < MAX_STACKS {
                let mut name = String::from_utf8_lossy(t.trim_ascii()).into_owned();
                normal::truncate(&mut name, 120);
                // An instruction pointer that no entry followed opens this dump.
                let pending = if main { stacks.last_mut().and_then(|s| s.pending.take()) } else { None };
                let pointers = if pending.is_some() { vec![0] } else { Vec::new() };
                stacks.push(Raw {
                    label: name,
                    main,
                    announced: main,
                    frames: pending.into_iter().collect(),
                    pointers,
                    wild: main && wild,
                    pending: None,
                });
            }
            open = true;
        }
    }
    if since_label.is_some() {
        signs.empty_trace = Some("a stack trace is announced but the log ends before its entries");
    }
    stacks.retain(|s| !s.frames.is_empty());
    (stacks, signs)
}

/// The same place in the same function.
fn same(a: &Frame, b: &Frame) -> bool {
    (&a.function, a.offset, a.size) == (&b.function, b.offset, b.size)
}

/// Disassembly makes sense for x86 only: its registers say so.
fn cfg_x86(r: &Report) -> bool {
    !r.registers.iter().any(|x| x.name == "x0" || x.name == "r0" || x.name == "pstate")
}

/// Takes an instruction pointer into the stacks.
fn pointer(frame: Frame, stacks: &mut Vec<Raw>, open: &mut bool) {
    if *open
        && let Some(stack) = stacks.last_mut()
        && stack.main
    {
        if stack.frames.is_empty() {
            stack.pointers.push(0);
            stack.frames.push(frame);
        } else if stack.frames.len() > 1 || stack.announced {
            stack.pending = Some(frame);
        }
        return;
    }
    if stacks.len() < MAX_STACKS {
        stacks.push(Raw { main: true, frames: vec![frame], pointers: vec![0], ..Raw::default() });
        *open = true;
    }
}

fn is_lock(t: &[u8]) -> bool {
    t.len() > 3 && t[1].is_ascii_digit() && t.iter().take(5).any(|b| *b == b':')
}

fn lock(t: &[u8], r: &mut Report) {
    if r.locks.len() < 64 {
        let mut l = String::from_utf8_lossy(t.trim_ascii()).into_owned();
        normal::truncate(&mut l, 300);
        r.locks.push(l);
    }
}
