//! The capture agent: gets the dump out of the capture kernel.
//!
//! Started by init, and started again by it when it dies: makedumpfile then runs anew and what the server has is
//! skipped. Everything it has to say goes to the console as well, because that is the channel that works when the
//! network does not. It never decides that a dump is good enough; it reports what makedumpfile said and what was
//! stored.

mod dump;
mod starts;

use crate::disk;
use crate::guest::{Guest, Reporter, tail};
use crate::upload::{self, Destination, UploadError};
use anyhow::Context as _;
use crashyard_protocol::agent::{Directive, DumpFailure, Report, Role};
use crashyard_protocol::api::DUMP;
use crashyard_protocol::client::ClientError;
use crashyard_protocol::problem::kind;
use crashyard_protocol::{Capture, Transport};
use dump::Dump;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use starts::Starts;
use std::path::Path;
use std::time::Duration;

/// How long the last report may take when the dump is on the disk and the report is only a courtesy.
const COURTESY: Duration = Duration::from_secs(20);

/// Limit of makedumpfile's output in a report.
const OUTPUT_LIMIT: usize = 2048;

/// What went wrong, and whose fault it is.
struct Failure {
    cause: DumpFailure,
    detail: String,
}

impl Failure {
    fn new(cause: DumpFailure, detail: impl std::fmt::Display) -> Self {
        Self { cause, detail: detail.to_string() }
    }
}

/// Says on the console what may never get through otherwise, in the form the server looks for.
fn say_failed(cause: DumpFailure, detail: &str) {
    eprintln!("crashyard: dump failed cause={cause} {detail}");
}

/// How an attempt at the dump came to its end.
enum Outcome {
    Finished {
        bytes: u64,
        blake3: String,
        sent_bytes: u64,
        skipped_bytes: u64,
        said: String,
    },
    Failed(Failure),
    /// The server ended the attempt; nothing is owed any more.
    Over,
}

/// Dumps and reports. `Ok` means that init may power the machine off; an error means that it should try again.
pub async fn run(directory: &Path, memory: &Path) -> anyhow::Result<()> {
    let guest = Guest::open(directory)?;
    let capture = guest.brief.scenario.capture.clone();
    let starts = Starts::count(Path::new("/run/crashyard"))?;
    match capture.transport {
        Transport::Network => over_network(&guest, &capture, &starts, memory).await,
        Transport::Disk => over_disk(&guest, &capture, &starts, memory).await,
    }
}

fn started(starts: &Starts, memory: &Path) -> anyhow::Result<Report> {
    Ok(Report::CaptureStarted {
        release: nix::sys::utsname::uname().context("uname")?.release().to_string_lossy().into_owned(),
        start: starts.number,
        vmcore_bytes: std::fs::metadata(memory).ok().map(|memory| memory.len()).filter(|bytes| *bytes > 0),
    })
}

async fn over_network(guest: &Guest, capture: &Capture, starts: &Starts, memory: &Path) -> anyhow::Result<()> {
    let attempt = &guest.ticket.attempt;
    let mut reporter = match Reporter::resume(&guest.client, attempt, Role::Capture).await {
        Ok(reporter) => reporter,
        Err(error) => return over(&error),
    };
    match reporter.tell(started(starts, memory)?).await {
        Ok(Directive::Stop { reason }) => {
            eprintln!("crashyard: the server says stop: {reason}");
            return Ok(());
        }
        Ok(_) => {}
        Err(error) => return over(&error),
    }
    let outcome = stream(guest, capture, starts, memory).await;
    let told = match outcome {
        Outcome::Over => return Ok(()),
        Outcome::Finished { bytes, blake3, sent_bytes, skipped_bytes, said } => {
            if !said.is_empty() {
                let text = format!("makedumpfile: {}", tail(&said, OUTPUT_LIMIT));
                reporter.tell(Report::Note { text }).await.map(drop).or_else(|error| over(&error))?;
            }
            reporter.tell(Report::DumpFinished { bytes, blake3, sent_bytes, skipped_bytes }).await
        }
        Outcome::Failed(Failure { cause, detail }) => {
            say_failed(cause, &detail);
            reporter.tell(Report::DumpFailed { cause, detail }).await
        }
    };
    told.map(drop).or_else(|error| over(&error))
}

/// A lost lease is the normal end of an attempt that somebody else ended; any other refusal is worth another start.
fn over(error: &ClientError) -> anyhow::Result<()> {
    if error.is_lease_lost() {
        eprintln!("crashyard: the attempt is over: {error}");
        return Ok(());
    }
    Err(anyhow::anyhow!("the server refused: {error}"))
}

/// makedumpfile → chunks → server.
async fn stream(guest: &Guest, capture: &Capture, starts: &Starts, memory: &Path) -> Outcome {
    let mut dump = match Dump::start(capture, memory) {
        Ok(dump) => dump,
        Err(error) => return Outcome::Failed(Failure::new(DumpFailure::Makedumpfile, format!("{error:#}"))),
    };
    let destination = Destination::Evidence(guest.ticket.attempt.clone(), DUMP.to_owned());
    let sent = upload::send(&guest.client, &destination, dump.output(), |sent| {
        if let Some(limit) = capture.die_after_bytes
            && sent >= limit
            && starts.may_die().unwrap_or(false)
        {
            eprintln!("crashyard: fault injection: the capture agent kills itself after {sent} bytes");
            let _ = kill(Pid::this(), Signal::SIGKILL);
        }
    })
    .await;
    let sent = match sent {
        Ok(sent) => sent,
        Err(error) => {
            // Whatever makedumpfile would still say, nobody reads its output any more.
            dump.abandon().await;
            return match error {
                UploadError::Source(error) => Outcome::Failed(Failure::new(DumpFailure::Makedumpfile, error)),
                UploadError::Refused(error) if error.is_lease_lost() => Outcome::Over,
                UploadError::Refused(error) if error.is(kind::CONFLICT) => Outcome::Failed(Failure::new(
                    DumpFailure::Makedumpfile,
                    format!("this run of makedumpfile gave other bytes than the one before it: {error}"),
                )),
                UploadError::Refused(error) => Outcome::Failed(Failure::new(DumpFailure::Network, error)),
            };
        }
    };
    // Only a dump whose maker says that it is whole may be closed.
    let said = match dump.finish().await {
        Ok(said) => said,
        Err(error) => return Outcome::Failed(Failure::new(DumpFailure::Makedumpfile, format!("{error:#}"))),
    };
    match destination.complete(&guest.client, &sent).await {
        Ok(_) => Outcome::Finished {
            bytes: sent.bytes,
            blake3: sent.blake3,
            sent_bytes: sent.sent_bytes,
            skipped_bytes: sent.skipped_bytes,
            said,
        },
        Err(error) if error.is_lease_lost() => Outcome::Over,
        Err(error) => Outcome::Failed(Failure::new(DumpFailure::Network, error)),
    }
}

/// makedumpfile → disk. The network is only asked whether it happens to work.
async fn over_disk(guest: &Guest, capture: &Capture, starts: &Starts, memory: &Path) -> anyhow::Result<()> {
    let started = started(starts, memory)?;
    let greeting = async {
        let mut reporter = Reporter::resume(&guest.client, &guest.ticket.attempt, Role::Capture).await.ok()?;
        reporter.tell(started).await.ok()?;
        Some(reporter)
    };
    let dump = to_disk(guest, capture, memory);
    tokio::pin!(greeting, dump);
    // The dump waits for nobody, and nobody is waited for after it.
    let (reporter, written) = tokio::select! {
        reporter = &mut greeting => (reporter, dump.await),
        written = &mut dump => (None, written),
    };
    let report = match written {
        Ok((bytes, blake3)) => {
            eprintln!("crashyard: dump of {bytes} bytes on the disk, blake3 {blake3}");
            Report::DumpFinished { bytes, blake3, sent_bytes: 0, skipped_bytes: 0 }
        }
        Err(Failure { cause, detail }) => {
            say_failed(cause, &detail);
            Report::DumpFailed { cause, detail }
        }
    };
    if let Some(mut reporter) = reporter {
        // Whether it arrives or not: the controller's reading of the disk is the evidence.
        let _ = tokio::time::timeout(COURTESY, reporter.tell(report)).await;
    }
    Ok(())
}

async fn to_disk(guest: &Guest, capture: &Capture, memory: &Path) -> Result<(u64, String), Failure> {
    let failed = |cause| move |error: anyhow::Error| Failure::new(cause, format!("{error:#}"));
    let device = disk::find(Path::new("/sys/block"), Path::new("/dev")).map_err(failed(DumpFailure::Disk))?;
    let mut dump = Dump::start(capture, memory).map_err(failed(DumpFailure::Makedumpfile))?;
    let (bytes, blake3) = disk::write_data(&device, dump.output()).await.map_err(failed(DumpFailure::Disk))?;
    dump.finish().await.map_err(failed(DumpFailure::Makedumpfile))?;
    disk::seal(&device, &guest.ticket.attempt, bytes, &blake3).map_err(failed(DumpFailure::Disk))?;
    Ok((bytes, blake3))
}
