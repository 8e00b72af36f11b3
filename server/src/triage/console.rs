//! Reads a console while it grows and keeps what the contract asks about: kernel banners, command lines, the marker,
//! panics, oopses, and the lines after which nothing more can come.
//!
//! Consoles are dirty: prefixes of console servers, escape sequences, carriage returns, cut lines, kernel messages
//! behind a prompt. So the reader looks for phrases that only a kernel prints, wherever they stand in a line. It
//! never fails, needs constant memory, and gives the same facts however the bytes were cut into pieces.
//!
//! What is *intended* comes from the scenario ([`Intent`]). A panic is the intended one only after this attempt's
//! marker, and only if its message is the expected one. Where the scenario crashes by an oops, the kernel goes from the
//! oops straight to the capture kernel, without a panic's message: then the header of the oops is that message.
//!
//! A capture kernel likes to print the crashed kernel's log again. Such a replay repeats lines with their time
//! stamps, and is not taken for news.

mod line;
mod quiet;

use crashyard_protocol::agent::DumpFailure;
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{AttemptId, Scenario};
use serde::{Deserialize, Serialize};

pub use line::{is_marker, may_be_cut};

/// Version of the reading rules; facts made by an older reader are worth making again.
pub const READER: u32 = 3;

/// Bytes of one line that are looked at; the rest is skipped. The kernel's own limit is 1,024.
const LINE_MAX: usize = 4096;

/// Marks of one kind kept for each phase; what comes after adds nothing to a judgement.
const MARKS_MAX: usize = 32;

/// Lines in which an oops header's instruction pointer is looked for.
const TITLE_LINES: u64 = 40;

/// What the scenario asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// The attempt whose marker counts.
    pub attempt: AttemptId,
    /// What the intended panic's message contains.
    pub panic: String,
    /// It is the header of an oops that announces the crash.
    #[serde(default)]
    pub oops: bool,
}

impl Intent {
    /// The intent of one attempt.
    #[must_use]
    pub fn new(attempt: &AttemptId, scenario: &Scenario) -> Self {
        Self { attempt: attempt.clone(), panic: scenario.expect.panic.clone(), oops: scenario.trigger.is_oops() }
    }

    pub(super) fn wants(&self, message: &str) -> bool {
        !self.panic.is_empty() && message.contains(&self.panic)
    }
}

/// Where in the story of the crash a line stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Before this attempt's marker.
    Before,
    /// After the marker, before the intended panic.
    Triggered,
    /// After the intended panic: the crash path, up to the next kernel.
    Crashed,
    /// In the capture kernel.
    Capture,
    /// After a kernel that is no capture kernel followed the trigger: the machine went through reset.
    Reset,
}

/// What a line says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum MarkKind {
    /// `Linux version …`: a kernel starts.
    Banner {
        /// Its release.
        release: String,
    },
    /// A kernel's command line.
    CommandLine {
        /// It has `elfcorehdr=`: this is a capture kernel.
        capture: bool,
    },
    /// This attempt's marker.
    Marker,
    /// `Kernel panic - not syncing: …`
    Panic {
        /// What follows.
        message: String,
        /// It is the one the scenario asked for, at the place where it was asked for.
        intended: bool,
        /// Its message is the expected one, wherever it stands.
        expected: bool,
    },
    /// The header of an oops or another `BUG:`.
    Oops {
        /// Its title: what happened, and in which function where that is known.
        title: String,
    },
    /// `end Kernel panic`, or a task that faulted while it died: this kernel does nothing any more.
    DeadEnd,
    /// A register that the jump to another kernel prints when it dies itself (`relocate_kernel_64.S`, since 6.15): these
    /// lines have no time and belong to no kernel message.
    JumpDied {
        /// `Exc` is the exception's number; of the others those that say why (`r12`: CR4 as found, `r13`: as wanted).
        register: String,
        /// Its value.
        value: u64,
    },
    /// The capture agent says on the console that it failed.
    DumpFailed {
        /// Whose fault it is.
        cause: DumpFailure,
    },
}

/// A line that matters to the contract.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// When the server had the whole line.
    pub at: Timestamp,
    /// Offset of the line's first byte.
    pub offset: u64,
    /// Bytes of the line without its line feed.
    pub length: u64,
    /// 1-based line.
    pub line: u64,
    /// The line made printable, cut to 500 characters.
    pub text: String,
    /// Where in the story it stands.
    pub phase: Phase,
    /// What it says.
    #[serde(flatten)]
    pub kind: MarkKind,
}

/// What was read on a console so far.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleFacts {
    /// [`READER`] that made them.
    pub reader: u32,
    /// Bytes read.
    pub bytes: u64,
    /// Complete lines read.
    pub lines: u64,
    /// The lines that matter, in order.
    pub marks: Vec<Mark>,
}

impl Default for ConsoleFacts {
    fn default() -> Self {
        Self { reader: READER, bytes: 0, lines: 0, marks: Vec::new() }
    }
}

/// Reads one console, piece by piece. Can be stored and taken up again.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ConsoleReader {
    intent: Intent,
    facts: ConsoleFacts,
    phase: Phase,
    /// The line that has no line feed yet, up to [`LINE_MAX`] bytes.
    partial: Vec<u8>,
    /// Its first byte's offset.
    partial_offset: u64,
    /// The open oops whose function is still looked for: its mark, and the line after which nobody looks any more.
    untitled: Option<(usize, u64)>,
}

impl ConsoleReader {
    /// A reader at the beginning of a console.
    #[must_use]
    pub fn new(intent: Intent) -> Self {
        Self {
            intent,
            facts: ConsoleFacts::default(),
            phase: Phase::Before,
            partial: Vec::new(),
            partial_offset: 0,
            untitled: None,
        }
    }

    /// Takes the bytes at `offset`, which the server had at `at`. Bytes it has read are skipped, so repeating is
    /// harmless. Bytes that were never sent (a gap, which the server does not accept) end the line before them.
    pub fn feed(&mut self, at: Timestamp, offset: u64, bytes: &[u8]) {
        let known = self.facts.bytes.saturating_sub(offset);
        let Some(mut rest) = usize::try_from(known).ok().and_then(|known| bytes.get(known..)) else { return };
        if offset > self.facts.bytes {
            self.partial.clear();
            self.facts.bytes = offset;
            self.partial_offset = offset;
        }
        loop {
            // The rest of a line that has begun, and lines in which an oops's function is looked for, are all read.
            if self.partial.is_empty() && self.untitled.is_none() {
                let (length, lines) = quiet::lines(rest);
                rest = &rest[length..];
                self.facts.lines += lines;
                self.facts.bytes += length as u64;
                self.partial_offset = self.facts.bytes;
            }
            let Some((line, behind)) = line::first(rest) else { break };
            rest = behind;
            let offset = self.partial_offset;
            let length = self.facts.bytes + line.len() as u64 - offset;
            self.facts.lines += 1;
            self.facts.bytes += line.len() as u64 + 1;
            self.partial_offset = self.facts.bytes;
            if self.partial.is_empty() {
                self.read_line(at, offset, length, &line[..line.len().min(LINE_MAX)]);
            } else {
                self.keep(line);
                let whole = std::mem::take(&mut self.partial);
                self.read_line(at, offset, length, &whole);
            }
        }
        self.keep(rest);
        self.facts.bytes += rest.len() as u64;
    }

    /// What was read so far. The last line counts once it has its line feed.
    #[must_use]
    pub fn facts(&self) -> &ConsoleFacts {
        &self.facts
    }

    /// The offset of the next byte to feed.
    #[must_use]
    pub fn next_offset(&self) -> u64 {
        self.facts.bytes
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = LINE_MAX.saturating_sub(self.partial.len()).min(bytes.len());
        self.partial.extend_from_slice(&bytes[..room]);
    }

    fn read_line(&mut self, at: Timestamp, offset: u64, length: u64, raw: &[u8]) {
        if self.untitled.is_none() && quiet::notable(raw.strip_suffix(b"\r").unwrap_or(raw)).is_none() {
            return;
        }
        let text = line::clean(raw);
        self.find_title(&text);
        if let Some(kind) = line::classify(&text, &self.intent.attempt) {
            let kind = self.with_intent(kind, &text);
            let line = self.facts.lines;
            self.record(Mark { at, offset, length, line, text: line::cut(&text), phase: self.phase, kind });
        }
    }

    fn with_intent(&self, kind: MarkKind, text: &str) -> MarkKind {
        match kind {
            MarkKind::Oops { .. } if self.intent.oops && self.phase == Phase::Triggered && self.intent.wants(text) => {
                MarkKind::Panic { message: line::cut(line::payload(text)), intended: true, expected: true }
            }
            MarkKind::Panic { message, .. } => {
                let expected = self.intent.wants(&message);
                MarkKind::Panic { message, intended: expected && self.phase == Phase::Triggered, expected }
            }
            other => other,
        }
    }

    fn record(&mut self, mark: Mark) {
        let continues = matches!(mark.kind, MarkKind::Oops { .. }) && self.untitled.is_some();
        if continues || self.is_replay(&mark) {
            return;
        }
        self.phase = match (&mark.kind, self.phase) {
            (MarkKind::Marker, Phase::Before) => Phase::Triggered,
            (MarkKind::Marker, _) => return,
            (MarkKind::Panic { intended: true, .. }, _) => Phase::Crashed,
            (MarkKind::CommandLine { capture: true }, Phase::Before | Phase::Triggered | Phase::Crashed) => {
                Phase::Capture
            }
            (MarkKind::CommandLine { capture: false }, Phase::Triggered | Phase::Crashed)
                if !line::may_be_cut(&mark) =>
            {
                Phase::Reset
            }
            (_, phase) => phase,
        };
        let kind = std::mem::discriminant(&mark.kind);
        let alike = |other: &&Mark| other.phase == mark.phase && std::mem::discriminant(&other.kind) == kind;
        if self.facts.marks.iter().filter(alike).count() >= MARKS_MAX {
            return;
        }
        // The lines that follow the header of an oops belong to it, intended or not.
        let oops = matches!(mark.kind, MarkKind::Oops { .. });
        if oops || matches!(mark.kind, MarkKind::Panic { intended: true, .. }) && !line::is_panic(&mark.text) {
            self.untitled = Some((self.facts.marks.len(), mark.line + TITLE_LINES));
        }
        self.facts.marks.push(mark);
    }

    /// The crashed kernel's log, printed again in the capture kernel: the same line with the same time stamp.
    fn is_replay(&self, mark: &Mark) -> bool {
        let repeats = matches!(mark.kind, MarkKind::Panic { .. } | MarkKind::Oops { .. } | MarkKind::DeadEnd);
        let key = line::replay_key(&mark.text);
        self.phase == Phase::Capture
            && repeats
            && self.facts.marks.iter().any(|old| old.phase != Phase::Capture && line::replay_key(&old.text) == key)
    }

    fn find_title(&mut self, text: &str) {
        let Some((index, last_line)) = self.untitled else { return };
        let function = line::kernel_function(text);
        if let (Some(function), Some(mark)) = (function, self.facts.marks.get_mut(index))
            && let MarkKind::Oops { title } = &mut mark.kind
        {
            title.push_str(" in ");
            title.push_str(function);
        }
        if function.is_some() || self.facts.lines >= last_line || line::is_panic(text) {
            self.untitled = None;
        }
    }
}
