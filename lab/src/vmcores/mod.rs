//! Is what the vmcore engine reads true? Without debuginfo there is one witness: the kernel itself, before it crashes.
//!
//! Each crash boots a kernel in QEMU, has it print the stacks of all its tasks and where its modules lie, crashes it, takes
//! the dump — by kdump inside or by QEMU from outside — and compares. Nothing here needs the farm.

mod guest;
mod machine;
mod plan;
mod trigger;
mod truth;

use crate::cache::Cache;
use anyhow::Context as _;
use clap::Args;
use guest::Guest;
use plan::{Choices, Planned};
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Instant;
use tokio::runtime::Handle;

/// What can be said on the command line.
#[derive(Debug, Args)]
#[command(after_help = "\
Prints one line for each crash: how many task stacks, modules and log lines of the dump were compared with what the
kernel printed before it crashed, and everything that differs. Ends with status 1 if anything does.

Kernels, numbers of CPUs, load, ways to crash and who takes the dump are combined so that every two of these choices meet
in at least one crash, and every kernel every format: 18 to 20 crashes for three kernels, each of which takes half a minute
to a minute of one CPU. What is given on the command line narrows the choices.

Kernels are Debian's cloud kernels, fetched into the cache and never installed. `--kernel lab` is the one of
lab/kernel/build, whose own detector finds a hard lockup; Debian's detector needs performance counters, which an
emulated CPU has not, so there an NMI from outside ends it, as a watchdog or a BMC would.
Small dumps stay in the cache (vmcores/), where `cargo bench -p crashyard-vmcore` finds them.

  crashyard-lab vmcores                                      as `make test` does it
  crashyard-lab vmcores --kernel lab --panic lockup
  crashyard-lab vmcores --kernel 6.19. --cpus 8 --panic nmi --how qemu --keep /tmp/dumps")]
pub struct Options {
    /// First part of a kernel's release, like `6.12.`, or `lab`; may be given again
    #[arg(long = "kernel", default_values_t = ["6.1.".to_owned(), "6.12.".to_owned(), "7.".to_owned()])]
    kernels: Vec<String>,
    /// Number of CPUs; may be given again
    #[arg(long, default_values_t = [1, 2, 4, 8])]
    cpus: Vec<u32>,
    /// Only this way to crash; may be given again
    #[arg(long, value_enum, default_values_t = [Panic::Sysrq, Panic::Oops, Panic::Nmi, Panic::Lockup])]
    panic: Vec<Panic>,
    /// Only dumps taken this way
    #[arg(long, value_enum, default_values_t = [How::Kdump, How::Qemu])]
    how: Vec<How>,
    /// Only machines under this load
    #[arg(long, value_enum, default_values_t = [Load::Idle, Load::Busy, Load::Watched])]
    load: Vec<Load>,
    /// How many machines at a time [default: one for each CPU of this one]
    #[arg(long)]
    jobs: Option<usize>,
    /// Only say which crashes there would be
    #[arg(long)]
    plan: bool,
    /// Keep every dump and console in this directory
    #[arg(long)]
    keep: Option<PathBuf>,
    /// One JSON object for each crash instead of lines for people
    #[arg(long)]
    json: bool,
}

/// What the CPUs do when it dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Load {
    /// Nothing
    Idle,
    /// Half of them, at least one, run programs that never rest
    Busy,
    /// Nothing, but tracers replace the return addresses of functions that tasks sleep in
    Watched,
}

/// How the kernel dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Panic {
    /// `echo c >/proc/sysrq-trigger`
    Sysrq,
    /// A module reads from address 0
    Oops,
    /// An NMI from outside that nobody expects
    Nmi,
    /// A CPU hangs with interrupts off
    Lockup,
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
            Self::Oops => "oops",
            Self::Lockup => "lockup",
            Self::Nmi => "nmi",
            Self::Init => "init",
        }
    }
}

impl Load {
    fn word(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Busy => "busy",
            Self::Watched => "watched",
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

impl Format {
    const ALL: [Self; 6] =
        [Self::Flattened("l"), Self::Flattened("c"), Self::Raw, Self::Elf, Self::KdumpZlib, Self::Paging];

    /// Who writes it.
    fn how(self) -> How {
        if How::Kdump.formats().contains(&self) { How::Kdump } else { How::Qemu }
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
    /// What the dump is written as, and so by whom.
    pub format: Format,
    /// CPUs of the machine.
    pub cpus: u32,
    /// What it does until then.
    pub load: Load,
}

impl fmt::Display for Crash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { panic, format, cpus, load } = self;
        write!(f, "{cpus}cpu-{}-{format}-{}", load.word(), panic.word())
    }
}

/// Runs the crashes; the exit status says whether everything was equal.
pub fn run(options: &Options, source: &Path) -> anyhow::Result<ExitCode> {
    let cache = Cache::open()?;
    let choices = Choices {
        kernels: options.kernels.iter().map(|kernel| kernel != guest::LAB).collect(),
        cpus: options.cpus.clone(),
        loads: options.load.clone(),
        panics: options.panic.clone(),
        how: options.how.clone(),
    };
    let plan = plan::covering(&choices);
    if options.plan {
        plan.iter().for_each(|(kernel, crash)| println!("{:5} {crash}", options.kernels[*kernel]));
        return Ok(ExitCode::SUCCESS);
    }
    let guests = options.kernels.iter().map(|k| Guest::build(&cache, source, k).with_context(|| format!("kernel {k}")));
    let guests = guests.collect::<anyhow::Result<Vec<_>>>()?;
    let begun = Instant::now();
    let (total, different) = (plan.len(), all(&cache, options, &guests, plan)?);
    if !options.json {
        println!("{} of {total} dumps told the truth ({} s)", total - different, begun.elapsed().as_secs());
    }
    Ok(if different == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Does all crashes, some at a time, and counts those in which something differs.
fn all(cache: &Cache, options: &Options, guests: &[Guest], plan: Vec<Planned>) -> anyhow::Result<usize> {
    // A machine keeps one CPU busy: it is emulated by one thread.
    let jobs = options.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let queue = Mutex::new(plan.into_iter());
    let different = Mutex::new(0);
    let runtime = Handle::current();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs.max(1))
            .map(|_| {
                scope.spawn(|| {
                    let _entered = runtime.enter();
                    loop {
                        let Some((kernel, crash)) = queue.lock().expect("nobody panics holding it").next() else {
                            return anyhow::Ok(());
                        };
                        let guest = &guests[kernel];
                        let begun = Instant::now();
                        let found = one(cache, options, guest, crash);
                        let name = format!("{} {crash}", guest.release);
                        // Held while it is told, so that lines stay whole.
                        let mut different = different.lock().expect("nobody panics holding it");
                        *different += usize::from(!tell(options.json, &name, begun.elapsed().as_secs(), &found)?);
                    }
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("a worker does not panic"))
    })?;
    Ok(different.into_inner().expect("nobody panics holding it"))
}

/// Crashes once and compares.
fn one(cache: &Cache, options: &Options, guest: &Guest, crash: Crash) -> anyhow::Result<truth::Compared> {
    let work = machine::Work::new()?;
    let done = machine::crash(guest, crash, &work);
    if let Some(keep) = &options.keep {
        std::fs::create_dir_all(keep)?;
        for (from, to) in [(work.dump(), "vmcore"), (work.serial(), "log")] {
            if from.exists() {
                std::fs::copy(from, keep.join(format!("{}-{crash}.{to}", guest.release)))?;
            }
        }
    }
    let console = done?;
    let dump = std::fs::File::open(work.dump())?;
    let capsule = crashyard_vmcore::capsule(&dump, &crashyard_vmcore::Options::default())?;
    let compared = truth::compare(&truth::Truth::read(&console), &capsule, guest, crash);
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
