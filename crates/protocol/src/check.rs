//! What can be seen of a real machine's power and consoles: tried by its controller, read by people.
//!
//! Each finding is something that was tried and what came of it, never what should be so. Its words come from BMCs and
//! consoles: hostile text, to be made safe wherever it is shown.

use serde::{Deserialize, Serialize};

crate::text_enum! {
    /// What came of one thing that was tried.
    Seen {
        /// It works; it was seen to.
        Works = "works",
        /// It does not.
        Fails = "fails",
        /// It was not tried, or trying it shows nothing.
        Unknown = "unknown",
    }
}

/// One thing that was tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Finding {
    /// What: `power state`, `console serial`, …
    pub capability: String,
    /// What came of it.
    pub seen: Seen,
    /// In words.
    pub detail: String,
    /// Whether no job can run without it.
    pub needed: bool,
}

impl Finding {
    /// What came of it, in a word or three.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match (self.seen, self.needed) {
            (Seen::Works, _) => "works",
            (Seen::Fails, true) => "FAILS",
            (Seen::Fails, false) => "is not there",
            (Seen::Unknown, _) => "not known",
        }
    }
}

/// Everything that was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The machine.
    pub machine: String,
    /// In the order in which it was tried.
    pub findings: Vec<Finding>,
}

/// Whether everything is there that a job needs, as far as it was tried.
#[must_use]
pub fn passes(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| !finding.needed || finding.seen != Seen::Fails)
}

impl Report {
    /// Whether everything is there that a job needs, as far as it was tried.
    #[must_use]
    pub fn passes(&self) -> bool {
        passes(&self.findings)
    }

    /// For people at a terminal: one line for each finding, and what follows.
    #[must_use]
    pub fn text(&self) -> String {
        let plain = |text: &str| text.chars().map(|c| if unseen(c) { ' ' } else { c }).collect::<String>();
        let line = |finding: &Finding| {
            format!("{:<20} {:<14} {}\n", plain(&finding.capability), finding.word(), plain(&finding.detail))
        };
        let machine = plain(&self.machine);
        let end = if self.passes() {
            format!("{machine} can take jobs, as far as was tried.\n")
        } else {
            format!("{machine} cannot take jobs: mend what FAILS and check again.\n")
        };
        self.findings.iter().map(line).collect::<String>() + &end
    }
}

/// What does something to a terminal instead of standing there: control characters, and marks of direction.
fn unseen(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_says_what_follows_and_is_safe_for_a_terminal() {
        let finding = |seen, needed| Finding {
            capability: "power state".into(),
            seen,
            detail: "\u{1b}[31mon\u{202e}\n".into(),
            needed,
        };
        let report = |findings: Vec<Finding>| Report { machine: "r740".into(), findings };
        let good = report(vec![finding(Seen::Works, true), finding(Seen::Fails, false)]);
        assert!(good.passes() && good.text().contains("r740 can take jobs"), "{}", good.text());
        assert!(good.text().contains("is not there"), "{}", good.text());
        let bad = report(vec![finding(Seen::Fails, true)]);
        assert!(!bad.passes() && bad.text().contains("mend what FAILS"), "{}", bad.text());
        assert_eq!(bad.text().lines().count(), 2);
        assert!(!bad.text().contains('\u{1b}') && !bad.text().contains('\u{202e}'), "{:?}", bad.text());
    }
}
