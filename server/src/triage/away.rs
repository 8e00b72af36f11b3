//! Time that counts: deadlines leave out the time in which the server itself was away.
//!
//! A server that was down for an hour has heard nobody for an hour, and that says nothing about any machine. Agents
//! also need a moment to come back and hand in what they kept, so each absence is stretched by [`RECONNECT`].

use crashyard_protocol::clock::Timestamp;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How long agents get, after the server is back, to send what they kept.
pub const RECONNECT: Duration = Duration::from_secs(30);

/// A stretch of time in which the server was away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// The last sign of life before.
    pub from: Timestamp,
    /// When it was back.
    pub to: Timestamp,
}

/// The moment at which `wait` has passed since `start`, not counting the time in `away`.
#[must_use]
pub fn after(start: Timestamp, wait: Duration, away: &[Span]) -> Timestamp {
    let mut spans: Vec<(Timestamp, Timestamp)> =
        away.iter().filter(|span| span.from <= span.to).map(|span| (span.from, span.to.plus(RECONNECT))).collect();
    spans.sort_unstable();
    let mut end = start.plus(wait);
    // Up to here the time is accounted for, so that overlapping absences count once.
    let mut seen = start;
    for (from, to) in spans {
        if from >= end {
            break;
        }
        end = end.plus(to.since(from.max(seen)));
        seen = seen.max(to);
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp(seconds * 1000)
    }

    fn span(from: i64, to: i64) -> Span {
        Span { from: at(from), to: at(to) }
    }

    #[test]
    fn an_absence_stops_the_clock_and_agents_get_time_to_reconnect() {
        let wait = Duration::from_secs(100);
        assert_eq!(after(at(0), wait, &[]), at(100));
        assert_eq!(after(at(0), wait, &[span(50, 3650)]), at(100 + 3600 + 30));
        assert_eq!(after(at(0), wait, &[span(200, 300)]), at(100), "it came after the end");
        assert_eq!(after(at(500), wait, &[span(200, 300)]), at(600), "it was over before the start");
        assert_eq!(after(at(250), wait, &[span(200, 300)]), at(350 + 80), "only the part after the start counts");
    }

    #[test]
    fn absences_that_overlap_or_come_in_any_order_count_once() {
        let wait = Duration::from_secs(100);
        let expected = at(100 + 60 + 30);
        assert_eq!(after(at(0), wait, &[span(10, 50), span(20, 70)]), expected);
        assert_eq!(after(at(0), wait, &[span(20, 70), span(10, 50)]), expected);
        assert_eq!(after(at(0), wait, &[span(10, 70), span(10, 70)]), expected);
        assert_eq!(after(at(0), wait, &[span(70, 10)]), at(100), "a span that ends before it begins is none");
        assert_eq!(after(at(0), Duration::MAX, &[span(10, 70)]).0, i64::MAX);
    }
}
