//! Records a channel into a file, across every interruption, and says in it where nobody listened.

use super::channel::{Channel, Open};
use crate::controller::filelog::FileLog;
use crate::controller::machine::Console;
use crate::controller::watch::Watcher;
use async_trait::async_trait;
use bytes::Bytes;
use crashyard_protocol::agent::Keys;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt as _;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

/// How the line begins that stands for what nobody heard. No kernel prints it, and no rule of the server's knows it.
pub const GAP: &str = "[crashyard: the console was not heard";

/// Bytes taken from a channel at once.
const PIECE: usize = 64 * 1024;

/// Before a channel that ended is opened again. Never longer: what a machine prints meanwhile is lost.
const AGAIN: Duration = Duration::from_millis(500);

/// How long the other end may take to take what is typed.
const TYPING: Duration = Duration::from_secs(10);

/// Something to type, and who wants to know what came of it.
struct Typed {
    keys: Keys,
    done: oneshot::Sender<std::io::Result<()>>,
}

/// A console whose bytes are gone once they were read. Recording ends with this value.
pub struct Recorder {
    log: FileLog,
    input: mpsc::Sender<Typed>,
    trouble: Arc<Mutex<Option<String>>>,
    task: JoinHandle<()>,
}

impl Recorder {
    /// Begins to record into `path`. A record that is there already is gone on with, behind a line that says so.
    pub fn start(channel: Channel, path: &Path, stall_seconds: u64, watcher: &Watcher) -> anyhow::Result<Self> {
        let log = FileLog::open(path, None, watcher)?;
        let file = OpenOptions::new().append(true).open(path)?;
        let (input, typed) = mpsc::channel(16);
        let resumed = file.metadata()?.len() > 0;
        let stall = (stall_seconds > 0).then(|| Duration::from_secs(stall_seconds));
        let trouble = Arc::new(Mutex::new(None));
        let record = Record {
            channel,
            file,
            stall,
            trouble: trouble.clone(),
            down: resumed.then_some(Down { why: "the controller was restarted", since: None }),
        };
        Ok(Self { log, input, trouble, task: tokio::spawn(record.run(typed)) })
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[async_trait]
impl Console for Recorder {
    async fn read(&self, offset: u64, limit: usize) -> std::io::Result<Bytes> {
        self.log.read(offset, limit).await
    }

    async fn grown(&self, offset: u64) -> std::io::Result<()> {
        self.log.grown(offset).await
    }

    fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn press(&self, keys: &Keys) -> std::io::Result<()> {
        let gone = || std::io::Error::new(std::io::ErrorKind::BrokenPipe, "the console was interrupted");
        let (done, told) = oneshot::channel();
        let typed = Typed { keys: keys.clone(), done };
        // Never kept for later: what a person types is for what is on the screen now.
        self.input.try_send(typed).map_err(|_| gone())?;
        match tokio::time::timeout(TYPING * 2, told).await {
            Ok(Ok(done)) => done,
            Ok(Err(_)) => Err(gone()),
            Err(_) => Err(std::io::Error::new(std::io::ErrorKind::TimedOut, "the console is not open")),
        }
    }
}

/// A time in which nobody listens.
struct Down {
    why: &'static str,
    /// Since when, as far as this process knows.
    since: Option<Instant>,
}

struct Record {
    channel: Channel,
    file: File,
    stall: Option<Duration>,
    /// Why the channel is not open, in whosever words; for people and never for the record.
    trouble: Arc<Mutex<Option<String>>>,
    /// Why nobody listens, if nobody does and something was heard before. Own words only: what the other end of a channel
    /// says could read like a kernel's last ones, and this is evidence.
    down: Option<Down>,
}

impl Record {
    async fn run(mut self, mut typed: mpsc::Receiver<Typed>) {
        let mut told = String::new();
        loop {
            let (why, detail) = match self.listen(&mut typed).await {
                Ok(ended) => ended,
                Err(error) => ("it failed", format!("{error:#}")),
            };
            if detail != told {
                tracing::warn!(channel = %self.channel, why, detail, "console interrupted; opening it again");
                told.clone_from(&detail);
            }
            let words = if detail.is_empty() { why.to_owned() } else { format!("{why}: {detail}") };
            self.say(Some(words));
            if self.file.metadata().is_ok_and(|file| file.len() > 0) {
                self.down.get_or_insert(Down { why, since: Some(Instant::now()) });
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Listens until the channel ends, and says how it did: in a word, and what its other end said.
    async fn listen(&mut self, typed: &mut mpsc::Receiver<Typed>) -> anyhow::Result<(&'static str, String)> {
        let mut open = self.channel.open().await?;
        self.say(None);
        if let Some(down) = self.down.take() {
            self.mark(&down)?;
        }
        let mut piece = vec![0; PIECE];
        let mut brought = tokio::time::Instant::now();
        loop {
            let stall = async {
                match self.stall {
                    // Whoever types at a dead session does not keep it.
                    Some(stall) => tokio::time::sleep_until(brought + stall).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                read = open.reader.read(&mut piece) => match read? {
                    0 => return Ok(("the other end closed it", open.last_words().await)),
                    size => {
                        self.file.write_all(&piece[..size])?;
                        brought = tokio::time::Instant::now();
                    }
                },
                Some(typed) = typed.recv() => press(&mut open, typed).await?,
                () = stall => return Ok(("it brought nothing for too long", String::new())),
            }
        }
    }

    fn say(&self, trouble: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    /// Says in the record that something may be missing here. On a line of its own, whatever was being printed. How long, and
    /// not when: the server knows when bytes came, and nobody believes an agent's clock.
    fn mark(&mut self, down: &Down) -> std::io::Result<()> {
        let span =
            down.since.map_or_else(|| "some time".into(), |since| format!("{:.1} s", since.elapsed().as_secs_f64()));
        self.file.write_all(format!("\r\n{GAP} for {span}: {}]\r\n", down.why).as_bytes())
    }
}

/// Types, and tells who wants to know. A channel that does not take it is not to be trusted with what the machine prints.
async fn press(open: &mut Open, typed: Typed) -> std::io::Result<()> {
    let result = tokio::time::timeout(TYPING, async {
        match &typed.keys {
            Keys::Text(text) => open.write(text.as_bytes()).await,
            Keys::Break => open.send_break().await,
            Keys::Sysrq(key) => {
                open.send_break().await?;
                open.write(key.encode_utf8(&mut [0; 4]).as_bytes()).await
            }
        }
    });
    let result = result.await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
    let broken = match &result {
        Err(error) if error.kind() != std::io::ErrorKind::Unsupported => Err(std::io::Error::from(error.kind())),
        _ => Ok(()),
    };
    // Whoever asked may have gone.
    let _ = typed.done.send(result);
    broken
}
