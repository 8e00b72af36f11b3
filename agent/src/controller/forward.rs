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

/// Waits until `text` is somewhere on the console, from its beginning.
pub async fn wait_for(console: &dyn Console, text: &[u8]) -> std::io::Result<()> {
    let (mut offset, mut window) = (0, Vec::new());
    loop {
        let bytes = console.read(offset, CONSOLE_WRITE_MAX).await?;
        if bytes.is_empty() {
            console.grown(offset).await?;
            continue;
        }
        offset += bytes.len() as u64;
        window.extend_from_slice(&bytes);
        if window.windows(text.len()).any(|candidate| candidate == text) {
            return Ok(());
        }
        // What could still be the beginning of the text stays.
        window.drain(..window.len().saturating_sub(text.len().saturating_sub(1)));
    }
}
