//! The machine in the dump: panic stack first, then the other CPUs, tasks by where they stand, modules, the kernel log
//! with its crash reports marked.

use super::{FRAMES, FrameRow, REPORTS, Search, StoredReport, with_module};
use crate::pages::format::{When, count, span};
use crate::pages::text::visible;
use crashyard_protocol::clock::Timestamp;
use crashyard_vmcore::{Capsule, Cpu, Stack};
use std::collections::BTreeMap;
use std::time::Duration;

/// Names of tasks in one group.
const NAMES: usize = 12;

/// What the page shows of a capsule.
#[derive(Debug)]
pub struct DumpView {
    /// Names and values.
    pub facts: Vec<(&'static str, String)>,
    /// The CPU that panicked.
    pub panic: Option<CpuRow>,
    /// The others.
    pub cpus: Vec<CpuRow>,
    /// Who used virtualization, and what of it is still loaded where.
    pub virtualization: Vec<String>,
    /// Tasks that stand at the same place.
    pub groups: Vec<Group>,
    /// Modules, by name.
    pub modules: Vec<String>,
    /// The kernel log.
    pub log: Vec<LogRow>,
    /// What could not be read.
    pub warnings: Vec<String>,
}

/// One CPU.
#[derive(Debug)]
pub struct CpuRow {
    /// Its number.
    pub name: String,
    /// What ran.
    pub doing: String,
    /// What is unusual about it.
    pub notes: Vec<String>,
    /// Its stack.
    pub frames: Vec<FrameRow>,
}

/// Tasks with equal stacks.
#[derive(Debug)]
pub struct Group {
    /// How many.
    pub count: usize,
    /// Some of them have slept for so long that something is wrong.
    pub hung: bool,
    /// Their names, as many as are shown.
    pub names: String,
    /// Where they stand.
    pub frames: Vec<FrameRow>,
}

/// One line of the kernel log.
#[derive(Debug)]
pub struct LogRow {
    /// Its number, from 1.
    pub number: usize,
    /// The line with its time.
    pub text: String,
    /// It was printed as an error or worse.
    pub loud: bool,
    /// It belongs to a crash report.
    pub marked: bool,
    /// The title of the crash report that begins here.
    pub title: Option<String>,
}

impl DumpView {
    /// What `search` finds of a capsule.
    pub fn new(capsule: &Capsule, reports: &[(&str, &StoredReport)], search: &Search) -> Self {
        let mut cpus = Vec::new();
        let mut panic = None;
        for cpu in &capsule.cpus {
            let doing = match (cpu.idle, &cpu.comm, cpu.pid) {
                (Some(true), _, _) => "idle".to_owned(),
                (_, Some(comm), Some(pid)) => format!("{} ({pid})", visible(comm)),
                _ => "unknown".to_owned(),
            };
            let frames = frames(capsule.stack(cpu.stack));
            let row = CpuRow { name: format!("CPU {}", cpu.cpu), doing, notes: notes(cpu), frames };
            let facts = [&row.doing, &row.name].into_iter().chain(&row.notes);
            if !facts.into_iter().any(|fact| search.finds(fact)) && !search.finds_frame(&row.frames) {
                continue;
            }
            if capsule.panic_cpu == Some(cpu.cpu) { panic = Some(row) } else { cpus.push(row) }
        }
        let names = capsule.modules.iter().map(|module| visible(&module.name).into_owned());
        Self {
            facts: facts(capsule),
            panic,
            cpus,
            virtualization: virtualization(capsule).into_iter().filter(|line| search.finds(line)).collect(),
            groups: groups(capsule, search),
            modules: names.filter(|name| search.finds(name)).collect(),
            log: log(capsule, reports, search),
            warnings: capsule.warnings.iter().map(|warning| visible(warning).into_owned()).collect(),
        }
    }

    /// How much is shown, counted for a search.
    pub fn hits(&self) -> usize {
        let machine = usize::from(self.panic.is_some()) + self.cpus.len() + self.virtualization.len();
        machine + self.groups.len() + self.modules.len() + self.log.len()
    }

    /// Tasks of the groups that are shown.
    pub fn tasks(&self) -> usize {
        self.groups.iter().map(|group| group.count).sum()
    }

    /// Numbers of the shown lines at which crash reports begin, and their titles.
    pub fn reported(&self) -> Vec<(usize, &String)> {
        self.log.iter().filter_map(|line| Some((line.number, line.title.as_ref()?))).take(REPORTS).collect()
    }

    /// Lines of the log that are shown.
    pub fn log_text(&self) -> String {
        count(self.log.len() as u64)
    }
}

fn facts(capsule: &Capsule) -> Vec<(&'static str, String)> {
    let task = capsule.panic_task.as_ref();
    let mib = |kib: Option<u64>| kib.map(|kib| format!("{} MiB", kib / 1024));
    let memory = capsule.memory.as_ref();
    let free = memory.and_then(|m| Some(format!("{} of {} free", mib(m.free_kib)?, mib(m.total_kib)?)));
    let crashed = capsule.crash_time.and_then(|seconds| seconds.checked_mul(1000));
    let facts = [
        ("Kernel", Some(capsule.release.clone())),
        ("Oops", capsule.oops_message.clone()),
        ("Panic", capsule.panic_message.clone()),
        ("CPU", capsule.panic_cpu.map(|cpu| format!("{cpu} of {}", capsule.cpus.len()))),
        ("Task", task.map(|task| format!("{} ({})", task.comm, task.pid))),
        ("Crashed", crashed.map(|millis| When(Timestamp(millis)).full())),
        ("Up for", capsule.uptime_ns.map(|ns| span(Duration::from_secs(ns / 1_000_000_000)))),
        ("Taint", capsule.taint.as_ref().map(|taint| taint.letters.clone()).filter(|letters| !letters.is_empty())),
        ("Tasks", Some(capsule.tasks.len().to_string())),
        ("Hung", Some(capsule.tasks.iter().filter(|task| task.hung).count()).filter(|n| *n > 0).map(|n| n.to_string())),
        ("Memory", free),
        ("Modules", Some(capsule.modules.len().to_string())),
        ("Build id", capsule.build_id.clone()),
        ("Command line", capsule.command_line.clone()),
    ];
    facts.into_iter().filter_map(|(name, value)| Some((name, visible(&value?).into_owned()))).collect()
}

/// What a CPU did that most do not.
fn notes(cpu: &Cpu) -> Vec<String> {
    let registers = cpu.registers.is_none().then_some("left no registers");
    let user = (cpu.user == Some(true)).then_some("in user mode");
    let interrupts = (cpu.interrupts_on == Some(false)).then_some("interrupts off");
    let offline = (cpu.online == Some(false)).then_some("offline");
    let mut notes: Vec<String> =
        [registers, user, interrupts, offline].into_iter().flatten().map(str::to_owned).collect();
    if let Some(queue) = cpu.run_queue.as_ref().filter(|queue| !queue.waiting.is_empty()) {
        let names = queue.waiting.iter().take(NAMES).map(|task| format!("{} ({})", visible(&task.comm), task.pid));
        notes.push(format!("{} wait for it: {}", queue.waiting.len(), names.collect::<Vec<_>>().join(", ")));
    }
    notes
}

/// Guests and their virtual CPUs, and what VMX left on each CPU, one line each.
fn virtualization(capsule: &Capsule) -> Vec<String> {
    let Some(kvm) = &capsule.kvm else { return Vec::new() };
    let mut lines: Vec<String> = kvm.usage_count.map(|count| format!("{count} users of KVM")).into_iter().collect();
    for guest in &kvm.guests {
        let place = |cpu: Option<u32>| cpu.map_or("no CPU".to_owned(), |cpu| format!("CPU {cpu}"));
        let vcpus: Vec<String> = guest.vcpus.iter().map(|v| format!("vCPU {} on {}", v.id, place(v.cpu))).collect();
        lines.push(format!("guest {}: {}", guest.address, vcpus.join(", ")));
    }
    for cpu in &kvm.cpus {
        let on = match cpu.vmxe {
            Some(true) => "VMX enabled",
            Some(false) => "VMX off",
            None => "VMX unknown",
        };
        let loaded = cpu.loaded_vmcss.as_ref().map(|list| format!(", {} VMCSs loaded", list.len()));
        let error = cpu.list_error.as_ref().map(|error| format!(", its list is broken: {}", visible(error)));
        lines.push(format!("CPU {}: {on}{}{}", cpu.cpu, loaded.unwrap_or_default(), error.unwrap_or_default()));
    }
    lines
}

/// Tasks that stand at the same place: those that hang before all others, then the largest crowd. A group is found by the name of any of its tasks, shown or
/// not, and by its frames.
fn groups(capsule: &Capsule, search: &Search) -> Vec<Group> {
    let mut by_stack: BTreeMap<u32, (bool, Vec<String>)> = BTreeMap::new();
    for task in capsule.tasks.iter().filter(|task| !task.running) {
        if let Some(stack) = task.stack {
            let waits = task.blocked_on.as_ref().map(|lock| match &lock.owner {
                Some(owner) => format!(", waits for a {} of {} ({})", lock.kind, owner.comm, owner.pid),
                None => format!(", waits for a {}", lock.kind),
            });
            let slept = task.off_cpu_ns.filter(|_| task.hung).map(Duration::from_nanos);
            let hangs = slept.map(|time| format!(", hung for {}", span(time)));
            let name =
                format!("{} ({}{}{})", task.comm, task.pid, hangs.unwrap_or_default(), waits.unwrap_or_default());
            let (hung, names) = by_stack.entry(stack).or_default();
            *hung |= task.hung;
            names.push(visible(&name).into_owned());
        }
    }
    let mut groups: Vec<Group> = by_stack
        .into_iter()
        .filter_map(|(stack, (hung, names))| {
            let frames = frames(capsule.stack(Some(stack)));
            if !search.finds_frame(&frames) && !names.iter().any(|name| search.finds(name)) {
                return None;
            }
            let count = names.len();
            // Those that were searched for are shown first.
            let (mut shown, others): (Vec<String>, Vec<String>) =
                names.into_iter().partition(|name| search.any() && search.finds(name));
            shown.extend(others);
            let more = count.saturating_sub(NAMES);
            shown.truncate(NAMES);
            let mut names = shown.join(", ");
            if more > 0 {
                names = format!("{names} and {more} more");
            }
            Some(Group { count, hung, names, frames })
        })
        .collect();
    groups.sort_by_key(|group| std::cmp::Reverse((group.hung, group.count)));
    groups
}

/// The log's lines. Reports name stretches of [`crate::findings::log_text`], which is these lines and their ends.
fn log(capsule: &Capsule, reports: &[(&str, &StoredReport)], search: &Search) -> Vec<LogRow> {
    let mut at = 0;
    let mut rows = Vec::new();
    for (index, line) in capsule.dmesg.iter().enumerate() {
        let text = line.stamped();
        let end = at + text.len() as u64 + 1;
        let begins = reports.iter().find(|(_, report)| (at..end).contains(&report.start));
        let row = LogRow {
            number: index + 1,
            loud: line.level <= 3,
            marked: reports.iter().any(|(_, report)| report.start < end && at < report.end),
            title: begins.map(|(_, report)| visible(&report.title).into_owned()),
            text: visible(&text).into_owned(),
        };
        if search.finds(&row.text) || row.title.as_ref().is_some_and(|title| search.any() && search.finds(title)) {
            rows.push(row);
        }
        at = end;
    }
    rows
}

fn frames(stack: Option<&Stack>) -> Vec<FrameRow> {
    let Some(stack) = stack else { return Vec::new() };
    let row = |frame: &crashyard_vmcore::Frame| FrameRow {
        text: match &frame.symbol {
            Some(symbol) => with_module(symbol, frame.module.as_deref()),
            None => frame.pc.to_string(),
        },
        doubt: frame.guess,
        interrupted: frame.interrupted,
    };
    stack.frames.iter().take(FRAMES).map(row).collect()
}
