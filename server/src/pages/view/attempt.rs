//! One attempt: the verdict in one line, the eight stages with what proves them, the console beside them.

use super::console::{NAME_PREFIX, Pane, path_part, source_of};
use super::report::{self, Told};
use super::{Shell, StageTimes, took};
use crate::pages::format::{Chip, When, bytes, limit, span};
use crate::pages::text::visible;
use crate::passes::glimpse::Glimpse;
use askama::Template;
use crashyard_protocol::api::{Artifact, Attempt, Event, Evidence, Job, Run};
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{
    ArtifactId, ArtifactState, AttemptId, AttemptState, Proof, RunId, Scenario, Stage, StageName, StageState, Status,
};

/// Rows of the history that are shown; an agent that says more than this is cut, newest rows first kept.
const HISTORY_ROWS: usize = 500;

/// The page at `/attempts/{id}`.
#[derive(Debug, Template)]
#[template(path = "attempt.html")]
pub struct AttemptPage {
    shell: Shell,
    id: AttemptId,
    run: RunId,
    run_name: String,
    scenario: ScenarioFacts,
    job_number: u32,
    number: u32,
    others: Vec<(usize, AttemptId)>,
    machine: String,
    chip: Chip,
    live: bool,
    sentence: String,
    reason: Option<String>,
    started: When,
    took: String,
    last_event: u64,
    stages: Vec<StageRow>,
    pane: Option<Pane>,
    /// The other consoles: as people read them, and as a part of a path.
    consoles: Vec<(String, String)>,
    /// Whether the readers have read it.
    findings: bool,
    glimpse: Option<GlimpseView>,
    artifacts: Vec<ArtifactRow>,
    history: Vec<HistoryRow>,
    history_cut: usize,
}

#[derive(Debug)]
struct ScenarioFacts {
    name: String,
    title: String,
    vmx: &'static str,
    trigger: &'static str,
    cpu: Option<u32>,
    expect: String,
}

/// One stage of the time line.
#[derive(Debug)]
struct StageRow {
    name: StageName,
    state: StageState,
    took: String,
    limit: String,
    /// Thousandths of its time that it used.
    used: u128,
    since: Option<When>,
    deadline: Option<When>,
    reason: Option<String>,
    dump_size: Option<String>,
    proofs: Vec<ProofRow>,
}

#[derive(Debug)]
struct ProofRow {
    label: String,
    href: Option<String>,
    text: String,
    console: bool,
}

#[derive(Debug)]
struct ArtifactRow {
    id: ArtifactId,
    name: String,
    source: Option<String>,
    state: ArtifactState,
    size: String,
    blake3: Option<String>,
    /// Whether there are bytes to download.
    there: bool,
    /// Who holds it and why, or why it was dropped.
    note: Option<String>,
}

/// What a dump that is still arriving says already.
#[derive(Debug)]
struct GlimpseView {
    of: String,
    facts: Vec<(&'static str, String)>,
    frames: Vec<String>,
    log: Vec<String>,
}

impl GlimpseView {
    fn new(size: u64, seen: &Glimpse) -> Self {
        let facts = [
            ("Kernel", Some(seen.release.clone())),
            ("Panic", seen.panic.clone()),
            ("CPU", seen.cpu.map(|cpu| cpu.to_string())),
            ("Task", seen.task.clone()),
        ];
        let safe = |lines: &[String]| lines.iter().map(|line| visible(line).into_owned()).collect();
        Self {
            of: bytes(size),
            facts: facts.into_iter().filter_map(|(name, value)| Some((name, visible(&value?).into_owned()))).collect(),
            frames: safe(&seen.frames),
            log: safe(&seen.log),
        }
    }
}

#[derive(Debug)]
struct HistoryRow {
    anchor: Option<String>,
    at: When,
    by: &'static str,
    told: Told,
}

/// What the page of an attempt is made of.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    /// The attempt.
    pub attempt: &'a Attempt,
    /// Its job.
    pub job: &'a Job,
    /// Its run.
    pub run: &'a Run,
    /// The run's events about this attempt, oldest first.
    pub events: &'a [Event],
    /// What its agents reported.
    pub evidence: &'a [Evidence],
    /// What was seen of its dump while it was not whole, and in how many bytes.
    pub glimpse: Option<(u64, &'a Glimpse)>,
}

impl AttemptPage {
    /// The page; `pane` is the console shown beside the stages.
    #[must_use]
    pub fn new(parts: Parts<'_>, pane: Option<Pane>, now: Timestamp) -> Self {
        let Parts { attempt, job, run, events, evidence, glimpse } = parts;
        let dump = attempt.dump();
        let stages: Vec<StageRow> = attempt
            .stages
            .iter()
            .map(|stage| StageRow::new(stage, &job.scenario, attempt, pane.as_ref(), dump, now))
            .collect();
        let (history, history_cut) = history(events, evidence);
        Self {
            shell: Shell { section: "runs", now: Some(When(now)) },
            id: attempt.id.clone(),
            run: attempt.run.clone(),
            run_name: visible(&run.name).into_owned(),
            scenario: ScenarioFacts {
                name: visible(&job.scenario.name).into_owned(),
                title: visible(&job.scenario.title).into_owned(),
                vmx: job.scenario.vmx.as_str(),
                trigger: job.scenario.trigger.as_str(),
                cpu: job.scenario.cpu,
                expect: visible(&job.scenario.expect.panic).into_owned(),
            },
            job_number: job.ordinal + 1,
            number: attempt.number,
            others: (1..).zip(job.attempts.iter().cloned()).filter(|(_, id)| *id != attempt.id).collect(),
            machine: visible(&attempt.machine_name).into_owned(),
            chip: Chip::attempt(attempt.state, attempt.verdict),
            live: !attempt.state.is_over(),
            sentence: sentence(attempt),
            reason: attempt.reason.as_deref().map(|reason| visible(reason).into_owned()),
            started: When(attempt.started_at),
            took: took(attempt.started_at, attempt.finished_at, now),
            last_event: run.last_event,
            stages,
            consoles: attempt
                .artifacts
                .iter()
                .filter(|artifact| artifact.name.starts_with(NAME_PREFIX))
                .filter(|artifact| pane.as_ref().is_none_or(|pane| pane.artifact != artifact.id))
                .map(|artifact| (visible(source_of(artifact)).into_owned(), path_part(source_of(artifact))))
                .collect(),
            findings: attempt.artifacts.iter().any(|file| file.name.starts_with(crate::findings::REPORTS)),
            glimpse: glimpse.map(|(bytes, seen)| GlimpseView::new(bytes, seen)),
            artifacts: attempt.artifacts.iter().map(ArtifactRow::new).collect(),
            pane,
            history,
            history_cut,
        }
    }
}

/// The verdict as a sentence.
fn sentence(attempt: &Attempt) -> String {
    let active = attempt.stages.iter().find(|stage| stage.state == StageState::Active);
    let at = attempt.blamed_stage.map(|stage| format!(" at {stage}")).unwrap_or_default();
    match (attempt.state, attempt.verdict) {
        (AttemptState::Running, _) => {
            active.map_or_else(|| "Running".into(), |stage| format!("Waiting for {}", stage.name))
        }
        (AttemptState::Lost, Status::Miss) => format!("No result{at}: the lease ran out"),
        (_, Status::Pass) => "The contract was kept".into(),
        (_, Status::Fail) => format!("The kernel broke the contract{at}"),
        (_, Status::Error) => format!("The test itself went wrong{at}"),
        (_, Status::Miss) => format!("The lab did not deliver a result{at}"),
        (_, Status::Skip) => "Not run".into(),
        (_, Status::Done) => "Ran, with nothing to judge".into(),
    }
}

impl StageRow {
    fn new(
        stage: &Stage,
        scenario: &Scenario,
        attempt: &Attempt,
        pane: Option<&Pane>,
        dump: Option<&Artifact>,
        now: Timestamp,
    ) -> Self {
        let allowed = match (stage.started_at, stage.deadline_at) {
            (Some(started), Some(deadline)) => deadline.since(started),
            _ => scenario.deadlines.of(stage.name),
        };
        let taken = stage.took(now).filter(|_| stage.state != StageState::Skipped);
        let active = stage.state == StageState::Active;
        Self {
            name: stage.name,
            state: stage.state,
            took: taken.map(span).unwrap_or_default(),
            limit: if stage.state == StageState::Skipped { String::new() } else { limit(allowed) },
            used: taken.map_or(0, |taken| (taken.as_millis() * 1000 / allowed.as_millis().max(1)).min(1000)),
            since: stage.started_at.filter(|_| active).map(When),
            deadline: stage.deadline_at.filter(|_| active).map(When),
            // That a stage was not reached is said once, by the stage that failed.
            reason: stage
                .reason
                .as_deref()
                .filter(|_| stage.state != StageState::Skipped)
                .map(|reason| visible(reason).into_owned()),
            dump_size: dump
                .filter(|_| stage.name == StageName::Dumped && stage.state != StageState::Pending)
                .map(|dump| bytes(dump.size)),
            proofs: stage.proofs.iter().map(|proof| ProofRow::new(proof, attempt, pane)).collect(),
        }
    }
}

impl ProofRow {
    fn new(proof: &Proof, attempt: &Attempt, pane: Option<&Pane>) -> Self {
        match proof {
            Proof::Console { artifact, offset, line, text, .. } => {
                let href = if pane.is_some_and(|pane| pane.shows(artifact, *offset)) {
                    Some(format!("#L{line}"))
                } else {
                    attempt.artifacts.iter().find(|known| known.id == *artifact).map(|known| {
                        format!("/attempts/{}/console/{}?at={offset}#L{line}", attempt.id, path_part(source_of(known)))
                    })
                };
                Self { label: format!("L{line}"), href, text: visible(text).into_owned(), console: true }
            }
            Proof::Report { by, seq, text } => Self {
                label: format!("{} #{seq}", visible(by)),
                href: Some(format!("#report-{}-{seq}", path_part(by))),
                text: visible(text).into_owned(),
                console: false,
            },
            Proof::Server { text } => {
                Self { label: "server".into(), href: None, text: visible(text).into_owned(), console: false }
            }
        }
    }
}

impl ArtifactRow {
    fn new(artifact: &Artifact) -> Self {
        Self {
            id: artifact.id.clone(),
            name: visible(&artifact.name).into_owned(),
            source: artifact.name.strip_prefix(NAME_PREFIX).map(path_part),
            state: artifact.state,
            size: bytes(artifact.size),
            blake3: artifact.blake3.as_deref().map(|hash| visible(hash).into_owned()),
            there: artifact.state != ArtifactState::Dropped,
            note: match (&artifact.dropped, &artifact.held) {
                (Some(dropped), _) => {
                    Some(visible(&format!("{}: {}", When(dropped.at).short(), dropped.reason)).into_owned())
                }
                (None, Some(held)) => Some(visible(&format!("held by {}: {}", held.by, held.reason)).into_owned()),
                (None, None) => None,
            },
        }
    }
}

fn history(events: &[Event], evidence: &[Evidence]) -> (Vec<HistoryRow>, usize) {
    let mut rows: Vec<HistoryRow> = evidence
        .iter()
        .map(|said| HistoryRow {
            anchor: Some(format!("report-{}-{}", said.by, said.seq)),
            at: When(said.received_at),
            by: said.by.as_str(),
            told: report::report(&said.report),
        })
        .collect();
    rows.extend(events.iter().filter_map(|event| {
        Some(HistoryRow { anchor: None, at: When(event.at), by: "server", told: report::event(&event.body)? })
    }));
    // Stable: at the same millisecond what was said comes before what was concluded from it.
    rows.sort_by_key(|row| row.at.millis());
    let cut = rows.len().saturating_sub(HISTORY_ROWS);
    rows.drain(..cut);
    (rows, cut)
}
