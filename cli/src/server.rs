//! The server that a command talks to, and what it says when something is wrong.

use crate::triage::vmcore::text;
use clap::Args;
use crashyard_protocol::client::{Client, ClientError};
use crashyard_protocol::retry::Backoff;

const DEFAULT: &str = "http://127.0.0.1:8480";

/// Which server.
#[derive(Args)]
pub struct Server {
    /// The server's address
    #[arg(long, env = "CRASHYARD_SERVER", default_value = DEFAULT)]
    server: String,
    /// A token, where the server asks for one; better given in the environment, where nobody sees it
    #[arg(long, env = "CRASHYARD_TOKEN", hide_env_values = true)]
    token: Option<String>,
}

impl Server {
    /// A client for it.
    pub fn client(&self) -> Client {
        Client::new(&self.server, self.token.clone())
    }

    /// Its address.
    pub fn address(&self) -> &str {
        self.server.trim_end_matches('/')
    }

    /// What another command needs on its command line to ask the same server.
    pub fn option(&self) -> String {
        let implied = std::env::var("CRASHYARD_SERVER").unwrap_or_else(|_| DEFAULT.to_owned());
        if self.server == implied { String::new() } else { format!(" --server {}", text::safe(&self.server)) }
    }
}

/// Makes a call that may be repeated, a few times if need be: a quarter of a minute without the server is no reason to fail.
pub async fn patiently<T, F>(mut call: impl FnMut() -> F) -> Result<T, ClientError>
where
    F: Future<Output = Result<T, ClientError>>,
{
    let mut backoff = Backoff::default();
    for _ in 0..TRIES {
        match call().await {
            Err(error) if error.is_transient() => backoff.wait().await,
            settled => return settled,
        }
    }
    call().await
}

/// How often a call is repeated: the pauses before add up to 16 to 33 seconds.
const TRIES: u32 = 10;

/// Runs what talks to the server.
pub fn wait<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

/// An error of the server, for a terminal.
pub fn said(error: &ClientError) -> anyhow::Error {
    match error {
        ClientError::Problem(problem) => {
            let id = problem.request_id.as_ref().map(|id| format!(" [request {id}]")).unwrap_or_default();
            let (what, next) = (format!("{}: {}{id}", problem.title, problem.detail), &problem.next);
            anyhow::anyhow!("{}\n{}", text::safe(&what), text::safe(next))
        }
        ClientError::Transport(_) => anyhow::anyhow!(
            "{}\nIs the address right? Give it with --server or CRASHYARD_SERVER.",
            text::safe(&error.to_string())
        ),
    }
}
