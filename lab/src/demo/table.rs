//! Predicted against actual.

use super::stories::Story;
use anyhow::Context as _;
use comfy_table::{Table, presets};
use crashyard_protocol::agent::Report;
use crashyard_protocol::api::{Attempt, Evidence, Job};
use crashyard_protocol::client::Client;
use crashyard_protocol::retry::Backoff;
use crashyard_protocol::{AttemptId, RunId, StageName, StageState, Status};
use std::time::Duration;

/// How long the last machine may take to be handed back after its verdict.
const RETURN: Duration = Duration::from_secs(60);

/// What came of one story.
pub struct Outcome {
    /// Name of the scenario.
    pub scenario: String,
    predicted: String,
    actual: String,
    seconds: String,
    reason: String,
    /// What is not as predicted; empty if all is.
    pub wrong: Vec<String>,
}

/// Reads the verdicts of a finished run.
pub async fn results(client: &Client, run: &RunId, stories: &[Story]) -> anyhow::Result<Vec<Outcome>> {
    let jobs = client.run_jobs(run).await?;
    let mut results = Vec::new();
    for story in stories {
        let job = jobs.iter().find(|job| job.scenario.name == story.scenario.name);
        let job = job.with_context(|| format!("the run has no job for {}", story.scenario.name))?;
        let attempt = match job.attempts.last() {
            Some(id) => Some(finished(client, id).await?),
            None => None,
        };
        let evidence: Vec<Evidence> = match job.attempts.last() {
            Some(id) => client.get(&format!("/api/v1/attempts/{id}/evidence")).await?,
            None => Vec::new(),
        };
        results.push(compare(story, job, attempt.as_ref(), &evidence));
    }
    Ok(results)
}

/// Waits until the machine is back, which is after the verdict.
async fn finished(client: &Client, id: &AttemptId) -> anyhow::Result<Attempt> {
    let mut backoff = Backoff::default();
    let back = async {
        loop {
            let attempt = client.attempt(id).await?;
            if attempt.state.is_over() {
                return anyhow::Ok(attempt);
            }
            backoff.wait().await;
        }
    };
    tokio::time::timeout(RETURN, back).await.context("the machine does not come back")?
}

fn compare(story: &Story, job: &Job, attempt: Option<&Attempt>, evidence: &[Evidence]) -> Outcome {
    let mut wrong = Vec::new();
    let reason = job.reason.clone().unwrap_or_default();
    if (job.status, job.blamed_stage) != (story.verdict, story.blamed) {
        wrong.push(format!("the verdict is {}: {reason}", words(job.status, job.blamed_stage)));
    }
    if !reason.contains(story.reason_says) {
        wrong.push(format!("the reason does not say {:?}: {reason}", story.reason_says));
    }
    let stages = attempt.map(|attempt| attempt.stages.as_slice()).unwrap_or_default();
    for name in StageName::ALL {
        let owed = story.blamed.is_none_or(|blamed| name < &blamed) || *name == StageName::Returned;
        let proven = stages.iter().any(|stage| stage.name == *name && stage.state == StageState::Proven);
        if owed && !proven {
            wrong.push(format!("the stage `{name}` is not proven"));
        }
    }
    if story.resumed {
        let starts = evidence.iter().filter(|one| matches!(one.report, Report::CaptureStarted { .. })).count();
        let skipped = evidence.iter().find_map(|one| match one.report {
            Report::DumpFinished { bytes, sent_bytes, skipped_bytes, .. } => {
                Some((skipped_bytes, sent_bytes + skipped_bytes == bytes))
            }
            _ => None,
        });
        // What was acknowledged before the agent died must not travel again.
        let had = story.scenario.capture.die_after_bytes.unwrap_or(1);
        if starts < 2 || !skipped.is_some_and(|(skipped, adds_up)| skipped >= had && adds_up) {
            wrong.push(format!("the upload was not resumed: {starts} starts, skipped {skipped:?}"));
        }
    }
    let seconds = attempt.and_then(|attempt| Some(attempt.finished_at?.since(attempt.started_at)));
    Outcome {
        scenario: story.scenario.name.clone(),
        predicted: words(story.verdict, story.blamed),
        actual: words(job.status, job.blamed_stage),
        seconds: seconds.map(|seconds| format!("{:.1}", seconds.as_secs_f64())).unwrap_or_default(),
        reason,
        wrong,
    }
}

fn words(status: Status, blamed: Option<StageName>) -> String {
    blamed.map_or_else(|| status.to_string(), |stage| format!("{status} at {stage}"))
}

/// Prints the table and what is not as predicted; whether all of it is.
pub fn show(results: &[Outcome]) -> bool {
    println!("{}", render(results));
    let wrong: Vec<_> = results.iter().filter(|result| !result.wrong.is_empty()).collect();
    for result in &wrong {
        for wrong in &result.wrong {
            println!("{}: {wrong}", result.scenario);
        }
    }
    println!("{} of {} as predicted", results.len() - wrong.len(), results.len());
    wrong.is_empty()
}

/// The verdict table.
fn render(results: &[Outcome]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED);
    table.set_content_arrangement(comfy_table::ContentArrangement::Dynamic);
    table.set_header(["scenario", "predicted", "actual", "seconds", "reason"]);
    for result in results {
        table.add_row([&result.scenario, &result.predicted, &result.actual, &result.seconds, &result.reason]);
    }
    table
}
