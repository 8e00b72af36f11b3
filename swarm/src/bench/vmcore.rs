//! 1 GiB of vmcore through the server, against copying and hashing the same bytes without it.

use crate::farm;
use crate::figures::Figure;
use crate::server::Server;
use crashyard_protocol::agent::{CHUNK_BYTES, CompleteRequest};
use crashyard_protocol::chunk::{chunk_hash, hex, whole_hash};
use futures::stream::{StreamExt as _, TryStreamExt as _};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

const CHUNKS: u64 = 256;
/// Chunks under way at once, as the capture agent does it.
const IN_FLIGHT: usize = 6;

/// The upload as the capture agent does it, then `cp` + `sync` + BLAKE3 of a file with the same bytes.
pub async fn measure() -> anyhow::Result<Figure> {
    let server = Server::start().await?;
    let build = farm::prepare(&server.admin, 1).await?;
    let lab = farm::enrol(&server.admin, "lab", 1).await?;
    farm::submit(&server.admin, &build).await?;
    let claims = farm::claim_all(&server.admin, &lab).await?;
    let claim = &claims[0];
    let client = server.admin.with_token(&claim.attempt_token).at_epoch(claim.epoch);

    // Bytes and hashes are made beforehand: the agent's hashing overlaps with reading the dump on another machine.
    let chunks: Vec<bytes::Bytes> = (0..CHUNKS).map(|i| farm::noise(i).into()).collect();
    let values: Vec<_> = chunks.iter().enumerate().map(|(i, c)| chunk_hash(i as u64 * CHUNK_BYTES, c)).collect();
    let whole = whole_hash(&values).expect("more than one chunk").to_string();
    let floor = floor(server.data.path(), &chunks)?;

    let begun = Instant::now();
    futures::stream::iter(chunks.iter().zip(&values).enumerate())
        .map(Ok)
        .try_for_each_concurrent(IN_FLIGHT, |(i, (chunk, value))| {
            let client = &client;
            async move {
                let offset = i as u64 * CHUNK_BYTES;
                client.put_chunk(&claim.attempt, "vmcore", offset, &hex(value), chunk.clone()).await
            }
        })
        .await?;
    let size = CHUNKS * CHUNK_BYTES;
    client.complete(&claim.attempt, "vmcore", &CompleteRequest { size, blake3: whole }).await?;
    let ours = size as f64 / begun.elapsed().as_secs_f64() / 1e6;
    let percent = ours / floor * 100.0;
    Ok(Figure {
        what: "vmcore ingest, 1 GiB, hashed, stored".into(),
        measured: format!("{ours:.0} MB/s = {percent:.0} %"),
        bar: ">= 70 %".into(),
        reached: percent >= 70.0,
        limit: format!("cp + sync + BLAKE3 of the same bytes here: {floor:.0} MB/s"),
    })
}

/// Copies the bytes from a file to a file, syncs, and hashes the copy.
fn floor(dir: &Path, chunks: &[bytes::Bytes]) -> anyhow::Result<f64> {
    let (from, to) = (dir.join("floor-from"), dir.join("floor-to"));
    std::fs::write(&from, chunks.concat())?;
    Command::new("sync").arg(&from).status()?;
    let begun = Instant::now();
    anyhow::ensure!(Command::new("cp").arg(&from).arg(&to).status()?.success(), "cp failed");
    anyhow::ensure!(Command::new("sync").arg(&to).status()?.success(), "sync failed");
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(std::fs::File::open(&to)?)?;
    std::hint::black_box(hasher.finalize());
    let rate = (CHUNKS * CHUNK_BYTES) as f64 / begun.elapsed().as_secs_f64() / 1e6;
    std::fs::remove_file(from)?;
    std::fs::remove_file(to)?;
    Ok(rate)
}
