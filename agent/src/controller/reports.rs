//! The controller's own reports: journalled first, then sent in order until the server has them.

use super::record::{Entry, Record};
use crate::journal::Journal;
use crate::retry::persist;
use crashyard_protocol::agent::{Numbered, Report, Reports, Role};
use crashyard_protocol::client::{Client, ClientError};
use std::sync::{Mutex, PoisonError};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// The journal, what it says, and who waits for news in it.
pub struct Ledger {
    inner: Mutex<(Journal, Record)>,
    news: Notify,
}

impl Ledger {
    /// Over an opened journal and what it holds.
    pub fn new(journal: Journal, record: Record) -> Self {
        Self { inner: Mutex::new((journal, record)), news: Notify::new() }
    }

    /// Reads the record.
    pub fn read<T>(&self, look: impl FnOnce(&Record) -> T) -> T {
        look(&self.inner.lock().unwrap_or_else(PoisonError::into_inner).1)
    }

    /// Writes one entry; it is on disk, and part of the record, when this returns.
    pub fn write(&self, entry: &Entry) -> anyhow::Result<()> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.0.append(entry)?;
        inner.1.apply(entry);
        drop(inner);
        self.news.notify_waiters();
        Ok(())
    }

    /// Journals a report under the next number.
    pub fn report(&self, report: Report) -> anyhow::Result<()> {
        let seq = self.read(|record| record.reports.len()) as u64;
        tracing::info!(seq, ?report, "report");
        self.write(&Entry::Seen { report: Numbered { seq, report } })
    }

    /// Sends reports as they come, from the first one on: the server ignores what it has. Ends when `complete` is
    /// cancelled and everything is sent.
    pub async fn send(&self, client: &Client, complete: &CancellationToken) -> Result<(), ClientError> {
        let attempt = self.read(|record| record.claim.attempt.clone());
        let mut sent = 0;
        loop {
            let mut news = std::pin::pin!(self.news.notified());
            // Registered before looking, so that no report falls between the look and the wait.
            news.as_mut().enable();
            let last = complete.is_cancelled();
            let reports = self.read(|record| record.reports[sent..].to_vec());
            if reports.is_empty() {
                if last {
                    return Ok(());
                }
                tokio::select! {
                    () = news => {}
                    () = complete.cancelled() => {}
                }
                continue;
            }
            sent += reports.len();
            let reports = Reports { by: Role::Controller, reports };
            persist("report", || client.report(&attempt, &reports)).await?;
        }
    }
}
