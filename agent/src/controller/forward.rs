//! Sends a console to the server: everything, once, in order, and as soon as it is there.
//!
//! One write is on its way at a time; what the console prints meanwhile goes with the next one. So a quiet console is
//! sent line by line without delay, and a flood in large pieces, with no timer in between. Where to go on after any
//! interruption is the server's to say.

use super::machine::Console;
use crate::retry::persist;
use crashyard_protocol::AttemptId;
use crashyard_protocol::agent::CONSOLE_WRITE_MAX;
use crashyard_protocol::client::{Client, ClientError};
use crashyard_protocol::problem::kind;
use tokio_util::sync::CancellationToken;

/// Why a console was not sent to its end.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// The record could not be read.
    #[error("the console cannot be read: {0}")]
    Read(#[from] std::io::Error),
    /// The server refused for good.
    #[error("the server refused console bytes: {0}")]
    Refused(#[from] ClientError),
}

/// Forwards until `complete` is cancelled (the machine is off, nothing more will come) *and* every byte is sent.
/// Returns the number of bytes the server has then.
pub async fn forward(
    client: &Client,
    attempt: &AttemptId,
    source: &str,
    console: &dyn Console,
    complete: &CancellationToken,
) -> Result<u64, ForwardError> {
    let ask = || persist("ask for the console's offset", || client.console(attempt, source));
    let mut offset = match ask().await {
        Ok(ack) => ack.next_offset,
        Err(error) if error.is(kind::NOT_FOUND) => 0,
        Err(error) => return Err(error.into()),
    };
    loop {
        // Looked up before reading, so that what was printed before the end is read after it.
        let last = complete.is_cancelled();
        let body = console.read(offset, CONSOLE_WRITE_MAX).await?;
        if body.is_empty() {
            if last {
                return Ok(offset);
            }
            tokio::select! {
                grown = console.grown(offset) => grown?,
                () = complete.cancelled() => {}
            }
            continue;
        }
        let written = persist("send console bytes", || client.put_console(attempt, source, offset, body.clone())).await;
        offset = match written {
            Ok(ack) => ack.next_offset,
            Err(error) if error.is(kind::OFFSET_GAP) => ask().await?.next_offset,
            Err(error) => return Err(error.into()),
        };
    }
}

/// Waits until a line of the console ends with `text`, from the console's beginning. What is quoted in the middle of another line,
/// such as in what an agent logs, is not that.
pub async fn wait_for_line(console: &dyn Console, text: &[u8]) -> std::io::Result<()> {
    let (mut offset, mut window) = (0, Vec::new());
    let ends_line = |candidate: &[u8]| candidate.strip_prefix(text).is_some_and(|after| matches!(after, b"\r" | b"\n"));
    loop {
        let bytes = console.read(offset, CONSOLE_WRITE_MAX).await?;
        if bytes.is_empty() {
            console.grown(offset).await?;
            continue;
        }
        offset += bytes.len() as u64;
        window.extend_from_slice(&bytes);
        if window.windows(text.len() + 1).any(ends_line) {
            return Ok(());
        }
        // What could still be the beginning of it stays.
        window.drain(..window.len().saturating_sub(text.len()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_trait::async_trait;
    use bytes::Bytes;

    /// A console that was printed, and hands out so many bytes at a time.
    struct Printed(&'static [u8], usize);

    #[async_trait]
    impl Console for Printed {
        async fn read(&self, offset: u64, _: usize) -> std::io::Result<Bytes> {
            let rest = &self.0[usize::try_from(offset).unwrap().min(self.0.len())..];
            Ok(Bytes::from_static(&rest[..rest.len().min(self.1)]))
        }

        async fn grown(&self, _: u64) -> std::io::Result<()> {
            Err(std::io::ErrorKind::UnexpectedEof.into())
        }
    }

    #[tokio::test]
    async fn a_marker_is_seen_at_the_end_of_a_line_and_not_where_it_is_quoted() {
        let quoted = "[ 1.0] agent: report=Triggering { marker: \"crashyard: trigger\" }\r\ncrashyard: trigger";
        let printed = "[ 1.0] marker: \"crashyard: trigger\"\r\n[ 1.1] crashyard: trigger\r\n";
        for piece in [1, 7, 100] {
            let seen = async |text: &'static str| {
                wait_for_line(&Printed(text.as_bytes(), piece), b"crashyard: trigger").await.is_ok()
            };
            assert!(!seen(quoted).await && seen(printed).await, "{piece} bytes at a time");
        }
    }
}
