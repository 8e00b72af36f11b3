//! Shows a run as it happens: stages as they are proven, the dump as it arrives, at the end the verdicts.

use super::stories::Story;
use crashyard_protocol::api::{Event, EventBody, Job};
use crashyard_protocol::client::Client;
use crashyard_protocol::{JobId, RunId, Stage, StageName, StageState, Status};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::io::IsTerminal as _;
use std::time::Duration;

/// What became of the run.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// The run.
    pub run: RunId,
    /// One line for each story.
    pub lines: Vec<Line>,
}

/// What became of one story.
#[derive(Debug, Serialize)]
pub struct Line {
    scenario: String,
    predicted: Status,
    predicted_stage: Option<StageName>,
    actual: Status,
    stage: Option<StageName>,
    seconds: u64,
    reason: Option<String>,
}

impl Line {
    fn as_predicted(&self) -> bool {
        self.predicted == self.actual && self.predicted_stage == self.stage
    }
}

impl Outcome {
    /// Whether every verdict is as predicted.
    pub fn as_predicted(&self) -> bool {
        !self.lines.is_empty() && self.lines.iter().all(Line::as_predicted)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = |status: Status, stage: Option<StageName>| {
            stage.map_or(status.to_string(), |stage| format!("{status} at {stage}"))
        };
        writeln!(f, "\n   {:<26}{:<20}{:<20}{:>8}", "scenario", "predicted", "actual", "seconds")?;
        for line in &self.lines {
            let mark = if line.as_predicted() { "ok" } else { "!!" };
            let predicted = verdict(line.predicted, line.predicted_stage);
            let actual = verdict(line.actual, line.stage);
            writeln!(f, "{mark} {:<26}{predicted:<20}{actual:<20}{:>8}", line.scenario, line.seconds)?;
            if let Some(reason) = &line.reason {
                writeln!(f, "      {reason}")?;
            }
        }
        Ok(())
    }
}

/// Follows a run to its end, whatever happens to the connection.
pub async fn run(client: &Client, run: &RunId, stories: &[Story]) -> anyhow::Result<Outcome> {
    let jobs = client.run_jobs(run).await?;
    let mut board = Board::new(&jobs);
    let mut seen = 0;
    'connect: loop {
        let Ok(mut events) = client.run_events(run, seen).await else {
            tokio::time::sleep(Duration::from_millis(500)).await;
            continue;
        };
        loop {
            match events.next().await {
                Ok(Some(event)) => {
                    seen = event.seq;
                    board.show(&event);
                }
                Ok(None) => break 'connect,
                Err(error) if error.is_transient() => continue 'connect,
                Err(error) => return Err(error.into()),
            }
        }
    }
    board.finish();
    let jobs = client.run_jobs(run).await?;
    let lines = stories.iter().filter_map(|story| {
        let job = jobs.iter().find(|job| job.scenario.name == story.scenario.name)?;
        Some(Line {
            scenario: story.scenario.name.clone(),
            predicted: story.verdict,
            predicted_stage: story.stage,
            actual: job.status,
            stage: job.blamed_stage,
            seconds: board.seconds(&job.id),
            reason: job.reason.clone(),
        })
    });
    Ok(Outcome { run: run.clone(), lines: lines.collect() })
}

/// The jobs on the terminal: one line each, and a bar below for the dump that is arriving.
struct Board {
    all: MultiProgress,
    rows: BTreeMap<JobId, Row>,
    dump: Option<ProgressBar>,
    /// Bytes of the newest complete dump: what the next one is likely to have.
    expected: u64,
    received: u64,
    plain: bool,
}

struct Row {
    name: String,
    bar: ProgressBar,
    stages: BTreeMap<StageName, StageState>,
    verdict: Option<Status>,
    started: Option<i64>,
    seconds: u64,
}

impl Board {
    fn new(jobs: &[Job]) -> Self {
        let all = MultiProgress::new();
        let style = ProgressStyle::with_template("{prefix:<26} {msg}").expect("a fixed template");
        let rows = jobs.iter().map(|job| {
            let bar = all.add(ProgressBar::new_spinner().with_style(style.clone()));
            bar.set_prefix(job.scenario.name.clone());
            bar.set_message("waiting");
            let row = Row {
                name: job.scenario.name.clone(),
                bar,
                stages: BTreeMap::new(),
                verdict: None,
                started: None,
                seconds: 0,
            };
            (job.id.clone(), row)
        });
        let rows = rows.collect();
        Self { all, rows, dump: None, expected: 0, received: 0, plain: !std::io::stderr().is_terminal() }
    }

    fn show(&mut self, event: &Event) {
        let Some(row) = event.job.as_ref().and_then(|job| self.rows.get_mut(job)) else { return };
        match &event.body {
            EventBody::AttemptStarted { machine, number } => {
                row.started = Some(event.at.0);
                row.say(self.plain, &format!("attempt {number} on {machine}"));
            }
            EventBody::Stage { stage } => {
                let changed = row.stages.insert(stage.name, stage.state) != Some(stage.state);
                row.bar.set_message(row.line());
                if changed && self.plain {
                    row.tell_stage(stage);
                }
                if stage.name == StageName::Dumped && stage.state != StageState::Active {
                    if let Some(bar) = self.dump.take() {
                        bar.finish_and_clear();
                    }
                    self.expected = self.expected.max(self.received);
                    self.received = 0;
                }
            }
            EventBody::DumpProgress { bytes } => {
                self.received = *bytes;
                let bar = self.dump.get_or_insert_with(|| self.all.add(dump_bar()));
                bar.set_length(self.expected.max(*bytes));
                bar.set_position(*bytes);
                if self.plain {
                    eprintln!("{:<26} vmcore {:.1} MB", row.name, *bytes as f64 / 1e6);
                }
            }
            EventBody::AttemptJudged { verdict, reason, .. } => {
                row.verdict = Some(*verdict);
                row.seconds = row.started.map_or(0, |from| u64::try_from(event.at.0 - from).unwrap_or(0) / 1000);
                row.bar.set_message(row.line());
                if self.plain {
                    eprintln!("{:<26} {verdict} {}", row.name, reason.as_deref().unwrap_or(""));
                }
            }
            _ => {}
        }
    }

    fn seconds(&self, job: &JobId) -> u64 {
        self.rows.get(job).map_or(0, |row| row.seconds)
    }

    fn finish(&self) {
        for row in self.rows.values() {
            row.bar.finish();
        }
    }
}

impl Row {
    fn say(&self, plain: bool, text: &str) {
        self.bar.set_message(text.to_owned());
        if plain {
            eprintln!("{:<26} {text}", self.name);
        }
    }

    fn tell_stage(&self, stage: &Stage) {
        match stage.state {
            StageState::Proven => eprintln!("{:<26} {} proven", self.name, stage.name),
            StageState::Failed => eprintln!("{:<26} {} failed", self.name, stage.name),
            StageState::Pending | StageState::Active | StageState::Skipped => {}
        }
    }

    fn line(&self) -> String {
        let stages: Vec<String> = StageName::ALL
            .iter()
            .filter_map(|name| match self.stages.get(name)? {
                StageState::Proven => Some(format!("✓{name}")),
                StageState::Failed => Some(format!("✗{name}")),
                StageState::Active => Some(format!("…{name}")),
                StageState::Pending | StageState::Skipped => None,
            })
            .collect();
        let verdict = self.verdict.map_or(String::new(), |verdict| format!(" {verdict}"));
        format!("{}{verdict}", stages.join(" "))
    }
}

fn dump_bar() -> ProgressBar {
    let template = "{prefix:<26} [{bar:30}] {bytes}  {bytes_per_sec}  {elapsed}";
    let style = ProgressStyle::with_template(template).expect("a fixed template").progress_chars("=> ");
    ProgressBar::new(0).with_style(style).with_prefix("  vmcore")
}
