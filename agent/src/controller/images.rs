//! Build files on the controller: kept by content, so that the same kernel is downloaded once.

use crate::guest::{Guest, artifact};
use crate::{cpio, download};
use anyhow::Context as _;
use crashyard_protocol::agent::{Brief, Ticket};
use crashyard_protocol::client::Client;
use std::path::{Path, PathBuf};
use tokio::sync::Mutex;

/// Builds kept; a build has two files.
const KEEP_FILES: usize = 32;

/// A directory of files named by their BLAKE3.
#[derive(Debug)]
pub struct Images {
    directory: PathBuf,
    // One download at a time: machines that want the same file must not write the same partial file.
    downloading: Mutex<()>,
}

impl Images {
    /// Opens or makes the directory.
    pub fn open(directory: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
        Ok(Self { directory: directory.to_owned(), downloading: Mutex::new(()) })
    }

    /// Puts the kernel and the initrd with the ticket into `into`, and returns their paths. With `carry` the build's
    /// files are inside the initrd as well, for the target agent.
    pub async fn prepare(
        &self,
        client: &Client,
        brief: &Brief,
        ticket: &Ticket,
        carry: bool,
        into: &Path,
    ) -> anyhow::Result<(PathBuf, PathBuf)> {
        let (kernel, initrd) = (into.join("kernel"), into.join("initrd"));
        let kernel_file = self.get(client, brief, "kernel").await?;
        let initrd_file = self.get(client, brief, "initrd").await?;
        // A link and not the path in the cache: pruning the cache must not take a running attempt's kernel away.
        let _ = std::fs::remove_file(&kernel);
        std::fs::hard_link(&kernel_file, &kernel).or_else(|_| std::fs::copy(&kernel_file, &kernel).map(drop))?;
        let mut image = std::fs::read(&initrd_file)?;
        if carry {
            let files = [("kernel", &kernel_file), ("initrd", &initrd_file)];
            image = cpio::append(image, &Guest::build_archive(brief, &files)?);
        }
        write_private(&initrd, &cpio::append(image, &Guest::archive(ticket, brief)?))?;
        Ok((kernel.canonicalize()?, initrd.canonicalize()?))
    }

    async fn get(&self, client: &Client, brief: &Brief, name: &str) -> anyhow::Result<PathBuf> {
        let artifact = artifact(brief, name)?;
        anyhow::ensure!(
            artifact.blake3.len() == 64 && artifact.blake3.bytes().all(|b| b.is_ascii_hexdigit()),
            "the hash of {name} is not a hash"
        );
        let path = self.directory.join(&artifact.blake3);
        let _one = self.downloading.lock().await;
        if !path.exists() {
            self.prune()?;
            download::fetch(client, artifact, &path).await?;
        }
        Ok(path)
    }

    /// Makes room: the files longest unused go. Partial downloads count as files.
    fn prune(&self) -> anyhow::Result<()> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.directory)? {
            let entry = entry?;
            files.push((entry.metadata()?.modified()?, entry.path()));
        }
        files.sort();
        let excess = (files.len() + 1).saturating_sub(KEEP_FILES);
        for (_, path) in &files[..excess] {
            std::fs::remove_file(path)?;
        }
        Ok(())
    }
}

/// Writes a file only its owner may read: it holds an attempt token.
fn write_private(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(bytes).with_context(|| format!("write {}", path.display()))
}
