//! Uploads a file of a build, in chunks; what the server has is not sent again.

use anyhow::Context as _;
use crashyard_protocol::BuildId;
use crashyard_protocol::agent::{CHUNK_BYTES, CompleteRequest};
use crashyard_protocol::chunk::{chunk_hash, hex};
use crashyard_protocol::client::Client;
use std::path::Path;

/// Uploads `path` as the build's file `name`.
pub async fn file(client: &Client, build: &BuildId, name: &str, path: &Path) -> anyhow::Result<()> {
    let bytes = bytes::Bytes::from(std::fs::read(path).with_context(|| format!("reading {}", path.display()))?);
    let upload = client.build_upload(build, name).await?;
    if upload.complete {
        return Ok(());
    }
    let step = usize::try_from(CHUNK_BYTES)?;
    for (i, start) in (0..bytes.len()).step_by(step).enumerate() {
        let offset = i as u64 * CHUNK_BYTES;
        if upload.chunks.iter().all(|chunk| chunk.offset != offset) {
            let chunk = bytes.slice(start..bytes.len().min(start + step));
            client.put_build_chunk(build, name, offset, &hex(&chunk_hash(offset, &chunk)), chunk).await?;
        }
    }
    let done = CompleteRequest { size: bytes.len() as u64, blake3: blake3::hash(&bytes).to_string() };
    client.complete_build_artifact(build, name, &done).await?;
    Ok(())
}
