//! Who recorded a console, and what else was on it, must not change what it says: every golden log behind every prefix,
//! with other line ends, with noise around and between, and mixed with another golden log by caller ids.

use std::path::Path;

use crashyard_crashlog::{Options, parse};
use proptest::prelude::*;

/// All golden logs as text.
fn golden() -> Vec<(String, String)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut logs: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|x| x == "log"))
        .map(|p| {
            let text = String::from_utf8_lossy(&std::fs::read(&p).unwrap()).replace('\r', "");
            (p.file_name().unwrap().to_string_lossy().into_owned(), text)
        })
        .collect();
    logs.sort();
    assert!(logs.len() >= 15, "only {} golden logs", logs.len());
    logs
}

fn titles(text: &str) -> Vec<String> {
    parse(text.as_bytes(), Options::default()).reports.into_iter().map(|r| r.title).collect()
}

/// What a line looks like once somebody has recorded it.
type Recorder = fn(&str) -> String;

const RECORDERS: &[Recorder] = &[
    |l| format!("{l}\r\n"),
    |l| format!("{l}\r\r\n"),
    |l| format!("<4>{l}\n"),
    |l| format!("Nov 23 10:11:12 box kernel: {l}\n"),
    |l| format!("Nov 23 10:11:12.123456 box.example kernel: {l}\n"),
    |l| format!("2026-11-23T10:11:12.123456+01:00 box kernel: {l}\n"),
    |l| format!("2026-11-23T10:11:12Z {l}\n"),
    |l| format!("2026-11-23 10:11:12.123 {l}\n"),
    |l| format!("[Mon Nov 23 10:11:12 2026]{l}\n"),
    |l| format!("[2026-11-23 10:11:12] {l}\n"),
    |l| format!("kern  :warn  : {l}\n"),
    |l| format!("\u{1b}[0m{l}\u{1b}[K\n"),
    |l| format!("\0{l}\0\n"),
    |l| format!("> {l}\n"),
];

#[test]
fn golden_titles_do_not_depend_on_who_recorded_the_console() {
    for (name, text) in golden() {
        let want = titles(&text);
        for (i, recorder) in RECORDERS.iter().enumerate() {
            let recorded: String = text.lines().map(recorder).collect();
            assert_eq!(titles(&recorded), want, "{name} by recorder {i}");
        }
    }
}

/// What other programs and firmware say on the same wire, none of it with the kernel's stamp.
const NOISE: &[&str] = &[
    "systemd[1]: Started Session 1 of user root.",
    "login: root",
    "NOTICE:  BL31: v2.1",
    "[  OK  ] Reached target Multi-User System.",
    "\u{fffd}\u{fffd}garbage\u{fffd}",
    "",
    "echo BUG: this is only talk",
    "usb 1-1: new high-speed USB device number 2",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn noise_between_the_lines_changes_no_title(
        log in any::<prop::sample::Index>(),
        noise in proptest::collection::vec((any::<prop::sample::Index>(), 0..NOISE.len()), 0..40),
    ) {
        let logs = golden();
        let (name, text) = &logs[log.index(logs.len())];
        let mut lines: Vec<&str> = text.lines().collect();
        for (at, which) in noise {
            lines.insert(at.index(lines.len() + 1), NOISE[which]);
        }
        prop_assert_eq!(titles(&lines.join("\n")), titles(text), "{}", name);
    }

    #[test]
    fn two_machines_of_one_wire_come_apart_by_caller_id(
        pair in (any::<prop::sample::Index>(), any::<prop::sample::Index>()),
        order in proptest::collection::vec(any::<bool>(), 200),
    ) {
        // Banners end what the kernel before them said, so the logs of a single crash only.
        let logs: Vec<_> = golden().into_iter().filter(|(n, _)| n.starts_with("lkdtm-")).collect();
        let called = |text: &str, id: &str| -> Vec<String> {
            text.lines().filter_map(|l| l.split_once("] ")).map(|(stamp, rest)| format!("{stamp}]{id} {rest}")).collect()
        };
        let (a, b) = (&logs[pair.0.index(logs.len())].1, &logs[pair.1.index(logs.len())].1);
        let (one, two) = (called(a, "[   T42]"), called(b, "[  T777]"));
        let mut mixed = Vec::new();
        let (mut x, mut y) = (one.iter(), two.iter());
        for first in order.iter().cycle() {
            let (next, other) = if *first { (&mut x, &mut y) } else { (&mut y, &mut x) };
            match next.next().or_else(|| other.next()) {
                Some(line) => mixed.push(line.as_str()),
                None => break,
            }
        }
        let mut want = [titles(&one.join("\n")), titles(&two.join("\n"))].concat();
        let mut got = titles(&mixed.join("\n"));
        want.sort();
        got.sort();
        prop_assert_eq!(got, want);
    }
}
