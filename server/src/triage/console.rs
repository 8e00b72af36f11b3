//! Reads a console while it grows and keeps what the contract asks about: kernel banners, command lines, the marker,
//! panics, oopses, and the lines after which nothing more can come.
//!
//! What a line says is the crash-log engine's business ([`crashyard_crashlog::Parser`]), the same that reads the whole
//! console again when the attempt is over. This reader adds what the engine cannot know: when the server had a line,
//! what the scenario asked for ([`Intent`]), and where in the story of the crash a line therefore stands ([`Phase`]).
//! A panic is the intended one only after this attempt's marker, and only if its message is the expected one.
//!
//! Where the scenario crashes by an oops, the kernel goes from the oops straight to the capture kernel, without a panic's
//! message: then the header of the oops is that message.
//!
//! It never fails, needs constant memory, and gives the same facts however the bytes were cut into pieces. Nothing is
//! judged again when more comes, so a write costs reading its own bytes.

use crashyard_crashlog::{Event, EventKind, Kind, Options, Outcome, Parser};
use crashyard_protocol::agent::DumpFailure;
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{AttemptId, Scenario};
use serde::{Deserialize, Serialize};

/// Version of the reading rules; facts made by an older reader are worth making again.
pub const READER: u32 = 4;

/// Marks of one kind kept for each phase; what comes after adds nothing to a judgement.
const MARKS_MAX: usize = 32;

/// Bytes given to the engine at a time. Less than what could reach one of its limits, so that none of them ever shows.
const PIECE: usize = 32 * 1024;

/// A command line this long may have been cut by the kernel's log (1,024 bytes with its prefix), and its end is where
/// `elfcorehdr=` stands.
const COMMAND_LINE_SURE: u64 = 900;

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
        crashyard_crashlog::Intent::new(&*self.panic).matches(message, "")
    }

    /// Whether a line, without what stands before the kernel's words, is the marker of this attempt.
    pub(super) fn is_marker(&self, text: &str) -> bool {
        crashyard_crashlog::event(text.as_bytes()).is_some_and(|event| self.marks(&event))
    }

    fn marks(&self, event: &EventKind) -> bool {
        matches!(event, EventKind::Marker { attempt: Some(attempt), .. } if attempt == self.attempt.as_str())
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
        /// Its title, by what is known of it so far.
        title: String,
    },
    /// `end Kernel panic`, or a task that faulted while it died: this kernel does nothing any more.
    DeadEnd,
    /// A register that the jump to another kernel prints when it dies itself.
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
    /// Bytes of the line without its end.
    pub length: u64,
    /// 1-based line.
    pub line: u64,
    /// What the kernel says on the line, with its time stamp, cut to 500 characters.
    pub text: String,
    /// Where in the story it stands.
    pub phase: Phase,
    /// What it says.
    #[serde(flatten)]
    pub kind: MarkKind,
}

/// Whether a command line's mark may be cut, so that nothing follows from what is not in it.
#[must_use]
pub fn may_be_cut(mark: &Mark) -> bool {
    mark.length >= COMMAND_LINE_SURE
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

/// Reads one console, piece by piece.
#[derive(Clone, Debug)]
pub struct ConsoleReader {
    intent: Intent,
    parser: Parser,
    facts: ConsoleFacts,
    phase: Phase,
    /// Oopses that are still being printed.
    unfinished: Vec<Unfinished>,
}

/// An oops that is still being printed, so that its title may become better.
#[derive(Clone, Copy, Debug)]
struct Unfinished {
    /// Its report's first byte.
    start: u64,
    /// Its mark.
    mark: usize,
    /// Lines of the report that its title was made of.
    lines: usize,
}

impl ConsoleReader {
    /// A reader at the beginning of a console.
    #[must_use]
    pub fn new(intent: Intent) -> Self {
        Self {
            intent,
            parser: Parser::new(Options::default()),
            facts: ConsoleFacts::default(),
            phase: Phase::Before,
            unfinished: Vec::new(),
        }
    }

    /// Takes the bytes at `offset`, which the server had at `at`; `true` if they said anything the contract asks about.
    /// Bytes it has read are skipped, so repeating is harmless. Bytes that were never sent (a gap, which the server does
    /// not accept) end the line before them.
    pub fn feed(&mut self, at: Timestamp, offset: u64, bytes: &[u8]) -> bool {
        let next = self.parser.offset();
        let known = next.saturating_sub(offset);
        let Some(fresh) = usize::try_from(known).ok().and_then(|known| bytes.get(known..)) else { return false };
        self.parser.skip_to(offset);
        let mut news = false;
        for piece in fresh.chunks(PIECE) {
            self.parser.feed(piece);
            let Outcome { events, reports, .. } = self.parser.drain();
            for event in events {
                news |= self.take(at, event);
            }
            for report in reports {
                news |= self.finish(report.start, &report.title);
            }
            news |= self.name_unfinished();
        }
        self.facts.bytes = self.parser.offset();
        self.facts.lines = self.parser.line_feeds();
        news
    }

    /// What was read so far. The last line counts once it is complete.
    #[must_use]
    pub fn facts(&self) -> &ConsoleFacts {
        &self.facts
    }

    /// The offset of the next byte to feed.
    #[must_use]
    pub fn next_offset(&self) -> u64 {
        self.facts.bytes
    }

    fn take(&mut self, at: Timestamp, event: Event) -> bool {
        // The crashed kernel's log, printed again in the capture kernel, is no news.
        if event.replay {
            return false;
        }
        let oops = matches!(event.kind, EventKind::ReportStart { .. });
        let text = match &event.time {
            Some(time) => format!("[{time:>12}] {}", event.text),
            None => event.text.clone(),
        };
        let text = text.chars().take(500).collect();
        let (start, line) = (event.start, event.line);
        let length = event.end - event.start;
        let Some(kind) = self.kind(event) else { return false };
        let mark = Mark { at, offset: start, length, line, text, phase: self.phase, kind };
        self.phase = match (&mark.kind, self.phase) {
            (MarkKind::Marker, Phase::Before) => Phase::Triggered,
            (MarkKind::Marker, _) => return false,
            (MarkKind::Panic { intended: true, .. }, _) => Phase::Crashed,
            (MarkKind::CommandLine { capture: true }, Phase::Before | Phase::Triggered | Phase::Crashed) => {
                Phase::Capture
            }
            (MarkKind::CommandLine { capture: false }, Phase::Triggered | Phase::Crashed) if !may_be_cut(&mark) => {
                Phase::Reset
            }
            (_, phase) => phase,
        };
        let kind = std::mem::discriminant(&mark.kind);
        let alike = |other: &&Mark| other.phase == mark.phase && std::mem::discriminant(&other.kind) == kind;
        if self.facts.marks.iter().filter(alike).count() >= MARKS_MAX {
            return false;
        }
        if oops {
            self.unfinished.push(Unfinished { start, mark: self.facts.marks.len(), lines: 0 });
        }
        self.facts.marks.push(mark);
        true
    }

    /// What an event means to the contract, if anything.
    fn kind(&self, event: Event) -> Option<MarkKind> {
        Some(match event.kind {
            EventKind::KernelBanner { release } => MarkKind::Banner { release },
            EventKind::CommandLine { capture } => MarkKind::CommandLine { capture },
            EventKind::Panic { reason } => {
                let expected = self.intent.wants(&reason);
                MarkKind::Panic { message: reason, intended: expected && self.phase == Phase::Triggered, expected }
            }
            EventKind::PanicEnd | EventKind::RecursiveFault => MarkKind::DeadEnd,
            EventKind::JumpDied { register, value } => MarkKind::JumpDied { register, value },
            EventKind::DumpFailed { cause } => MarkKind::DumpFailed { cause: cause.parse().ok()? },
            EventKind::ReportStart { class } if is_oops(class) && self.is_intended_oops(&event.text) => {
                MarkKind::Panic { message: event.text, intended: true, expected: true }
            }
            EventKind::ReportStart { class } if is_oops(class) => MarkKind::Oops { title: event.text },
            ref marker @ EventKind::Marker { .. } if self.intent.marks(marker) => MarkKind::Marker,
            _ => return None,
        })
    }

    fn is_intended_oops(&self, header: &str) -> bool {
        self.intent.oops && self.phase == Phase::Triggered && self.intent.wants(header)
    }

    /// Gives an oops the title that it keeps.
    fn finish(&mut self, start: u64, title: &str) -> bool {
        let Some(at) = self.unfinished.iter().position(|oops| oops.start == start) else { return false };
        let oops = self.unfinished.remove(at);
        self.entitle(oops.mark, title)
    }

    /// Gives oopses that are still being printed the titles that they have by now.
    fn name_unfinished(&mut self) -> bool {
        let mut titles = Vec::new();
        for report in self.parser.open() {
            let oops = self.unfinished.iter_mut().find(|oops| oops.start == report.start());
            if let Some(oops) = oops.filter(|oops| oops.lines != report.lines()) {
                oops.lines = report.lines();
                titles.extend(report.title().map(|title| (oops.mark, title)));
            }
        }
        titles.into_iter().fold(false, |news, (mark, title)| self.entitle(mark, &title) || news)
    }

    fn entitle(&mut self, mark: usize, title: &str) -> bool {
        // While nobody knows the function, the title does not speak of one.
        let title = title.strip_suffix(" in corrupted").unwrap_or(title);
        match self.facts.marks.get_mut(mark).map(|mark| &mut mark.kind) {
            Some(MarkKind::Oops { title: known }) if known != title => {
                title.clone_into(known);
                true
            }
            _ => false,
        }
    }
}

/// Whether a kernel that says this is broken. Others it survives, are a matter of the machine, or say that it is slow,
/// which emulated machines are.
fn is_oops(kind: Kind) -> bool {
    match kind {
        Kind::PageFault
        | Kind::NullDereference
        | Kind::GeneralProtection
        | Kind::DivideError
        | Kind::InvalidOpcode
        | Kind::Oops
        | Kind::Bug
        | Kind::Kasan
        | Kind::Kmsan
        | Kind::Kfence
        | Kind::LockUsage
        | Kind::AtomicSleep
        | Kind::Preemption
        | Kind::SoftLockup
        | Kind::HardLockup
        | Kind::WorkqueueStall
        | Kind::ListCorruption
        | Kind::Usercopy
        | Kind::BadPage
        | Kind::SlabCorruption
        | Kind::StackOverflow
        | Kind::DoubleFault
        | Kind::RustPanic => true,
        Kind::Panic
        | Kind::Sysrq
        | Kind::Warning
        | Kind::Kcsan
        | Kind::Ubsan
        | Kind::Lockdep
        | Kind::RcuUsage
        | Kind::HungTask
        | Kind::RcuStall
        | Kind::Refcount
        | Kind::DebugObjects
        | Kind::MachineCheck
        | Kind::HardwareError
        | Kind::BadIrq
        | Kind::OutOfMemory
        | Kind::AllocationFailure
        | Kind::MemoryLeak
        | Kind::Filesystem
        | Kind::NetworkDevice
        | Kind::Firmware
        | Kind::Userspace => false,
    }
}
