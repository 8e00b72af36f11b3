//! Follows a run to its end, and says what came of it.
//!
//! The run is the server's: whatever becomes of this program, it goes on. So an outage is waited out, a cut stream is taken up
//! behind the last event that came, and an interrupt ends the waiting and nothing else.

use crate::server::{Server, patiently, said};
use crate::triage::vmcore::text;
use anyhow::Context as _;
use crashyard_protocol::api::{Event, Job, Run};
use crashyard_protocol::client::{Client, ClientError};
use crashyard_protocol::retry::Backoff;
use crashyard_protocol::{JobId, JobState, RunId, Status};
use std::collections::BTreeMap;
use std::process::ExitCode;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// What the exit status of a command says that has results.
pub const STATUSES: &str = "\
Exit status:
  0    every result is PASS
  1    the command failed (the server refused, or is not there): nothing is known of the kernel
  2    the command line is wrong
  3    at least one result is FAIL: the kernel broke the contract of a crash
  4    no FAIL, and not all PASS: something is not done yet, or ended as MISS, ERROR, SKIP or DONE, which is no kernel's doing
  130  interrupted while waiting; the run goes on";

/// A kernel failed.
const FAILED: u8 = 3;
/// Nobody failed, and not everything is there.
const MISSING: u8 = 4;
/// As shells say it of whoever was interrupted.
const INTERRUPTED: u8 = 130;

/// Listens for Ctrl-C from when it is made: who is told of a run can end the waiting without ending without a word.
pub struct Interrupt(Signal);

impl Interrupt {
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self(signal(SignalKind::interrupt()).context("cannot listen for Ctrl-C")?))
    }
}

/// Follows a run until its last job has its result, unless somebody interrupts; whether it came to the end.
pub async fn follow(server: &Server, client: &Client, run: &RunId, mut interrupt: Interrupt) -> anyhow::Result<bool> {
    tokio::select! {
        followed = to_the_end(client, run) => followed.map(|()| true).map_err(|error| said(&error)),
        _ = interrupt.0.recv() => {
            let again = format!("crashyard run {run} --wait{}", server.option());
            eprintln!("Not waiting any longer; the run goes on. To take it up again:\n  {again}");
            Ok(false)
        }
    }
}

/// The exit status of somebody who was interrupted.
pub fn interrupted() -> ExitCode {
    INTERRUPTED.into()
}

async fn to_the_end(client: &Client, run: &RunId) -> Result<(), ClientError> {
    let names = names(&patiently(|| client.run_jobs(run)).await?);
    let width = names.values().map(|name| name.chars().count()).max().unwrap_or(0);
    let (mut events, mut backoff, mut away) = (client.run_events(run), Backoff::default(), false);
    loop {
        let cut = match events.next().await {
            Ok(None) => return Ok(()),
            Ok(Some(event)) => {
                if away {
                    eprintln!("The server is there again.");
                }
                (backoff, away) = (Backoff::default(), false);
                tell(&names, width, &event);
                continue;
            }
            Err(error) if error.is_transient() => error,
            Err(error) => return Err(error),
        };
        // A stream may be cut by a proxy that finds it too quiet; a server that answers nothing is worth a word.
        if !away && client.run(run).await.is_err() {
            eprintln!("{}; the run goes on, and so does the waiting.", text::safe(&cut.to_string()));
            away = true;
        }
        backoff.wait().await;
    }
}

/// What each job is called: its scenario, with a number where there are several.
fn names(jobs: &[Job]) -> BTreeMap<JobId, String> {
    let mut of_scenario: BTreeMap<&str, u32> = BTreeMap::new();
    let mut named = Vec::new();
    for job in jobs {
        let number = of_scenario.entry(&job.scenario.name).or_default();
        *number += 1;
        named.push((job, *number));
    }
    let name = |(job, number): (&Job, u32)| {
        let name = &job.scenario.name;
        let many = of_scenario.get(name.as_str()).is_some_and(|count| *count > 1);
        (job.id.clone(), if many { format!("{name} #{number}") } else { name.clone() })
    };
    named.into_iter().map(name).collect()
}

fn tell(names: &BTreeMap<JobId, String>, width: usize, event: &Event) {
    let Some(line) = event.body.line() else { return };
    let name = event.job.as_ref().and_then(|job| names.get(job)).map_or("", String::as_str);
    eprintln!("{}", text::safe(&format!("{name:width$}  {line}")));
}

/// The results of a run, job by job, with what to ask about those that wait.
pub fn table(server: &Server, run: &Run, jobs: &[Job]) -> String {
    let names = names(jobs);
    let width = names.values().map(|name| name.chars().count()).max().unwrap_or(0);
    let mut out = String::new();
    for job in jobs {
        let name = names.get(&job.id).map_or("", String::as_str);
        let result = if job.state == JobState::Done { job.status.as_str() } else { job.state.as_str() };
        let at = job.blamed_stage.map_or("", |stage| stage.as_str());
        let reason = job.reason.as_deref().unwrap_or_default();
        let line = format!("{}  {name:width$}  {result:<9}  {at:<11}  {reason}", job.id);
        out.push_str(text::safe(line.trim_end()).as_str());
        out.push('\n');
    }
    let counts: Vec<String> = run.counts.iter().map(|(status, count)| format!("{count} {status}")).collect();
    out.push_str(&format!("{}: {}/runs/{}\n", counts.join(", "), text::safe(server.address()), run.id));
    if let Some(job) = jobs.iter().find(|job| job.state == JobState::Queued) {
        out.push_str(&format!("Why one waits: crashyard job why {}{}\n", job.id, server.option()));
    }
    out
}

/// What a run's results mean for who asked: a machine that did not deliver is not a kernel that failed.
pub fn status(run: &Run) -> u8 {
    let count = |status| run.counts.get(&status).copied().unwrap_or(0);
    let all: u32 = run.counts.values().sum();
    match (count(Status::Fail), count(Status::Pass)) {
        (1.., _) => FAILED,
        (0, passed) if passed == all && passed > 0 => 0,
        _ => MISSING,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crashyard_protocol::RunState;
    use crashyard_protocol::clock::Timestamp;

    fn run(counts: &[(Status, u32)]) -> Run {
        let id = "01JDB4Q1W5Z8N6K3X0V7T2R9MF";
        Run {
            id: id.parse().unwrap(),
            build: id.parse().unwrap(),
            name: "linux · smoke".into(),
            plan: "smoke".into(),
            state: RunState::Done,
            status: Status::Pass,
            counts: counts.iter().copied().collect(),
            created_at: Timestamp(0),
            finished_at: None,
            last_event: 0,
        }
    }

    #[test]
    fn only_a_kernel_that_failed_is_told_as_a_failure_and_only_all_of_it_as_a_success() {
        assert_eq!(status(&run(&[(Status::Pass, 3)])), 0);
        assert_eq!(status(&run(&[(Status::Pass, 2), (Status::Fail, 1)])), FAILED);
        assert_eq!(status(&run(&[(Status::Miss, 2), (Status::Fail, 1)])), FAILED);
        for other in [Status::Error, Status::Miss, Status::Skip, Status::Done] {
            assert_eq!(status(&run(&[(Status::Pass, 2), (other, 1)])), MISSING, "{other}");
        }
        assert_eq!(status(&run(&[])), MISSING, "nothing is not a success");
    }
}
