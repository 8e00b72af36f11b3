//! Uploads in chunks: hashed once, sent only where the server lacks them, a few in flight.
//!
//! The source is a stream (makedumpfile's output) that cannot be rewound, so an upload that is taken up again reads
//! the stream anew and skips what the server has. That is sound only because a chunk is skipped by *hash*, never by
//! offset alone: a stream that came out differently is refused by the server as a conflict and never spliced.

use crate::retry::persist;
use bytes::{Bytes, BytesMut};
use crashyard_protocol::agent::{CHUNK_BYTES, CompleteRequest, Upload};
use crashyard_protocol::api::Artifact;
use crashyard_protocol::chunk::{chunk_hash, hex, whole_hash};
use crashyard_protocol::client::{Client, ClientError};
use crashyard_protocol::problem::kind;
use crashyard_protocol::{AttemptId, BuildId};
use std::collections::BTreeMap;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::task::JoinSet;

/// Chunks that may be on their way at once, 24 MiB of a capture kernel's memory: while some wait for the server's flush, others
/// travel. With three of them a server on a directory took in half of what it can (`crashyard-swarm bench vmcore`).
const IN_FLIGHT: usize = 6;

/// How often one chunk may arrive with a wrong hash before something other than the line is to blame.
const RESENDS: u32 = 5;

/// Where an upload goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Evidence of an attempt.
    Evidence(AttemptId, String),
    /// A file of a build.
    Build(BuildId, String),
}

impl Destination {
    /// What the server has. An upload that nobody began has nothing.
    async fn begun(&self, client: &Client) -> Result<BTreeMap<u64, String>, ClientError> {
        let answer = persist("ask how far the upload is", || async {
            match self {
                Self::Evidence(attempt, name) => client.upload(attempt, name).await,
                Self::Build(build, name) => client.build_upload(build, name).await,
            }
        })
        .await;
        match answer {
            Ok(Upload { chunks, .. }) => Ok(chunks.into_iter().map(|chunk| (chunk.offset, chunk.hash)).collect()),
            Err(error) if error.is(kind::NOT_FOUND) => Ok(BTreeMap::new()),
            Err(error) => Err(error),
        }
    }

    async fn put(&self, client: &Client, offset: u64, hash: &str, body: Bytes) -> Result<(), ClientError> {
        let mut mismatches = 0;
        loop {
            let answer = persist("send a chunk", || async {
                match self {
                    Self::Evidence(attempt, name) => client.put_chunk(attempt, name, offset, hash, body.clone()).await,
                    Self::Build(build, name) => client.put_build_chunk(build, name, offset, hash, body.clone()).await,
                }
            })
            .await;
            match answer {
                Err(error) if error.is(kind::HASH_MISMATCH) && mismatches < RESENDS => mismatches += 1,
                settled => return settled,
            }
        }
    }

    /// Closes the upload: the server checks size and hash of the whole.
    pub async fn complete(&self, client: &Client, sent: &Sent) -> Result<Artifact, ClientError> {
        let done = CompleteRequest { size: sent.bytes, blake3: sent.blake3.clone() };
        persist("complete the upload", || async {
            match self {
                Self::Evidence(attempt, name) => client.complete(attempt, name, &done).await,
                Self::Build(build, name) => client.complete_build_artifact(build, name, &done).await,
            }
        })
        .await
    }
}

/// What became of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Its bytes.
    pub bytes: u64,
    /// BLAKE3 of the whole, lower-case hex.
    pub blake3: String,
    /// Bytes that were sent now.
    pub sent_bytes: u64,
    /// Bytes that the server had already.
    pub skipped_bytes: u64,
}

/// Why a stream did not get through.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The stream itself ended in an error.
    #[error("the stream could not be read: {0}")]
    Source(#[from] std::io::Error),
    /// The server refused for good.
    #[error("the server refused: {0}")]
    Refused(#[from] ClientError),
}

/// Sends a stream to its end, without closing the upload: whether the stream was good is known to the caller only.
///
/// `stored` is told after every chunk how many bytes were sent and acknowledged so far, not counting skipped ones.
pub async fn send(
    client: &Client,
    destination: &Destination,
    mut source: impl AsyncRead + Unpin,
    mut stored: impl FnMut(u64),
) -> Result<Sent, UploadError> {
    let had = destination.begun(client).await?;
    let mut on_the_way: JoinSet<Result<u64, ClientError>> = JoinSet::new();
    let mut values = Vec::new();
    let mut first = None;
    let (mut offset, mut sent_bytes, mut skipped_bytes) = (0, 0, 0);
    loop {
        let body = next_chunk(&mut source).await?;
        if body.is_empty() {
            break;
        }
        let length = body.len() as u64;
        let value = chunk_hash(offset, &body);
        let hash = hex(&value);
        values.push(value);
        if offset == 0 {
            first = Some(blake3::hash(&body));
        }
        if had.get(&offset) == Some(&hash) {
            skipped_bytes += length;
        } else {
            if on_the_way.len() == IN_FLIGHT {
                sent_bytes += settle(&mut on_the_way).await?;
                stored(sent_bytes);
            }
            let (client, destination) = (client.clone(), destination.clone());
            on_the_way.spawn(async move {
                destination.put(&client, offset, &hash, body).await?;
                Ok(length)
            });
        }
        offset += length;
        if length < CHUNK_BYTES {
            break;
        }
    }
    while !on_the_way.is_empty() {
        sent_bytes += settle(&mut on_the_way).await?;
        stored(sent_bytes);
    }
    let whole = whole_hash(&values).or(first).unwrap_or_else(|| blake3::hash(b""));
    Ok(Sent { bytes: offset, blake3: whole.to_hex().to_string(), sent_bytes, skipped_bytes })
}

async fn settle(on_the_way: &mut JoinSet<Result<u64, ClientError>>) -> Result<u64, ClientError> {
    on_the_way.join_next().await.map_or(Ok(0), |joined| joined.expect("a sender neither panics nor is cancelled"))
}

/// Fills one chunk; a short one is the last.
async fn next_chunk(source: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Bytes> {
    let full = usize::try_from(CHUNK_BYTES).expect("a chunk fits into memory");
    let mut chunk = BytesMut::with_capacity(full);
    let mut limited = source.take(CHUNK_BYTES);
    while chunk.len() < full && limited.read_buf(&mut chunk).await? > 0 {}
    Ok(chunk.freeze())
}
