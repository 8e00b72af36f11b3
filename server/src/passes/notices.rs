//! Tells people that the machine they have goes back to the jobs soon, or has: runs the operator's `notify_command`, which
//! knows how this place reaches people, with the event as JSON on its standard input.
//!
//! Told at least once: what a dying server was telling is told again. It must never wait for long for a command, and never keep
//! what one prints, which may hold the secrets that it reaches people with.

use super::{BATCH, Next};
use crate::app::AppState;
use crate::db::notice::{self, NoticeRow};
use crate::error::AppResult;
use crate::pages::format::When;
use anyhow::{Context as _, bail};
use crashyard_protocol::NoticeEvent;
use crashyard_protocol::clock::Timestamp;
use futures::{StreamExt as _, TryStreamExt as _};
use metrics::Label;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::Serialize;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};

/// How long the command may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// After the first try that failed; twice as long after each further one.
const AGAIN: Duration = Duration::from_secs(60);
/// Tries of one notice.
const TRIES: i64 = 5;
/// Commands that run at once.
const AT_ONCE: usize = 8;

/// What the command reads.
#[derive(Serialize)]
struct Event<'a> {
    event: NoticeEvent,
    machine: &'a str,
    owner: &'a str,
    reason: &'a str,
    address: &'a str,
    /// Unix milliseconds.
    until: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended_by: Option<&'a str>,
    /// All of it in a sentence.
    text: String,
}

/// Tells what is due.
pub async fn tick(state: &AppState) -> AppResult<Next> {
    if state.config.notify_command.is_empty() {
        return Ok(Next::Woken);
    }
    let due = notice::due(&state.db, state.now(), BATCH).await?;
    futures::stream::iter(due).map(|row| tell(state, row)).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    Ok(notice::next(&state.db).await?.map_or(Next::Woken, Next::At))
}

async fn tell(state: &AppState, row: NoticeRow) -> AppResult<()> {
    if !row.holds {
        return close(state, &row, None).await;
    }
    let wait = AGAIN.saturating_mul(1 << row.tries.clamp(0, TRIES));
    let mut tx = state.db.begin().await?;
    let taken = notice::take(&mut tx, &row, state.now().plus(wait)).await?;
    tx.commit().await?;
    if !taken {
        return Ok(());
    }
    let outcome = run(&state.config.notify_command, &event(&row)).await;
    let word = if outcome.is_ok() { "told" } else { "failed" };
    state.metrics.add("crashyard_notices_total", vec![Label::new("outcome", word)], 1);
    match outcome {
        Ok(()) => {
            tracing::info!(reservation.id = %row.reservation_id, event = %row.event, machine = row.machine, "owner told");
            close(state, &row, Some(state.now())).await
        }
        Err(error) if row.tries + 1 >= TRIES => {
            let error = format!("{error:#}");
            tracing::error!(error, reservation.id = %row.reservation_id, event = %row.event, "the owner was never told");
            close(state, &row, None).await
        }
        Err(error) => {
            let error = format!("{error:#}");
            tracing::warn!(error, reservation.id = %row.reservation_id, event = %row.event, "telling the owner: trying again");
            Ok(())
        }
    }
}

async fn close(state: &AppState, row: &NoticeRow, told: Option<Timestamp>) -> AppResult<()> {
    let mut tx = state.db.begin().await?;
    notice::close(&mut tx, row, told).await?;
    tx.commit().await?;
    Ok(())
}

fn event(row: &NoticeRow) -> Event<'_> {
    let (machine, until) = (&row.machine, When(row.until_at).full());
    let text = match (row.event, row.ended_by.as_deref()) {
        (NoticeEvent::EndsSoon, _) => format!(
            "{machine} is yours until {until}, and goes back to the jobs then. To keep it: \
             crashyard reserve {machine} --extend 2h"
        ),
        (NoticeEvent::Ended, None | Some(crate::db::life::SERVER)) => {
            format!("Your time with {machine} was over at {until}; it goes back to the jobs.")
        }
        (NoticeEvent::Ended, Some(by)) => format!("{by} ended your time with {machine}."),
    };
    Event {
        event: row.event,
        machine,
        owner: &row.owner,
        reason: &row.reason,
        address: &row.address,
        until: row.until_at,
        ended_by: row.ended_by.as_deref(),
        text,
    }
}

/// Runs the command. No shell reads its words; it gets the search path and nothing else of this server's environment, where
/// secrets of the database and of the blob store may be.
async fn run(command: &[String], event: &Event<'_>) -> anyhow::Result<()> {
    let (program, arguments) = command.split_first().context("the command is empty")?;
    let json = serde_json::to_vec(event)?;
    let child = Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("start {program}"))?;
    let mut running = Running(child);
    let ended = tokio::time::timeout(PATIENCE, async {
        if let Some(mut stdin) = running.0.stdin.take() {
            // Whoever does not read it says with its status whether that matters.
            let _ = stdin.write_all(&json).await;
        }
        running.0.wait().await
    });
    let status = ended.await.with_context(|| format!("{program} does not end within {} s", PATIENCE.as_secs()))??;
    if !status.success() {
        bail!("{program}: {status}");
    }
    Ok(())
}

/// A command that runs. When it is given up, because it takes too long or this server ends, what it started ends with it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // One that ended has no id any more: what it left running, such as the delivery of a mail, is meant to run on.
        if let Some(id) = self.0.id().and_then(|id| i32::try_from(id).ok()) {
            let _ = killpg(Pid::from_raw(id), Signal::SIGKILL);
        }
    }
}
