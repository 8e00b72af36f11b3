//! The classes, one file a subject. See the module above for what a class is.

mod fault;
mod lock;
mod machine;
mod memory;
mod other;
mod panic;
mod sanitizer;
mod stall;
mod warning;

use super::{Class, Group, Pick, Recipe, Source};

/// All groups, in the order in which their literals are tried on a line: what is special before what is general.
pub const TABLES: &[&[Group]] = &[
    stall::GROUPS,
    sanitizer::GROUPS,
    lock::GROUPS,
    memory::GROUPS,
    machine::GROUPS,
    other::GROUPS,
    fault::GROUPS,
    panic::GROUPS,
    warning::GROUPS,
];

/// The instruction pointer's function, then the trace.
const FAULT: Recipe = Recipe { from: &[Source::Pointer, Source::Trace], pick: Pick::First, skip: &[] };
/// The trace alone.
const TRACE: Recipe = Recipe { from: &[Source::Trace], pick: Pick::First, skip: &[] };
/// What the header names, and nothing else.
const CAPTURED: Recipe = Recipe { from: &[Source::Capture("func")], pick: Pick::First, skip: &[] };
/// What the header names, unless it is plumbing.
const HEADER_THEN_TRACE: Recipe =
    Recipe { from: &[Source::Capture("func"), Source::Trace], pick: Pick::First, skip: &[] };
/// What the header names, if neither the instruction pointer nor the trace says.
const POINTER_OR_HEADER: Recipe =
    Recipe { from: &[Source::Pointer, Source::Trace, Source::Capture("func")], pick: Pick::First, skip: &[] };
/// Checks of copies to and from user space report themselves, not who copies.
const USERCOPY: Recipe = Recipe { from: &[Source::Trace], pick: Pick::First, skip: &["usercopy", "__check"] };
/// Checks of lists report themselves, not who broke the list.
const LIST: Recipe = Recipe { from: &[Source::Pointer, Source::Trace], pick: Pick::First, skip: &["__list_", "list_"] };

/// What all reports of a bad access in one function share.
const BAD_ACCESS: &[&str] = &["bad-access in {frame}"];

/// A group that the prefilter looks for by its own literal, unless all heads share a common word.
const fn group(literal: &'static str, ignore: &'static [&'static str], classes: &'static [Class]) -> Group {
    Group { literal, covered: false, ignore, classes }
}

/// A group whose lines always carry one of the words that the prefilter knows.
const fn covered(literal: &'static str, ignore: &'static [&'static str], classes: &'static [Class]) -> Group {
    Group { literal, covered: true, ignore, classes }
}
