//! Wake-ups between servers on one PostgreSQL, by `LISTEN` and `NOTIFY`.
//!
//! What is passed on says "look again" and nothing else: it may be lost, repeated or late, and the table is the truth
//! (every waiter also looks by itself after [`SAFETY`](crate::wake::SAFETY)). It goes out after the commit, on its own
//! connection, many in one message: a `NOTIFY` inside the transaction that it tells of would make commits wait for each
//! other. On SQLite there is one server, and nothing to do.

use crate::agent::claim;
use crate::app::AppState;
use crate::wake::{Told, Topic};
use anyhow::Context as _;
use crashyard_protocol::SelectorId;
use sqlx::postgres::PgListener;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// The channel's name.
const CHANNEL: &str = "crashyard";
/// Wake-ups waiting to be sent; beyond it they are dropped, and the safety interval finds what they would have said.
const QUEUE: usize = 10_000;
/// Bytes of one message; PostgreSQL's limit is 8000.
const MESSAGE_BYTES: usize = 7_500;
/// Shortest time between two messages: under load, what is told meanwhile goes out together. A message wakes every server.
const APART: Duration = Duration::from_millis(25);
/// How long to wait after the database did not answer.
const AGAIN: Duration = Duration::from_secs(1);

/// Starts to listen and to tell; when this returns, nothing that is told from now on is missed.
pub async fn start(state: &AppState) -> anyhow::Result<JoinSet<()>> {
    let mut tasks = JoinSet::new();
    let listener = state.db.listener().await.context("cannot listen for other servers")?;
    let Some(mut listener) = listener else { return Ok(tasks) };
    listener.listen(CHANNEL).await.context("cannot listen for other servers")?;
    let (sender, told) = mpsc::channel(QUEUE);
    state.wake.relay_to(sender);
    tasks.spawn(hear(state.clone(), listener));
    tasks.spawn(tell(state.clone(), told));
    Ok(tasks)
}

async fn tell(state: AppState, mut told: mpsc::Receiver<Told>) {
    let mut batch = Vec::new();
    let mut next = Instant::now();
    loop {
        tokio::select! {
            count = told.recv_many(&mut batch, QUEUE) => if count == 0 { return },
            () = state.stop.cancelled() => return,
        }
        tokio::time::sleep_until(next).await;
        while batch.len() < QUEUE
            && let Ok(more) = told.try_recv()
        {
            batch.push(more);
        }
        next = Instant::now() + APART;
        for message in messages(&state.instance, &batch) {
            if let Err(error) = state.db.notify(CHANNEL, &message).await {
                tracing::debug!(%error, "other servers were not woken; they look by themselves");
            }
        }
        batch.clear();
    }
}

/// Messages of bounded size: the sender's name, then one line for each thing that was told, each once.
fn messages(from: &str, told: &[Told]) -> Vec<String> {
    let lines: BTreeSet<String> = told.iter().filter_map(line).collect();
    let mut messages: Vec<String> = Vec::new();
    for line in lines {
        match messages.last_mut() {
            Some(last) if last.len() + line.len() < MESSAGE_BYTES => {
                last.push('\n');
                last.push_str(&line);
            }
            _ => messages.push(format!("{from}\n{line}")),
        }
    }
    messages
}

fn line(told: &Told) -> Option<String> {
    Some(match told {
        Told::Wake(Topic::Machine(id)) => format!("m {id}"),
        Told::Wake(Topic::Errand(id)) => format!("e {id}"),
        Told::Wake(Topic::Run(id)) => format!("r {id}"),
        Told::Wake(Topic::Attempt(id)) => format!("a {id}"),
        Told::Wake(Topic::Console(id)) => format!("c {id}"),
        // Every server runs its own passes, and each looks at what is due by itself.
        Told::Wake(Topic::Pass(_)) => return None,
        Told::Offer(selector, jobs) => format!("o {selector} {jobs}"),
    })
}

fn read(line: &str) -> Option<Told> {
    let mut words = line.split(' ');
    let (kind, id) = (words.next()?, words.next()?);
    Some(match kind {
        "m" => Told::Wake(Topic::Machine(id.parse().ok()?)),
        "e" => Told::Wake(Topic::Errand(id.parse().ok()?)),
        "r" => Told::Wake(Topic::Run(id.parse().ok()?)),
        "a" => Told::Wake(Topic::Attempt(id.parse().ok()?)),
        "c" => Told::Wake(Topic::Console(id.parse().ok()?)),
        "o" => Told::Offer(id.parse::<SelectorId>().ok()?, words.next()?.parse().ok()?),
        _ => return None,
    })
}

async fn hear(state: AppState, mut listener: PgListener) {
    loop {
        let heard = tokio::select! {
            heard = listener.try_recv() => heard,
            () = state.stop.cancelled() => return,
        };
        match heard {
            Ok(Some(message)) => {
                let Some((from, lines)) = message.payload().split_once('\n') else { continue };
                // PostgreSQL sends a server its own messages as well.
                if from != state.instance {
                    for told in lines.lines().filter_map(read) {
                        wake(&state, told).await;
                    }
                }
            }
            // Connected again, and nobody knows what was said in between.
            Ok(None) => state.wake.wake_everybody(),
            Err(error) => {
                tracing::warn!(%error, "cannot hear other servers");
                tokio::time::sleep(AGAIN).await;
                state.wake.wake_everybody();
            }
        }
    }
}

async fn wake(state: &AppState, told: Told) {
    state.metrics.add("crashyard_wakeups_heard_total", Vec::new(), 1);
    match told {
        Told::Wake(topic) => {
            state.wake.wake_here(&topic);
        }
        Told::Offer(selector, jobs) => {
            if let Err(error) = claim::offer_here(state, &selector, jobs).await {
                tracing::debug!(%error, "an offer of another server was not passed on");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crashyard_protocol::{AttemptId, RunId};

    #[test]
    fn what_is_told_is_read_the_same_in_messages_of_bounded_size() {
        let id = |number: u64| ulid::Ulid::from_parts(number, 7);
        let mut told = vec![Told::Offer(SelectorId::from_ulid(id(1)), 12)];
        for number in 0..1000 {
            told.push(Told::Wake(Topic::Run(RunId::from_ulid(id(number)))));
            told.push(Told::Wake(Topic::Attempt(AttemptId::from_ulid(id(number)))));
            told.push(Told::Wake(Topic::Attempt(AttemptId::from_ulid(id(number)))));
        }
        told.push(Told::Wake(Topic::Pass(crate::wake::Pass::Leases)));
        let messages = messages("me", &told);
        assert!(messages.len() > 1 && messages.iter().all(|message| message.len() < 8000));
        let heard: Vec<Told> =
            messages.iter().flat_map(|message| message.split_once('\n').unwrap().1.lines()).filter_map(read).collect();
        assert_eq!(heard.len(), 2001, "each once, and no pass");
        assert!(heard.iter().all(|one| told.contains(one)));
    }
}
