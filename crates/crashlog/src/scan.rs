//! Finding the few interesting lines at the speed of memory.
//!
//! Almost every line of a console is boring. One vectorised search over the raw bytes for a handful of literals (those
//! of the class table and of the events) skips them without even splitting them into lines. The list is derived from
//! the tables, so a new class is found without touching this file.

use std::sync::LazyLock;

use aho_corasick::{AhoCorasick, AhoCorasickKind};

use crate::class::{Class, Found, Group, TABLES};
use crate::events;
use crate::finder::Finder;
use crate::template::{self, Captures};

/// Words that many headers share. One of them in every head of a group spares the search the group's own literal:
/// the vectorised search is made for at most 64. It tells candidates by their first four bytes, so those should be
/// rare on an ordinary console (`"to handle "`, not `"nable to handle "`: much is "enabled"); a test looks.
const SHARED: &[&str] = &["BUG: ", "BUG ", "WARNING: ", "INFO: ", "panic", " fault", "0 [#"];

/// All literals a line must contain at least one of to matter outside a report.
#[must_use]
pub fn literals() -> Vec<&'static str> {
    let has_shared = |c: &Class| SHARED.iter().any(|s| c.head.contains(s));
    let groups = TABLES.iter().flat_map(|t| t.iter()).filter(|g| !g.covered && !g.classes.iter().all(has_shared));
    let mut all: Vec<_> =
        groups.map(|g| g.literal).chain(SHARED.iter().copied()).chain(events::LITERALS.iter().copied()).collect();
    all.sort_unstable();
    all.dedup();
    let implied = |l: &str| all.iter().any(|other| *other != l && l.contains(other));
    all.iter().copied().filter(|l| !implied(l)).collect()
}

static FINDER: LazyLock<Finder> = LazyLock::new(|| Finder::new(&literals()));

/// Position of the first literal in `bytes` at or after `from`.
pub fn next(bytes: &[u8], from: usize) -> Option<usize> {
    FINDER.next(bytes, from)
}

/// All groups in the order in which they are tried, with their place in [`TABLES`].
static GROUPS: LazyLock<Vec<((usize, usize), &'static Group)>> = LazyLock::new(|| {
    TABLES
        .iter()
        .enumerate()
        .flat_map(|(t, table)| table.iter().enumerate().map(move |(g, group)| ((t, g), group)))
        .collect()
});

/// Finds the literals of all groups in a line in one pass.
static LITERALS: LazyLock<AhoCorasick> = LazyLock::new(|| {
    let automaton =
        AhoCorasick::builder().kind(Some(AhoCorasickKind::ContiguousNFA)).build(GROUPS.iter().map(|(_, g)| g.literal));
    automaton.expect("a few dozen short literals are far below every limit")
});

/// The class whose header `text` is, if any.
pub fn header(text: &[u8]) -> Option<Found> {
    // The set of groups whose literal stands in the line; a test holds their number below 128.
    let present = LITERALS.find_overlapping_iter(text).fold(0u128, |set, m| set | 1 << m.pattern().as_usize());
    if present == 0 {
        return None;
    }
    for (_, (place, group)) in GROUPS.iter().enumerate().filter(|(i, _)| present >> i & 1 == 1) {
        if group.ignore.iter().any(|i| memchr::memmem::find(text, i.as_bytes()).is_some()) {
            continue;
        }
        for (c, class) in group.classes.iter().enumerate() {
            let mut caps = Captures::default();
            let Some(at) = template::find(class.head, text, &mut caps) else { continue };
            if placed(text, at, class.anywhere) {
                return Some(Found { group: *place, class: c });
            }
        }
    }
    None
}

/// Whether a header found at `at` can be the kernel's own: it begins the message (a subsystem's `watchdog: ` or a
/// lockdep bracket may precede it), or it is unmistakable and stands at a word's beginning outside quotes.
fn placed(text: &[u8], at: usize, anywhere: bool) -> bool {
    let before = text[..at].trim_ascii();
    if before.is_empty() || matches!(before, b"[" | b"-" | b"=") {
        return true;
    }
    if !anywhere {
        return false;
    }
    let last = text[at - 1];
    let quoted = before.iter().any(|b| matches!(b, b'"' | b'\'' | b'`'))
        || before.starts_with(b"echo ")
        || before.starts_with(b"#");
    !quoted && !last.is_ascii_alphanumeric() && last != b'_'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_head_template_contains_its_groups_literal() {
        for group in TABLES.iter().flat_map(|t| t.iter()) {
            assert!(!group.classes.is_empty(), "{} has no class", group.literal);
            for class in group.classes {
                // The literal must stand in one literal piece, or the prefilter would miss lines of the class.
                let pieces = class.head.strip_prefix('^').unwrap_or(class.head).split(['{', '}']);
                assert!(pieces.into_iter().any(|p| p.contains(group.literal)), "{} / {}", group.literal, class.head);
            }
        }
    }

    #[test]
    fn the_vectorised_search_takes_all_literals() {
        assert!(GROUPS.len() <= 128);
        assert!(literals().len() <= 64, "{}", literals().len());
        assert!(FINDER.is_vectorised() || !cfg!(target_arch = "x86_64"));
    }

    #[test]
    fn the_search_rarely_stumbles_over_an_ordinary_boot() {
        let boot = include_str!("../tests/golden/farm-clean.log");
        let lines = boot.lines().count();
        for literal in literals() {
            let first = &literal[..4];
            let stumbles = boot.matches(first).count() - boot.matches(literal).count();
            assert!(
                stumbles * 25 < lines,
                "{first:?} of {literal:?} stands {stumbles} times in {lines} boring lines; choose a part of the header that \
                 begins with rarer letters"
            );
        }
    }

    #[test]
    fn quoted_headers_are_no_headers() {
        assert!(header(b"BUG: soft lockup - CPU#1 stuck").is_some());
        assert!(header(b"watchdog: BUG: soft lockup - CPU#1 stuck").is_some());
        assert!(header(b"echo 'BUG: soft lockup - CPU#1 stuck'").is_none());
        assert!(header(b"DEBUG: soft lockup").is_none());
    }
}
