//! QMP, QEMU's control protocol: one connection, commands answered in order, events in between.
//!
//! (QEMU manual, "QEMU Machine Protocol Specification".)

use anyhow::{Context as _, anyhow, bail};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::path::Path;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot, watch};

/// What the emulated machine is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunState {
    /// The guest runs, or is about to.
    Running,
    /// The guest has shut down or reset itself; QEMU keeps it as it is.
    Stopped(String),
    /// QEMU has gone.
    Gone,
}

type Answer = Result<Value, String>;

/// A connection to a running QEMU. Clones share it.
#[derive(Clone, Debug)]
pub struct Qmp {
    commands: mpsc::Sender<(Value, oneshot::Sender<Answer>)>,
    state: watch::Receiver<RunState>,
}

impl Qmp {
    /// Connects, negotiates, and asks for the present state.
    pub async fn connect(socket: &Path) -> anyhow::Result<Self> {
        let (read, mut write) = UnixStream::connect(socket).await.context("connect to QMP")?.into_split();
        let mut lines = BufReader::new(read).lines();
        let greeting = lines.next_line().await?.context("QEMU closed the connection before its greeting")?;
        if !greeting.contains("\"QMP\"") {
            bail!("not a QMP greeting: {greeting}");
        }
        write_line(&mut write, &json!({"execute": "qmp_capabilities"})).await?;
        let (commands, queue) = mpsc::channel(8);
        let (state_in, state) = watch::channel(RunState::Running);
        let (negotiated_in, negotiated) = oneshot::channel();
        let waiting = VecDeque::from([negotiated_in]);
        tokio::spawn(serve(lines, write, queue, waiting, state_in.clone()));
        negotiated.await.context("QEMU went away")?.map_err(|error| anyhow!("QMP: {error}"))?;
        let qmp = Self { commands, state };
        let status = qmp.execute("query-status", json!({})).await?;
        match status["status"].as_str() {
            Some("shutdown") => stopped(&state_in, "shut down while nobody watched".into()),
            Some("guest-panicked" | "internal-error" | "io-error") => {
                stopped(&state_in, format!("QEMU stopped it: {}", status["status"]));
            }
            _ => {}
        }
        Ok(qmp)
    }

    /// Runs a command.
    pub async fn execute(&self, command: &str, arguments: Value) -> anyhow::Result<Value> {
        let (answer_in, answer) = oneshot::channel();
        let request = json!({"execute": command, "arguments": arguments});
        self.commands.send((request, answer_in)).await.map_err(|_| anyhow!("QEMU has gone"))?;
        answer
            .await
            .map_err(|_| anyhow!("QEMU went away during {command}"))?
            .map_err(|error| anyhow!("{command}: {error}"))
    }

    /// What the machine is doing now.
    pub fn state(&self) -> RunState {
        self.state.borrow().clone()
    }

    /// Waits until the state satisfies `wanted`, and returns it.
    pub async fn wait_for(&self, wanted: impl Fn(&RunState) -> bool) -> RunState {
        let mut state = self.state.clone();
        state.wait_for(|state| wanted(state)).await.map_or(RunState::Gone, |state| state.clone())
    }
}

/// Records that the guest stopped, unless more is known already.
fn stopped(state: &watch::Sender<RunState>, detail: String) {
    state.send_if_modified(|state| {
        let news = *state == RunState::Running;
        if news {
            *state = RunState::Stopped(detail);
        }
        news
    });
}

async fn write_line(write: &mut OwnedWriteHalf, value: &Value) -> std::io::Result<()> {
    write.write_all(format!("{value}\n").as_bytes()).await
}

async fn serve(
    mut lines: Lines<BufReader<OwnedReadHalf>>,
    mut write: OwnedWriteHalf,
    mut queue: mpsc::Receiver<(Value, oneshot::Sender<Answer>)>,
    mut waiting: VecDeque<oneshot::Sender<Answer>>,
    state: watch::Sender<RunState>,
) {
    loop {
        tokio::select! {
            line = lines.next_line() => {
                let Ok(Some(line)) = line else { break };
                let Ok(message) = serde_json::from_str::<Value>(&line) else { continue };
                if let Some(event) = message["event"].as_str() {
                    if event == "SHUTDOWN" {
                        let reason = message["data"]["reason"].as_str().unwrap_or("unknown reason");
                        stopped(&state, describe(reason));
                    }
                } else if let Some(answer) = waiting.pop_front() {
                    // Nobody waiting any more is fine: the command was carried out all the same.
                    let _ = answer.send(match message.get("error") {
                        Some(error) => Err(error["desc"].as_str().unwrap_or("error without words").to_owned()),
                        None => Ok(message["return"].clone()),
                    });
                }
            }
            command = queue.recv() => {
                // Every handle is gone: nobody is interested in this machine any more.
                let Some((command, answer)) = command else { return };
                waiting.push_back(answer);
                if write_line(&mut write, &command).await.is_err() {
                    break;
                }
            }
        }
    }
    state.send_replace(RunState::Gone);
}

/// QEMU's `ShutdownCause` in words (qapi/run-state.json).
fn describe(reason: &str) -> String {
    match reason {
        "guest-shutdown" => "the guest powered off".into(),
        "guest-reset" => "the guest reset itself (reboot or triple fault)".into(),
        "guest-panic" => "the guest reported a panic".into(),
        "host-signal" => "a signal ended QEMU".into(),
        other => format!("QEMU: {other}"),
    }
}
