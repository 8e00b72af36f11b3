//! What was read in a vmcore, and whether it is the right one.
//!
//! Two steps on purpose. [`read`] extracts facts from a dump, once, slowly; [`oracles`] compares the facts with what
//! the attempt expects, purely, whenever a judgement is made. Each comparison is a named oracle with three possible
//! outcomes. "Could not be evaluated" is one of them and never counts as held: a dump whose log cannot be read does
//! not contain the panic just because nobody could look.
//!
//! A scenario that uses VMX adds its facts ([`DumpFacts::vmx`]) and its oracles (`vmx`); the judge asks for nothing
//! but outcomes.

mod vmx;

use super::console::Intent;
use crashyard_crashlog::EventKind;
use crashyard_protocol::VmxState;
use crashyard_protocol::agent::Report;
use crashyard_protocol::clock::Timestamp;
use crashyard_vmcore::{Error, Options, ReadAt, Summary, Vmx, summarise};
use serde::{Deserialize, Serialize};

use super::evidence::{BuildFacts, EvidenceView};

/// What came of reading the dump, as it is stored with the attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DumpReading {
    /// When.
    pub at: Timestamp,
    /// The facts, or why there are none.
    pub outcome: Result<DumpFacts, Unreadable>,
}

/// A dump that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unreadable {
    /// The dump is broken. `false`: it is of a kind that this server does not read, which is not the kernel's fault.
    pub broken: bool,
    /// Why, for people.
    pub why: String,
}

/// What a verdict needs to know about a dump.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DumpFacts {
    /// `uname -r` of the crashed kernel.
    pub release: String,
    /// Its GNU build id, lower-case hex.
    pub build_id: Option<String>,
    /// When it crashed by its own clock, seconds since 1970.
    pub crash_time: Option<i64>,
    /// Lines of its kernel log that could be read; none is a log that could not be read.
    pub log_lines: u64,
    /// The attempt's marker in the log.
    pub marker: Option<String>,
    /// The first panic's message in the log after the marker; without a marker, in the whole log.
    pub panic: Option<String>,
    /// CPUs that were online; `None` when that is not in the dump.
    pub cpus_online: Option<u32>,
    /// CPUs with saved registers.
    pub cpus_saved: u32,
    /// What could not be read.
    pub warnings: Vec<String>,
    /// What it shows of VMX, where the scenario uses that and it could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmx: Option<Box<Vmx>>,
}

/// Reads the facts of a complete dump. Blocking; runs on a thread of its own.
///
/// # Errors
/// The source failed. This says nothing about the dump and is worth another try; everything that is wrong with the
/// dump itself is part of the result.
pub fn read(
    dump: &dyn ReadAt,
    intent: &Intent,
    state: VmxState,
    options: &Options<'_>,
) -> std::io::Result<Result<DumpFacts, Unreadable>> {
    match summarise(dump, &options.limits) {
        Ok(summary) => {
            let mut facts = facts(summary, intent);
            if state != VmxState::None {
                match crashyard_vmcore::vmx(dump, options) {
                    Ok(vmx) => facts.vmx = Some(Box::new(vmx)),
                    Err(Error::Io(error)) => return Err(error),
                    Err(error) => facts.warnings.push(format!("VMX: {error}")),
                }
            }
            Ok(Ok(facts))
        }
        Err(Error::Io(error)) => Err(error),
        Err(error) => {
            let broken = !matches!(error, Error::Unsupported(_) | Error::Limit { .. });
            Ok(Err(Unreadable { broken, why: error.to_string() }))
        }
    }
}

fn facts(summary: Summary, intent: &Intent) -> DumpFacts {
    let marker = summary.dmesg.iter().position(|line| intent.is_marker(&line.text));
    let after_marker = summary.dmesg.get(marker.unwrap_or(0)..).unwrap_or_default();
    let panic = after_marker.iter().find_map(|line| match crashyard_crashlog::event(line.text.as_bytes()) {
        Some(EventKind::Panic { reason }) => Some(reason),
        _ => None,
    });
    // A crash by an oops has no such message; the header of the oops is its.
    let oops = || after_marker.iter().map(|line| line.text.trim_end()).find(|line| intent.wants(line));
    let panic = panic.or_else(|| oops().filter(|_| intent.oops).map(str::to_owned));
    let mut cpus: Vec<u32> = summary.prstatus.iter().map(|note| note.cpu).collect();
    cpus.sort_unstable();
    cpus.dedup();
    DumpFacts {
        build_id: summary.build_id,
        crash_time: summary.crash_time,
        log_lines: summary.dmesg.len() as u64,
        marker: marker.and_then(|at| summary.dmesg.get(at)).map(|line| line.text.chars().take(500).collect()),
        panic: panic.map(|message| message.chars().take(500).collect()),
        cpus_online: summary.cpus_online,
        cpus_saved: u32::try_from(cpus.len()).unwrap_or(u32::MAX),
        warnings: summary.warnings.into_iter().take(32).collect(),
        release: summary.release,
        vmx: None,
    }
}

/// What one check of a dump came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It holds.
    Held,
    /// It does not hold.
    Broken,
    /// What it needs is not there to be looked at.
    NotEvaluated,
}

/// One named check of a dump.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Oracle {
    /// Its name.
    pub name: String,
    /// What it came to.
    pub outcome: Outcome,
    /// What was seen, in one sentence.
    pub text: String,
}

impl Oracle {
    fn new(name: &str, outcome: Outcome, text: String) -> Self {
        Self { name: name.to_owned(), outcome, text }
    }

    fn holds(name: &str, held: bool, text: String) -> Self {
        Self::new(name, if held { Outcome::Held } else { Outcome::Broken }, text)
    }
}

/// What a dump must show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// `uname -r`.
    pub release: String,
    /// GNU build id: the build's, or else the one the target agent read in the running kernel.
    pub build_id: Option<String>,
    /// The panic's message.
    pub intent: Intent,
    /// The state of VMX that the crash found.
    pub vmx: VmxState,
}

impl Expected {
    /// What the dump of one attempt must show.
    #[must_use]
    pub fn of(build: &BuildFacts, intent: Intent, vmx: VmxState, evidence: &EvidenceView) -> Self {
        let running = evidence.reports.iter().find_map(|said| match &said.report {
            Report::Kernel { release, build_id, .. } if *release == build.release => build_id.clone(),
            _ => None,
        });
        Self { release: build.release.clone(), build_id: build.build_id.clone().or(running), intent, vmx }
    }
}

/// Compares a dump with what it must show: one oracle for everything that is owed.
#[must_use]
pub fn oracles(facts: &DumpFacts, expected: &Expected) -> Vec<Oracle> {
    let mut oracles = vec![Oracle::holds(
        "release",
        facts.release == expected.release,
        format!("the dump is of kernel {}, the build is {}", facts.release, expected.release),
    )];
    if let Some(wanted) = &expected.build_id {
        oracles.push(match &facts.build_id {
            Some(found) => Oracle::holds(
                "build-id",
                found.eq_ignore_ascii_case(wanted),
                format!("the dump's build id is {found}, the build's is {wanted}"),
            ),
            None => Oracle::new("build-id", Outcome::NotEvaluated, "the dump carries no build id".into()),
        });
    }
    oracles.push(in_log(facts, "marker", facts.marker.is_some(), || match &facts.marker {
        Some(line) => format!("the dump's kernel log has this attempt's marker: {line}"),
        None => "the dump's kernel log lacks this attempt's marker: it is of another crash, or its log is cut".into(),
    }));
    let wanted = &expected.intent.panic;
    let intended = facts.panic.as_ref().is_some_and(|message| expected.intent.wants(message));
    oracles.push(in_log(facts, "panic", intended, || match &facts.panic {
        Some(message) => format!("the dump's kernel log has the panic \"{message}\", expected is \"{wanted}\""),
        None => format!("the dump's kernel log has no panic, expected is \"{wanted}\""),
    }));
    oracles.push(match facts.cpus_online {
        Some(0) | None => Oracle::new(
            "registers",
            Outcome::NotEvaluated,
            format!("the dump does not say how many CPUs were online; {} have saved registers", facts.cpus_saved),
        ),
        Some(online) => Oracle::holds(
            "registers",
            facts.cpus_saved >= online,
            format!("{} of {online} online CPUs have saved registers", facts.cpus_saved),
        ),
    });
    oracles.extend(vmx::oracles(facts.vmx.as_deref(), expected.vmx, facts.cpus_online));
    oracles
}

fn in_log(facts: &DumpFacts, name: &str, held: bool, text: impl Fn() -> String) -> Oracle {
    if facts.log_lines == 0 {
        let why = facts.warnings.first().map(|why| format!(": {why}")).unwrap_or_default();
        return Oracle::new(name, Outcome::NotEvaluated, format!("the dump's kernel log could not be read{why}"));
    }
    Oracle::holds(name, held, text())
}
