//! Trying again: growing pauses with jitter, and no limit of its own. Who tries knows when to stop.

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit_and_never_vanish() {
        let mut backoff = Backoff::default();
        let pauses: Vec<_> = (0..20).map(|_| backoff.next(0.0)).collect();
        assert_eq!(pauses[0], FIRST / 2);
        assert!(pauses.windows(2).all(|pair| pair[0] <= pair[1]));
        assert_eq!(pauses[19], LONGEST / 2);
        assert_eq!(backoff.next(1.0), LONGEST);
    }
}
