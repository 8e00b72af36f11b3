//! A report that is still being printed.

use crate::belonging::belongs;
use crate::build::{self, Collected, Item};
use crate::class::Found;
use crate::line::{Context, Payload};
use crate::trace;

/// Lines without anything of a report in them before a report is closed; fewer once it said that it ended.
const QUIET: u32 = 120;
const QUIET_AFTER_END: u32 = 25;
const QUIET_TRACELESS: u32 = 25;

/// Place of a line in the input.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    pub start: u64,
    pub end: u64,
    pub line: u64,
}

/// A report being collected.
#[derive(Debug, Clone)]
pub struct Open {
    pub collected: Collected,
    pub context: Context,
    /// Of its header; the end moves on.
    pub place: Place,
    pub time: Option<String>,
    pub boot: u32,
    /// It has a stack trace.
    pub traced: bool,
    entries: u32,
    ended: bool,
    quiet: u32,
    /// Lines that say where the kernel was.
    telling: u32,
    /// How many lines a name for it was last made of; see [`OpenReport::lines`].
    named: usize,
}

impl Open {
    /// A report that begins with this line, collected into buffers that may have been used before.
    pub fn new(found: Found, p: Payload<'_>, place: Place, boot: u32, buffers: (Vec<u8>, Vec<Item>)) -> Self {
        let (mut text, mut items) = buffers;
        text.clear();
        text.reserve(4 * 1024);
        items.clear();
        items.reserve(64);
        let mut open = Self {
            collected: Collected { found, text, items, cut: None },
            context: p.context,
            place,
            time: p.stamp.map(|s| String::from_utf8_lossy(s).into_owned()),
            boot,
            traced: false,
            entries: 0,
            ended: false,
            quiet: 0,
            telling: 0,
            named: 1,
        };
        open.push(p.text, trace::entry(p.text).is_some());
        open
    }

    /// Takes a line of its context; `false` if the report is over and the line none of its own.
    pub fn take(&mut self, text: &[u8], place: Place) -> bool {
        let entry = trace::entry(text).is_some();
        let telling = entry || trace::pointer(text).is_some();
        // One stray entry is no trace ("Preemption disabled at:").
        self.entries += u32::from(entry);
        self.traced |= self.entries >= 2;
        if telling || belongs(text) {
            self.quiet = 0;
            self.place.end = place.end;
        } else {
            self.quiet += 1;
            let limit = match self.collected.found.class().trace {
                _ if self.ended => QUIET_AFTER_END,
                false => QUIET_TRACELESS,
                true => QUIET,
            };
            if self.quiet > limit {
                return false;
            }
        }
        if text.trim_ascii_start().starts_with(b"---[ end ") {
            self.ended = true;
        }
        self.push(text, entry);
        if telling {
            self.telling += 1;
            if self.telling.is_power_of_two() {
                self.named = self.collected.items.len();
            }
        }
        true
    }

    fn push(&mut self, text: &[u8], entry: bool) {
        let from = self.collected.text.len();
        self.collected.text.extend_from_slice(text);
        self.collected.items.push(Item { range: from..self.collected.text.len(), entry });
    }
}

/// A look at a report that is still being printed.
#[derive(Debug, Clone, Copy)]
pub struct OpenReport<'a>(pub(crate) &'a Open);

impl OpenReport<'_> {
    /// First byte of the report in the original input.
    #[must_use]
    pub fn start(&self) -> u64 {
        self.0.place.start
    }

    /// How many of its lines [`Self::title`] looks at. It changes when the first, second, fourth, eighth … line came
    /// that says where the kernel was, so asking for a new title whenever it did costs no more than reading the report
    /// a few times, and the answer does not depend on how the bytes arrived.
    #[must_use]
    pub fn lines(&self) -> usize {
        self.0.named
    }

    /// The title by what is known so far.
    #[must_use]
    pub fn title(&self) -> Option<String> {
        let Collected { found, text, items, .. } = &self.0.collected;
        let items = &items[..self.0.named];
        let end = items.last().map_or(0, |last| last.range.end);
        let known = Collected { found: *found, text: text[..end].to_vec(), items: items.to_vec(), cut: None };
        build::report(&known).map(|report| report.title)
    }
}
