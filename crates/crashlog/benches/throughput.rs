//! How fast consoles are read, in one thread, and how that compares to `rg -F -j1` looking for the same header strings.
//!
//! `cargo bench -p crashyard-crashlog` makes a console of 200 MB with eight oopses in the target directory and reads
//! it; `cargo bench -p crashyard-crashlog -- FILE..` reads the given files instead (long consoles, or many small logs
//! one by one). Prints bytes, reports, wall and processor seconds, megabytes a second, peak memory, and the ratio to
//! `rg` when that is installed. Files are read in pieces of 256 KiB and reading is included, as it is for `rg`.
//! Processor time is what counts on a busy machine.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use crashyard_crashlog::{Options, Parser, literals};

const ROUNDS: usize = 5;

fn main() -> std::io::Result<()> {
    let files: Vec<PathBuf> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).map(PathBuf::from).collect();
    let files = if files.is_empty() { vec![console()?] } else { files };
    let (mut bytes, mut reports) = (0, 0);
    let ours = measure(|| {
        (bytes, reports) = read(&files)?;
        Ok(())
    })?;
    let mut out = std::io::stdout().lock();
    let megabytes = bytes as f64 / 1e6;
    let line = |t: &Time| {
        format!(
            "{:.3} s wall, {:.0} MB/s; {:.3} s processor, {:.0} MB/s",
            t.wall,
            megabytes / t.wall,
            t.processor,
            megabytes / t.processor
        )
    };
    writeln!(
        out,
        "crashlog: {bytes} bytes, {} files, {reports} reports: {}; {} MB resident at most",
        files.len(),
        line(&ours),
        peak_megabytes()
    )?;
    match measure(|| ripgrep(&files)) {
        Ok(theirs) => {
            writeln!(out, "rg -F -j1 with the same {} literals: {}", literals().len(), line(&theirs))?;
            let ratio = |a: f64, b: f64| 100.0 * a / b;
            writeln!(
                out,
                "we run at {:.0} % of its speed by wall clock, {:.0} % by processor time",
                ratio(theirs.wall, ours.wall),
                ratio(theirs.processor, ours.processor)
            )?;
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => writeln!(out, "rg is not installed: no comparison")?,
        Err(e) => return Err(e),
    }
    Ok(())
}

/// Seconds of one round.
struct Time {
    wall: f64,
    processor: f64,
}

/// The best round by wall clock and the mean of all by processor time (which the system counts in coarse ticks).
fn measure(mut round: impl FnMut() -> std::io::Result<()>) -> std::io::Result<Time> {
    let mut wall = f64::MAX;
    let before = processor_seconds();
    for _ in 0..ROUNDS {
        let start = Instant::now();
        round()?;
        wall = wall.min(start.elapsed().as_secs_f64());
    }
    // At least one tick, so that nothing divides by zero.
    Ok(Time { wall, processor: ((processor_seconds() - before) / ROUNDS as f64).max(0.01 / ROUNDS as f64) })
}

/// Processor seconds of this process and the children it waited for; 0 where the system does not tell.
fn processor_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name in parentheses may contain blanks; utime, stime, cutime and cstime are fields 14 to 17, in 1/100 s.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(4);
    fields.filter_map(|f| f.parse::<f64>().ok()).sum::<f64>() / 100.0
}

/// Parses all files, each on its own.
fn read(files: &[PathBuf]) -> std::io::Result<(u64, usize)> {
    let mut buffer = vec![0; 256 * 1024];
    let (mut bytes, mut reports) = (0, 0);
    for file in files {
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
    Ok((bytes, reports))
}

/// One run of `rg`, counting the lines with any header string.
fn ripgrep(files: &[PathBuf]) -> std::io::Result<()> {
    let mut command = Command::new("rg");
    command.args(["-F", "-j1", "-c", "--no-config"]).stdout(Stdio::null());
    for literal in literals() {
        command.args(["-e", literal]);
    }
    command.arg("--").args(files).status().map(|_| ())
}

/// A long console of lines such as kernels print while they work, with eight oopses.
fn console() -> std::io::Result<PathBuf> {
    const SIZE: usize = 200_000_000;
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("console-200MB.log");
    if path.metadata().is_ok_and(|m| m.len() >= SIZE as u64) {
        return Ok(path);
    }
    let words = [
        "usb",
        "link becomes ready",
        "pci 0000:00",
        "registered",
        "version",
        "queue",
        "irq",
        "mem 0x",
        "enabled",
        "status",
        "device",
        "rate",
        "eth0:",
        "ext4",
        "mounted",
    ];
    let mut state = 20_261_122u64;
    // A small generator with fixed parameters: the same file on every machine.
    let mut random = |n: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).expect("31 bits fit") % n
    };
    let mut out = std::io::BufWriter::with_capacity(1 << 20, std::fs::File::create(&path)?);
    let (mut written, mut line, mut micros, mut oopses) = (0, String::new(), 0u64, 0);
    while written < SIZE {
        micros += random(2000) as u64;
        line.clear();
        let stamp = |micros: u64| format!("[{:5}.{:06}] ", micros / 1_000_000, micros % 1_000_000);
        if oopses < 8 && written > SIZE / 9 * (oopses + 1) {
            oopses += 1;
            for l in [
                "BUG: unable to handle page fault for address: ffff8880deadb000",
                "CPU: 1 PID: 42 Comm: own Not tainted 7.3.4-own #1",
                "RIP: 0010:own_read+0x1/0x2",
                "Call Trace:",
                " own_open+0x3/0x4",
                " do_syscall_64+0x5/0x6",
                "---[ end trace 0000000000000000 ]---",
            ] {
                let _ = writeln!(line, "{}{l}", stamp(micros));
            }
        } else {
            line.push_str(&stamp(micros));
            for _ in 0..4 + random(8) {
                let _ = write!(line, "{} {:x} ", words[random(words.len())], random(1 << 20));
            }
            line.push('\n');
        }
        out.write_all(line.as_bytes())?;
        written += line.len();
    }
    out.flush()?;
    Ok(path)
}

/// Peak resident memory of this process; 0 where the system does not tell.
fn peak_megabytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    line.and_then(|l| l.trim().split(' ').next()?.parse::<u64>().ok()).unwrap_or(0) / 1024
}
