//! A console that somebody else records into a file.

use super::machine::Console;
use super::watch::Watcher;
use async_trait::async_trait;
use bytes::Bytes;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::Notify;

/// Follows a file that only grows.
pub struct FileLog {
    file: File,
    grew: Arc<Notify>,
    /// Unix socket that types into the console.
    input: Option<PathBuf>,
}

impl FileLog {
    /// Follows `path`, creating it empty if need be.
    pub fn open(path: &Path, input: Option<PathBuf>, watcher: &Watcher) -> anyhow::Result<Self> {
        let file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        Ok(Self { file, grew: watcher.watch(path)?, input })
    }
}

#[async_trait]
impl Console for FileLog {
    async fn read(&self, offset: u64, limit: usize) -> std::io::Result<Bytes> {
        let there = self.file.metadata()?.len().saturating_sub(offset);
        let mut bytes = vec![0; usize::try_from(there).unwrap_or(usize::MAX).min(limit)];
        // A local file in the page cache: not worth a thread.
        let read = self.file.read_at(&mut bytes, offset)?;
        bytes.truncate(read);
        Ok(bytes.into())
    }

    async fn grown(&self, offset: u64) -> std::io::Result<()> {
        loop {
            let mut next = pin!(self.grew.notified());
            // Registered before looking, so that no write falls between the look and the wait.
            next.as_mut().enable();
            if self.file.metadata()?.len() > offset {
                return Ok(());
            }
            next.await;
        }
    }

    async fn write(&self, bytes: &[u8]) -> std::io::Result<()> {
        let Some(input) = &self.input else {
            return Err(std::io::Error::new(std::io::ErrorKind::Unsupported, "this console cannot be written to"));
        };
        let mut socket = tokio::net::UnixStream::connect(input).await?;
        socket.write_all(bytes).await?;
        socket.shutdown().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[tokio::test]
    async fn a_reader_is_woken_by_each_write_and_reads_from_any_offset() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let watcher = Watcher::start().unwrap();
        let log = FileLog::open(&path, None, &watcher).unwrap();
        assert!(log.read(0, 10).await.unwrap().is_empty());
        let mut writer = OpenOptions::new().append(true).open(&path).unwrap();
        for round in 0..20u64 {
            let (grown, ()) = tokio::join!(log.grown(round * 3), async {
                tokio::task::yield_now().await;
                writer.write_all(b"abc").unwrap();
            });
            grown.unwrap();
        }
        assert_eq!(log.read(58, 10).await.unwrap(), &b"bc"[..]);
        assert_eq!(log.read(0, 4).await.unwrap(), &b"abca"[..]);
        assert!(log.read(1000, 4).await.unwrap().is_empty());
        assert_eq!(log.write(b"x").await.unwrap_err().kind(), std::io::ErrorKind::Unsupported);
    }
}
