//! A parser that follows a console for days holds next to nothing while nothing happens. One test alone in its process,
//! because it looks at the memory of the whole.

use crashyard_crashlog::{Options, Parser};

const CONSOLES: usize = 2000;
/// Bytes for each console, whatever it has seen before.
const EACH: u64 = 4096;

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("this test needs Linux");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a figure");
    line.split_ascii_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("KiB") * 1024
}

#[test]
fn thousands_of_quiet_consoles_fit_into_little_memory() {
    let crash = include_str!("golden/farm-sysrq-captured.log");
    let long = format!("[    9.000000] {}\n", "x".repeat(30_000));
    let read = || {
        let mut parser = Parser::new(Options::default());
        // Every second piece ends in the middle of a line.
        for piece in [crash, &long, &long[..7000], &long[7000..], "[   10.000000] the rest is silence\n[   11."] {
            parser.feed(piece.as_bytes());
            parser.drain();
        }
        parser
    };
    // What one-time tables cost is none of the consoles' business.
    drop(read());
    let before = resident();
    let parsers: Vec<Parser> = (0..CONSOLES).map(|_| read()).collect();
    let used = resident().saturating_sub(before);
    assert!(parsers.iter().all(|parser| parser.open().count() == 0), "the crash is long over");
    assert!(used < EACH * CONSOLES as u64, "{} bytes each", used / CONSOLES as u64);
}
