//! Trying again without a limit: agents outlive servers that are away for an hour. What ends the trying is never a count
//! in here but somebody who knows: the server by an answer that is not transient, or the stage's deadline by a stopped
//! machine.

use crashyard_protocol::client::ClientError;
use crashyard_protocol::retry::Backoff;

/// Makes a call until it succeeds or is refused for good.
pub async fn persist<T, F>(what: &str, mut call: impl FnMut() -> F) -> Result<T, ClientError>
where
    F: Future<Output = Result<T, ClientError>>,
{
    let mut backoff = Backoff::default();
    loop {
        match call().await {
            Err(error) if error.is_transient() => {
                tracing::warn!(%error, "{what}: trying again");
                backoff.wait().await;
            }
            settled => return settled,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crashyard_protocol::problem::{Problem, kind};

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_not_repeated_and_an_outage_is() {
        let calls = std::cell::Cell::new(0);
        let result: Result<(), _> = persist("test", || async {
            calls.set(calls.get() + 1);
            Err(if calls.get() < 5 {
                ClientError::Transport("away".into())
            } else {
                ClientError::Problem(Box::new(Problem {
                    kind: kind::LEASE_LOST.into(),
                    title: String::new(),
                    status: 409,
                    detail: String::new(),
                    next: String::new(),
                    request_id: None,
                }))
            })
        })
        .await;
        assert!(result.unwrap_err().is_lease_lost());
        assert_eq!(calls.get(), 5);
    }
}
