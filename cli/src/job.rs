//! `crashyard job`: jobs of a run.

use crate::server::{Server, patiently, said, wait};
use crate::time::when;
use crate::triage::vmcore::text;
use anyhow::Context as _;
use clap::{Args, Subcommand};
use crashyard_protocol::api::{Attempt, Job as ApiJob, Waiting};
use crashyard_protocol::client::Client;
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{JobId, JobState};
use std::fmt::Write as _;

/// How long the server may hold an answer back.
const WAIT_SECONDS: u32 = 20;

/// What to ask about a job.
#[derive(Subcommand)]
pub enum Job {
    /// Say why a job is waiting: what it asks for, where the machines are, who comes first, when it may start
    #[command(after_help = "\
Everything but the expected start is exact for this moment. With --follow it is said anew whenever something changes but the
expected start, until the job is placed or over; with --json as well, each time is one line, and the last one has the state.

  crashyard job why 01JDB4Q1W5Z8N6K3X0V7T2R9MF
  crashyard job why 01JDB4Q1W5Z8N6K3X0V7T2R9MF --follow
  crashyard job why 01JDB4Q1W5Z8N6K3X0V7T2R9MF --json")]
    Why(Why),
}

/// Arguments of `job why`.
#[derive(Args)]
pub struct Why {
    /// Id of the job; a run's page and `/api/v1/runs/ID/jobs` show it
    #[arg(value_name = "JOB")]
    id: String,
    /// Say it anew whenever something changes, until the job is placed or over
    #[arg(long)]
    follow: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: Server,
}

impl Job {
    pub fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Why(args) => wait(why(&args)),
        }
    }
}

async fn why(args: &Why) -> anyhow::Result<()> {
    let id: JobId = args.id.parse().ok().with_context(|| {
        format!("{:?} is no id; a run's jobs and their ids are at {}/runs/RUN", args.id, args.server.address())
    })?;
    let client = args.server.client();
    if args.follow {
        return follow(args, &client, &id).await;
    }
    let waiting = client.waiting(&id).await.map_err(|error| said(&error))?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&waiting)?);
    } else {
        print!("{}", human(&waiting));
    }
    Ok(())
}

/// Says it whenever it changes. A server that is away for a while is waited for; the job is its, and goes on.
async fn follow(args: &Why, client: &Client, id: &JobId) -> anyhow::Result<()> {
    let mut waiting = patiently(|| client.waiting(id)).await.map_err(|error| said(&error))?;
    let mut before: Option<Waiting> = None;
    while waiting.state == JobState::Queued {
        if before.as_ref().is_none_or(|before| !waiting.says_the_same_as(before)) {
            if args.json {
                println!("{}", serde_json::to_string(&waiting)?);
            } else {
                let again = if before.is_some() { "\n" } else { "" };
                print!("{again}{}\n{}", when(Timestamp(jiff::Timestamp::now().as_millisecond())), human(&waiting));
            }
            before = Some(waiting);
        }
        waiting = patiently(|| client.waiting_changed(id, WAIT_SECONDS)).await.map_err(|error| said(&error))?;
    }
    if args.json {
        println!("{}", serde_json::to_string(&waiting)?);
        return Ok(());
    }
    let job = patiently(|| client.job(id)).await.map_err(|error| said(&error))?;
    let attempt = match job.attempts.last() {
        Some(attempt) => Some(patiently(|| client.attempt(attempt)).await.map_err(|error| said(&error))?),
        None => None,
    };
    println!("{}", text::safe(&ended(&job, attempt.as_ref(), args.server.address())));
    Ok(())
}

/// How the waiting ended.
fn ended(job: &ApiJob, attempt: Option<&Attempt>, server: &str) -> String {
    match (job.state, attempt) {
        (JobState::Queued, _) => "It waits again: its attempt came to nothing.".into(),
        (JobState::Leased, Some(one)) => {
            format!("Placed on {} (attempt {}): {server}/attempts/{}", one.machine_name, one.number, one.id)
        }
        (JobState::Leased, None) => "Placed.".into(),
        (JobState::Cancelled, _) => "It was withdrawn.".into(),
        (JobState::Done, _) => {
            let why = job.reason.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
            format!("It is over: {}{why}", job.status)
        }
    }
}

fn human(waiting: &Waiting) -> String {
    let mut out = String::new();
    let mut line = |text: String| {
        // Writing to a string does not fail.
        let _ = writeln!(out, "{}", text::safe(&text));
    };
    line(waiting.summary.clone());
    line(String::new());
    line(format!("submitter  {} ({})", waiting.submitter, waiting.priority));
    if let Some(at) = waiting.expected_start {
        line(format!("expected   {}", when(at)));
    }
    if let Some(at) = waiting.deadline {
        line(format!("gives up   {}", when(at)));
    }
    if !waiting.constraints.is_empty() {
        line(String::new());
        line("It asks for:".into());
    }
    for one in &waiting.constraints {
        line(format!("  {:<32} {} machines have it, {} do not", one.constraint, one.satisfied_by, one.failed_by));
        for fail in one.fails.iter().take(5) {
            line(format!("    {}: {}", fail.machine, fail.found));
        }
    }
    if !waiting.machines.is_empty() {
        line(String::new());
        line(format!("Machines it could have ({}):", waiting.fitting));
    }
    for machine in &waiting.machines {
        let why = machine.reason.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
        let until = machine.until.map(|at| format!(" until {}", when(at))).unwrap_or_default();
        let next = machine.next.as_ref().map(|next| format!(", then it is {next}'s")).unwrap_or_default();
        let gone = if machine.announced { "" } else { ", not announced by its controller" };
        let silent = match machine.silent_since {
            Some(at) => format!("unknown, nothing was heard of its controller since {}; before that ", when(at)),
            None => String::new(),
        };
        let state = format!("{silent}{} since {}", machine.state, when(machine.since));
        line(format!("  {:<24} {state}{until}{next}{gone}{why}", machine.name));
    }
    if !waiting.ahead.is_empty() {
        line(String::new());
        line("Others who want these machines:".into());
    }
    for other in &waiting.ahead {
        let turn = if other.first { "comes first" } else { "comes later" };
        line(format!("  {:<24} {} jobs, {}, {turn}", other.submitter, other.jobs, other.priority));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crashyard_protocol::api::{WaitingConstraint, WaitingMachine};
    use crashyard_protocol::{MachineState, Priority};

    #[test]
    fn a_terminal_shows_the_sentence_the_constraints_and_where_the_machines_are() {
        let id = "01JDB4Q1W5Z8N6K3X0V7T2R9MF";
        let fan = WaitingMachine {
            until: Some(Timestamp(7_200_000)),
            next: None,
            id: id.parse().unwrap(),
            name: "m1".into(),
            state: MachineState::Quarantined,
            announced: true,
            silent_since: None,
            reason: Some("fan".into()),
            since: Timestamp(61_000),
            attempt: None,
        };
        let silent = WaitingMachine {
            name: "m2".into(),
            state: MachineState::Reserved,
            silent_since: Some(Timestamp(120_000)),
            reason: Some("token:kris: looks".into()),
            ..fan.clone()
        };
        let waiting = Waiting {
            job: id.parse().unwrap(),
            state: JobState::Queued,
            summary: "1 of 3 machines satisfy it: 1 quarantined".into(),
            since: Timestamp(0),
            deadline: Some(Timestamp(3_600_000)),
            submitter: "tree:mainline".into(),
            priority: Priority::Normal,
            constraints: vec![WaitingConstraint {
                constraint: "vmx.unrestricted".into(),
                satisfied_by: 1,
                failed_by: 2,
                fails: Vec::new(),
            }],
            fitting: 1,
            machines: vec![fan, silent],
            before: 14,
            ahead: Vec::new(),
            limit: None,
            expected_start: None,
        };
        let text = human(&waiting);
        for wanted in [
            "1 of 3 machines",
            "vmx.unrestricted",
            "2 do not",
            "quarantined since 1970-01-01 00:01:01 UTC until 1970-01-01 02:00:00 UTC: fan",
            "01:00:00 UTC",
            "unknown, nothing was heard of its controller since 1970-01-01 00:02:00 UTC; before that reserved since",
            "until 1970-01-01 02:00:00 UTC: token:kris: looks",
        ] {
            assert!(text.contains(wanted), "{wanted} in {text}");
        }
        assert!(text.lines().count() > 6 && !text.contains("x0a"), "lines stay lines: {text}");
    }
}
