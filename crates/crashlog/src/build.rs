//! From the lines of one report to the report: details, stacks, frame, title, and whether to believe it.
//!
//! Works on the collected lines only, once, when the report is closed; so the streaming parser keeps no half-built
//! reports and the result cannot depend on how the bytes arrived.

use memchr::memmem::find;

use crate::class::{Class, Found, Pick, Source};
use crate::frames::{self, Choice};
use crate::model::{Fingerprint, Frame, Kind, RULE_VERSION, Report, Stack};
use crate::template::{self, Captures};
use crate::trace::{self, Pointer};
use crate::{details, disasm, normal};

/// One collected line.
#[derive(Debug, Clone)]
pub struct Item {
    /// Range of the payload in [`Collected::text`].
    pub range: std::ops::Range<usize>,
    /// The line is a stack-trace entry ([`trace::entry`]).
    pub entry: bool,
}

/// The lines of a report.
#[derive(Debug, Clone)]
pub struct Collected {
    /// Class of the header.
    pub found: Found,
    /// Payloads, one after the other.
    pub text: Vec<u8>,
    /// Lines; the first is the header.
    pub items: Vec<Item>,
    /// Why the report was closed although it may have gone on, if so.
    pub cut: Option<&'static str>,
}

impl Collected {
    fn lines(&self) -> impl Iterator<Item = &[u8]> {
        self.items.iter().map(|i| &self.text[i.range.clone()])
    }
}

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
struct Raw {
    label: String,
    main: bool,
    announced: bool,
    frames: Vec<Frame>,
    pointers: Vec<usize>,
    /// The instruction pointer above it was in no function: nothing inside the trace replaces it.
    wild: bool,
    /// An instruction pointer inside the trace; it counts only if the trace goes on after it.
    pending: Option<Frame>,
}

/// Most entries of one stack and most stacks that are kept.
const MAX_FRAMES: usize = 256;
const MAX_STACKS: usize = 64;

/// A report with nothing in it.
pub fn empty(kind: Kind) -> Report {
    Report {
        title: String::new(),
        alt_titles: Vec::new(),
        kind,
        frame: None,
        module: None,
        corrupted: false,
        corrupted_reason: None,
        intended: None,
        start: 0,
        end: 0,
        line: 0,
        header: String::new(),
        time: None,
        context: None,
        cpu: None,
        pid: None,
        comm: None,
        taint: None,
        taint_flags: Vec::new(),
        kernel: None,
        build: None,
        hardware: None,
        fault_address: None,
        error_code: None,
        oops_number: None,
        modules: Vec::new(),
        registers: Vec::new(),
        code: None,
        trace: Vec::new(),
        stacks: Vec::new(),
        locks: Vec::new(),
        fingerprint: Fingerprint::default(),
        cause: None,
        duplicate_of: None,
        boot: 0,
        why: Vec::new(),
    }
}

/// Builds the report; positions, boot and causality are the parser's business. `None` when the header needed lines
/// that did not come, so that there is no report after all.
pub fn report(collected: &Collected) -> Option<Report> {
    let (class, caps) = classify(collected)?;
    let mut r = empty(class.kind);
    let header = collected.lines().next().unwrap_or_default();
    r.header = String::from_utf8_lossy(header.trim_ascii()).into_owned();
    normal::truncate(&mut r.header, 512);
    details::header(header, &mut r);
    let (stacks, signs) = walk(collected, &mut r);
    finish(class, &caps, stacks, &signs, &mut r);
    if r.corrupted_reason.is_none()
        && let Some(cut) = collected.cut
        && r.trace.is_empty()
        && class.trace
    {
        r.corrupted_reason = Some(cut.to_owned());
    }
    r.corrupted = r.corrupted_reason.is_some();
    Some(r)
}

/// The first class whose head and following lines match; the one of the header alone if none does in full.
fn classify(collected: &Collected) -> Option<(&'static Class, Captures<'_>)> {
    let header = collected.lines().next().unwrap_or_default();
    let group = collected.found.group();
    for class in &group.classes[collected.found.class..] {
        let mut caps = Captures::default();
        if template::find(class.head, header, &mut caps).is_none() {
            continue;
        }
        let mut lines = collected.lines().skip(1).take(200);
        if class.also.iter().all(|t| lines.any(|l| template::find(t, l, &mut caps).is_some())) {
            return Some((class, caps));
        }
    }
    let class = collected.found.class();
    if class.whole {
        return None;
    }
    let mut caps = Captures::default();
    let _ = template::find(class.head, header, &mut caps);
    Some((class, caps))
}

/// What the walk noticed about the soundness of the report.
#[derive(Debug, Default)]
struct Signs {
    /// A trace was announced and no entry followed within a few lines.
    empty_trace: Option<&'static str>,
    /// Anything that announces a trace.
    announced: bool,
    /// Fault injection printed its own trace into this one.
    mixed: bool,
    bits: Option<u32>,
}

/// How many lines after the announcement of a trace its first entry must come.
const ANNOUNCED_WITHIN: usize = 15;

fn walk(collected: &Collected, r: &mut Report) -> (Vec<Raw>, Signs) {
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
                stack.frames.push(e.to_frame());
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

/// Frame, titles, fingerprint and the damage report.
fn finish(class: &'static Class, caps: &Captures<'_>, mut stacks: Vec<Raw>, signs: &Signs, r: &mut Report) {
    r.why.push(format!("class {:?}: {}", class.kind, class.head.trim_start_matches('^')));
    let choice = choose(class, caps, &stacks, r);
    let frame_missing = class.title.contains("{frame}") && choice.is_none();
    let name = choice.as_ref().map_or("corrupted", |c| c.name.as_str()).to_owned();
    let origin = origin(&stacks);
    let fill = |frame: &str, key: &str| match key {
        "frame" => Some(frame.to_owned()),
        "origin" => origin.clone(),
        "func" => caps.get("func").map(|f| normal::function(&trace::readable(f)).to_owned()),
        _ => caps.get(key).map(|b| normal::text(&String::from_utf8_lossy(b))),
    };
    r.title = template::expand(class.title, |k| fill(&name, k));
    let others = choice.iter().flat_map(|c| c.others.iter().map(String::as_str));
    for frame in std::iter::once(name.as_str()).chain(others.clone()) {
        for alt in class.alts {
            if alt.contains("{origin}") && origin.is_none() {
                continue;
            }
            r.alt_titles.push(template::expand(alt, |k| fill(frame, k)));
        }
    }
    for frame in others {
        r.alt_titles.push(template::expand(class.title, |k| fill(frame, k)));
    }
    r.alt_titles.sort();
    r.alt_titles.dedup();
    r.alt_titles.retain(|a| *a != r.title);
    let announced = |s: &Raw| s.main && (s.announced || s.pointers.first() == Some(&0));
    let main = stacks
        .iter()
        .position(announced)
        .or_else(|| stacks.iter().position(|s| s.main))
        .or(if stacks.is_empty() { None } else { Some(0) });
    let view = main.map(|m| frames::Stack { frames: &stacks[m].frames, pointers: &stacks[m].pointers });
    let fingerprint = view
        .map_or_else(|| choice.iter().map(|c| c.name.clone()).collect(), |v| frames::fingerprint(v, choice.as_ref()));
    r.fingerprint = Fingerprint { version: RULE_VERSION, frames: fingerprint };
    let traced = main.is_some_and(|m| stacks[m].announced || stacks[m].frames.len() > 1);
    r.corrupted_reason = damage(class, signs, frame_missing, traced, &r.title);
    let doubtful = main.is_some_and(|m| stacks[m].pointers.is_empty() && !stacks[m].frames.iter().any(|f| f.reliable));
    if r.corrupted_reason.is_none()
        && doubtful
        && class.frames.is_some_and(|f| !f.from.iter().any(|s| matches!(s, Source::Capture(_))))
    {
        r.corrupted_reason = Some("the unwinder trusts no entry of the trace".to_owned());
    }
    if let Some(m) = main {
        r.trace = std::mem::take(&mut stacks[m].frames);
    }
    r.stacks = stacks
        .into_iter()
        .filter(|s| !s.frames.is_empty())
        .map(|s| Stack { label: s.label, frames: s.frames })
        .collect();
    r.frame = choice.as_ref().map(|c| c.name.clone());
    r.module = choice.and_then(|c| c.module);
}

/// Applies the class's recipe to the main stack; stalls print several and only one shows the loop.
fn choose(class: &Class, caps: &Captures<'_>, stacks: &[Raw], r: &mut Report) -> Option<Choice> {
    let recipe = class.frames?;
    // A recipe may ask for a section of the report first and for its own trace if that has nothing.
    let under = recipe.from.iter().find_map(|s| if let Source::Under(text) = s { Some(*text) } else { None });
    let mut candidates: Vec<&Raw> = match under {
        Some(text) => {
            stacks.iter().filter(|s| s.label.contains(text)).chain(stacks.iter().filter(|s| s.main)).collect()
        }
        None => stacks.iter().filter(|s| s.main).collect(),
    };
    // Where an instruction pointer is asked for, a stack that has one comes first; for stalls, one that shows the
    // interrupt that noticed.
    if recipe.from.contains(&Source::Interrupted) {
        candidates = stacks
            .iter()
            .filter(|s| frames::interrupt(&s.frames).is_some() || s.pointers.first() == Some(&0))
            .collect();
        candidates.sort_by_key(|s| frames::interrupt(&s.frames).is_none());
    } else if recipe.from.contains(&Source::Pointer) {
        candidates.sort_by_key(|s| s.pointers.is_empty() && !s.wild);
    } else if under.is_none() {
        // Entries that stand before the announced trace belong to another message.
        candidates.sort_by_key(|s| !s.announced);
    }
    let nothing = Raw::default();
    let tries = if recipe.pick == Pick::AboveEntry || under.is_some() { candidates.len().max(1) } else { 1 };
    for i in 0..tries {
        let stack = candidates.get(i).copied().unwrap_or(&nothing);
        let pointers = if stack.wild { &[][..] } else { &stack.pointers };
        let view = frames::Stack { frames: &stack.frames, pointers };
        if let Some(c) = frames::choose(recipe, view, caps, &mut r.why) {
            return Some(c);
        }
    }
    None
}

/// Where uninitialised memory came from: the first function of the last such stack that does not just allocate.
fn origin(stacks: &[Raw]) -> Option<String> {
    let stack = stacks
        .iter()
        .rev()
        .find(|s| s.label.starts_with("Uninit was created") || s.label.starts_with("Local variable"))?;
    let mut names = stack.frames.iter().filter(|f| f.reliable).map(|f| normal::function(&f.function));
    names
        .find(|n| frames::plumbing(n).is_none() && !n.contains("alloc") && !n.contains("slab") && !n.contains("kmem"))
        .map(str::to_owned)
}

/// Why the report cannot be trusted, `None` if it can.
fn damage(class: &Class, signs: &Signs, frame_missing: bool, traced: bool, title: &str) -> Option<String> {
    if let Some(why) = class.damaged {
        return Some(why.to_owned());
    }
    if has_stamp(title) {
        return Some("another message runs into the header".to_owned());
    }
    if frame_missing {
        return Some("no function to file it under".to_owned());
    }
    if !class.trace {
        return None;
    }
    if !traced && !signs.announced {
        return Some("no stack trace".to_owned());
    }
    if let Some(why) = signs.empty_trace {
        return Some(why.to_owned());
    }
    signs.mixed.then(|| "a fault-injection trace is mixed in".to_owned())
}

/// A time stamp in the middle of a title: two messages ran into one another.
fn has_stamp(title: &str) -> bool {
    title.match_indices('[').any(|(at, _)| {
        let rest = title[at + 1..].trim_start();
        let Some((a, b)) = rest.split_once('.') else { return false };
        (a == "NUM" || !a.is_empty() && a.bytes().all(|c| c.is_ascii_digit()))
            && (b.starts_with("NUM]") || b.find(']').is_some_and(|e| b[..e].bytes().all(|c| c.is_ascii_digit())))
    })
}
