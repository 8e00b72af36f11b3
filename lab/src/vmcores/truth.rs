//! What the kernel said of itself before it crashed, and whether the dump says the same.
//!
//! `/proc/PID/stack` prints a sleeping task's frames but those of the scheduler, which are the innermost ones. A task that has
//! not run since then must stand at exactly these frames in the dump; whether it has run, the dump itself knows
//! (`off_cpu_ns`). Tasks that have are not compared, and too few compared ones are a difference of their own: a comparison
//! that compares nothing proves nothing.

use super::guest::Guest;
use super::trigger::DONOR;
use super::{Crash, How, Load, Panic};
use crashyard_vmcore::{Capsule, Cpu, Frame, LockKind, Stack};
use serde::Serialize;
use std::collections::{BTreeMap, HashSet};

/// How the guest's lines begin.
const SAID: &str = "crashyard-vmcores: ";
/// Tasks that have surely not run since the truth was told: kernel threads alone are more.
const FEWEST: usize = 15;
/// Functions of which at least so many are watched where any are.
const WATCHED: u32 = 6;
/// What tracers put in place of a return address.
const TRAMPOLINES: [&str; 2] = ["return_to_handler+0x0", "arch_rethook_trampoline+0x0"];
/// Seconds between the kernel's two clocks, and between a task's line and its stack.
const SLACK: f64 = 0.5;
/// Differences that are printed.
const MOST: usize = 20;

/// What the kernel said.
#[derive(Debug, Default)]
pub struct Truth {
    release: String,
    /// Seconds it was up when it began to tell.
    up: f64,
    /// Frames (`symbol+0xoffset`) by thread id.
    stacks: BTreeMap<u32, Vec<String>>,
    /// Addresses by name.
    modules: BTreeMap<String, u64>,
    /// The tracer that runs, and how many functions it and probes watch.
    watched: Option<(String, u32)>,
    /// Two threads of which one holds a mutex and the other waits for it.
    readers: Vec<u32>,
    /// Lines of the kernel log that came on the console after the truth was told.
    log: Vec<String>,
}

/// What came out.
#[derive(Debug, Default, Serialize)]
pub struct Compared {
    /// Tasks whose stacks were compared.
    pub tasks: usize,
    /// Modules whose addresses were compared.
    pub modules: usize,
    /// Lines of the log that were looked for.
    pub lines: usize,
    /// Everything that is not as it was told.
    pub differences: Vec<String>,
}

impl Truth {
    /// Reads the console of a machine.
    pub fn read(console: &str) -> Self {
        let mut truth = Self::default();
        let mut task = None;
        let mut told = false;
        for line in console.lines().map(|line| line.trim_end_matches('\r')) {
            if let Some((_, said)) = line.split_once(SAID) {
                let (what, rest) = said.split_once(' ').unwrap_or((said, ""));
                match what {
                    "release" => rest.clone_into(&mut truth.release),
                    "up" => truth.up = rest.parse().unwrap_or(0.0),
                    "task" => task = rest.split(' ').next().and_then(|pid| pid.parse().ok()),
                    "stack" => {
                        if let Some(pid) = task.take() {
                            truth.stacks.insert(pid, frames(rest));
                        }
                    }
                    "module" => {
                        let mut words = rest.split(' ');
                        if let (Some(name), Some(address)) = (words.next(), words.next()) {
                            let address = u64::from_str_radix(address.trim_start_matches("0x"), 16).unwrap_or(0);
                            truth.modules.insert(name.to_owned(), address);
                        }
                    }
                    "watched" => {
                        let counted =
                            rest.split_once(' ').and_then(|(by, count)| Some((by.to_owned(), count.parse().ok()?)));
                        truth.watched = counted;
                    }
                    "readers" => truth.readers = rest.split(' ').filter_map(|pid| pid.parse().ok()).collect(),
                    _ => told |= said == "truth told",
                }
            } else if told && is_kernel_line(line) {
                if line.contains("Linux version") || line.contains("end Kernel panic") {
                    // The capture kernel, or the kernel's last word, which is printed after a capture would have begun.
                    break;
                }
                truth.log.push(line.to_owned());
            }
        }
        truth
    }
}

/// `[    1.234567] text`
fn is_kernel_line(line: &str) -> bool {
    let stamp = line.strip_prefix('[').and_then(|rest| rest.split_once("] "));
    stamp.is_some_and(|(stamp, _)| stamp.contains('.') && stamp.trim().bytes().all(|b| b.is_ascii_digit() || b == b'.'))
}

/// `[<0>] do_wait+0x1f/0x30 [<0>] …`, as `symbol+0xoffset`.
fn frames(text: &str) -> Vec<String> {
    text.split("[<0>] ")
        .filter_map(|frame| Some(frame.trim().split('/').next()?.to_owned()))
        .filter(|frame| !frame.is_empty())
        .collect()
}

/// Compares a dump with what its kernel said.
pub fn compare(truth: &Truth, capsule: &Capsule, guest: &Guest, crash: Crash) -> Compared {
    let mut compared = Compared::default();
    let mut differ = |text: String| compared.differences.push(text);
    if capsule.release != truth.release {
        differ(format!("release {}, told was {}", capsule.release, truth.release));
    }
    let death = Death::of(guest, crash);
    death.compare(capsule).into_iter().for_each(&mut differ);
    cpus(capsule, crash).into_iter().for_each(&mut differ);
    for (name, address) in &truth.modules {
        match capsule.modules.iter().find(|module| module.name == *name) {
            Some(module) if module.base.0 == *address => {}
            Some(module) => differ(format!("module {name} at {}, told was {address:#x}", module.base)),
            None => differ(format!("module {name} is not in the dump")),
        }
    }
    let more = usize::from(death.module == Some(DONOR));
    if capsule.modules.len() != truth.modules.len() + more || truth.modules.is_empty() {
        differ(format!(
            "{} modules, told were {} and {more} came to crash",
            capsule.modules.len(),
            truth.modules.len()
        ));
    }
    let log: HashSet<String> = capsule.dmesg.iter().map(crashyard_vmcore::DmesgLine::stamped).collect();
    truth.log.iter().filter(|line| !log.contains(*line)).for_each(|line| differ(format!("not in the log: {line}")));
    // What is printed in an NMI reaches the console later, and by kdump there is no later.
    if truth.log.is_empty() && !(death.in_nmi && crash.format.how() == How::Kdump) {
        differ("no line of the crash came on the console".into());
    }
    watched(truth, capsule, crash).into_iter().for_each(&mut differ);
    mutex(truth, capsule).into_iter().for_each(&mut differ);
    let since = capsule.uptime_ns.unwrap_or(0) as f64 / 1e9 - truth.up + SLACK;
    let mut tasks = 0;
    for task in capsule.tasks.iter().filter(|task| !task.running) {
        let slept = task.off_cpu_ns.is_some_and(|ns| ns as f64 / 1e9 > since);
        let Some(told) = truth.stacks.get(&task.pid).filter(|told| slept && !told.is_empty()) else { continue };
        tasks += 1;
        let found = capsule.stack(task.stack).map(named).unwrap_or_default();
        if !agree(&found, told) {
            differ(format!("{} ({}): {}; told was {}", task.comm, task.pid, found.join(" "), told.join(" ")));
        }
    }
    if tasks < FEWEST && !guest.own {
        differ(format!("only {tasks} tasks could be compared, of {} told", truth.stacks.len()));
    }
    (compared.tasks, compared.modules, compared.lines) = (tasks, truth.modules.len(), truth.log.len());
    compared.differences.truncate(MOST);
    compared
}

fn named(stack: &Stack) -> Vec<String> {
    stack.frames.iter().map(|frame| frame.symbol.clone().unwrap_or_else(|| frame.pc.to_string())).collect()
}

/// Whether what the dump shows is what was told, with the scheduler's frames before it.
fn agree(found: &[String], told: &[String]) -> bool {
    let Some(before) = found.len().checked_sub(told.len()) else { return false };
    let scheduler = found.first().is_some_and(|innermost| innermost.starts_with("__schedule+")) && before > 0;
    scheduler && found[before..].iter().zip(told).all(|(found, told)| found == told || is_entry(found, told))
}

/// The entry from user mode: the kernel prints the label inside it, debuggers and the capsule the routine's name.
fn is_entry(found: &str, told: &str) -> bool {
    let (found, told) = (found.split('+').next(), told.split('+').next());
    matches!((found, told), (Some(found), Some(told)) if found.starts_with("entry_") && told.starts_with(found))
}

/// A machine that was to be watched must have been, and no function of any machine returns to a tracer's trampoline.
fn watched(truth: &Truth, capsule: &Capsule, crash: Crash) -> Vec<String> {
    let mut differences = Vec::new();
    let by_graph = truth.watched.as_ref().is_some_and(|(by, count)| by == "function_graph" && *count >= WATCHED);
    if by_graph != (crash.load == Load::Watched) {
        differences.push(format!("watched by {:?}", truth.watched));
    }
    for stack in &capsule.stacks {
        let names = named(stack);
        if names.iter().any(|name| TRAMPOLINES.iter().any(|trampoline| name == trampoline)) {
            differences.push(format!("returns to a trampoline: {}", names.join(" ")));
        }
    }
    differences
}

/// Of the two readers one must wait for a mutex that the other holds; it is no matter which.
fn mutex(truth: &Truth, capsule: &Capsule) -> Option<String> {
    let readers: Vec<_> = capsule.tasks.iter().filter(|task| truth.readers.contains(&task.pid)).collect();
    let waits = |pid: u32, holder: u32| {
        let task = readers.iter().find(|task| task.pid == pid);
        let lock = task.and_then(|task| task.blocked_on.as_ref()).filter(|lock| lock.kind == LockKind::Mutex);
        lock.and_then(|lock| lock.owner.as_ref()).is_some_and(|owner| owner.pid == holder)
    };
    match truth.readers[..] {
        [one, other] if waits(one, other) != waits(other, one) => None,
        _ => {
            let found: Vec<_> = readers.iter().map(|task| (task.pid, task.state, &task.blocked_on)).collect();
            Some(format!("of {:?} one waits for the other, found {found:?}", truth.readers))
        }
    }
}

/// What a way to crash leaves behind.
#[derive(Clone, Copy, Debug)]
struct Death {
    /// How the panic's message begins; `None`: the capture kernel takes over before there is one.
    message: Option<&'static str>,
    /// How the oops begins.
    oops: Option<&'static str>,
    /// On the stack of the CPU that panicked.
    function: &'static str,
    /// On the stack of a CPU that hangs.
    hangs: Option<&'static str>,
    /// The module whose code does it.
    module: Option<&'static str>,
    /// The panic is called in an NMI.
    in_nmi: bool,
}

impl Death {
    fn of(guest: &Guest, crash: Crash) -> Self {
        let own = guest.own;
        let base = Self { message: None, oops: None, function: "", hangs: None, module: None, in_nmi: false };
        match crash.panic {
            Panic::Sysrq => Self { message: Some("sysrq triggered crash"), function: "sysrq_handle_crash", ..base },
            Panic::Init => Self { message: Some("Attempted to kill init!"), function: "do_exit", ..base },
            Panic::Nmi => {
                Self { message: Some("NMI: Not continuing"), function: "unknown_nmi_error", in_nmi: true, ..base }
            }
            Panic::Oops => Self {
                message: (crash.format.how() == How::Qemu).then_some("Fatal exception"),
                oops: Some("BUG: kernel NULL pointer dereference"),
                function: if own { "lkdtm_EXCEPTION" } else { "do_one_initcall" },
                module: Some(if own { "lkdtm" } else { DONOR }),
                ..base
            },
            Panic::Lockup if own => Self {
                message: Some("Hard LOCKUP"),
                function: "watchdog_timer_fn",
                hangs: Some("lkdtm_HARDLOCKUP"),
                module: Some("lkdtm"),
                ..base
            },
            Panic::Lockup => Self {
                message: Some("NMI: Not continuing"),
                function: "unknown_nmi_error",
                hangs: Some("do_one_initcall"),
                module: Some(DONOR),
                in_nmi: true,
                ..base
            },
        }
    }

    fn compare(&self, capsule: &Capsule) -> Vec<String> {
        let mut differences = Vec::new();
        for (what, said, wanted) in
            [("panic", &capsule.panic_message, self.message), ("oops", &capsule.oops_message, self.oops)]
        {
            let said = said.as_deref();
            if !matches!((said, wanted), (None, None))
                && !wanted.is_some_and(|w| said.is_some_and(|s| s.starts_with(w)))
            {
                differences.push(format!("the {what} says {said:?}, not {wanted:?}"));
            }
        }
        let cpu = capsule.panic_cpu.and_then(|number| capsule.cpus.iter().find(|cpu| cpu.cpu == number));
        let panicked = cpu.and_then(|cpu| capsule.stack(cpu.stack));
        let names = panicked.map(named).unwrap_or_default();
        if !names.iter().any(|frame| frame.starts_with(self.function)) {
            differences.push(format!("no {} on the panic's stack: {}", self.function, names.join(" ")));
        }
        let guilty = |frame: &Frame| frame.module.as_deref() == self.module && frame.interrupted;
        if let Some(function) = self.hangs {
            // A CPU that hangs and then panics waits for its end with interrupts on, unless a crash kernel takes over.
            let hangs = |cpu: &&Cpu| cpu.interrupts_on == Some(false) || Some(cpu.cpu) == capsule.panic_cpu;
            let hanging = capsule.cpus.iter().filter(hangs);
            let mut stacks = hanging.filter_map(|cpu| capsule.stack(cpu.stack));
            if !stacks
                .any(|stack| stack.frames.iter().any(guilty) && named(stack).iter().any(|f| f.starts_with(function)))
            {
                differences.push(format!("no CPU hangs in {function} with interrupts off"));
            }
        } else if self.module.is_some() && !panicked.is_some_and(|stack| stack.frames.iter().any(guilty)) {
            differences.push(format!(
                "the panic's stack was not interrupted in {:?}: {}",
                self.module,
                names.join(" ")
            ));
        }
        differences
    }
}

fn cpus(capsule: &Capsule, crash: Crash) -> Vec<String> {
    let mut differences = Vec::new();
    if capsule.cpus.len() != crash.cpus as usize {
        differences.push(format!("{} CPUs, the machine has {}", capsule.cpus.len(), crash.cpus));
    }
    for cpu in &capsule.cpus {
        if cpu.registers.is_none() {
            differences.push(format!("CPU {} has no registers", cpu.cpu));
        }
        // The registers of a CPU that was in user mode are those of its program: there is no kernel stack to them.
        let empty = capsule.stack(cpu.stack).is_none_or(|stack| stack.frames.is_empty());
        if empty && cpu.user != Some(true) {
            differences.push(format!("CPU {} has no stack", cpu.cpu));
        }
    }
    differences
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn a_console_is_read_with_what_stands_around_it() {
        let console = "[    1.0] early\r\n[    1.5] crashyard-vmcores: x\r\ncrashyard-vmcores: release 6.1\r\n\
            crashyard-vmcores: up 12.50\r\ncrashyard-vmcores: task 7 S\r\n\
            crashyard-vmcores: stack [<0>] do_wait+0x1f/0x30 [<0>] f+0x2/0x9 [btrfs] \r\n\
            crashyard-vmcores: module btrfs 0xffffffffc0000000 \r\ncrashyard-vmcores: readers 8 9\r\n\
            crashyard-vmcores: watched function_graph 12\r\n\
            crashyard-vmcores: truth told\r\n\
            [   20.000001] sysrq: Trigger a crash\r\nnoise\r\n[   21.0] Linux version 6.1\r\n[ 1.0] after\r\n";
        let truth = Truth::read(console);
        assert_eq!((truth.release.as_str(), truth.up), ("6.1", 12.5));
        assert_eq!(truth.stacks[&7], ["do_wait+0x1f", "f+0x2"]);
        assert_eq!(truth.modules["btrfs"], 0xffff_ffff_c000_0000);
        assert_eq!(truth.readers, [8, 9]);
        assert_eq!(truth.watched, Some(("function_graph".to_owned(), 12)));
        assert_eq!(truth.log, ["[   20.000001] sysrq: Trigger a crash"]);
    }

    #[test]
    fn only_the_schedulers_own_frames_may_stand_before_the_told_ones() {
        let told = words("do_wait+0x1 entry_SYSCALL_64_after_hwframe+0x6e");
        assert!(agree(&words("__schedule+0x1 schedule+0x5 do_wait+0x1 entry_SYSCALL_64+0x7"), &told));
        assert!(!agree(&words("do_wait+0x1 entry_SYSCALL_64+0x7"), &told), "no scheduler");
        assert!(!agree(&words("__schedule+0x1 do_wait+0x2 entry_SYSCALL_64+0x7"), &told), "another place");
        assert!(!agree(&words("__schedule+0x1 do_wait+0x1"), &told), "too short");
        assert!(!agree(&words("__schedule+0x1 do_wait+0x1 entry_SYSCALL_64+0x7 more+0x1"), &told), "more behind");
    }
}
