//! Is what the vmcore engine reads true? Without debuginfo there is one witness: the kernel itself, before it crashes.
//!
//! Each crash boots a Debian kernel in QEMU, has it print the stacks of all its tasks and where its modules lie, crashes
//! it, takes the dump — by kdump inside or by QEMU from outside — and compares. Kernels, numbers of CPUs, ways to crash
//! and formats are turned over so that each meets the others. Nothing here needs the farm.

mod guest;
mod machine;
mod truth;

use crate::cache::Cache;
use anyhow::Context as _;
use clap::Args;
use guest::Guest;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// What can be said on the command line.
#[derive(Debug, Args)]
#[command(after_help = "\
Prints one line for each crash: how many task stacks, modules and log lines of the dump were compared with what the
kernel printed before it crashed, and everything that differs. Ends with status 1 if anything does.

Kernels are Debian's cloud kernels, fetched into the cache and never installed. A crash takes half a minute to a
minute; the whole matrix of three kernels about twenty minutes. Small dumps stay in the cache (vmcores/), where
`cargo bench -p crashyard-vmcore` finds them.

  crashyard-lab vmcores                      the whole matrix
  crashyard-lab vmcores --quick              two crashes, as `make test` does it
  crashyard-lab vmcores --kernel 6.19. --cpus 8 --panic nmi --how qemu --keep /tmp/dumps")]
pub struct Options {
    /// First part of a kernel's release, like `6.12.`; may be given again
    #[arg(long = "kernel", default_values_t = ["6.1.".to_owned(), "6.12.".to_owned(), "7.".to_owned()])]
    kernels: Vec<String>,
    /// Number of CPUs; may be given again
    #[arg(long, default_values_t = [1, 2, 4, 8])]
    cpus: Vec<u32>,
    /// Only this way to crash
    #[arg(long, value_enum)]
    panic: Option<Panic>,
    /// Only dumps taken this way
    #[arg(long, value_enum)]
    how: Option<How>,
    /// A few crashes only: the oldest and the newest kernel, kdump and QEMU, sysrq and NMI
    #[arg(long)]
    quick: bool,
    /// Keep every dump and console in this directory
    #[arg(long)]
    keep: Option<PathBuf>,
    /// One JSON object for each crash instead of lines for people
    #[arg(long)]
    json: bool,
}

/// How the kernel dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Panic {
    /// `echo c >/proc/sysrq-trigger`
    Sysrq,
    /// An NMI that nobody expects, on every CPU
    Nmi,
    /// The first process ends
    Init,
}

/// Who takes the dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum How {
    /// The capture kernel, with makedumpfile or raw
    Kdump,
    /// QEMU, from outside
    Qemu,
}

/// What a dump is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// makedumpfile, flattened, with this letter for its compression.
    Flattened(&'static str),
    /// `/proc/vmcore` as it is.
    Raw,
    /// QEMU's ELF.
    Elf,
    /// QEMU's ELF by the guest's page tables.
    Paging,
    /// QEMU's kdump-zlib.
    KdumpZlib,
}

impl Panic {
    fn word(self) -> &'static str {
        match self {
            Self::Sysrq => "sysrq",
            Self::Nmi => "nmi",
            Self::Init => "init",
        }
    }
}

impl How {
    /// Every format that is written this way.
    fn formats(self) -> &'static [Format] {
        match self {
            Self::Kdump => &[Format::Flattened("l"), Format::Flattened("c"), Format::Raw],
            Self::Qemu => &[Format::Elf, Format::KdumpZlib, Format::Paging],
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flattened(letter) => write!(f, "kdump-{letter}"),
            Self::Raw => f.write_str("kdump-raw"),
            Self::Elf => f.write_str("qemu-elf"),
            Self::Paging => f.write_str("qemu-elf-paging"),
            Self::KdumpZlib => f.write_str("qemu-kdump-zlib"),
        }
    }
}

/// One crash.
#[derive(Clone, Copy, Debug)]
pub struct Crash {
    /// How it dies.
    pub panic: Panic,
    /// Who takes the dump.
    pub how: How,
    /// As what.
    pub format: Format,
    /// CPUs of the machine.
    pub cpus: u32,
}

/// The crashes for one kernel: every number of CPUs both ways, ways to crash and formats in turn.
fn plan(options: &Options, kernel: usize) -> Vec<Crash> {
    if options.quick {
        let kdump = Crash { panic: Panic::Sysrq, how: How::Kdump, format: Format::Flattened("l"), cpus: 2 };
        let qemu = Crash { panic: Panic::Nmi, how: How::Qemu, format: Format::KdumpZlib, cpus: 4 };
        return vec![if kernel == 0 { kdump } else { qemu }];
    }
    let mut crashes = Vec::new();
    for (i, cpus) in options.cpus.iter().enumerate() {
        for (j, how) in [How::Kdump, How::Qemu].into_iter().enumerate() {
            if options.how.is_some_and(|only| only != how) {
                continue;
            }
            let turn = kernel + i + j;
            let panic = options.panic.unwrap_or([Panic::Sysrq, Panic::Nmi, Panic::Init][turn % 3]);
            // Not in step with the ways to crash.
            let formats = how.formats();
            let format = formats[(kernel + i / 3 + 2 * i) % formats.len()];
            crashes.push(Crash { panic, how, format, cpus: *cpus });
        }
    }
    crashes
}

/// Runs the matrix; the exit status says whether everything was equal.
pub fn run(options: &Options, source: &Path) -> anyhow::Result<ExitCode> {
    let cache = Cache::open()?;
    let quick = ["6.1.".to_owned(), "7.".to_owned()];
    let kernels = if options.quick { &quick[..] } else { &options.kernels[..] };
    let mut different = 0;
    let mut crashes = 0;
    for (index, prefix) in kernels.iter().enumerate() {
        let guest = Guest::build(&cache, source, prefix).with_context(|| format!("kernel {prefix}"))?;
        for crash in plan(options, index) {
            crashes += 1;
            let begun = Instant::now();
            let found = one(&cache, options, &guest, crash);
            let seconds = begun.elapsed().as_secs();
            let name = format!("{} {} CPUs {} {}", guest.release, crash.cpus, crash.format, crash.panic.word());
            if !tell(options.json, &name, seconds, &found)? {
                different += 1;
            }
        }
    }
    if !options.json {
        println!("{} of {crashes} dumps told the truth", crashes - different);
    }
    Ok(if different == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Crashes once and compares.
fn one(cache: &Cache, options: &Options, guest: &Guest, crash: Crash) -> anyhow::Result<truth::Compared> {
    // Below /tmp, because the path of a socket must be short.
    let work = machine::Work::new()?;
    let done = machine::crash(guest, crash, &work);
    if let Some(keep) = &options.keep {
        std::fs::create_dir_all(keep)?;
        let name = format!("{}-{}cpu-{}-{}", guest.release, crash.cpus, crash.format, crash.panic.word());
        for (from, to) in [(work.dump(), "vmcore"), (work.serial(), "log")] {
            if from.exists() {
                std::fs::copy(from, keep.join(format!("{name}.{to}")))?;
            }
        }
    }
    let console = done?;
    let dump = std::fs::File::open(work.dump())?;
    let capsule = crashyard_vmcore::capsule(&dump, &crashyard_vmcore::Options::default())?;
    let compared = truth::compare(&truth::Truth::read(&console), &capsule, crash);
    if matches!(crash.format, Format::Flattened(_)) {
        let kept = cache.path("vmcores");
        std::fs::create_dir_all(&kept)?;
        std::fs::copy(work.dump(), kept.join(format!("{}-{}cpu.vmcore", guest.release, crash.cpus)))?;
    }
    Ok(compared)
}

/// Prints one result; `true` if nothing differs.
fn tell(json: bool, name: &str, seconds: u64, found: &anyhow::Result<truth::Compared>) -> anyhow::Result<bool> {
    let equal = found.as_ref().is_ok_and(|compared| compared.differences.is_empty());
    if json {
        let error = found.as_ref().err().map(|error| format!("{error:#}"));
        let line = serde_json::json!({ "crash": name, "seconds": seconds, "equal": equal, "error": error,
            "compared": found.as_ref().ok() });
        println!("{}", serde_json::to_string(&line)?);
        return Ok(equal);
    }
    match found {
        Ok(compared) => {
            let mark = if equal { "equal  " } else { "DIFFERS" };
            println!(
                "{mark}  {name}: {} tasks, {} modules, {} log lines ({seconds} s)",
                compared.tasks, compared.modules, compared.lines
            );
            compared.differences.iter().for_each(|difference| println!("         {}", visible(difference)));
        }
        Err(error) => println!("FAILED   {name}: {} ({seconds} s)", visible(&format!("{error:#}"))),
    }
    Ok(equal)
}

/// What a crashed kernel printed, without what could drive the terminal.
fn visible(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}
