//! Which function a report is named after, and why.
//!
//! The top of a trace is rarely the culprit: reporting machinery, sanitizers, locks, allocators and string helpers
//! stand above it. Each class says where to look and what else is its own plumbing; the families below are plumbing
//! for everybody. Every skipped function is remembered with the reason, because people must be able to disagree.

mod families;
mod places;

use places::{WAITS, is_entry, is_interrupt};

use crate::class::{Pick, Recipe, Source};
use crate::model::Frame;
use crate::names::like;
use crate::normal;
use crate::template::Captures;

pub use families::plumbing;
pub use places::interrupt;

/// The chosen frame.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Choice {
    /// The name titles use.
    pub name: String,
    /// Other names under which the same frame is known.
    pub others: Vec<String>,
    /// Module of the frame.
    pub module: Option<String>,
}

/// A candidate: normalised name and module.
#[derive(Debug, Clone, Copy)]
struct Candidate<'a> {
    name: &'a str,
    module: Option<&'a str>,
}

/// The trace as the recipes want to see it.
#[derive(Debug, Clone, Copy)]
pub struct Stack<'a> {
    /// Entries, top first.
    pub frames: &'a [Frame],
    /// Index of the entry that an instruction-pointer line gave, and the others inside the trace.
    pub pointers: &'a [usize],
}

/// Chooses the frame by a recipe, noting in `why` what was skipped and for what reason.
pub fn choose(recipe: &Recipe, stack: Stack<'_>, caps: &Captures<'_>, why: &mut Vec<String>) -> Option<Choice> {
    let captured = |name: &str| caps.get(name).map(crate::trace::readable);
    if recipe.from == [Source::Race] {
        return race(&captured("func")?, &captured("other")?);
    }
    let owned: Vec<String> =
        recipe.from.iter().filter_map(|s| if let Source::Capture(n) = s { captured(n) } else { None }).collect();
    let mut candidates: Vec<Candidate<'_>> = Vec::with_capacity(stack.frames.len() + 1);
    let mut captures = owned.iter();
    let trust = stack.frames.iter().any(|f| f.reliable && !f.inline);
    for source in recipe.from {
        match source {
            Source::Capture(name) => {
                if caps.get(name).is_some()
                    && let Some(text) = captures.next()
                {
                    let name = normal::function(text);
                    let entry = stack.frames.iter().find(|f| normal::function(&f.function) == name);
                    candidates.push(Candidate { name, module: entry.and_then(|f| f.module.as_deref()) });
                }
            }
            Source::Pointer | Source::Race => {}
            Source::Under(_) | Source::Trace | Source::Interrupted => {
                let from = if *source == Source::Interrupted {
                    interrupted_start(stack)
                } else if recipe.from.contains(&Source::Pointer) {
                    pointer_start(stack)
                } else {
                    trace_start(stack)
                };
                let usable = stack.frames[from..].iter().filter(|f| !f.inline && (f.reliable || !trust));
                candidates.extend(
                    usable.map(|f| Candidate { name: normal::function(&f.function), module: f.module.as_deref() }),
                );
            }
        }
    }
    match recipe.pick {
        Pick::First => first(recipe, &candidates, why),
        Pick::AboveEntry => above_entry(recipe, &candidates, why),
        Pick::Waiter => waiter(recipe, &candidates, why),
    }
}

/// Where the trace proper begins when the instruction pointer above it is not asked for.
fn trace_start(stack: Stack<'_>) -> usize {
    match stack.pointers.first() {
        Some(0) if stack.frames.len() > 1 => 1,
        _ => 0,
    }
}

/// Where the interesting part begins: at the instruction pointer, if the trace has one.
fn pointer_start(stack: Stack<'_>) -> usize {
    stack.pointers.first().copied().unwrap_or(0).min(stack.frames.len())
}

/// Below the interrupt that noticed; the top where the trace is that of the stuck CPU itself.
fn interrupted_start(stack: Stack<'_>) -> usize {
    interrupt(stack.frames).map_or(0, |i| i + 1)
}

fn skip_reason(recipe: &Recipe, name: &str) -> Option<&'static str> {
    if recipe.skip.iter().any(|p| like(p, name)) { Some("is plumbing of this class") } else { plumbing(name) }
}

fn chosen(c: Candidate<'_>, why: &mut Vec<String>, because: &str) -> Choice {
    let (name, others) = normal::syscall(c.name).unwrap_or_else(|| (c.name.to_owned(), Vec::new()));
    let place = c.module.map_or_else(String::new, |m| format!(" [{m}]"));
    why.push(format!("frame {}{place}: {because}", c.name));
    Choice { name, others, module: c.module.map(str::to_owned) }
}

fn first(recipe: &Recipe, candidates: &[Candidate<'_>], why: &mut Vec<String>) -> Option<Choice> {
    for c in candidates {
        match skip_reason(recipe, c.name) {
            Some(reason) => why.push(format!("skipped {}: {reason}", c.name)),
            None => return Some(chosen(*c, why, "the first function that is not plumbing")),
        }
    }
    None
}

fn above_entry(recipe: &Recipe, candidates: &[Candidate<'_>], why: &mut Vec<String>) -> Option<Choice> {
    let mut usable = candidates
        .iter()
        .filter(|c| !is_interrupt(c.name))
        .filter(|c| skip_reason(recipe, c.name).is_none() || is_entry(c.name));
    let mut above = *usable.next()?;
    let mut current = above;
    loop {
        if is_entry(current.name) {
            if current.name.contains("smp_call_function") {
                // Many names of one thing: a CPU does not answer the others.
                let mut choice = chosen(current, why, "a CPU waits for others to run a function");
                choice.name = "smp_call_function".to_owned();
                if current.name != choice.name {
                    choice.others.push(current.name.to_owned());
                }
                return Some(choice);
            }
            return Some(chosen(above, why, "the last function above the entry point, below which the CPU was stuck"));
        }
        above = current;
        match usable.next() {
            Some(c) => current = *c,
            None => {
                why.push("no entry point in the trace: cannot tell what was stuck".to_owned());
                return None;
            }
        }
    }
}

fn waiter(recipe: &Recipe, candidates: &[Candidate<'_>], why: &mut Vec<String>) -> Option<Choice> {
    for c in candidates {
        if let Some((_, common)) = WAITS.iter().find(|(w, _)| c.name.starts_with(w)) {
            let mut choice = chosen(*c, why, "a wait that many tasks share, filed under its own name");
            if let Some(common) = common {
                if c.name != *common {
                    choice.others.push(c.name.to_owned());
                }
                choice.name = (*common).to_owned();
            }
            return Some(choice);
        }
    }
    first(recipe, candidates, why)
}

/// Data races are named after both sides, in alphabetical order, once if they are the same.
fn race(a: &str, b: &str) -> Option<Choice> {
    let (a, b) = (normal::function(a).to_owned(), normal::function(b).to_owned());
    let name = match a.cmp(&b) {
        std::cmp::Ordering::Equal => a,
        std::cmp::Ordering::Less => format!("{a} / {b}"),
        std::cmp::Ordering::Greater => format!("{b} / {a}"),
    };
    Some(Choice { name, ..Choice::default() })
}

/// Three to six normalised names that identify the trace: from the chosen frame down, plumbing left out.
pub fn fingerprint(stack: Stack<'_>, choice: Option<&Choice>) -> Vec<String> {
    // Where the unwinder trusts nothing but the instruction pointer it lost its way at once, and what it doubts still tells
    // more than a single function.
    let trusted = |f: &&Frame| f.reliable && !f.inline;
    let lost = stack.frames.iter().filter(trusted).count() <= 1;
    let mut out = telling(stack.frames.iter().filter(|f| f.reliable || lost));
    if out.is_empty() {
        out.extend(choice.map(|c| c.name.clone()));
    }
    out
}

/// Up to six names that are not plumbing, down to an entry point.
fn telling<'a>(frames: impl Iterator<Item = &'a Frame>) -> Vec<String> {
    let mut out: Vec<String> = Vec::with_capacity(6);
    for name in frames.filter(|f| !f.inline).map(|f| normal::function(&f.function)) {
        if plumbing(name).is_some() || out.last().is_some_and(|l| l == name) {
            continue;
        }
        // An entry point ends the part that tells one bug from another, once there is enough of it.
        if out.len() >= 3 && is_entry(name) {
            break;
        }
        out.push(name.to_owned());
        if out.len() == 6 {
            break;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(names: &[&str]) -> Vec<Frame> {
        names.iter().map(|n| Frame { function: (*n).to_owned(), reliable: true, ..Frame::default() }).collect()
    }

    fn pick(recipe: &Recipe, names: &[&str]) -> Option<String> {
        let frames = trace(names);
        choose(recipe, Stack { frames: &frames, pointers: &[] }, &Captures::default(), &mut Vec::new()).map(|c| c.name)
    }

    #[test]
    fn plumbing_is_skipped_with_its_reason() {
        let recipe = Recipe { from: &[Source::Trace], pick: Pick::First, skip: &["my_alloc"] };
        let frames = trace(&[
            "dump_stack",
            "kasan_report",
            "my_alloc_thing",
            "mutex_lock_nested",
            "real_culprit.isra.0",
            "ksys_read",
        ]);
        let mut why = Vec::new();
        let c = choose(&recipe, Stack { frames: &frames, pointers: &[] }, &Captures::default(), &mut why).unwrap();
        assert_eq!(c.name, "real_culprit");
        assert_eq!(why.len(), 5);
        assert!(why[2].contains("my_alloc_thing: is plumbing of this class"), "{why:?}");
    }

    #[test]
    fn stalls_are_named_after_what_called_the_loop() {
        let recipe = Recipe { from: &[Source::Pointer, Source::Trace], pick: Pick::AboveEntry, skip: &[] };
        let stack = [
            "rcu_check",
            "apic_timer_interrupt",
            "inner_loop",
            "middle",
            "my_driver_ioctl",
            "vfs_ioctl",
            "do_syscall_64",
        ];
        assert_eq!(pick(&recipe, &stack), Some("my_driver_ioctl".into()));
        assert_eq!(pick(&recipe, &["inner", "outer"]), None);
    }

    #[test]
    fn shared_waits_are_one_bug() {
        let recipe = Recipe { from: &[Source::Trace], pick: Pick::Waiter, skip: &["sched", "wait"] };
        assert_eq!(
            pick(&recipe, &["__schedule", "schedule", "synchronize_rcu_expedited", "my_close"]),
            Some("synchronize_rcu".into())
        );
        assert_eq!(pick(&recipe, &["__schedule", "wait_for_it", "my_close"]), Some("my_close".into()));
    }

    #[test]
    fn fingerprints_hold_up_to_six_telling_frames() {
        let frames = trace(&["dump_stack", "a", "b", "c", "d", "e", "f", "g"]);
        assert_eq!(fingerprint(Stack { frames: &frames, pointers: &[] }, None), ["a", "b", "c", "d", "e", "f"]);
        let frames = trace(&["a", "b", "c", "do_syscall_64", "entry_SYSCALL_64"]);
        assert_eq!(fingerprint(Stack { frames: &frames, pointers: &[] }, None), ["a", "b", "c"]);
    }
}
