//! Times, spans, sizes and states as people read them.
//!
//! One place decides how a number looks, so that every page says it in the same way. All times are UTC, because
//! a farm's users sit in many time zones and compare pages with console logs. It never reads the clock: "now" is
//! an argument of every view.

use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{AttemptState, JobState, MachineState, RunState, Status};
use std::time::Duration;

/// A moment, for a `<time>` element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct When(pub Timestamp);

impl When {
    fn format(self, pattern: &str) -> String {
        // A time that no calendar holds can only come from a broken row; it must not take the page down.
        jiff::Timestamp::from_millisecond(self.0.0)
            .map_or_else(|_| format!("{} ms", self.0.0), |at| at.strftime(pattern).to_string())
    }

    /// For the `datetime` attribute: `2026-11-23T21:04:05Z`.
    #[must_use]
    pub fn iso(self) -> String {
        self.format("%Y-%m-%dT%H:%M:%SZ")
    }

    /// `2026-11-23 21:04:05 UTC`.
    #[must_use]
    pub fn full(self) -> String {
        self.format("%Y-%m-%d %H:%M:%S UTC")
    }

    /// `23 Nov 21:04`.
    #[must_use]
    pub fn short(self) -> String {
        self.format("%-d %b %H:%M")
    }

    /// `21:04`.
    #[must_use]
    pub fn minute(self) -> String {
        self.format("%H:%M")
    }

    /// `21:04:05`.
    #[must_use]
    pub fn second(self) -> String {
        self.format("%H:%M:%S")
    }

    /// `Monday, 23 November 2026`.
    #[must_use]
    pub fn day(self) -> String {
        self.format("%A, %-d %B %Y")
    }

    /// `2026-11-23`.
    #[must_use]
    pub fn date(self) -> String {
        self.format("%Y-%m-%d")
    }

    /// Milliseconds since the epoch, for scripts that count on.
    #[must_use]
    pub fn millis(self) -> i64 {
        self.0.0
    }
}

/// A span in words short enough for a table: `0.4 s`, `12.3 s`, `2 m 05 s`, `1 h 02 m`, `3 d 4 h`.
#[must_use]
pub fn span(span: Duration) -> String {
    let tenths = (span.as_millis() + 50) / 100;
    let seconds = tenths / 10;
    match seconds {
        0..60 => format!("{}.{} s", seconds, tenths % 10),
        60..3_600 => format!("{} m {:02} s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{} h {:02} m", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

/// A span that somebody chose, without the zeros of a measured one: `30 s`, `5 m`, `1 m 30 s`.
#[must_use]
pub fn limit(chosen: Duration) -> String {
    match chosen.as_secs() {
        seconds @ 0..60 if chosen.subsec_millis() == 0 => format!("{seconds} s"),
        seconds @ 60..3_600 if seconds.is_multiple_of(60) => format!("{} m", seconds / 60),
        seconds @ 3_600..86_400 if seconds.is_multiple_of(3_600) => format!("{} h", seconds / 3_600),
        _ => span(chosen),
    }
}

/// How long ago something was, in its largest unit: `3 s`, `2 m`, `1 h`, `4 d`.
#[must_use]
pub fn ago(past: Duration) -> String {
    match past.as_secs() {
        seconds @ 0..60 => format!("{seconds} s"),
        seconds @ 60..3_600 => format!("{} m", seconds / 60),
        seconds @ 3_600..86_400 => format!("{} h", seconds / 3_600),
        seconds => format!("{} d", seconds / 86_400),
    }
}

/// A span for a narrow cell: `0.4s`, `12s`, `2m05`, `1h02`.
#[must_use]
pub fn tight_span(span: Duration) -> String {
    let tenths = (span.as_millis() + 50) / 100;
    let seconds = tenths / 10;
    match seconds {
        0..10 => format!("{}.{}s", seconds, tenths % 10),
        10..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m{:02}", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}", seconds / 3_600, seconds / 60 % 60),
    }
}

/// A size: `512 B`, `4.0 KiB`, `38.2 MiB`, `1.5 GiB`.
#[must_use]
pub fn bytes(size: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if size < 1024 {
        return format!("{size} B");
    }
    let mut unit = 0;
    let mut tenths = u128::from(size) * 10 / 1024;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

/// A count with thin spaces between groups of three: `1 234 567`.
#[must_use]
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() * 2);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push('\u{202f}');
        }
        out.push(digit);
    }
    out
}

/// A word with its tone: what is shown, and which of the few colours and marks it gets.
///
/// The word is always on the page; tone only repeats it for the eye.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chip {
    /// The word.
    pub word: &'static str,
    /// `pass`, `fail`, `error`, `miss`, `skip`, `done`, `run` or `wait`; the style sheet has a mark for each.
    pub tone: &'static str,
}

impl Chip {
    /// A result.
    #[must_use]
    pub fn status(status: Status) -> Self {
        let tone = match status {
            Status::Pass => "pass",
            Status::Fail => "fail",
            Status::Error => "error",
            Status::Miss => "miss",
            Status::Skip => "skip",
            Status::Done => "done",
        };
        Self { word: status.as_str(), tone }
    }

    /// A run: its worst result, or that something is still owed.
    #[must_use]
    pub fn run(state: RunState, status: Status) -> Self {
        match state {
            RunState::Open => Self { word: "open", tone: "run" },
            RunState::Done => Self::status(status),
        }
    }

    /// A job: its result, or where it is on the way there.
    #[must_use]
    pub fn job(state: JobState, status: Status) -> Self {
        match state {
            JobState::Queued => Self { word: "queued", tone: "wait" },
            JobState::Leased => Self { word: "running", tone: "run" },
            JobState::Done => Self::status(status),
            JobState::Cancelled => Self { word: "cancelled", tone: "skip" },
        }
    }

    /// An attempt: its result once it is judged.
    #[must_use]
    pub fn attempt(state: AttemptState, verdict: Status) -> Self {
        match state {
            AttemptState::Running => Self { word: "running", tone: "run" },
            AttemptState::Collecting | AttemptState::Done | AttemptState::Lost => Self::status(verdict),
        }
    }

    /// A machine of which nobody knows anything.
    pub const UNKNOWN: Self = Self { word: "unknown", tone: "miss" };

    /// A machine.
    #[must_use]
    pub fn machine(state: MachineState) -> Self {
        let tone = match state {
            MachineState::Enrolled => "wait",
            MachineState::Available => "pass",
            MachineState::Leased => "run",
            MachineState::Held => "error",
            MachineState::Reserved => "miss",
            MachineState::Quarantined => "fail",
            MachineState::Retired => "skip",
        };
        Self { word: state.as_str(), tone }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_change_their_unit_where_people_do() {
        let told = |millis| span(Duration::from_millis(millis));
        assert_eq!(told(0), "0.0 s");
        assert_eq!(told(449), "0.4 s");
        assert_eq!(told(59_940), "59.9 s");
        assert_eq!(told(59_960), "1 m 00 s", "rounding never prints sixty seconds");
        assert_eq!(told(125_000), "2 m 05 s");
        assert_eq!(told(3_720_000), "1 h 02 m");
        assert_eq!(told(277_200_000), "3 d 5 h");
        assert_eq!(ago(Duration::from_secs(7_199)), "1 h");
        assert_eq!(limit(Duration::from_secs(30)), "30 s");
        assert_eq!(limit(Duration::from_secs(300)), "5 m");
        assert_eq!(limit(Duration::from_secs(90)), "1 m 30 s");
        assert_eq!(tight_span(Duration::from_millis(12_300)), "12s");
        assert_eq!(tight_span(Duration::from_millis(125_000)), "2m05");
    }

    #[test]
    fn sizes_use_binary_units_and_never_overflow() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(4096), "4.0 KiB");
        assert_eq!(bytes(40_055_603), "38.1 MiB");
        assert_eq!(bytes(u64::MAX), "16383.9 PiB");
        assert_eq!(count(1_234_567), "1\u{202f}234\u{202f}567");
        assert_eq!(count(12), "12");
    }

    #[test]
    fn dates_follow_the_calendar() {
        let at = |seconds: i64| When(Timestamp(seconds * 1000));
        // Checked with `date -u -d @SECONDS`.
        for (seconds, iso, day) in [
            (0, "1970-01-01T00:00:00Z", "Thursday, 1 January 1970"),
            (951_782_399, "2000-02-28T23:59:59Z", "Monday, 28 February 2000"),
            (951_782_400, "2000-02-29T00:00:00Z", "Tuesday, 29 February 2000"),
            (951_868_800, "2000-03-01T00:00:00Z", "Wednesday, 1 March 2000"),
            (1_795_467_845, "2026-11-23T21:04:05Z", "Monday, 23 November 2026"),
            (4_107_542_400, "2100-03-01T00:00:00Z", "Monday, 1 March 2100"),
            (-1, "1969-12-31T23:59:59Z", "Wednesday, 31 December 1969"),
        ] {
            assert_eq!((at(seconds).iso().as_str(), at(seconds).day().as_str()), (iso, day));
        }
        assert_eq!(at(1_795_467_845).short(), "23 Nov 21:04");
        for extreme in [i64::MIN, i64::MAX] {
            let shown = When(Timestamp(extreme)).iso();
            assert_eq!(shown, format!("{extreme} ms"), "a broken row does not take the page down");
        }
    }
}
