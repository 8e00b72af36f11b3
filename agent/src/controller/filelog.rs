//! A console that somebody else records into a file.

use super::emulated::ShortPath;
use super::machine::Console;
use super::watch::Watcher;
use async_trait::async_trait;
use bytes::Bytes;
use crashyard_protocol::agent::Keys;
use std::ffi::OsStr;
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

    async fn press(&self, keys: &Keys) -> std::io::Result<()> {
        let unsupported = |why| std::io::Error::new(std::io::ErrorKind::Unsupported, why);
        let Some(input) = &self.input else { return Err(unsupported("this console cannot be written to")) };
        let Keys::Text(text) = keys else { return Err(unsupported("this console has no break")) };
        let (directory, name) = (input.parent(), input.file_name().and_then(OsStr::to_str));
        let (Some(directory), Some(name)) = (directory, name) else { return Err(unsupported("a strange path")) };
        let short = ShortPath::to(directory).map_err(std::io::Error::other)?;
        let mut socket = tokio::net::UnixStream::connect(short.of(name)).await?;
        socket.write_all(text.as_bytes()).await?;
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
        assert_eq!(log.press(&Keys::Text("x".into())).await.unwrap_err().kind(), std::io::ErrorKind::Unsupported);
    }

    #[tokio::test]
    async fn what_is_typed_arrives_however_deep_the_directory_is() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("x".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let short = ShortPath::to(&deep).unwrap();
        let listener = tokio::net::UnixListener::bind(short.of("input")).unwrap();
        let watcher = Watcher::start().unwrap();
        let log = FileLog::open(&deep.join("log"), Some(deep.join("input")), &watcher).unwrap();
        let (mut typed, keys) = (String::new(), Keys::Text("root\n".into()));
        let (pressed, ()) = tokio::join!(log.press(&keys), async {
            let (mut socket, _) = listener.accept().await.unwrap();
            tokio::io::AsyncReadExt::read_to_string(&mut socket, &mut typed).await.unwrap();
        });
        pressed.unwrap();
        assert_eq!(typed, "root\n");
        assert_eq!(log.press(&Keys::Break).await.unwrap_err().kind(), std::io::ErrorKind::Unsupported);
    }
}
