//! How fast consoles are read, in one thread, against the bars: `cargo bench -p crashyard-crashlog`.
//!
//! Three measurements. A console of 200 MB with eight oopses (made from the golden logs, the same on every machine), beside
//! `rg -F -j1` looking for the same header strings in the same run; the same console as a server follows it, in small writes
//! and drained after each; and many small logs one by one, from the folder that `CRASHYARD_CORPUS` names or, without it, a
//! corpus beside the project. `cargo bench -p crashyard-crashlog -- FILE..`
//! measures the given files instead, as one stream each.
//!
//! Figures are processor time (best round), because other work on the machine must not fail a bar; wall clock
//! stands beside it. Files are read in pieces of 256 KiB and reading is included, as it is for `rg`. A missed bar is
//! printed, not an error.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use crashyard_crashlog::{Options, Parser, literals, parse};

/// Rounds of at least this many bytes in all, and no fewer than five.
const ENOUGH: u64 = 200_000_000;
const ROUNDS: usize = 5;
/// Bytes of the long console.
const LONG: usize = 200_000_000;
/// Bars: megabytes a second of the long console and of small logs, megabytes of memory, share of `rg`'s speed.
const LONG_SPEED: f64 = 500.0;
const LIVE_SPEED: f64 = 200.0;
const SMALL_SPEED: f64 = 100.0;
const MEMORY: f64 = 64.0;
const SHARE: f64 = 80.0;

/// Consoles with one crash each, put between boring lines.
const OOPSES: [&str; 8] = [
    include_str!("../tests/golden/lkdtm-bug.log"),
    include_str!("../tests/golden/lkdtm-null.log"),
    include_str!("../tests/golden/lkdtm-exec-null.log"),
    include_str!("../tests/golden/lkdtm-exhaust-stack.log"),
    include_str!("../tests/golden/lkdtm-panic.log"),
    include_str!("../tests/golden/lkdtm-write-read-only.log"),
    include_str!("../tests/golden/lkdtm-hard-lockup.log"),
    include_str!("../tests/golden/sysrq-no-crash-kernel.log"),
];
/// Where the boring lines come from: whole boots of Debian's kernel.
const BORING: [&str; 2] =
    [include_str!("../tests/golden/farm-clean.log"), include_str!("../tests/golden/farm-sysrq-captured.log")];

fn main() -> std::io::Result<()> {
    let files: Vec<PathBuf> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).map(PathBuf::from).collect();
    if !files.is_empty() {
        return Figures::of("given files", &files)?.print(None);
    }
    let (path, expected) = long_console()?;
    let long = Figures::of("long console", &[path])?;
    long.print(Some(LONG_SPEED))?;
    let memory = peak_megabytes();
    figure("long console, memory", &format!("{memory:.0} MB"), &format!("< {MEMORY:.0} MB"), memory < MEMORY)?;
    let found = format!("{} of {expected}", long.reports);
    figure("long console, reports found", &found, "all", long.reports == expected)?;
    long.compare()?;
    live(&long.files[0], expected)?;
    match corpus() {
        Some(logs) => Figures::of("small logs, one by one", &logs)?.print(Some(SMALL_SPEED)),
        None => say(
            "         small logs, one by one                not measured: CRASHYARD_CORPUS names no folder with *.log files",
        ),
    }
}

fn say(line: &str) -> std::io::Result<()> {
    writeln!(std::io::stdout().lock(), "{line}")
}

fn figure(what: &str, measured: &str, bar: &str, reached: bool) -> std::io::Result<()> {
    let mark = if reached { "reached" } else { "MISSED " };
    say(&format!("{mark}  {what:<36} {measured:>12}   bar {bar}"))
}

/// The console as a server follows it: in writes of 4 KiB, each asked for what is new, and what is open for its name.
fn live(path: &Path, expected: usize) -> std::io::Result<()> {
    let bytes = std::fs::read(path)?;
    let (mut best, mut found) = (f64::MAX, 0);
    for _ in 0..ROUNDS {
        let before = own_seconds();
        let mut parser = Parser::new(Options::default());
        let mut known = Vec::new();
        found = 0;
        for write in bytes.chunks(4096) {
            parser.feed(write);
            found += parser.drain().reports.len();
            let names: Vec<_> = parser.open().map(|report| (report.start(), report.lines())).collect();
            for report in parser.open().filter(|report| !known.contains(&(report.start(), report.lines()))) {
                std::hint::black_box(report.title());
            }
            known = names;
        }
        best = best.min(own_seconds() - before);
    }
    let speed = bytes.len() as f64 / 1e6 / best;
    figure(
        "followed live, writes of 4 KiB",
        &format!("{speed:.0} MB/s"),
        ">= 200 MB/s, one thread",
        speed >= LIVE_SPEED,
    )?;
    figure("followed live, reports found", &format!("{found} of {expected}"), "all", found == expected)
}

/// What reading some files cost.
struct Figures {
    what: &'static str,
    files: Vec<PathBuf>,
    bytes: u64,
    reports: usize,
    best: Time,
}

/// Seconds of one round.
#[derive(Clone, Copy)]
struct Time {
    wall: f64,
    processor: f64,
}

impl Figures {
    fn of(what: &'static str, files: &[PathBuf]) -> std::io::Result<Self> {
        let mut it = Self {
            what,
            files: files.to_vec(),
            bytes: 0,
            reports: 0,
            best: Time { wall: f64::MAX, processor: f64::MAX },
        };
        // The first round warms the caches and counts as well: the best one is taken.
        let (mut rounds, mut bytes) = (0, 0);
        while rounds < ROUNDS || bytes < ENOUGH {
            let (start, before) = (Instant::now(), own_seconds());
            (it.bytes, it.reports) = read(files)?;
            (rounds, bytes) = (rounds + 1, bytes + it.bytes.max(1));
            let round = Time { wall: start.elapsed().as_secs_f64(), processor: own_seconds() - before };
            it.best = Time { wall: it.best.wall.min(round.wall), processor: it.best.processor.min(round.processor) };
        }
        Ok(it)
    }

    fn speed(&self) -> f64 {
        self.bytes as f64 / 1e6 / self.best.processor
    }

    fn print(&self, bar: Option<f64>) -> std::io::Result<()> {
        let wall = self.bytes as f64 / 1e6 / self.best.wall;
        say(&format!(
            "         {}: {} bytes in {} files, {} reports; {:.3} s processor, {:.3} s wall ({wall:.0} MB/s)",
            self.what,
            self.bytes,
            self.files.len(),
            self.reports,
            self.best.processor,
            self.best.wall
        ))?;
        let speed = format!("{:.0} MB/s", self.speed());
        match bar {
            Some(bar) => figure(self.what, &speed, &format!(">= {bar:.0} MB/s, one thread"), self.speed() >= bar),
            None => say(&format!("         {}: {speed}", self.what)),
        }
    }

    /// Beside `rg` with the same literals, in the same run.
    fn compare(&self) -> std::io::Result<()> {
        let mut best = Time { wall: f64::MAX, processor: f64::MAX };
        for _ in 0..ROUNDS {
            let (start, before) = (Instant::now(), children_seconds());
            match ripgrep(&self.files) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                    return say("         rg is not installed: no comparison");
                }
                other => other?,
            }
            let round = Time { wall: start.elapsed().as_secs_f64(), processor: children_seconds() - before };
            best = Time { wall: best.wall.min(round.wall), processor: best.processor.min(round.processor) };
        }
        let literals = literals().len();
        let (theirs, wall) = (self.bytes as f64 / 1e6 / best.processor, self.bytes as f64 / 1e6 / best.wall);
        say(&format!(
            "         rg -F -j1, the same {literals} strings: {theirs:.0} MB/s; {:.3} s processor, {:.3} s wall ({wall:.0} MB/s)",
            best.processor, best.wall
        ))?;
        let share = 100.0 * self.speed() / theirs;
        figure("speed beside rg", &format!("{share:.0} %"), &format!(">= {SHARE:.0} % of rg -F -j1"), share >= SHARE)
    }
}

/// Processor seconds of this thread, as the scheduler counts them; wall time where it does not tell.
fn own_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds: Option<f64> = text.split_whitespace().next().and_then(|n| n.parse().ok());
    nanoseconds.map_or_else(wall_seconds, |n| n / 1e9)
}

/// Processor seconds of the children that were waited for, in ticks of 1/100 s; wall time where the system does not tell.
fn children_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name in parentheses may contain blanks; cutime and cstime are fields 16 and 17.
    let fields: Vec<f64> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(13)
        .take(2)
        .filter_map(|f| f.parse().ok())
        .collect();
    if fields.len() == 2 { fields.iter().sum::<f64>() / 100.0 } else { wall_seconds() }
}

fn wall_seconds() -> f64 {
    static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    START.elapsed().as_secs_f64()
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

/// All `*.log` files below the folder of the corpus, if there is one.
fn corpus() -> Option<Vec<PathBuf>> {
    let beside = || {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .ancestors()
            .skip(2)
            .map(|d| d.join("../shared/corpus/crashlog"))
            .find(|d| d.is_dir())
    };
    let root = std::env::var_os("CRASHYARD_CORPUS").map(PathBuf::from).or_else(beside)?;
    let mut folders = vec![root];
    let mut logs = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).ok()?.flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|x| x == "log") {
                logs.push(path);
            }
        }
    }
    logs.sort();
    (!logs.is_empty()).then_some(logs)
}

/// The long console and how many reports are in it: the oopses, evenly spread, between lines of ordinary boots in any
/// order, all stamped anew.
fn long_console() -> std::io::Result<(PathBuf, usize)> {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("console-200MB.v2.log");
    let expected = OOPSES.iter().map(|log| parse(log.as_bytes(), Options::default()).reports.len()).sum();
    if path.metadata().is_ok_and(|m| m.len() >= LONG as u64) {
        return Ok((path, expected));
    }
    let matters = literals();
    let text =
        |line: &'static str| line.split_once("] ").filter(|(stamp, _)| stamp.starts_with('[')).map(|(_, text)| text);
    let boring: Vec<&str> = BORING
        .iter()
        .flat_map(|log| log.lines())
        .filter_map(text)
        .filter(|l| !matters.iter().any(|m| l.contains(m)))
        .collect();
    let mut state = 20_261_122u64;
    // A small generator with fixed parameters: the same file on every machine.
    let mut random = |n: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).expect("31 bits fit") % n
    };
    let unfinished = path.with_extension("unfinished");
    let mut out = std::io::BufWriter::with_capacity(1 << 20, std::fs::File::create(&unfinished)?);
    let (mut written, mut micros, mut lines) = (0, 0u64, String::new());
    let mut oopses = OOPSES.iter().enumerate().peekable();
    while written < LONG {
        lines.clear();
        let mut add = |text: &str, after: u64| {
            micros += after;
            let _ = writeln!(lines, "[{:5}.{:06}] {text}", micros / 1_000_000, micros % 1_000_000);
        };
        if let Some((_, log)) = oopses.next_if(|(n, _)| written > LONG / (OOPSES.len() + 1) * (n + 1)) {
            log.lines().filter_map(text).for_each(|l| add(l, 10));
        } else {
            add(boring[random(boring.len())], random(2000) as u64);
        }
        out.write_all(lines.as_bytes())?;
        written += lines.len();
    }
    out.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
    std::fs::rename(unfinished, &path)?;
    Ok((path, expected))
}

/// Peak resident memory of this process in megabytes; 0 where the system does not tell.
fn peak_megabytes() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    line.and_then(|l| l.trim().split(' ').next()?.parse::<f64>().ok()).unwrap_or(0.0) * 1024.0 / 1e6
}
