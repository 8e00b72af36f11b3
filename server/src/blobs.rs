//! The blob store: immutable objects, written once, durable before anything refers to them.
//!
//! Few bytes are no object: an object of a directory costs two flushes of the disk, and the row that holds the bytes is flushed
//! anyway. A console that prints a line at a time is made of such rows until its attempt is over.
//!
//! One segment of an artifact is one object, whose key is made of the artifact, the offset and the hash, so that the
//! same bytes sent twice are the same object and different bytes can never replace each other. In a directory, an
//! object is written to a temporary name, flushed, renamed, and its directory flushed (`object_store` with fsync);
//! S3 acknowledges only what is durable. Only then is the row written. A crash in between leaves an object nobody
//! refers to, never a row without its bytes.

use crate::db::artifact::SegmentRow;
use anyhow::Context as _;
use bytes::Bytes;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _, PutPayload};
use std::ops::Range;
use std::sync::Arc;

/// Bytes of a segment that are kept in its row.
pub const IN_ROW: usize = 8 * 1024;

/// Why bytes could not be stored or read.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The store is full or away; later it may work.
    #[error("the blob store cannot be used: {0}")]
    Unavailable(#[source] object_store::Error),
    /// An object that a row refers to is not there.
    #[error("a stored object is missing: {0}")]
    Missing(String),
}

/// Where bytes are kept.
#[derive(Clone, Debug)]
pub struct Blobs {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
}

impl Blobs {
    /// Opens the store at `url` (`dir:PATH` or `s3://BUCKET/PREFIX`); a directory is made.
    pub fn open(url: &str) -> anyhow::Result<Self> {
        if let Some(dir) = url.strip_prefix("dir:") {
            std::fs::create_dir_all(dir).with_context(|| format!("cannot make {dir}"))?;
            let store = object_store::local::LocalFileSystem::new_with_prefix(dir)
                .with_context(|| format!("cannot use {dir}"))?
                .with_fsync(true);
            return Ok(Self::over(Arc::new(store), ""));
        }
        match url.strip_prefix("s3://") {
            Some(place) => Self::open_s3(place),
            None => anyhow::bail!("blobs must be `dir:PATH` or `s3://BUCKET/PREFIX`"),
        }
    }

    #[cfg(feature = "s3")]
    fn open_s3(place: &str) -> anyhow::Result<Self> {
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        let store = object_store::aws::AmazonS3Builder::from_env().with_bucket_name(bucket).build()?;
        Ok(Self::over(Arc::new(store), prefix))
    }

    #[cfg(not(feature = "s3"))]
    fn open_s3(_place: &str) -> anyhow::Result<Self> {
        anyhow::bail!("this server was built without S3; build it with `--features s3`")
    }

    /// Keeps bytes in any object store.
    #[must_use]
    pub fn over(store: Arc<dyn ObjectStore>, prefix: &str) -> Self {
        Self { store, prefix: Path::from(prefix) }
    }

    fn key(&self, segment: &SegmentRow) -> Path {
        // The last characters of a ULID are random, so they spread artifacts evenly over directories.
        let artifact = segment.artifact_id.as_str();
        let shard = &artifact[artifact.len() - 2..];
        let hash = segment.hash.get(..32).unwrap_or(&segment.hash);
        self.prefix.clone().join(shard).join(artifact).join(format!("{:016x}-{hash}", segment.start_at))
    }

    /// Takes a segment's bytes: many are durable when this returns, few when the row is. The row to be written.
    pub async fn keep(&self, mut segment: SegmentRow, bytes: Bytes) -> Result<SegmentRow, BlobError> {
        if bytes.len() <= IN_ROW {
            segment.bytes = Some(bytes.into());
        } else {
            let stored = self.store.put(&self.key(&segment), PutPayload::from_bytes(bytes)).await;
            stored.map_err(BlobError::Unavailable)?;
        }
        Ok(segment)
    }

    /// Reads part of a segment; offsets count from the segment's first byte.
    pub async fn read(&self, segment: &SegmentRow, range: Range<u64>) -> Result<Bytes, BlobError> {
        let key = self.key(segment);
        if let Some(bytes) = &segment.bytes {
            let place = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
            let part = bytes.get(place(range.start)..place(range.end));
            return part.map(Bytes::copy_from_slice).ok_or_else(|| BlobError::Missing(key.to_string()));
        }
        self.store.get_range(&key, range).await.map_err(|error| match error {
            object_store::Error::NotFound { .. } => BlobError::Missing(key.to_string()),
            other => BlobError::Unavailable(other),
        })
    }

    /// Drops a segment's bytes, after no row refers to them any more. Missing bytes are no error.
    pub async fn delete(&self, segment: &SegmentRow) -> Result<(), BlobError> {
        if segment.bytes.is_some() {
            return Ok(());
        }
        match self.store.delete(&self.key(segment)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(BlobError::Unavailable(error)),
        }
    }

    /// Writes and removes a small object, to see whether the store takes any.
    pub async fn probe(&self, name: &str) -> Result<(), BlobError> {
        let key = self.prefix.clone().join("probe").join(name);
        self.store.put(&key, PutPayload::from_static(b"probe")).await.map_err(BlobError::Unavailable)?;
        self.store.delete(&key).await.map_err(BlobError::Unavailable)
    }
}
