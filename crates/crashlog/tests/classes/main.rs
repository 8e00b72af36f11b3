//! One small log of our own for each sort of problem: its title, its kind, and its frame.
//!
//! These are the smallest inputs that make a class; functions and files are invented. A new class adds a case here.

mod others;
mod usual;

use crashyard_crashlog::{Kind, Options, parse};

/// `(header and other lines, trace below "Call Trace:", title, kind)`. Lines get time stamps; functions get offsets.
type Case = (&'static [&'static str], &'static [&'static str], &'static str, Kind);

const TASK: &str = "CPU: 1 UID: 0 PID: 42 Comm: own task Not tainted 7.3.4-own #1 PREEMPT";

fn cases() -> impl DoubleEndedIterator<Item = &'static Case> {
    usual::CASES.iter().chain(others::CASES)
}

/// The log of a case, each line behind `prefix`.
fn log(case: &Case, prefix: impl Fn(usize) -> String, end: &str) -> String {
    let mut lines: Vec<String> = case.0.iter().map(ToString::to_string).collect();
    if !case.1.is_empty() {
        lines.push("Call Trace:".to_owned());
        lines.extend(case.1.iter().map(|f| format!(" {f}+0x1/0x2")));
    }
    lines.iter().enumerate().map(|(i, l)| format!("{}{l}{end}", prefix(i))).collect()
}

fn stamped(i: usize) -> String {
    format!("[    1.{i:06}] ")
}

#[test]
fn each_class_has_its_title_and_kind() {
    let wrong = cases().filter_map(|case| {
        let o = parse(log(case, stamped, "\n").as_bytes(), Options::default());
        let got: Vec<_> = o.reports.iter().map(|r| (r.title.clone(), r.kind)).collect();
        (got != [(case.2.to_owned(), case.3)]).then(|| format!("{:?}\n  gives {got:?}\n  not {:?}", case.0, case.2))
    });
    let wrong: Vec<String> = wrong.collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn titles_do_not_depend_on_what_stands_before_the_lines() {
    type Prefix = fn(usize) -> String;
    let prefixes: &[Prefix] = &[
        |_| String::new(),
        |i| format!("<4>[    1.{i:06}] "),
        |i| format!("[    1.{i:06}][   T42] "),
        |i| format!("Nov 23 10:11:12 box kernel: [    1.{i:06}] "),
        |_| "Nov 23 10:11:12 box kernel: ".to_owned(),
        |i| format!("2026-11-23T10:11:12.{i:06}+01:00 box kernel: "),
        |i| format!("2026-11-23T10:11:12.{i:06}Z "),
        |_| "[2026-11-23 10:11:12] ".to_owned(),
        |i| format!("[Mon Nov 23 10:11:12 2026] [    1.{i:06}] "),
        |i| format!("kern  :warn  : [    1.{i:06}] "),
        |i| format!("\u{1b}[0;33m[    1.{i:06}]\u{1b}[0m "),
        |i| format!("4,{i},17623341,-;"),
        |i| format!("ttyS0| 10:11:12.123 [    1.{i:06}] "),
    ];
    for case in cases() {
        for prefix in prefixes {
            for end in ["\n", "\r\n", " \r\r\n"] {
                let text = log(case, prefix, end);
                let o = parse(text.as_bytes(), Options::default());
                assert_eq!(o.reports.first().map(|r| r.title.as_str()), Some(case.2), "{text}");
            }
        }
    }
}

#[test]
fn interleaved_reports_come_apart_by_caller_id() {
    for (a, b) in cases().zip(cases().rev()) {
        let one = log(a, |i| format!("[    1.{i:06}][   T42] "), "\n");
        let two = log(b, |i| format!("[    1.{i:06}][   C3] "), "\n");
        let (mut x, mut y) = (one.split_inclusive('\n'), two.split_inclusive('\n'));
        let mut mixed = String::new();
        loop {
            let pair = (x.next(), y.next());
            mixed.extend(pair.0.into_iter().chain(pair.1));
            if pair == (None, None) {
                break;
            }
        }
        let o = parse(mixed.as_bytes(), Options::default());
        let mut got: Vec<_> = o.reports.iter().map(|r| r.title.as_str()).collect();
        let mut want = [a.2, b.2];
        got.sort_unstable();
        want.sort_unstable();
        assert_eq!(got, want, "{mixed}");
    }
}

#[test]
fn quiet_logs_have_no_reports() {
    for line in [
        "systemd[1]: Started own.service - BUG: tracker",
        "echo \"Kernel panic - not syncing: test\" > /tmp/x",
        "rcu: RCU restricting CPUs from NR_CPUS=8 to nr_cpu_ids=1.",
        "NMI watchdog: Enabled. Permanently consumes one hw-PMU counter.",
        "Kernel command line: panic=-1 softlockup_panic=1 oops=panic",
        "own: DEBUG: nothing to see",
        "INFO: lockdep is turned off.",
        "[Firmware Bug]: TSC_DEADLINE disabled due to Errata",
        "WARNING: Caches not enabled",
    ] {
        let o = parse(format!("[    1.000000] {line}\n{line}\n").as_bytes(), Options::default());
        assert!(o.reports.is_empty(), "{line}: {:?}", o.reports[0].title);
    }
}
