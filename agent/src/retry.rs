//! Trying again: growing pauses with jitter, and no limit of its own.
//!
//! Agents outlive servers that are away for an hour. What ends the trying is never a count in here but somebody who
//! knows: the server by an answer that is not transient, or the stage's deadline by a stopped machine.

use crashyard_protocol::client::ClientError;
use std::time::Duration;

/// Pauses between tries.
#[derive(Clone, Debug)]
pub struct Backoff {
    ceiling: Duration,
}

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(10);

impl Default for Backoff {
    fn default() -> Self {
        Self { ceiling: FIRST }
    }
}

impl Backoff {
    /// The next pause: between half and all of a ceiling that doubles up to ten seconds. `dice` is in `0.0..1.0`.
    pub fn next(&mut self, dice: f64) -> Duration {
        let pause = self.ceiling.mul_f64(0.5 + dice.clamp(0.0, 1.0) / 2.0);
        self.ceiling = (self.ceiling * 2).min(LONGEST);
        pause
    }

    /// Waits for the next pause.
    ///
    /// The jitter must not come from getrandom(2): a capture kernel on a CPU without RDRAND may never have gathered
    /// enough entropy for it to return.
    pub async fn wait(&mut self) {
        tokio::time::sleep(self.next(fastrand::f64())).await;
    }
}

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

    #[test]
    fn pauses_grow_to_a_limit_and_never_vanish() {
        let mut backoff = Backoff::default();
        let pauses: Vec<_> = (0..20).map(|_| backoff.next(0.0)).collect();
        assert_eq!(pauses[0], FIRST / 2);
        assert!(pauses.windows(2).all(|pair| pair[0] <= pair[1]));
        assert_eq!(pauses[19], LONGEST / 2);
        assert_eq!(backoff.next(1.0), LONGEST);
    }

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
