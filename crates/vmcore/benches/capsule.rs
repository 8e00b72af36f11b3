//! What reading a dump costs, against the bars that were set for it: `cargo bench -p crashyard-vmcore`.
//!
//! Reads every `*.vmcore` in `CRASHYARD_VMCORES`; without it, the corpus beside the checkout, else the dumps that
//! `crashyard-lab vmcores` made. Every figure is taken in a process of its own, which does nothing else: CPU seconds of one
//! thread (the better of two rounds, warm page cache), and the peak of resident memory. Nothing is printed as passed
//! that was not measured; where no dump is found, every line says so and the bench fails.
//!
//! Where `crash` or drgn is installed and the vmlinux of a dump's kernel is found (in the places of Debian's debuginfo, or named
//! in `CRASHYARD_VMLINUX`, several with colons between them), runs those too and prints ratios; else says what is missing.

#[path = "../examples/to_elf/sparse.rs"]
mod sparse;

use crashyard_vmcore::{Capsule, Limits, Options, TableCache, capsule, dmesg_only, summarise};
use object::read::elf::ElfFile64;
use object::{Endianness, Object as _, ReadCache};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// Names the figure that a child process is to take.
const STEP: &str = "CRASHYARD_BENCH_STEP";
/// Gigabytes of memory that the sparse dump claims on top of its own.
const SPARSE_GB: u64 = 100;
/// How much slower and larger reading the sparse dump may be: the noise of two measurements.
const SAME: f64 = 1.3;

/// CPU seconds and MiB.
#[derive(Clone, Copy)]
struct Cost {
    seconds: f64,
    mib: f64,
}

/// Bars for kernels of one size: CPU seconds of a whole capsule.
fn capsule_bar(release: &str) -> f64 {
    // Work grows with the kernel's own tables, which doubled from 6.1 to 7.3.
    if release.starts_with("6.1.") { 0.15 } else { 0.25 }
}

fn main() -> ExitCode {
    if let Some(step) = std::env::var_os(STEP) {
        let path = std::env::args_os().next_back().expect("the parent names a dump");
        take(&step.to_string_lossy(), Path::new(&path));
        return ExitCode::SUCCESS;
    }
    let dumps = dumps();
    if dumps.is_empty() {
        println!("MISSED   no dump to measure: set CRASHYARD_VMCORES, or let `crashyard-lab vmcores` make some");
        return ExitCode::FAILURE;
    }
    let missed = dumps.iter().filter(|path| !measure(path)).count();
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Dumps to measure, from the first place that has any.
fn dumps() -> Vec<PathBuf> {
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let home = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = home("CRASHYARD_CACHE")
        .or_else(|| Some(home("XDG_CACHE_HOME")?.join("crashyard")))
        .or_else(|| Some(home("HOME")?.join(".cache/crashyard")));
    let places = match home("CRASHYARD_VMCORES") {
        Some(named) => vec![named],
        None => vec![project.join("../shared/corpus/vmcore"), cache.unwrap_or_default().join("vmcores")],
    };
    let dumps_in = |dir: PathBuf| {
        let mut found: Vec<PathBuf> =
            std::fs::read_dir(dir).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect();
        found.retain(|path| path.extension().is_some_and(|extension| extension == "vmcore"));
        found.sort();
        found
    };
    places.into_iter().map(dumps_in).find(|found| !found.is_empty()).unwrap_or_default()
}

/// Measures one dump and prints every figure beside its bar; `false` if one was missed.
fn measure(path: &Path) -> bool {
    let file = File::open(path).expect("the dump can be opened");
    let first = match capsule(&file, &Options::default()) {
        Ok(first) => first,
        Err(error) => {
            println!("MISSED   {}: {error}", path.display());
            return false;
        }
    };
    println!("{}: {}, {} threads, {} CPUs", path.display(), first.release, first.tasks.len(), first.cpus.len());
    let mut all = true;
    let mut figure = |what: &str, measured: f64, unit: &str, bar: f64| {
        let reached = measured <= bar;
        all &= reached;
        let mark = if reached { "reached" } else { "MISSED " };
        println!("{mark}  {what:<46} {:>16}   bar <= {bar} {unit}", format!("{measured:.4} {unit}"));
    };
    let whole = child("capsule", path);
    figure("capsule", whole.seconds, "s CPU", capsule_bar(&first.release));
    figure("capsule, resident memory", whole.mib, "MiB", 64.0);
    figure("capsule, tables cached", child("cached", path).seconds, "s CPU", 0.05);
    figure("summary, as the stage `verified` reads it", child("summary", path).seconds, "s CPU", 0.15);
    figure("kernel log alone", child("dmesg", path).seconds, "s CPU", 0.01);
    let json = serde_json::to_vec(&first).expect("a capsule is JSON").len();
    figure("capsule as JSON", json as f64 / 1e6, "MB", 1.0);

    // The same memory as ELF files, the second of which claims 100 GB more that is a hole on disk.
    let dir = std::env::temp_dir().join(format!("crashyard-bench-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a directory for the sparse dump");
    let (small, large) = (dir.join("small.elf"), dir.join("large.elf"));
    let written = sparse::write(path, &small, 0).and_then(|()| sparse::write(path, &large, SPARSE_GB));
    match written {
        Ok(()) => {
            let (small, large) = (child("capsule", &small), child("capsule", &large));
            let ratio = large.seconds / small.seconds;
            figure(&format!("{SPARSE_GB} GB sparse ELF: time over the small one's"), ratio, "times", SAME);
            figure(
                &format!("{SPARSE_GB} GB sparse ELF: memory over the small one's"),
                large.mib / small.mib,
                "times",
                SAME,
            );
        }
        Err(error) => {
            println!("MISSED   {SPARSE_GB} GB sparse ELF: {error}");
            all = false;
        }
    }
    let _ = std::fs::remove_dir_all(&dir);
    match vmlinux(&first) {
        Some(vmlinux) => {
            compare("crash", path, &vmlinux, whole.seconds, |c| c.arg("-s").arg(&vmlinux).arg(path));
            compare("drgn", path, &vmlinux, whole.seconds, |c| c.arg("-c").arg(path).arg("-s").arg(&vmlinux));
        }
        None => println!(
            "  crash and drgn were not run: they need the vmlinux of build id {}, which is in linux-image-{}-dbg, or named in \
             CRASHYARD_VMLINUX",
            first.build_id.as_deref().unwrap_or("(unknown)"),
            first.release
        ),
    }
    all
}

/// The vmlinux with debuginfo of this kernel, proved by its build id.
fn vmlinux(of: &Capsule) -> Option<PathBuf> {
    let wanted = of.build_id.as_deref()?;
    let named = std::env::var_os("CRASHYARD_VMLINUX").unwrap_or_default();
    let release = &of.release;
    let usual =
        [format!("/usr/lib/debug/boot/vmlinux-{release}"), format!("/usr/lib/debug/lib/modules/{release}/vmlinux")];
    std::env::split_paths(&named).chain(usual.map(PathBuf::from)).find(|file| {
        let Ok(file) = File::open(file) else { return false };
        let cache = ReadCache::new(file);
        let id = ElfFile64::<Endianness, _>::parse(&cache).ok().and_then(|elf| elf.build_id().ok()??.to_vec().into());
        id.is_some_and(|id: Vec<u8>| id.iter().map(|byte| format!("{byte:02x}")).collect::<String>() == wanted)
    })
}

/// Has a process of its own take one figure.
fn child(step: &str, path: &Path) -> Cost {
    let this = std::env::current_exe().expect("this program has a path");
    let output = Command::new(this).env(STEP, step).arg(path).output().expect("this program starts again");
    let text = String::from_utf8_lossy(&output.stdout);
    let mut words = text.split_whitespace().map(str::parse);
    match (words.next(), words.next()) {
        (Some(Ok(seconds)), Some(Ok(mib))) => Cost { seconds, mib },
        // A figure that cannot be taken misses every bar.
        _ => Cost { seconds: f64::INFINITY, mib: f64::INFINITY },
    }
}

/// In the child: takes one figure and prints seconds and MiB.
fn take(step: &str, path: &Path) {
    let file = File::open(path).expect("the dump can be opened");
    let seconds = match step {
        "capsule" => best(|| capsule(&file, &Options::default()).map(drop)),
        "cached" => {
            let cache = TableCache::new(64 << 20);
            let cached = Options { cache: Some(&cache), ..Options::default() };
            capsule(&file, &cached).expect("the dump can be read");
            best(|| capsule(&file, &cached).map(drop))
        }
        "summary" => best(|| summarise(&file, &Limits::default()).map(drop)),
        _ => best(|| dmesg_only(&file, &Limits::default()).map(drop)),
    };
    println!("{seconds} {}", peak_mib());
}

/// CPU seconds of one run. The scheduler books time in ticks of some milliseconds, so many runs are counted together.
fn best(work: impl Fn() -> Result<(), crashyard_vmcore::Error>) -> f64 {
    const RUNS: u32 = 20;
    let round = || {
        let before = cpu_ns();
        (0..RUNS).for_each(|_| work().expect("the dump can be read"));
        (cpu_ns() - before) as f64 / f64::from(RUNS) / 1e9
    };
    round().min(round())
}

/// Nanoseconds this thread has run, as the scheduler counts them.
fn cpu_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux with schedstats");
    text.split_whitespace().next().and_then(|n| n.parse().ok()).expect("schedstat starts with the run time")
}

/// Peak resident memory.
fn peak_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs is mounted");
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok()).unwrap_or(f64::INFINITY) / 1024.0
}

/// Runs another reader on the same dump; it reads its commands from a pipe.
fn compare(tool: &str, dump: &Path, vmlinux: &Path, ours: f64, arguments: impl Fn(&mut Command) -> &mut Command) {
    const CRASH: &str = "bt -a\nlog\nmod\nforeach bt\nquit\n";
    const DRGN: &str =
        "for t in for_each_task(prog):\n  try: print(prog.stack_trace(t))\n  except Exception as e: print(e)\n\n";
    let mut command = Command::new(tool);
    arguments(&mut command).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let before = children_ticks();
    let Ok(mut child) = command.spawn() else { return println!("  {tool}: not installed") };
    if let Some(mut input) = child.stdin.take() {
        let text = if tool == "crash" { CRASH } else { DRGN };
        // A tool that refuses the dump closes the pipe; its exit status tells.
        let _ = std::io::Write::write_all(&mut input, text.as_bytes());
    }
    let ok = child.wait().is_ok_and(|status| status.success());
    let seconds = (children_ticks() - before) as f64 / 100.0;
    let verdict = if ok { format!("{:.0} times ours", seconds / ours) } else { "fails".into() };
    println!("  {tool}: {seconds:.2} s CPU on {} with {}, {verdict}", dump.display(), vmlinux.display());
}

/// CPU time of ended children, in clock ticks (100 a second on Linux).
fn children_ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("procfs is mounted");
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    fields.iter().skip(13).take(2).filter_map(|f| f.parse::<u64>().ok()).sum()
}
