//! `crashyard submit` and `crashyard run`: what CI and a developer do all day.

use crate::follow::{Interrupt, STATUSES, follow, interrupted, status, table};
use crate::server::{Server, patiently, said};
use crate::time::{moment, seconds};
use crate::triage::vmcore::text;
use anyhow::{Context as _, bail};
use clap::Args;
use crashyard_protocol::api::{NewRun, Policy, Run};
use crashyard_protocol::client::{Client, ClientError};
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{BuildId, Priority, RunId};
use std::process::ExitCode;

/// How many builds are looked through for a name.
const BUILDS: usize = 1000;

/// Arguments of `submit`.
#[derive(Args)]
#[command(after_help = format!("\
The build is on the server already (`crashyard build add`), and so is the plan (`crashyard plan put`).

  crashyard submit 01JDB4Q1W5Z8N6K3X0V7T2R9MF --plan smoke --wait
  crashyard submit \"linux 7.2-rc3\" --plan vmx --priority urgent --start-within 2h
  run=$(crashyard submit \"$build\" --plan smoke --key \"$CI_PIPELINE_ID\") && crashyard run \"$run\" --wait

Without --wait the run's id is all that goes to standard output; with it, the table of results, or with --json the API's
object. Progress goes to standard error. With --key the same command may be given again, whatever became of the first: it
gets the first one's run.

{STATUSES}

Without --wait, 0 is: submitted."))]
pub struct Submit {
    /// The build: its id, or its name, of which the newest is meant
    build: String,
    /// Name of the plan
    #[arg(long)]
    plan: String,
    /// What you call this submission: repeating it gets the run of the first time
    #[arg(long)]
    key: Option<String>,
    /// urgent, normal or bulk
    #[arg(long)]
    priority: Option<Priority>,
    /// What no machine has taken in this time ends as MISS: 30s, 90m, 4h, 2d
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    start_within: Option<u32>,
    /// What no machine has taken by then ends as MISS: 2026-11-24T11:00Z
    #[arg(long, value_name = "MOMENT", value_parser = moment)]
    deadline: Option<Timestamp>,
    /// What is done about failures, in place of what the plan says: {"tries": 3, "known_good": "BUILD-ID", "elsewhere": true}
    #[arg(long, value_name = "JSON", value_parser = policy)]
    policy: Option<Policy>,
    /// Follow it until every job has its result
    #[arg(long)]
    wait: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: Server,
}

/// Arguments of `run`.
#[derive(Args)]
#[command(after_help = format!("\
  crashyard run 01JDB4Q1W5Z8N6K3X0V7T2R9MF
  crashyard run 01JDB4Q1W5Z8N6K3X0V7T2R9MF --wait

{STATUSES}"))]
pub struct ShowRun {
    /// Id of the run; `crashyard submit` prints it
    #[arg(value_name = "RUN")]
    id: String,
    /// Follow it until every job has its result
    #[arg(long)]
    wait: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: Server,
}

fn policy(text: &str) -> Result<Policy, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

impl Submit {
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let client = self.server.client();
        let build = find_build(&client, &self.build).await?;
        let new = NewRun {
            build,
            plan: self.plan,
            key: self.key,
            priority: self.priority,
            start_within_seconds: self.start_within,
            deadline: self.deadline,
            policy: self.policy,
        };
        let run = submit(&client, &new).await?;
        let interrupt = self.wait.then(Interrupt::new).transpose()?;
        eprintln!("Run {} is submitted: {}/runs/{}", run.id, text::safe(self.server.address()), run.id);
        if interrupt.is_some() {
            return results(&self.server, &client, &run.id, interrupt, self.json).await;
        }
        if self.json {
            println!("{}", serde_json::to_string_pretty(&run)?);
        } else {
            println!("{}", run.id);
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl ShowRun {
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let no_id = || format!("{:?} is no id of a run; they are listed at {}", self.id, self.server.address());
        let id: RunId = self.id.parse().ok().with_context(no_id)?;
        let interrupt = self.wait.then(Interrupt::new).transpose()?;
        results(&self.server, &self.server.client(), &id, interrupt, self.json).await
    }
}

/// Submits. Only under a key is it tried again: without one, nobody knows whether the first try came through.
async fn submit(client: &Client, new: &NewRun) -> anyhow::Result<Run> {
    let answer = match &new.key {
        Some(_) => patiently(|| client.create_run(new)).await,
        None => client.create_run(new).await,
    };
    answer.map_err(|error| match &error {
        ClientError::Transport(_) if new.key.is_none() => said(&error).context(
            "whether the run was submitted is not known, look before you repeat this (with --key it may be repeated)",
        ),
        _ => said(&error),
    })
}

/// The results of a run: as they are, or waited for by somebody who may interrupt.
async fn results(
    server: &Server,
    client: &Client,
    id: &RunId,
    wait: Option<Interrupt>,
    json: bool,
) -> anyhow::Result<ExitCode> {
    if let Some(interrupt) = wait
        && !follow(server, client, id, interrupt).await?
    {
        return Ok(interrupted());
    }
    let run = patiently(|| client.run(id)).await.map_err(|error| said(&error))?;
    if json {
        println!("{}", serde_json::to_string_pretty(&run)?);
    } else {
        let jobs = patiently(|| client.run_jobs(id)).await.map_err(|error| said(&error))?;
        print!("{}", table(server, &run, &jobs));
    }
    Ok(status(&run).into())
}

/// The build of this id, or else the newest of this name.
async fn find_build(client: &Client, wanted: &str) -> anyhow::Result<BuildId> {
    if let Ok(id) = wanted.parse() {
        return Ok(id);
    }
    let (mut before, mut seen) = (None, 0);
    while seen < BUILDS {
        let page = client.builds(before.as_deref()).await.map_err(|error| said(&error))?;
        seen += page.items.len();
        if let Some(build) = page.items.into_iter().find(|build| build.name == wanted) {
            eprintln!("Build {}: {}", build.id, text::safe(&build.name));
            return Ok(build.id);
        }
        before = page.next;
        if before.is_none() {
            break;
        }
    }
    bail!("none of the newest {seen} builds is named {:?}; crashyard build list has their names", text::safe(wanted))
}
