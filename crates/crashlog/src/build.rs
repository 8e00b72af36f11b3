//! From the lines of one report to the report: details, stacks, frame, title, and whether to believe it.
//!
//! Works on the collected lines only, once, when the report is closed; so the streaming parser keeps no half-built
//! reports and the result cannot depend on how the bytes arrived.

use crate::class::{Class, Found, Pick, Source};
use crate::frames::{self, Choice};
use crate::model::{Fingerprint, Kind, RULE_VERSION, Report, Stack};
use crate::stacks::{Raw, Signs, walk};
use crate::template::{self, Captures};
use crate::{details, normal, trace};

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
        && class.title.contains("{frame}")
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
