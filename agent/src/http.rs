//! HTTP clients as agents use them.

use crashyard_protocol::client::{Client, builder};
use std::time::Duration;

/// Longest time the server is asked to hold a request open.
pub const LONG_POLL: Duration = Duration::from_secs(30);

/// A client that notices a dead connection, and outlasts a long poll.
///
/// No timeout for a whole request: a large chunk over a slow link is not an error, silence is.
pub fn client(base: &str, token: Option<String>) -> anyhow::Result<Client> {
    let http = builder(base)
        .connect_timeout(Duration::from_secs(10))
        .read_timeout(LONG_POLL * 2)
        .tcp_keepalive(Duration::from_secs(20))
        .tcp_nodelay(true)
        .build()?;
    Ok(Client::with_http(http, base, token))
}
