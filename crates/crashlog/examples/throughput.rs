//! How fast files are read, in one thread: `throughput FILE..`. `make bench` runs it on long consoles and prints the
//! ratio to `rg -F -j1` with the same header strings, which `throughput --literals` lists.
//!
//! Prints for all files together: bytes, reports, seconds of parsing (files are read in pieces of 256 KiB, reading is
//! included), megabytes a second, and the peak of resident memory in megabytes.

use std::io::{Read, Write};
use std::time::Instant;

use crashyard_crashlog::{Options, Parser};

fn main() -> std::io::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let mut out = std::io::stdout().lock();
    if args.first().is_some_and(|a| a == "--literals") {
        for literal in crashyard_crashlog::literals() {
            writeln!(out, "{literal}")?;
        }
        return Ok(());
    }
    let mut buffer = vec![0; 256 * 1024];
    let (mut bytes, mut reports) = (0u64, 0usize);
    let start = Instant::now();
    for file in &args {
        let mut parser = Parser::new(Options::default());
        let mut input = std::fs::File::open(file)?;
        loop {
            let n = input.read(&mut buffer)?;
            if n == 0 {
                break;
            }
            bytes += n as u64;
            parser.feed(&buffer[..n]);
        }
        reports += parser.finish().reports.len();
    }
    let seconds = start.elapsed().as_secs_f64();
    let speed = bytes as f64 / 1e6 / seconds;
    writeln!(
        out,
        "{bytes} bytes, {} files, {reports} reports, {seconds:.3} s, {speed:.0} MB/s, {} MB resident at most",
        args.len(),
        peak_megabytes()
    )?;
    Ok(())
}

/// Peak resident memory of this process; 0 where the system does not tell.
fn peak_megabytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    line.and_then(|l| l.trim().split(' ').next()?.parse::<u64>().ok()).unwrap_or(0) / 1024
}
