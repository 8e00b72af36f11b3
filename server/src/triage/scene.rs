//! The evidence as it stood at one moment, and the questions the rules ask about it.
//!
//! The rules look at evidence only through here, so that nothing that arrived after a decision can change the words
//! in which the decision is explained: judging again later gives the same text.

use super::away::{self, Span};
use super::console::{Mark, MarkKind, Phase};
use super::dump::DumpReading;
use super::evidence::{BuildFacts, DumpEvidence, EvidenceView, Lease};
use crashyard_protocol::agent::{Report, Role};
use crashyard_protocol::api::Evidence;
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{ArtifactId, Proof, Scenario};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long evidence that is on its way may take, once a machine is known to have ended. Reports and console bytes
/// travel apart, so "it ended" may overtake the last lines it printed.
pub const SETTLE: Duration = Duration::from_secs(10);

/// A line of a console, and which console.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line<'a> {
    pub artifact: &'a ArtifactId,
    pub mark: &'a Mark,
}

impl Line<'_> {
    pub(super) fn proof(&self) -> Proof {
        Proof::Console {
            artifact: self.artifact.clone(),
            offset: self.mark.offset,
            length: self.mark.length,
            line: self.mark.line,
            text: self.mark.text.clone(),
        }
    }
}

/// What is judged, and everything known up to one moment.
#[derive(Clone)]
pub(super) struct Scene<'a> {
    pub scenario: &'a Scenario,
    pub build: &'a BuildFacts,
    pub evidence: &'a EvidenceView,
    reports: Vec<&'a Evidence>,
    until: Timestamp,
}

impl<'a> Scene<'a> {
    pub(super) fn new(
        scenario: &'a Scenario,
        build: &'a BuildFacts,
        evidence: &'a EvidenceView,
        until: Timestamp,
    ) -> Self {
        // One report for each sequence number: the one that came first.
        let mut by_seq: BTreeMap<(Role, u64), &Evidence> = BTreeMap::new();
        for report in &evidence.reports {
            by_seq
                .entry((report.by, report.seq))
                .and_modify(|known| {
                    if report.received_at < known.received_at {
                        *known = report;
                    }
                })
                .or_insert(report);
        }
        Self { scenario, build, evidence, reports: by_seq.into_values().collect(), until }
    }

    /// The same scene with nothing in it that came after `until`.
    pub(super) fn until(&self, until: Timestamp) -> Self {
        Self { until, ..self.clone() }
    }

    /// What one agent said, in the order in which it said it.
    pub(super) fn said_by(&self, role: Role) -> impl Iterator<Item = &'a Evidence> + '_ {
        self.reports.iter().copied().filter(move |report| report.by == role && report.received_at <= self.until)
    }

    /// The lines that matter, console by console, each console in its order.
    pub(super) fn lines(&self) -> impl Iterator<Item = Line<'a>> + '_ {
        self.evidence.consoles.iter().flat_map(move |console| {
            let marks = console.facts.marks.iter().filter(|mark| mark.at <= self.until);
            marks.map(move |mark| Line { artifact: &console.artifact, mark })
        })
    }

    /// The first line in one phase of which `wanted` is true.
    pub(super) fn line(&self, phase: Phase, wanted: impl Fn(&MarkKind) -> bool) -> Option<Line<'a>> {
        self.lines().filter(|line| line.mark.phase == phase && wanted(&line.mark.kind)).min_by_key(|line| line.mark.at)
    }

    /// The line right before another one on its console that starts the same kernel.
    pub(super) fn banner_before(&self, line: Line<'a>) -> Option<Line<'a>> {
        self.lines()
            .filter(|other| other.artifact == line.artifact && other.mark.offset < line.mark.offset)
            .filter(|other| matches!(other.mark.kind, MarkKind::Banner { .. }))
            .last()
    }

    /// Bytes of console that were read.
    pub(super) fn console_bytes(&self) -> u64 {
        self.evidence.consoles.iter().map(|console| console.facts.bytes).fold(0, u64::saturating_add)
    }

    pub(super) fn dump(&self) -> Option<&'a DumpEvidence> {
        self.evidence.dump.as_ref()
    }

    pub(super) fn reading(&self) -> Option<&'a DumpReading> {
        self.evidence.reading.as_ref().filter(|reading| reading.at <= self.until)
    }

    /// The report that the machine stopped by itself.
    pub(super) fn ended(&self) -> Option<(&'a Evidence, &'a str)> {
        self.said_by(Role::Controller).find_map(|said| match &said.report {
            Report::MachineEnded { detail } => Some((said, detail.as_str())),
            _ => None,
        })
    }

    /// The lease, as it was then.
    pub(super) fn lease(&self) -> &'a Lease {
        match &self.evidence.lease {
            Lease::Lost { at } | Lease::Released { at, .. } if *at > self.until => &Lease::Held,
            lease => lease,
        }
    }

    /// `wait` after `start`, not counting the time in which the server is known to have been away.
    pub(super) fn after(&self, start: Timestamp, wait: Duration) -> Timestamp {
        let known: Vec<Span> = self.evidence.server_away.iter().copied().filter(|span| span.to <= self.until).collect();
        away::after(start, wait, &known)
    }

    /// A moment, unless it is still to come.
    pub(super) fn known(&self, at: Timestamp) -> Option<Timestamp> {
        (at <= self.until).then_some(at)
    }

    /// The first moment after this scene at which something else is known. Servers' clocks differ a little.
    pub(super) fn next_evidence(&self) -> Option<Timestamp> {
        let reports = self.reports.iter().map(|report| report.received_at);
        let marks = self.evidence.consoles.iter().flat_map(|console| console.facts.marks.iter().map(|mark| mark.at));
        let dump = self.dump().and_then(|dump| dump.completed_at);
        let reading = self.evidence.reading.as_ref().map(|reading| reading.at);
        reports.chain(marks).chain(dump).chain(reading).filter(|at| *at > self.until).min()
    }
}

/// A report as a proof.
pub(super) fn report(said: &Evidence) -> Proof {
    Proof::Report { by: said.by.to_string(), seq: said.seq, text: one_line(&said.report) }
}

/// A report in one line, for people.
fn one_line(report: &Report) -> String {
    match report {
        Report::Power { action, ok, detail } => {
            format!("power {action} {}: {}", if *ok { "confirmed" } else { "failed" }, short(detail))
        }
        Report::MachineEnded { detail } => format!("the machine ended: {}", short(detail)),
        Report::Health { healthy, detail } => {
            format!("{}: {}", if *healthy { "healthy" } else { "not healthy" }, short(detail))
        }
        Report::Kernel { release, build_id, cpus_online, .. } => {
            let build_id = build_id.as_deref().unwrap_or("unknown");
            format!("{} runs with {cpus_online} CPUs, build id {}", short(release), short(build_id))
        }
        Report::Inventory { facts } => format!("{} facts about the machine", facts.len()),
        Report::Typed { source, by, keys, detail, .. } => {
            format!("{} typed {} at {}: {}", short(by), short(&keys.to_string()), short(source), short(detail))
        }
        Report::Step { name, code, ok, output, .. } => {
            let outcome = if *ok { "done" } else { "failed" };
            let code = code.map(|code| format!(" ({code})")).unwrap_or_default();
            format!("step {} {outcome}{code}: {}", short(name), short(output))
        }
        Report::Armed { crash_kernel_loaded, crash_kernel_bytes, vmx } => {
            let loaded = if *crash_kernel_loaded { "loaded" } else { "not loaded" };
            format!("crash kernel {loaded}, {crash_kernel_bytes} bytes reserved, VMX state {vmx}")
        }
        Report::Triggering { marker } => format!("triggering: {}", short(marker)),
        Report::CaptureStarted { release, start, .. } => {
            format!("capture kernel {} is up, start {start} of the agent", short(release))
        }
        Report::DumpFinished { bytes, blake3, .. } => format!("dump finished: {bytes} bytes, BLAKE3 {}", short(blake3)),
        Report::DumpFailed { cause, detail } => format!("dump failed ({cause}): {}", short(detail)),
        Report::Note { text } => short(text),
    }
}

/// Text of others for a sentence of ours: the first line that says something, without control characters, cut.
pub(super) fn short(text: &str) -> String {
    let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    let mut short: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect();
    if line.chars().count() > 300 {
        short.push('…');
    }
    short
}
