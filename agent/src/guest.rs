//! What target and capture agent share: their ticket, their brief, their numbered reports.
//!
//! Both live in an initramfs that is gone with the next crash, so neither keeps a journal on disk: the server knows
//! how many reports it has, and an agent that starts again asks it.

use crate::retry::persist;
use anyhow::Context as _;
use crashyard_protocol::AttemptId;
use crashyard_protocol::agent::{ArtifactBrief, Brief, Directive, Numbered, Report, Reports, Role, Ticket};
use crashyard_protocol::client::{Client, ClientError};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Directory of ticket and brief inside an initramfs.
pub const DIRECTORY: &str = "/crashyard";

/// Directory inside it with files of the build, named by their BLAKE3, where the controller has put them there.
pub const CARRIED: &str = "build";

/// An agent's place in an attempt.
#[derive(Debug)]
pub struct Guest {
    /// Acts inside the attempt.
    pub client: Client,
    /// How the server is reached.
    pub ticket: Ticket,
    /// What to do.
    pub brief: Brief,
    /// Where ticket and brief were found.
    pub directory: PathBuf,
}

impl Guest {
    /// Reads ticket and brief from `directory`.
    pub fn open(directory: &Path) -> anyhow::Result<Self> {
        let ticket: Ticket = read(&directory.join("ticket.json"))?;
        let brief: Brief = read(&directory.join("brief.json"))?;
        let client = crate::http::client(&ticket.server, Some(ticket.token.clone()))?.at_epoch(ticket.epoch);
        Ok(Self { client, ticket, brief, directory: directory.to_owned() })
    }

    /// The archive that carries ticket and brief into an initramfs.
    pub fn archive(ticket: &Ticket, brief: &Brief) -> anyhow::Result<Vec<u8>> {
        let mut archive = crate::cpio::Archive::new();
        archive.directory("crashyard").file("crashyard/ticket.json", 0o600, &serde_json::to_vec(ticket)?).file(
            "crashyard/brief.json",
            0o600,
            &serde_json::to_vec(brief)?,
        );
        Ok(archive.finish())
    }

    /// The archive that carries files of the build, given by name in the build and path, into an initramfs.
    pub fn build_archive(brief: &Brief, files: &[(&str, &PathBuf)]) -> anyhow::Result<Vec<u8>> {
        let mut archive = crate::cpio::Archive::new();
        archive.directory("crashyard").directory(&format!("crashyard/{CARRIED}"));
        for (name, path) in files {
            let artifact = artifact(brief, name)?;
            let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
            archive.file(&format!("crashyard/{CARRIED}/{}", artifact.blake3), 0o600, &bytes);
        }
        Ok(archive.finish())
    }

    /// A file of the build that the controller has put into this initramfs.
    #[must_use]
    pub fn carried(&self, artifact: &ArtifactBrief) -> Option<PathBuf> {
        let path = self.directory.join(CARRIED).join(&artifact.blake3);
        (artifact.blake3.bytes().all(|b| b.is_ascii_hexdigit()) && path.is_file()).then_some(path)
    }
}

/// A file of a build, by its name.
pub fn artifact<'a>(brief: &'a Brief, name: &str) -> anyhow::Result<&'a ArtifactBrief> {
    let mut artifacts = brief.build.artifacts.iter();
    artifacts.find(|artifact| artifact.name == name).with_context(|| format!("the build has no file named {name}"))
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("understand {}", path.display()))
}

/// Hands in reports, one at a time and in order.
#[derive(Debug)]
pub struct Reporter {
    client: Client,
    attempt: AttemptId,
    by: Role,
    next: u64,
}

impl Reporter {
    /// Goes on where the server's record of this role ends.
    pub async fn resume(client: &Client, attempt: &AttemptId, by: Role) -> Result<Self, ClientError> {
        let next = persist("ask for the next report", || client.next_report(attempt, by)).await?;
        Ok(Self { client: client.clone(), attempt: attempt.clone(), by, next })
    }

    /// Hands one report in, however long it takes to reach the server; the answer says what to do next.
    pub async fn tell(&mut self, report: Report) -> Result<Directive, ClientError> {
        tracing::info!(seq = self.next, ?report, "report");
        let reports = Reports { by: self.by, reports: vec![Numbered { seq: self.next, report }] };
        let reply = persist("report", || self.client.report(&self.attempt, &reports)).await?;
        self.next += 1;
        Ok(reply.directive)
    }

    /// Asks for the directive again, with a pause before it, by repeating nothing new.
    pub async fn ask(&mut self, pause: Duration) -> Result<Directive, ClientError> {
        tokio::time::sleep(pause).await;
        let nothing = Reports { by: self.by, reports: Vec::new() };
        Ok(persist("ask for the directive", || self.client.report(&self.attempt, &nothing)).await?.directive)
    }
}

/// Cuts a text to its last `limit` bytes, at a character boundary, and says so.
#[must_use]
pub fn tail(text: &str, limit: usize) -> String {
    if text.len() <= limit {
        return text.to_owned();
    }
    let mut start = text.len() - limit;
    while !text.is_char_boundary(start) {
        start += 1;
    }
    format!("[…] {}", &text[start..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_keeps_the_end_and_whole_characters() {
        assert_eq!(tail("short", 10), "short");
        assert_eq!(tail("aaaäb", 2), "[…] b");
        assert_eq!(tail("aaaäb", 3), "[…] äb");
    }
}
