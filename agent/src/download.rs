//! Downloads of build files: resumed where they were cut, and never used before their hash is right.

use anyhow::{Context as _, bail};
use crashyard_protocol::agent::ArtifactBrief;
use crashyard_protocol::client::Client;
use crashyard_protocol::retry::Backoff;
use reqwest::StatusCode;
use std::path::Path;
use tokio::fs::{self, OpenOptions};
use tokio::io::AsyncWriteExt as _;

/// Fetches an artifact into `path`, which appears only when complete and equal to its hash.
///
/// A partial file of an earlier try (`path` with `.part` added) is continued. Fails when the server refuses, or when
/// the content has the wrong hash twice; an unreachable server is waited for.
pub async fn fetch(client: &Client, artifact: &ArtifactBrief, path: &Path) -> anyhow::Result<()> {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = Path::new(&part);
    for last_chance in [false, true] {
        complete_part(client, artifact, part).await?;
        let hash = hash_of(part).await?;
        if hash == artifact.blake3 {
            fs::File::open(part).await?.sync_all().await?;
            fs::rename(part, path).await.with_context(|| format!("keep {}", path.display()))?;
            return Ok(());
        }
        fs::remove_file(part).await?;
        if last_chance {
            bail!("{} came twice with the hash {hash} instead of {}", artifact.name, artifact.blake3);
        }
    }
    unreachable!("the second round returns")
}

/// BLAKE3 of a file, lower-case hex.
pub async fn hash_of(path: &Path) -> anyhow::Result<String> {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(std::fs::File::open(&path).with_context(|| format!("read {}", path.display()))?)?;
        Ok(hasher.finalize().to_hex().to_string())
    })
    .await?
}

async fn complete_part(client: &Client, artifact: &ArtifactBrief, part: &Path) -> anyhow::Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(part).await?;
    let mut have = file.metadata().await?.len();
    let mut backoff = Backoff::default();
    while have < artifact.size {
        let mut response = match client.download(&artifact.id, have).await {
            Ok(response) => response,
            Err(error) if error.is_transient() => {
                tracing::warn!(%error, artifact = artifact.name, "download: trying again");
                backoff.wait().await;
                continue;
            }
            Err(error) => return Err(error).with_context(|| format!("download {}", artifact.name)),
        };
        if have > 0 && response.status() != StatusCode::PARTIAL_CONTENT {
            file.set_len(0).await?;
            have = 0;
        }
        loop {
            match response.chunk().await {
                Ok(Some(bytes)) => {
                    file.write_all(&bytes).await.with_context(|| format!("write {}", part.display()))?;
                    have += bytes.len() as u64;
                    backoff = Backoff::default();
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(%error, artifact = artifact.name, "download was cut");
                    backoff.wait().await;
                    break;
                }
            }
        }
    }
    file.flush().await?;
    if have > artifact.size {
        // Not this artifact, whatever it is: start over rather than hash it.
        file.set_len(0).await?;
        bail!("{} has {have} bytes instead of {}", artifact.name, artifact.size);
    }
    Ok(())
}
