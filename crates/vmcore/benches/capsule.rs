//! What reading a dump costs: `CRASHYARD_VMCORES=DIR cargo bench -p crashyard-vmcore`, for every `*.vmcore` in DIR.
//!
//! Prints CPU seconds of one thread (mean of 50 runs, the better of two rounds, warm page cache) and the peak of resident memory. With `crash` or `drgn` and
//! a matching vmlinux named in `CRASHYARD_VMLINUX`, runs those too and prints ratios. Without dumps there is nothing to
//! measure, and it says so.

use crashyard_vmcore::{Limits, Options, TableCache, capsule, dmesg_only, summarise};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Nanoseconds this thread has run, as the scheduler counts them.
fn cpu_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux with schedstats");
    text.split_whitespace().next().and_then(|n| n.parse().ok()).expect("schedstat starts with the run time")
}

/// CPU seconds of one run. The scheduler books time in ticks of some milliseconds, so many runs are counted together.
fn best(mut work: impl FnMut()) -> f64 {
    const RUNS: u32 = 50;
    let mut round = || {
        let before = cpu_ns();
        (0..RUNS).for_each(|_| work());
        (cpu_ns() - before) as f64 / f64::from(RUNS) / 1e9
    };
    round().min(round())
}

/// Peak resident memory in MiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs is mounted");
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1024
}

fn measure(path: &Path) {
    let file = File::open(path).expect("the dump can be opened");
    let cache = TableCache::new(64 << 20);
    let cached = Options { cache: Some(&cache), ..Options::default() };
    let first = capsule(&file, &cached).expect("the dump can be read");
    println!("{}: {}, {} threads, {} CPUs", path.display(), first.release, first.tasks.len(), first.cpus.len());
    let ours = best(|| drop(capsule(&file, &Options::default())));
    println!("  capsule                 {ours:.4} s CPU");
    println!("  capsule, tables cached  {:.4} s CPU", best(|| drop(capsule(&file, &cached))));
    println!("  summary                 {:.4} s CPU", best(|| drop(summarise(&file, &Limits::default()))));
    println!("  kernel log              {:.4} s CPU", best(|| drop(dmesg_only(&file, &Limits::default()))));
    println!("  capsule as JSON         {} bytes", serde_json::to_vec(&first).map_or(0, |json| json.len()));
    println!("  peak resident memory    {} MiB", peak());
    if let Some(vmlinux) = std::env::var_os("CRASHYARD_VMLINUX").map(PathBuf::from) {
        compare("crash", path, &vmlinux, ours, |c| c.arg("-s").arg(&vmlinux).arg(path));
        compare("drgn", path, &vmlinux, ours, |c| c.arg("-c").arg(path).arg("-s").arg(&vmlinux));
    }
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

fn main() {
    let Some(dir) = std::env::var_os("CRASHYARD_VMCORES") else {
        return println!("nothing measured: set CRASHYARD_VMCORES to a directory with *.vmcore files");
    };
    let entries = std::fs::read_dir(dir).expect("CRASHYARD_VMCORES is a directory");
    let mut dumps: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    dumps.retain(|p| p.extension().is_some_and(|e| e == "vmcore"));
    dumps.sort();
    dumps.iter().for_each(|path| measure(path));
}
