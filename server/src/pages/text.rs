//! Console bytes as lines that are safe to show: what a hostile kernel prints must not move the reader's eye.
//!
//! A console carries whatever a dying machine sends: terminal escapes that would hide or recolour text, control
//! characters, half characters, bidirectional overrides that reverse a line, lines without end. Here they become
//! plain text: complete escape sequences go away, every other control character becomes visible, long lines are cut with a
//! note. Nothing that could be evidence is swallowed: an escape sequence that does not end is shown, not
//! followed. HTML is not the business of this module; the templates escape.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Characters of one line that are shown; the rest is behind the raw download.
pub const LINE_MAX: usize = 2_000;

/// The longest escape sequence that is taken for one; anything longer is text.
const SEQUENCE_MAX: usize = 256;

/// One line of a console log, ready to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// 1-based number in the whole log.
    pub number: u64,
    /// The kernel's timestamp with its brackets, if the line starts with one.
    pub stamp: String,
    /// The rest of the text.
    pub text: String,
    /// The line's length in bytes, if not all of it is shown.
    pub cut: Option<usize>,
}

/// Splits a piece of a log that starts at a line's first byte into lines; the first gets the number `first`.
///
/// A last line without its end is a line too: on a live console it is the one that matters.
#[must_use]
pub fn lines(bytes: &[u8], first: u64) -> Vec<Line> {
    let mut rest = bytes;
    let mut number = first;
    let mut out = Vec::new();
    while !rest.is_empty() {
        let end = rest.iter().position(|byte| *byte == b'\n');
        let (line, next) = match end {
            Some(end) => (&rest[..end], &rest[end + 1..]),
            None => (rest, &rest[rest.len()..]),
        };
        out.push(self::line(line, number));
        number = number.saturating_add(1);
        rest = next;
    }
    out
}

fn line(bytes: &[u8], number: u64) -> Line {
    let (mut text, cut) = clean(bytes);
    let stamp_end = stamp_len(&text);
    let rest = text.split_off(stamp_end);
    Line { number, stamp: text, text: rest, cut: cut.then_some(bytes.len()) }
}

/// The length of a leading `[  123.456789] `, or 0.
fn stamp_len(text: &str) -> usize {
    let Some(inner) = text.strip_prefix('[') else { return 0 };
    let Some(close) = inner.find(']') else { return 0 };
    let inside = inner[..close].trim_start_matches(' ');
    let numeric = inside.contains('.') && inside.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    if !numeric || close > 20 {
        return 0;
    }
    let end = 1 + close + 1;
    if text[end..].starts_with(' ') { end + 1 } else { end }
}

/// One line (without its `\n`) as safe text, and whether its end was left out.
#[must_use]
pub fn clean(bytes: &[u8]) -> (String, bool) {
    let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
    // A terminal escape can be longer than what it leaves, so look at more bytes than characters are shown;
    // never at all of an endless line.
    let looked_at = &bytes[..bytes.len().min(LINE_MAX * 4)];
    let text = String::from_utf8_lossy(looked_at);
    let mut out = String::with_capacity(text.len());
    let mut rest: &str = &text;
    let mut shown = 0;
    while let Some(character) = rest.chars().next() {
        if shown == LINE_MAX {
            break;
        }
        if let Some(length) = sequence_len(rest) {
            rest = &rest[length..];
            continue;
        }
        push_visible(&mut out, character);
        shown += 1;
        rest = &rest[character.len_utf8()..];
    }
    (out, !rest.is_empty() || looked_at.len() < bytes.len())
}

/// The length of the complete terminal escape sequence at the start of `text` (ECMA-48, section 5.4 and 8.3).
fn sequence_len(text: &str) -> Option<usize> {
    let mut characters = text.char_indices();
    let (_, first) = characters.next()?;
    let (kind, body) = match first {
        '\u{1b}' => {
            let (at, second) = characters.next()?;
            (second, at + second.len_utf8())
        }
        // The one-character forms of CSI, OSC, DCS, SOS, PM and APC.
        '\u{9b}' => ('[', 2),
        '\u{9d}' => (']', 2),
        '\u{90}' | '\u{98}' | '\u{9e}' | '\u{9f}' => ('P', 2),
        _ => return None,
    };
    let tail = text[body..].char_indices().take(SEQUENCE_MAX);
    match kind {
        '[' => {
            for (at, character) in tail {
                match character {
                    '\u{20}'..='\u{3f}' => {}
                    '\u{40}'..='\u{7e}' => return Some(body + at + 1),
                    _ => return None,
                }
            }
            None
        }
        ']' | 'P' | 'X' | '^' | '_' => {
            let mut escape = false;
            for (at, character) in tail {
                match character {
                    '\u{7}' | '\u{9c}' => return Some(body + at + character.len_utf8()),
                    '\\' if escape => return Some(body + at + 1),
                    _ if escape => return None,
                    _ => escape = character == '\u{1b}',
                }
            }
            None
        }
        // Two-character functions, and designations such as `ESC ( B` with one more character.
        '\u{30}'..='\u{7e}' => Some(body),
        '\u{20}'..='\u{2f}' => {
            let (at, last) = tail.clone().find(|(_, character)| !('\u{20}'..='\u{2f}').contains(character))?;
            ('\u{30}'..='\u{7e}').contains(&last).then_some(body + at + 1)
        }
        _ => None,
    }
}

fn push_visible(out: &mut String, character: char) {
    match character {
        '\t' => out.push('\t'),
        '\u{0}'..='\u{1f}' => out.push(char::from_u32(0x2400 + u32::from(character)).unwrap_or('\u{fffd}')),
        '\u{7f}' => out.push('\u{2421}'),
        // C1 controls, bidirectional controls, line and paragraph separators, invisible characters.
        '\u{80}'..='\u{9f}'
        | '\u{ad}'
        | '\u{61c}'
        | '\u{180e}'
        | '\u{200b}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}'
        | '\u{feff}'
        | '\u{fff9}'..='\u{fffb}'
        | '\u{e0000}'..='\u{e007f}' => {
            let _ = write!(out, "⟨U+{:04X}⟩", u32::from(character));
        }
        other => out.push(other),
    }
}

/// Text of other origin (names, reasons, reports) with its control characters made visible.
#[must_use]
pub fn visible(text: &str) -> Cow<'_, str> {
    let plain =
        |character: char| character == '\n' || character == '\t' || !(character.is_control() || is_format(character));
    if text.chars().all(plain) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        if character == '\n' { out.push('\n') } else { push_visible(&mut out, character) }
    }
    Cow::Owned(out)
}

fn is_format(character: char) -> bool {
    let mut probe = String::new();
    push_visible(&mut probe, character);
    !probe.starts_with(character)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(bytes: &[u8]) -> String {
        clean(bytes).0
    }

    #[test]
    fn complete_terminal_sequences_go_away() {
        assert_eq!(shown(b"\x1b[1;31mred\x1b[0m"), "red");
        assert_eq!(shown(b"\x1b]0;a title\x07after"), "after");
        assert_eq!(shown(b"\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\"), "link");
        assert_eq!(shown(b"\x1bPq#0\x1b\\sixel"), "sixel");
        assert_eq!(shown(b"\x1b(B\x1b7\x1b=x"), "x");
        assert_eq!(shown("\u{9b}31mred".as_bytes()), "red");
        assert_eq!(shown(b"\x1b[2J\x1b[H"), "");
    }

    #[test]
    fn a_sequence_that_never_ends_hides_nothing() {
        assert_eq!(shown(b"\x1b]0;Kernel panic"), "\u{241b}]0;Kernel panic");
        assert_eq!(shown(b"\x1b[12\xffpanic"), "\u{241b}[12\u{fffd}panic");
        let long = [b"\x1b]".to_vec(), vec![b'a'; 400], b"\x07".to_vec()].concat();
        assert!(shown(&long).starts_with("\u{241b}]aaa"));
        assert_eq!(shown(b"\x1b"), "\u{241b}");
    }

    #[test]
    fn control_characters_are_made_visible() {
        assert_eq!(shown(b"a\0b\x08c\rd\x7f\r"), "a\u{2400}b\u{2408}c\u{240d}d\u{2421}");
        assert_eq!(shown(b"a\tb"), "a\tb");
        assert_eq!(shown("left\u{202e}thgir".as_bytes()), "left⟨U+202E⟩thgir");
        assert_eq!(shown(b"\xff\xfe"), "\u{fffd}\u{fffd}");
        assert_eq!(visible("one\nline\u{1b}[2J"), "one\nline\u{241b}[2J");
        assert!(matches!(visible("plain"), Cow::Borrowed(_)));
    }

    #[test]
    fn an_endless_line_is_cut_and_says_how_much() {
        let (text, cut) = clean(&vec![b'x'; 10_000_000]);
        assert_eq!((text.len(), cut), (LINE_MAX, true));
        assert!(!clean(&[b'y'; LINE_MAX]).1);
        assert_eq!(lines(&[b'z'; 12_345], 1)[0].cut, Some(12_345));
        let (text, cut) = clean(&[0xff; LINE_MAX]);
        assert_eq!((text.chars().count(), cut), (LINE_MAX, false), "a replaced byte counts as one character");
    }

    #[test]
    fn lines_keep_their_numbers_and_split_off_the_stamp() {
        let lines = lines(b"\n[    5.396392] Kernel panic\r\n[x] no\nlast", 41);
        let told: Vec<_> = lines.iter().map(|l| (l.number, l.stamp.as_str(), l.text.as_str())).collect();
        assert_eq!(told, [(41, "", ""), (42, "[    5.396392] ", "Kernel panic"), (43, "", "[x] no"), (44, "", "last")]);
    }
}
