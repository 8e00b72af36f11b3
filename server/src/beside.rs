//! Two consoles of one attempt beside each other: what one did not hear is filled in from the other, and said.
//!
//! A kernel stamps what it prints, so a line is known on both consoles by its time and its text. Each boot begins the
//! times anew; the first boots of both belong together, and so on. Lines without a stamp (the firmware's, programs') are
//! shown where they stand, and are no difference: netconsole never carries them. Pure.

use crashyard_protocol::api::{Compared, ComparedLine};
use std::collections::{HashMap, VecDeque};

/// Lines shown at most.
const LINES: usize = 200_000;

/// How far a stamp may go back inside one boot: CPUs print past each other, but not for long.
const BACK_MICROS: u64 = 1_000_000;

/// How the line begins that controllers put where they did not hear a console.
pub const GAP: &str = "[crashyard: the console was not heard";

/// Whether the kernel has stamped a line, so that it is known on both.
#[must_use]
pub fn is_stamped(text: &str) -> bool {
    stamp(text).is_some()
}

#[derive(Clone, Copy)]
struct Line<'a> {
    micros: Option<u64>,
    text: &'a str,
}

/// Microseconds of `[    1.000000] text`.
fn stamp(text: &str) -> Option<u64> {
    let (time, _) = text.strip_prefix('[')?.split_once(']')?;
    // With the printing task or CPU behind it: CONFIG_PRINTK_CALLER.
    let (seconds, micros) = time.split_whitespace().next()?.split_once('.')?;
    if micros.len() != 6 {
        return None;
    }
    seconds.parse::<u64>().ok()?.checked_mul(1_000_000)?.checked_add(micros.parse().ok()?)
}

/// The lines of each boot.
fn boots(text: &str) -> Vec<Vec<Line<'_>>> {
    let (mut boots, mut newest) = (vec![Vec::new()], 0);
    for text in text.lines() {
        let text = text.trim_end_matches('\r');
        let micros = stamp(text);
        if let Some(micros) = micros {
            if micros.saturating_add(BACK_MICROS) < newest {
                boots.push(Vec::new());
                newest = 0;
            }
            newest = newest.max(micros);
        }
        if let Some(boot) = boots.last_mut() {
            boot.push(Line { micros, text });
        }
    }
    boots
}

/// Puts two consoles beside each other.
#[must_use]
pub fn compare(first: &str, second: &str) -> Compared {
    let (first, second) = (boots(first), boots(second));
    let mut out = Compared { lines: Vec::new(), both: 0, first_only: 0, second_only: 0, cut: false };
    for boot in 0..first.len().max(second.len()) {
        let (first, second) = (first.get(boot), second.get(boot));
        one_boot(first.map_or(&[], Vec::as_slice), second.map_or(&[], Vec::as_slice), &mut out);
    }
    out.cut = out.lines.len() > LINES;
    out.lines.truncate(LINES);
    out
}

fn one_boot(first: &[Line<'_>], second: &[Line<'_>], out: &mut Compared) {
    let mut heard: HashMap<(u64, &str), usize> = HashMap::new();
    for line in first {
        if let Some(micros) = line.micros {
            *heard.entry((micros, line.text)).or_default() += 1;
        }
    }
    let mut missing = VecDeque::new();
    let mut also: HashMap<(u64, &str), usize> = HashMap::new();
    for line in second {
        let Some(micros) = line.micros else { continue };
        match heard.get_mut(&(micros, line.text)).filter(|left| **left > 0) {
            Some(left) => {
                *left -= 1;
                *also.entry((micros, line.text)).or_default() += 1;
            }
            None => missing.push_back((micros, line.text)),
        }
    }
    let mut fill = |until: Option<u64>, out: &mut Compared| {
        while let Some((_, text)) = missing.pop_front_if(|(micros, _)| until.is_none_or(|until| *micros < until)) {
            out.second_only += 1;
            out.lines.push(ComparedLine { text: text.to_owned(), first: false, second: true });
        }
    };
    for line in first {
        if let Some(micros) = line.micros {
            fill(Some(micros), out);
            let both = also.get_mut(&(micros, line.text)).filter(|left| **left > 0).map(|left| *left -= 1).is_some();
            if both {
                out.both += 1;
            } else {
                out.first_only += 1;
            }
            out.lines.push(ComparedLine { text: line.text.to_owned(), first: true, second: both });
        } else {
            out.lines.push(ComparedLine { text: line.text.to_owned(), first: true, second: false });
        }
    }
    fill(None, out);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(first: &str, second: &str) -> (String, [u64; 3]) {
        let compared = compare(first, second);
        let line = |line: &ComparedLine| {
            let mark = match (line.first, line.second) {
                (true, true) => ' ',
                (true, false) => '<',
                _ => '>',
            };
            format!("{mark}{}\n", line.text)
        };
        (compared.lines.iter().map(line).collect(), [compared.both, compared.first_only, compared.second_only])
    }

    #[test]
    fn a_gap_in_one_is_filled_from_the_other_where_it_belongs() {
        let serial = "SeaBIOS\r\n[    1.000000] one\r\n[crashyard: the console was not heard for 2.0 s: it failed]\r\n\
                      [    4.000000] four\r\n";
        let net = "[    1.000000] one\n[    2.000000] two\n[    3.000000] Kernel panic\n[    4.000000] four\n[    5.000000] five\n";
        let (text, counts) = shown(serial, net);
        let wanted = "<SeaBIOS\n [    1.000000] one\n<[crashyard: the console was not heard for 2.0 s: it failed]\n\
                      >[    2.000000] two\n>[    3.000000] Kernel panic\n [    4.000000] four\n>[    5.000000] five\n";
        assert_eq!(text, wanted);
        assert_eq!(counts, [2, 0, 3]);
    }

    #[test]
    fn equal_times_repeated_lines_and_cpus_that_print_past_each_other_are_no_difference() {
        let both =
            "[    1.000000] a\n[    1.000000] a\n[    1.000000] b\n[    2.000001] later\n[    2.000000] sooner\n";
        assert_eq!(shown(both, both).1, [5, 0, 0]);
        assert_eq!(shown("[    1.000000] a\n", "[    1.000000] a\n[    1.000000] a\n").1, [1, 0, 1]);
        assert_eq!(shown("[    1.000000][    T1] a\n", "[    1.000000] a\n").1, [0, 1, 1], "other words, other lines");
    }

    #[test]
    fn each_boot_is_compared_with_its_own() {
        let serial = "[    0.000000] Linux version 6\n[   20.000000] crash\n[    0.000000] Linux version 6\n[    1.000000] dump\n";
        let net = "[   19.000000] before\n[   20.000000] crash\n";
        let (text, counts) = shown(serial, net);
        assert!(
            text.starts_with("<[    0.000000] Linux version 6\n>[   19.000000] before\n [   20.000000] crash\n<"),
            "{text}"
        );
        assert_eq!(counts, [1, 3, 1]);
    }

    #[test]
    fn empty_and_hostile_text_is_no_trouble() {
        assert_eq!(compare("", ""), Compared { lines: Vec::new(), both: 0, first_only: 0, second_only: 0, cut: false });
        assert_eq!(stamp("[99999999999999999999.000000] x"), None);
        assert_eq!(stamp("[    1.5] x"), None);
        assert_eq!(stamp("[18446744073709551615.999999] x"), None);
    }
}
