//! Passing over the lines that say nothing, at the speed of memory.
//!
//! Almost no line of a console matters, and consoles are long, so this is all that most bytes are put through: one
//! vectorised search for fragments of the phrases that [`super::line`] looks for, one for control characters (which may
//! stand in the middle of a phrase). It may stop at a line that turns out to say nothing; it must never pass over one
//! that says something.

use crashyard_crashlog::Finder;
use std::sync::LazyLock;

/// Four bytes of every phrase that matters.
const KEYS: [&str; 17] = [
    "pani", "PANI", "yard", "d li", "x ve", "BUG:", "BUG ", "Oops", "faul", "vide", "opco", "segm", "Unab", "rnal",
    "Exc:", "r12:", "r13:",
];

/// Bytes looked at in one go, so that what lies behind a find is not looked at again and again.
const BLOCK: usize = 4096;

/// Bytes of a key that may stand before a block.
const OVERLAP: usize = 3;

static FINDER: LazyLock<Finder> = LazyLock::new(|| Finder::new(&KEYS));

/// The whole lines at the beginning of `bytes` that say nothing: their length with line feeds, and how many they are.
pub(super) fn lines(bytes: &[u8]) -> (usize, u64) {
    let end = notable(bytes).unwrap_or(bytes.len());
    let length = memchr::memrchr(b'\n', &bytes[..end]).map_or(0, |at| at + 1);
    (length, memchr::memchr_iter(b'\n', &bytes[..length]).count() as u64)
}

/// Where the first thing stands that may matter: a key, or a control character that is no part of a line's end.
pub(super) fn notable(bytes: &[u8]) -> Option<usize> {
    let mut start = 0;
    while start < bytes.len() {
        let end = bytes.len().min(start + BLOCK);
        let control = control(bytes, start, end);
        let from = start.saturating_sub(OVERLAP);
        let key = FINDER.next(&bytes[..control.unwrap_or(end)], from);
        if let Some(at) = key.or(control) {
            return Some(at);
        }
        start = end;
    }
    None
}

fn control(bytes: &[u8], start: usize, end: usize) -> Option<usize> {
    let block = &bytes[start..end];
    let odd = |byte: u8| (byte < 0x20) & (byte != b'\t') & (byte != b'\n') & (byte != b'\r') | (byte == 0x7f);
    // Without an early end, so that the compiler can vectorise it.
    let first_odd = if block.iter().fold(false, |any, byte| any | odd(*byte)) {
        block.iter().position(|byte| odd(*byte)).map(|at| start + at)
    } else {
        None
    };
    let until = first_odd.unwrap_or(end);
    let lone = |at: &usize| bytes.get(at + 1).is_some_and(|next| *next != b'\n');
    memchr::memchr_iter(b'\r', &bytes[start..until]).map(|at| start + at).find(lone).or(first_odd)
}

#[cfg(test)]
mod tests {
    use super::super::line::{DUMP_FAILED, JUMP_REGISTERS, MARKER, OOPSES, PANIC, classify, first};
    use super::*;
    use crashyard_protocol::AttemptId;
    use proptest::prelude::*;

    #[test]
    fn the_quick_look_hides_no_line_that_matters() {
        let attempt: AttemptId = "01JDB4Q1W5Z8N6K3X0V7T2R9MF".parse().expect("an id");
        let mut lines: Vec<String> = OOPSES.iter().map(|start| format!("[    1.000000] {start}and more")).collect();
        lines.extend([
            format!("{PANIC}x"),
            format!("{MARKER}job=x attempt={attempt} scenario=x"),
            format!("{DUMP_FAILED}network"),
            "Command line: x".into(),
            "Kernel command line: x".into(),
            "Linux version 6.1.0 (x)".into(),
            "---[ end Kernel panic - not syncing: x".into(),
            "Fixing recursive fault but reboot is needed!".into(),
        ]);
        lines.extend(JUMP_REGISTERS.map(|register| format!("{register}000000000000000d")));
        for line in lines {
            assert!(classify(&line, &attempt).is_some(), "{line:?} matters");
            assert!(notable(line.as_bytes()).is_some(), "{line:?} is looked at");
            assert!(notable(format!("\x1b[1m{line}").as_bytes()).is_some());
        }
        assert_eq!(notable(b"[    0.070673] Kernel/User page tables isolation: disabled\r"), None);
        assert!(notable(b"pan").is_none() && notable(b"").is_none());
    }

    #[test]
    fn the_search_is_vectorised() {
        assert!(FINDER.is_vectorised() || !cfg!(target_arch = "x86_64"));
    }

    #[test]
    fn a_key_is_found_wherever_blocks_meet() {
        for at in BLOCK - 8..BLOCK + 8 {
            let mut bytes = vec![b'.'; 2 * BLOCK];
            bytes[at..at + 4].copy_from_slice(b"BUG:");
            assert_eq!(notable(&bytes), Some(at));
            bytes[at..at + 4].copy_from_slice(b"..\r.");
            assert_eq!(notable(&bytes), Some(at + 2));
        }
    }

    proptest! {
        #[test]
        fn only_whole_lines_are_passed_over_and_all_of_them_are_counted(
            text in "([a-z .:\\r\\n\\t]{0,30}(BUG: |\\x1b|pani)?\\r?\\n){0,40}[a-z]{0,9}"
        ) {
            let bytes = text.as_bytes();
            let (length, counted) = lines(bytes);
            let (passed, rest) = bytes.split_at(length);
            prop_assert!(passed.is_empty() || passed.ends_with(b"\n"));
            prop_assert_eq!(counted, passed.iter().filter(|byte| **byte == b'\n').count() as u64);
            prop_assert!(passed.split(|byte| *byte == b'\n').all(|line| notable(line).is_none()));
            // What stops it is in the very next line.
            prop_assert!(first(rest).is_none_or(|(line, _)| notable(line).is_some()));
        }
    }
}
