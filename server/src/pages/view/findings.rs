//! What was found in an attempt's evidence: the crash reports of its consoles, then the machine as the dump shows it,
//! panic first.
//!
//! Both come from stored documents that an older reader may have written, so fields are taken one by one and what is
//! missing is left out. Everything in them was printed by a crashed kernel and is hostile text.

use super::Shell;
use super::console::path_part;
use crate::pages::format::{When, count};
use crate::pages::text::visible;
use askama::Template;
use crashyard_protocol::AttemptId;
use crashyard_protocol::api::Attempt;
use crashyard_protocol::clock::Timestamp;
use crashyard_vmcore::{Capsule, Stack};
use serde::Deserialize;
use std::collections::BTreeMap;

/// Frames of a report that are shown at once; the rest folds.
const FRAMES: usize = 40;
/// Reports on the page; a machine that oopses for ever is cut.
const REPORTS: usize = 100;
/// Names of tasks in one group.
const NAMES: usize = 12;

/// The page at `/attempts/{id}/findings`.
#[derive(Debug, Template)]
#[template(path = "findings.html")]
pub struct FindingsPage {
    shell: Shell,
    attempt: AttemptId,
    number: u32,
    machine: String,
    read: bool,
    reports: Vec<ReportRow>,
    reports_cut: usize,
    dump: Option<DumpView>,
    agree: Option<bool>,
}

/// One console's crash reports, as stored.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct ConsoleReports {
    source: String,
    reports: Vec<StoredReport>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct StoredReport {
    title: String,
    header: String,
    intended: Option<bool>,
    corrupted: bool,
    corrupted_reason: Option<String>,
    start: u64,
    line: u64,
    cpu: Option<u32>,
    pid: Option<u32>,
    comm: Option<String>,
    cause: Option<usize>,
    duplicate_of: Option<usize>,
    trace: Vec<StoredFrame>,
    why: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct StoredFrame {
    function: String,
    module: Option<String>,
    reliable: bool,
}

#[derive(Debug)]
struct ReportRow {
    number: usize,
    title: String,
    tone: &'static str,
    role: String,
    where_: String,
    href: String,
    line: u64,
    corrupted: Option<String>,
    frames: Vec<FrameRow>,
    why: Vec<String>,
}

#[derive(Debug)]
struct FrameRow {
    text: String,
    doubt: bool,
}

#[derive(Debug)]
struct DumpView {
    facts: Vec<(&'static str, String)>,
    panic: Option<CpuRow>,
    cpus: Vec<CpuRow>,
    groups: Vec<Group>,
    modules: String,
    log: Vec<(String, bool)>,
    warnings: Vec<String>,
}

#[derive(Debug)]
struct CpuRow {
    name: String,
    doing: String,
    frames: Vec<FrameRow>,
}

#[derive(Debug)]
struct Group {
    count: usize,
    names: String,
    frames: Vec<FrameRow>,
}

impl FindingsPage {
    /// The page; `None` for what has not been read, or cannot be.
    #[must_use]
    pub fn new(
        attempt: &Attempt,
        consoles: Option<&[ConsoleReports]>,
        capsule: Option<&Capsule>,
        now: Timestamp,
    ) -> Self {
        let all: Vec<(&str, &StoredReport)> = consoles
            .unwrap_or_default()
            .iter()
            .flat_map(|console| console.reports.iter().map(move |report| (console.source.as_str(), report)))
            .filter(|(_, report)| report.duplicate_of.is_none())
            .collect();
        let agree = capsule.and_then(|capsule| capsule.panic_message.as_deref()).map(|panic| {
            let panic = panic.trim();
            all.iter().any(|(_, report)| report.header.contains(panic))
        });
        let reports = all.iter().take(REPORTS).enumerate();
        Self {
            shell: Shell { section: "runs", now: Some(When(now)) },
            attempt: attempt.id.clone(),
            number: attempt.number,
            machine: visible(&attempt.machine_name).into_owned(),
            read: consoles.is_some(),
            reports: reports.map(|(i, (source, report))| ReportRow::new(i + 1, &attempt.id, source, report)).collect(),
            reports_cut: all.len().saturating_sub(REPORTS),
            dump: capsule.map(DumpView::new),
            agree: agree.filter(|_| !all.is_empty()),
        }
    }
}

impl ReportRow {
    fn new(number: usize, attempt: &AttemptId, source: &str, report: &StoredReport) -> Self {
        let (tone, role) = match (report.intended, report.cause) {
            (Some(true), _) => ("pass", "what the scenario asked for".to_owned()),
            (_, Some(cause)) => ("fail", format!("follows from report {}", cause + 1)),
            (Some(false), None) => ("fail", "nobody asked for it".to_owned()),
            (None, None) => ("wait", String::new()),
        };
        let cpu = report.cpu.map(|cpu| format!("CPU {cpu}"));
        let pid = report.pid.map(|pid| format!("pid {pid}"));
        let comm = report.comm.as_deref().map(|comm| visible(comm).into_owned());
        Self {
            number,
            title: visible(&report.title).into_owned(),
            tone,
            role,
            where_: [cpu, comm, pid].into_iter().flatten().collect::<Vec<_>>().join(", "),
            href: format!("/attempts/{attempt}/console/{}?at={}#L{}", path_part(source), report.start, report.line),
            line: report.line,
            corrupted: report.corrupted.then(|| {
                visible(report.corrupted_reason.as_deref().unwrap_or("cut or mixed with another")).into_owned()
            }),
            frames: report
                .trace
                .iter()
                .take(FRAMES)
                .map(|frame| FrameRow {
                    text: with_module(&frame.function, frame.module.as_deref()),
                    doubt: !frame.reliable,
                })
                .collect(),
            why: report.why.iter().map(|why| visible(why).into_owned()).collect(),
        }
    }
}

impl DumpView {
    fn new(capsule: &Capsule) -> Self {
        let task = capsule.panic_task.as_ref();
        let facts = [
            ("Kernel", Some(capsule.release.clone())),
            ("Panic", capsule.panic_message.clone()),
            ("CPU", capsule.panic_cpu.map(|cpu| cpu.to_string())),
            ("Task", task.map(|task| format!("{} ({})", task.comm, task.pid))),
            ("Up for", capsule.uptime_ns.map(|ns| format!("{} s", ns / 1_000_000_000))),
            ("Taint", capsule.taint.as_ref().map(|taint| taint.letters.clone()).filter(|letters| !letters.is_empty())),
            ("Tasks", Some(capsule.tasks.len().to_string())),
            ("Modules", Some(capsule.modules.len().to_string())),
        ];
        let facts = facts.into_iter().filter_map(|(name, value)| Some((name, visible(&value?).into_owned()))).collect();
        let stack = |index: Option<u32>| index.and_then(|index| capsule.stacks.get(usize::try_from(index).ok()?));
        let mut panic = None;
        let mut cpus = Vec::new();
        for cpu in &capsule.cpus {
            let doing = match (cpu.idle, &cpu.comm, cpu.pid) {
                (Some(true), _, _) => "idle".to_owned(),
                (_, Some(comm), Some(pid)) => format!("{} ({pid})", visible(comm)),
                _ => "unknown".to_owned(),
            };
            let row = CpuRow { name: format!("CPU {}", cpu.cpu), doing, frames: frames(stack(cpu.stack)) };
            if capsule.panic_cpu == Some(cpu.cpu) { panic = Some(row) } else { cpus.push(row) }
        }
        Self {
            facts,
            panic,
            cpus,
            groups: groups(capsule),
            modules: visible(&capsule.modules.iter().map(|module| module.name.as_str()).collect::<Vec<_>>().join(" "))
                .into_owned(),
            log: capsule.dmesg.iter().map(|line| (visible(&line.stamped()).into_owned(), line.level <= 3)).collect(),
            warnings: capsule.warnings.iter().map(|warning| visible(warning).into_owned()).collect(),
        }
    }

    fn log_text(&self) -> String {
        count(self.log.len() as u64)
    }
}

/// Tasks that stand at the same place, the largest crowd first.
fn groups(capsule: &Capsule) -> Vec<Group> {
    let mut by_stack: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for task in capsule.tasks.iter().filter(|task| !task.running) {
        if let Some(stack) = task.stack {
            by_stack.entry(stack).or_default().push(format!("{} ({})", task.comm, task.pid));
        }
    }
    let mut groups: Vec<Group> = by_stack
        .into_iter()
        .map(|(stack, names)| {
            let more = names.len().saturating_sub(NAMES);
            let mut text = names[..names.len() - more].join(", ");
            if more > 0 {
                text = format!("{text} and {more} more");
            }
            let stack = usize::try_from(stack).ok().and_then(|index| capsule.stacks.get(index));
            Group { count: names.len(), names: visible(&text).into_owned(), frames: frames(stack) }
        })
        .collect();
    groups.sort_by_key(|group| std::cmp::Reverse(group.count));
    groups
}

fn frames(stack: Option<&Stack>) -> Vec<FrameRow> {
    let Some(stack) = stack else { return Vec::new() };
    let row = |frame: &crashyard_vmcore::Frame| FrameRow {
        text: match &frame.symbol {
            Some(symbol) => with_module(symbol, frame.module.as_deref()),
            None => frame.pc.to_string(),
        },
        doubt: frame.guess,
    };
    stack.frames.iter().take(FRAMES).map(row).collect()
}

fn with_module(function: &str, module: Option<&str>) -> String {
    let text = module.map_or_else(|| function.to_owned(), |module| format!("{function} [{module}]"));
    visible(&text).into_owned()
}
