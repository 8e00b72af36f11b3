//! The server that a command talks to, and what it says when something is wrong.

use crate::triage::vmcore::text;
use clap::Args;
use crashyard_protocol::client::{Client, ClientError};

/// Which server.
#[derive(Args)]
pub struct Server {
    /// The server's address
    #[arg(long, env = "CRASHYARD_SERVER", default_value = "http://127.0.0.1:8480")]
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
}

/// Runs what talks to the server.
pub fn wait(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

/// An error of the server, for a terminal.
pub fn said(error: &ClientError) -> anyhow::Error {
    let next = match error {
        ClientError::Problem(problem) => format!("\n{}", text::safe(&problem.next)),
        ClientError::Transport(_) => "\nIs the address right? Give it with --server or CRASHYARD_SERVER.".to_owned(),
    };
    anyhow::anyhow!("{}{next}", text::safe(&error.to_string()))
}
