//! makedumpfile as a stream.
//!
//! `-F` gives the flattened form, which can be written to a pipe. Success is exit status 0 *and* an output: for some
//! troubles (a kernel it does not know, a compression it was built without) makedumpfile prints a line and exits with
//! 0, so what it printed is handed on.

use anyhow::{Context as _, bail};
use crashyard_protocol::{Capture, Compression};
use std::path::Path;
use std::process::Stdio;
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, ChildStdout, Command};
use tokio::task::JoinHandle;

/// Only errors are printed (makedumpfile(8), `--message-level`: 4 is "error messages"; 1 is the progress indicator).
const MESSAGE_LEVEL: &str = "4";

/// A running makedumpfile.
pub struct Dump {
    child: Child,
    output: ChildStdout,
    said: JoinHandle<String>,
}

impl Dump {
    /// Starts makedumpfile on `memory` (`/proc/vmcore`).
    pub fn start(capture: &Capture, memory: &Path) -> anyhow::Result<Self> {
        let mut child = Command::new("makedumpfile")
            .args(arguments(capture))
            .arg(memory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("start makedumpfile")?;
        let output = child.stdout.take().expect("stdout is piped");
        let mut errors = child.stderr.take().expect("stderr is piped");
        let said = tokio::spawn(async move {
            let mut bytes = Vec::new();
            // A broken pipe ends the text, no more.
            let _ = errors.read_to_end(&mut bytes).await;
            String::from_utf8_lossy(&bytes).trim().to_owned()
        });
        Ok(Self { child, output, said })
    }

    /// The flattened dump.
    pub fn output(&mut self) -> &mut ChildStdout {
        &mut self.output
    }

    /// Waits for the end and returns what was printed; an error if makedumpfile says that it failed.
    pub async fn finish(mut self) -> anyhow::Result<String> {
        let status = self.child.wait().await.context("wait for makedumpfile")?;
        let said = self.said.await.unwrap_or_default();
        if !status.success() {
            bail!("makedumpfile: {status}: {said}");
        }
        Ok(said)
    }

    /// Ends it without waiting for more output.
    pub async fn abandon(mut self) {
        if let Err(error) = self.child.kill().await {
            tracing::warn!(%error, "could not end makedumpfile");
        }
    }
}

/// makedumpfile's arguments for a scenario.
fn arguments(capture: &Capture) -> Vec<String> {
    let mut arguments = vec!["-F".to_owned(), "--message-level".to_owned(), MESSAGE_LEVEL.to_owned()];
    arguments.extend(
        match capture.compression {
            Compression::None => None,
            Compression::Zlib => Some("-c"),
            Compression::Lzo => Some("-l"),
            Compression::Snappy => Some("-p"),
            Compression::Zstd => Some("-z"),
        }
        .map(str::to_owned),
    );
    arguments.extend(["-d".to_owned(), capture.dump_level.to_string()]);
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn level_and_compression_come_from_the_scenario() {
        let capture = Capture { dump_level: 23, compression: Compression::Lzo, ..Capture::default() };
        assert_eq!(arguments(&capture).join(" "), "-F --message-level 4 -l -d 23");
        let plain = Capture { compression: Compression::None, ..Capture::default() };
        assert_eq!(arguments(&plain).join(" "), "-F --message-level 4 -d 31");
    }
}
