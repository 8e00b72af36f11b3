//! The streaming parser: bytes in, events and reports out.
//!
//! Two speeds. While no report is open, a vectorised search jumps from one interesting line to the next and boring
//! lines are never split. While reports are open, each line goes to the report of its printing context. Both see the
//! same lines whatever the cuts between `feed` calls, because only complete lines (or lines that reached the length
//! limit) are looked at; the unfinished rest waits in a small buffer.
//!
//! Everything that could grow is limited: line length, lines and bytes of a report, open reports, stored reports and
//! events. A reached limit is a warning, never an error.

use memchr::{memchr_iter, memchr2, memrchr2};

use crate::belonging::joins;
use crate::build::{self, Item};
use crate::cause;
use crate::class::{Found, Join};
use crate::events;
use crate::line::{self, Context, Payload};
use crate::model::{Event, EventKind, Kind, Outcome, Report, Warning};
use crate::normal;
use crate::open::{Open, OpenReport, Place};
use crate::options::Options;
use crate::scan;
use crate::told::Told;

/// Longest line; what is longer is read as several.
const MAX_LINE: usize = 8192;
/// Lines and bytes of one report.
const MAX_ITEMS: usize = 1200;
const MAX_TEXT: usize = 64 * 1024;
/// Reports open at the same time (one for each printing context).
const MAX_OPEN: usize = 8;
/// A command line this long may have been cut by the kernel's log (1,024 bytes with its prefix).
const COMMAND_LINE_SURE: u64 = 900;
/// Stored reports and events; further ones are counted only.
const MAX_REPORTS: usize = 10_000;
const MAX_EVENTS: usize = 20_000;
const MAX_WARNINGS: usize = 1_000;
/// Bytes of a line's buffer that a drained parser keeps.
const KEPT: usize = 256;
/// Bytes of report text after which reports are stored without stacks and registers.
const FULL_TEXT: usize = 2 * 1024 * 1024;

/// What is known about the kernel that is running.
#[derive(Debug, Clone, Default)]
struct Boot {
    index: u32,
    banner: Option<String>,
    /// It said that it ends (panic, shutdown, kexec) or crashed.
    accounted: bool,
    /// Something other than early boot has been seen since the banner.
    settled: bool,
    /// Whether its command line, once seen whole, is that of a capture kernel.
    capture: Option<bool>,
    /// Its banner had a time stamp.
    stamped: bool,
    triggered: bool,
    panicked: bool,
}

/// Reads a console piece by piece.
#[derive(Debug, Clone, Default)]
pub struct Parser {
    options: Options,
    carry: Vec<u8>,
    scratch: Vec<u8>,
    /// Bytes before the next line, and line feeds before it.
    offset: u64,
    feeds: u64,
    open: Vec<Open>,
    /// Buffers of the last closed report, for the next.
    spare: (Vec<u8>, Vec<Item>),
    boot: Boot,
    told: Told,
    stored_text: usize,
    lost_reports: u64,
    outcome: Outcome,
}

impl Parser {
    /// A parser at the beginning of a console.
    #[must_use]
    pub fn new(options: Options) -> Self {
        Self { options, ..Self::default() }
    }

    /// Takes the next bytes. Any cut is fine, in the middle of a line or of a character.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        while !self.carry.is_empty() && !bytes.is_empty() {
            let room = MAX_LINE - self.carry.len();
            let (head, complete) = match memchr2(b'\n', b'\r', &bytes[..bytes.len().min(room)]) {
                Some(at) => (at + 1, true),
                None => (bytes.len().min(room), bytes.len() >= room),
            };
            self.carry.extend_from_slice(&bytes[..head]);
            bytes = &bytes[head..];
            if complete {
                let line = std::mem::take(&mut self.carry);
                self.block(&line);
                self.carry = line;
                self.carry.clear();
            }
        }
        if bytes.is_empty() {
            return;
        }
        let lines = memrchr2(b'\n', b'\r', bytes).map_or(0, |at| at + 1);
        let whole = lines + (bytes.len() - lines) / MAX_LINE * MAX_LINE;
        self.block(&bytes[..whole]);
        self.carry.extend_from_slice(&bytes[whole..]);
    }

    /// Events seen so far, in the order of the input.
    #[must_use]
    pub fn events(&self) -> &[Event] {
        &self.outcome.events
    }

    /// Reports that are complete so far, by first byte. `cause`, `duplicate_of` and `intended` are judged over the
    /// whole list and therefore only set by [`Self::snapshot`] and [`Self::finish`].
    #[must_use]
    pub fn reports(&self) -> &[Report] {
        &self.outcome.reports
    }

    /// Reports that are still being printed, by first byte.
    pub fn open(&self) -> impl Iterator<Item = OpenReport<'_>> {
        self.open.iter().map(OpenReport)
    }

    /// Bytes taken so far.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset + self.carry.len() as u64
    }

    /// Line feeds seen so far.
    #[must_use]
    pub fn line_feeds(&self) -> u64 {
        self.feeds
    }

    /// Goes on at a later offset: the bytes before it are missing, and the line that was not finished is lost with them.
    pub fn skip_to(&mut self, offset: u64) {
        if offset > self.offset() {
            self.offset = offset;
            self.carry.clear();
        }
    }

    /// Hands out the events and the complete reports since the last call, and forgets them: for consoles that are
    /// followed for days. What needs the whole list (`cause`, `duplicate_of`, `intended`) is not judged. A parser that
    /// is drained after each piece, and that has no report open, holds next to nothing.
    pub fn drain(&mut self) -> Outcome {
        self.stored_text = 0;
        if self.open.is_empty() {
            self.spare = (Vec::new(), Vec::new());
        }
        for buffer in [&mut self.carry, &mut self.scratch] {
            buffer.shrink_to(buffer.len().max(KEPT));
        }
        std::mem::take(&mut self.outcome)
    }

    /// What [`Self::finish`] would give if the input ended here; the parser goes on.
    #[must_use]
    pub fn snapshot(&self) -> Outcome {
        self.clone().finish()
    }

    /// The end of the input: closes what is open and judges causality and intent.
    #[must_use]
    pub fn finish(mut self) -> Outcome {
        let rest = std::mem::take(&mut self.carry);
        self.block(&rest);
        self.close_all(Some("the log ends in the middle of the report"));
        self.absences();
        if self.lost_reports > 0 {
            let text = format!("{} further reports were counted but not stored", self.lost_reports);
            self.warn(self.offset, text);
        }
        let mut outcome = self.outcome;
        cause::settle(&mut outcome.reports, &outcome.events, self.options.intent.as_ref());
        outcome
    }

    /// Processes complete lines.
    fn block(&mut self, data: &[u8]) {
        let mut at = 0;
        let mut counted = 0;
        let mut next = scan::next(data, 0);
        while at < data.len() {
            if next.is_some_and(|n| n < at) {
                next = scan::next(data, at);
            }
            if self.open.is_empty() {
                // Jump to the line with the next literal.
                let Some(hit) = next else { break };
                let start = memrchr2(b'\n', b'\r', &data[at..hit]).map_or(at, |p| at + p + 1);
                at = start + (hit - start) / MAX_LINE * MAX_LINE;
            }
            let limit = data.len().min(at + MAX_LINE);
            let end = memchr2(b'\n', b'\r', &data[at..limit]).map_or(limit, |p| at + p);
            if counted < at {
                self.feeds += memchr_iter(b'\n', &data[counted..at]).count() as u64;
            }
            if end > at {
                let place =
                    Place { start: self.offset + at as u64, end: self.offset + end as u64, line: self.feeds + 1 };
                let hit = next.is_some_and(|n| n < end);
                self.raw_line(&data[at..end], place, hit);
            }
            let terminated = end < data.len() && matches!(data[end], b'\n' | b'\r');
            let taken = terminated && end < at + MAX_LINE;
            at = end + usize::from(taken);
            // Line by line nothing need be searched to count the feeds.
            self.feeds += u64::from(taken && data[end] == b'\n');
            counted = at;
        }
        self.feeds += memchr_iter(b'\n', &data[counted..]).count() as u64;
        self.offset += data.len() as u64;
    }

    fn raw_line(&mut self, raw: &[u8], place: Place, hit: bool) {
        let mut scratch = std::mem::take(&mut self.scratch);
        let text = if line::clean(raw, &mut scratch) { scratch.as_slice() } else { raw };
        line::payloads(text, |p| self.message(p, place, hit));
        self.scratch = scratch;
    }

    fn message(&mut self, p: Payload<'_>, place: Place, hit: bool) {
        if hit {
            if let Some(kind) = events::recognise(p.text) {
                self.event(kind, p, place);
            }
            if let Some(found) = scan::header(p.text) {
                self.header(found, p, place);
                return;
            }
        }
        if let Some(i) = self.route(p.context) {
            self.append(i, p, place);
        }
    }

    /// The open report a line of this context belongs to: that of the same context, else the youngest.
    fn route(&self, context: Context) -> Option<usize> {
        if context == Context::Unknown {
            return self.open.len().checked_sub(1);
        }
        self.open
            .iter()
            .rposition(|o| o.context == context)
            .or_else(|| self.open.iter().rposition(|o| o.context == Context::Unknown))
    }

    /// The open report that a new header of this context continues or ends. A line without caller id in a log that
    /// has them is somebody else's.
    fn rival(&self, context: Context) -> Option<usize> {
        self.open.iter().rposition(|o| o.context == context || o.context == Context::Unknown)
    }

    fn header(&mut self, found: Found, p: Payload<'_>, place: Place) {
        if let Some(i) = self.rival(p.context) {
            let open = &self.open[i];
            // The later sections of a slab report have headers of their own.
            let section = found.class().join == Join::Detail
                && [open.collected.found, found].iter().all(|f| f.class().kind == Kind::SlabCorruption);
            let torn = open.context == Context::Unknown && open.collected.found.class().kind == Kind::StackOverflow;
            if section || (!open.traced || torn) && joins(open.collected.found, found) {
                self.append(i, p, place);
                return;
            }
            let cut = (!open.traced).then_some("another report begins before its stack trace");
            self.close(i, cut);
        }
        if self.open.len() == MAX_OPEN {
            self.close(0, Some("too many reports at the same time"));
        }
        let replay = self.replayed(p.stamp, p.text, true);
        self.push_event(EventKind::ReportStart { class: found.class().kind }, p.stamp, p.text, place, replay);
        self.boot.accounted |= !replay && !matches!(found.class().kind, Kind::Warning);
        let buffers = std::mem::take(&mut self.spare);
        self.open.push(Open::new(found, p, place, self.boot.index, buffers));
    }

    fn append(&mut self, i: usize, p: Payload<'_>, place: Place) {
        let open = &mut self.open[i];
        if !open.take(p.text, place) {
            self.close(i, None);
        } else if open.collected.items.len() >= MAX_ITEMS || open.collected.text.len() >= MAX_TEXT {
            self.close(i, Some("the report is longer than the limit"));
        }
    }

    fn close_all(&mut self, cut: Option<&'static str>) {
        while !self.open.is_empty() {
            self.close(0, cut);
        }
    }

    fn close(&mut self, i: usize, cut: Option<&'static str>) {
        let mut open = self.open.remove(i);
        if self.outcome.reports.len() >= MAX_REPORTS {
            self.lost_reports += 1;
            return;
        }
        open.collected.cut = cut;
        let Some(mut r) = build::report(&open.collected) else { return };
        r.start = open.place.start;
        r.end = open.place.end;
        r.line = open.place.line;
        r.time = open.time;
        r.boot = open.boot;
        r.context = match open.context {
            Context::Unknown => None,
            Context::Task(n) => Some(format!("T{n}")),
            Context::Cpu(n) => Some(format!("C{n}")),
        };
        if r.cpu.is_none()
            && let Context::Cpu(n) = open.context
        {
            r.cpu = Some(n);
        }
        self.stored_text += open.collected.text.len();
        if self.stored_text > FULL_TEXT {
            slim(&mut r);
        }
        self.spare = (open.collected.text, open.collected.items);
        let at = self.outcome.reports.partition_point(|x| x.start <= r.start);
        self.outcome.reports.insert(at, r);
    }

    fn event(&mut self, kind: EventKind, p: Payload<'_>, place: Place) {
        let telling = matches!(
            kind,
            EventKind::Marker { .. }
                | EventKind::CrashTriggered
                | EventKind::Panic { .. }
                | EventKind::PanicEnd
                | EventKind::RecursiveFault
        );
        if telling && self.replayed(p.stamp, p.text, false) {
            self.push_event(kind, p.stamp, p.text, place, true);
            return;
        }
        match &kind {
            EventKind::KernelBanner { .. } => {
                let banner = String::from_utf8_lossy(p.text).into_owned();
                // Said again, it is a second console that starts, or somebody reads /proc/version; no second boot.
                let again = !self.boot.settled || self.boot.stamped && p.stamp.is_none();
                if self.boot.banner.as_ref() == Some(&banner) && again && !self.boot.accounted {
                    return;
                }
                self.close_all(Some("the machine was reset"));
                self.next_boot(place);
                self.boot.stamped = p.stamp.is_some();
                self.boot.banner = Some(banner);
            }
            EventKind::CommandLine { capture } => {
                // A capture kernel whose banner was lost. What may be cut says nothing: `elfcorehdr=` stands at the end.
                let whole = place.end - place.start < COMMAND_LINE_SURE;
                let banner = self.boot.banner.is_some();
                if *capture && self.boot.capture == Some(false) {
                    self.close_all(Some("another kernel was started"));
                    self.boot.accounted = true;
                    self.next_boot(place);
                    self.boot.index += u32::from(!banner);
                }
                if *capture || whole {
                    self.boot.capture.get_or_insert(*capture);
                }
            }
            EventKind::Firmware => {
                self.close_all(Some("the machine was reset"));
                if self.boot.banner.is_some() {
                    self.next_boot(place);
                }
            }
            EventKind::InitStarted => self.boot.settled = true,
            EventKind::Marker { .. } | EventKind::CrashTriggered => {
                self.boot.triggered = true;
                self.boot.settled = true;
            }
            EventKind::Panic { .. } => {
                self.boot.accounted = true;
                self.boot.panicked = true;
            }
            EventKind::Kexec => self.boot.accounted = true,
            EventKind::Shutdown => {
                self.boot.accounted = true;
                self.boot.panicked = false;
            }
            _ => {}
        }
        self.push_event(kind, p.stamp, p.text, place, false);
    }

    /// Whether an earlier kernel of this input printed the same line at the same time. Only user space prints old
    /// logs, so before it runs nothing is a replay; a capture kernel that is told to be quiet does not say when it does.
    fn replayed(&mut self, stamp: Option<&[u8]>, text: &[u8], header: bool) -> bool {
        let Some(stamp) = stamp else { return false };
        let before = self.told.before(self.boot.index, stamp, text, header);
        before && (self.boot.settled || self.boot.capture == Some(true))
    }

    /// A new kernel or firmware: the one before ends here, explained or not.
    fn next_boot(&mut self, place: Place) {
        let ran = self.boot.banner.is_some();
        if ran && !self.boot.accounted {
            self.push_event(EventKind::UnexplainedReset, None, b"", place, false);
        }
        let index = self.boot.index + u32::from(ran);
        self.boot = Boot { index, ..Boot::default() };
    }

    fn push_event(&mut self, kind: EventKind, stamp: Option<&[u8]>, text: &[u8], place: Place, replay: bool) {
        if self.outcome.events.len() == MAX_EVENTS {
            self.warn(place.start, "too many events: this and later ones are not stored".to_owned());
        }
        if self.outcome.events.len() <= MAX_EVENTS {
            let mut text = String::from_utf8_lossy(text.trim_ascii()).into_owned();
            normal::truncate(&mut text, 1024);
            let event = Event {
                kind,
                start: place.start,
                end: place.end,
                line: place.line,
                boot: self.boot.index,
                time: stamp.map(normal::string),
                replay,
                text,
            };
            self.outcome.events.push(event);
        }
    }

    /// What did not happen up to the end of the input.
    fn absences(&mut self) {
        let place = Place { start: self.offset, end: self.offset, line: self.feeds + 1 };
        if self.boot.panicked {
            self.push_event(EventKind::NothingAfterPanic, None, b"", place, false);
        } else if self.boot.triggered && !self.boot.accounted {
            self.push_event(EventKind::NoPanicAfterTrigger, None, b"", place, false);
        }
    }

    fn warn(&mut self, offset: u64, text: String) {
        if self.outcome.warnings.len() < MAX_WARNINGS {
            self.outcome.warnings.push(Warning { offset, text });
        }
    }
}

/// Drops what takes the most memory, once there are very many reports.
fn slim(r: &mut Report) {
    r.stacks = Vec::new();
    r.registers = Vec::new();
    r.modules = Vec::new();
    r.code = None;
    r.locks.truncate(4);
    r.trace.truncate(16);
    r.why.truncate(4);
}
