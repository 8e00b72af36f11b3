//! What follows from what, in small logs of our own.

use crashyard_crashlog::{Intent, Options, Report, parse};

fn reports(lines: &[&str]) -> Vec<Report> {
    let log: String = lines.iter().enumerate().map(|(i, line)| format!("[    1.{i:06}] {line}\n")).collect();
    parse(log.as_bytes(), Options { intent: Some(Intent::new("sysrq triggered crash")) }).reports
}

fn causes(lines: &[&str]) -> Vec<(String, Option<usize>)> {
    reports(lines).into_iter().map(|report| (report.title, report.cause)).collect()
}

#[test]
fn a_panic_about_hardware_follows_from_what_the_hardware_said() {
    let got = causes(&[
        "mce: [Hardware Error]: CPU 3: Machine Check Exception: 5 Bank 0: b200000000070005",
        "mce: [Hardware Error]: Machine check: Processor context corrupt",
        "Kernel panic - not syncing: Fatal machine check",
    ]);
    assert_eq!(got, [("mce: hardware error".into(), None), ("kernel panic: Fatal machine check".into(), Some(0))]);
    let got = causes(&[
        "{1}[Hardware Error]: Hardware error from APEI Generic Hardware Error Source: 1",
        "{1}[Hardware Error]: event severity: fatal",
        "Kernel panic - not syncing: Fatal hardware error!",
    ]);
    assert_eq!(got, [("hardware error: fatal".into(), None), ("kernel panic: Fatal hardware error!".into(), Some(0))]);
}

#[test]
fn a_crash_on_the_way_from_a_panic_is_one_of_its_own_whatever_its_first_line() {
    for first in ["Oops: 0000 [#1] SMP", "invalid opcode: 0000 [#1] SMP", "Internal error: Oops: 96000004 [#1] SMP"] {
        let got = reports(&[
            "Kernel panic - not syncing: sysrq triggered crash",
            first,
            "CPU: 0 PID: 1 Comm: init Not tainted 7.3.4 #1",
            "RIP: 0010:own_shutdown+0x1/0x2",
            "Call Trace:",
            " __crash_kexec+0x1/0x2",
            " panic+0x1/0x2",
        ]);
        let intended: Vec<_> = got.iter().map(|report| (report.intended, report.cause)).collect();
        assert_eq!(intended, [(Some(true), None), (Some(false), Some(0))], "{first}: {:?}", got[0].title);
    }
}
