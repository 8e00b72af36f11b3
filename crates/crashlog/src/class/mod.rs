//! What a class of problems is: its header, its title, and where its frame is found.
//!
//! The classes themselves are data in the files of `table`. Adding one is five lines there; nothing else has to change
//! (`docs/CRASHLOG.md` walks through it). Order matters only between classes whose headers overlap: the first that
//! matches wins, so special ones stand before general ones.

mod table;

use crate::model::Kind;

pub use table::TABLES;

/// How a header relates to a report that is already open in the same context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Join {
    /// Begins a report of its own.
    Own,
    /// Belongs to the open report as long as that has no trace yet (`Oops: 0000 [#1]`, `invalid opcode:` after
    /// `kernel BUG at`); else begins its own.
    Detail,
    /// Is what an earlier report led to (`Fatal exception`, `panic_on_warn set`).
    Consequence,
}

/// Where the frame a report is named after comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A function captured by the class's templates.
    Capture(&'static str),
    /// Instruction pointer, then the trace below it.
    Pointer,
    /// The trace alone.
    Trace,
    /// What the timer interrupt that noticed a stall had interrupted.
    Interrupted,
    /// The trace under the first label that contains the text.
    Under(&'static str),
    /// Two functions of the header (data races); the recipe's skips are not applied.
    Race,
}

/// How one frame is picked from the candidates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pick {
    /// The first that no skip rule names.
    First,
    /// Stalls: the code loops somewhere below an entry point, so the frame right above the entry point names it.
    AboveEntry,
    /// Hung tasks: well-known waits by name, else the first that is not waiting machinery.
    Waiter,
}

/// How to find the frame of a class.
#[derive(Debug, Clone, Copy)]
pub struct Recipe {
    /// Where to look, in order.
    pub from: &'static [Source],
    /// How to choose.
    pub pick: Pick,
    /// Class-specific plumbing, in addition to what every class skips.
    pub skip: &'static [&'static str],
}

/// One class.
#[derive(Debug, Clone, Copy)]
pub struct Class {
    /// Kind of the reports.
    pub kind: Kind,
    /// Template of the header line.
    pub head: &'static str,
    /// Templates that must match later lines of the report, in this order.
    pub also: &'static [&'static str],
    /// Title template; `{frame}` is the chosen frame.
    pub title: &'static str,
    /// Templates of alternate titles.
    pub alts: &'static [&'static str],
    /// How to find the frame.
    pub frames: Option<&'static Recipe>,
    /// A report of this class owes a stack trace: without one it is corrupted.
    pub trace: bool,
    /// Set when matching this class at all means that the report is damaged.
    pub damaged: Option<&'static str>,
    /// Relation to an open report.
    pub join: Join,
    /// Without all of `also` there is no report: the header alone says too little.
    pub whole: bool,
    /// The header may stand anywhere in the line, not only at its start: its words are unmistakable.
    pub anywhere: bool,
}

impl Class {
    /// A class that owes a trace and begins its own report.
    pub const fn new(kind: Kind, head: &'static str, title: &'static str) -> Self {
        Self {
            kind,
            head,
            also: &[],
            title,
            alts: &[],
            frames: None,
            trace: true,
            damaged: None,
            join: Join::Own,
            whole: false,
            anywhere: true,
        }
    }

    /// Lines that must follow.
    pub const fn also(mut self, also: &'static [&'static str]) -> Self {
        self.also = also;
        self
    }

    /// Alternate titles.
    pub const fn alts(mut self, alts: &'static [&'static str]) -> Self {
        self.alts = alts;
        self
    }

    /// Frame recipe.
    pub const fn frames(mut self, frames: &'static Recipe) -> Self {
        self.frames = Some(frames);
        self
    }

    /// The class is complete without a stack trace.
    pub const fn traceless(mut self) -> Self {
        self.trace = false;
        self
    }

    /// No report unless the following lines match as well.
    pub const fn whole(mut self) -> Self {
        self.whole = true;
        self
    }

    /// Matching means damage.
    pub const fn damaged(mut self, why: &'static str) -> Self {
        self.damaged = Some(why);
        self
    }

    /// See [`Join::Detail`].
    pub const fn detail(mut self) -> Self {
        self.join = Join::Detail;
        self
    }

    /// See [`Join::Consequence`].
    pub const fn consequence(mut self) -> Self {
        self.join = Join::Consequence;
        self.trace = false;
        self
    }

    /// The header counts only at the start of a message: its words are common in prose.
    pub const fn at_start(mut self) -> Self {
        self.anywhere = false;
        self
    }
}

/// A header literal, what it may introduce, and which lines with it are no problem at all.
#[derive(Debug, Clone, Copy)]
pub struct Group {
    /// Literal that every head template of the group contains.
    pub literal: &'static str,
    /// The prefilter need not look for the literal: the kernel prints one of the words in the same line that it looks
    /// for anyway (`BUG: `, `WARNING: `, `INFO: `, `0 [#`).
    pub covered: bool,
    /// Lines that contain one of these are none of ours.
    pub ignore: &'static [&'static str],
    /// The classes in order of preference.
    pub classes: &'static [Class],
}

/// A class found on a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Index into [`TABLES`] and into its classes.
    pub group: (usize, usize),
    /// Index of the first class whose head matches.
    pub class: usize,
}

impl Found {
    /// The group.
    pub fn group(self) -> &'static Group {
        &TABLES[self.group.0][self.group.1]
    }

    /// The first class whose head matches.
    pub fn class(self) -> &'static Class {
        &self.group().classes[self.class]
    }
}
