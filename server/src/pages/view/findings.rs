//! What was found in an attempt's evidence: whether console and dump agree, the crash reports of its consoles, then the
//! machine as the dump shows it, panic first. One search goes over all of it, with scripts off too.
//!
//! Everything comes from stored documents that an older reader may have written, so fields are taken one by one and what is
//! missing is left out. Everything in them was printed by a crashed kernel and is hostile text.

mod compare;
mod dump;

use super::console::path_part;
use super::{About, Shell};
use crate::pages::format::When;
use crate::pages::text::visible;
use askama::Template;
use crashyard_protocol::AttemptId;
use crashyard_protocol::api::Attempt;
use crashyard_protocol::clock::Timestamp;
use crashyard_vmcore::Capsule;
use dump::DumpView;
use serde::Deserialize;

/// Frames of a report that are shown at once; the rest folds.
const FRAMES: usize = 40;
/// Reports on the page; a machine that oopses for ever is cut.
const REPORTS: usize = 100;
/// Characters of a search that count.
const SEARCH: usize = 200;

/// The page at `/attempts/{id}/findings`.
#[derive(Debug, Template)]
#[template(path = "findings.html")]
pub struct FindingsPage {
    shell: Shell,
    about: About,
    read: bool,
    reports: Vec<ReportRow>,
    reports_cut: usize,
    dump: Option<DumpView>,
    compared: Option<compare::Compared>,
    /// What was searched for, as typed.
    q: String,
    /// How much was found, where anything was searched for.
    hits: Option<usize>,
}

/// What the page shows; `None` for what has not been read, or cannot be.
#[derive(Clone, Copy, Debug, Default)]
pub struct Found<'a> {
    /// Crash reports on the consoles.
    pub consoles: Option<&'a [ConsoleReports]>,
    /// Crash reports in the dump's kernel log.
    pub in_dump: Option<&'a [ConsoleReports]>,
    /// The dump.
    pub capsule: Option<&'a Capsule>,
}

/// Text to look for, ignoring case; everything is found by an empty one.
#[derive(Clone, Debug, Default)]
struct Search(String);

impl Search {
    fn new(q: Option<&str>) -> Self {
        Self(q.unwrap_or_default().trim().chars().take(SEARCH).collect::<String>().to_lowercase())
    }

    fn any(&self) -> bool {
        !self.0.is_empty()
    }

    fn finds(&self, text: &str) -> bool {
        !self.any() || text.to_lowercase().contains(&self.0)
    }

    fn finds_frame(&self, frames: &[FrameRow]) -> bool {
        frames.iter().any(|frame| self.finds(&frame.text))
    }
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
    alt_titles: Vec<String>,
    header: String,
    intended: Option<bool>,
    corrupted: bool,
    corrupted_reason: Option<String>,
    start: u64,
    end: u64,
    line: u64,
    time: Option<String>,
    boot: u32,
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
    /// An interrupt, exception or NMI came here.
    interrupted: bool,
}

impl FindingsPage {
    /// The page, with only what contains `q` where that is given.
    #[must_use]
    pub fn new(attempt: &Attempt, found: Found<'_>, q: Option<&str>, now: Timestamp) -> Self {
        let search = Search::new(q);
        let all = told(found.consoles);
        let reports: Vec<ReportRow> = all
            .iter()
            .enumerate()
            .map(|(i, (source, report))| ReportRow::new(i + 1, &attempt.id, source, report))
            .filter(|row| search.finds(&row.title) || search.finds(&row.where_) || search.finds_frame(&row.frames))
            .collect();
        let in_dump = told(found.in_dump);
        let dump = found.capsule.map(|capsule| DumpView::new(capsule, &in_dump, &search));
        let hits = reports.len() + dump.as_ref().map_or(0, DumpView::hits);
        let capsule = found.capsule.filter(|_| found.consoles.is_some() && found.in_dump.is_some());
        Self {
            shell: Shell { section: "runs", now: Some(When(now)) },
            about: About::new(attempt),
            read: found.consoles.is_some(),
            reports_cut: reports.len().saturating_sub(REPORTS),
            reports: reports.into_iter().take(REPORTS).collect(),
            dump,
            compared: capsule.map(|capsule| compare::compare(&all, &in_dump, capsule)),
            q: visible(q.unwrap_or_default()).into_owned(),
            hits: search.any().then_some(hits),
        }
    }
}

/// Every report that is not the same one printed again, with its source.
fn told(sources: Option<&[ConsoleReports]>) -> Vec<(&str, &StoredReport)> {
    sources
        .unwrap_or_default()
        .iter()
        .flat_map(|source| source.reports.iter().map(move |report| (source.source.as_str(), report)))
        .filter(|(_, report)| report.duplicate_of.is_none())
        .collect()
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
                    interrupted: false,
                })
                .collect(),
            why: report.why.iter().map(|why| visible(why).into_owned()).collect(),
        }
    }
}

fn with_module(function: &str, module: Option<&str>) -> String {
    let text = module.map_or_else(|| function.to_owned(), |module| format!("{function} [{module}]"));
    visible(&text).into_owned()
}
