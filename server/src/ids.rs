//! Fresh ids and secrets: time and randomness come in from outside.

use crashyard_protocol::AttemptId;
use crashyard_protocol::clock::Clock;
use rand::Rng;
use std::sync::{Arc, Mutex, PoisonError};
use ulid::Ulid;

/// Draws ids and secrets.
pub struct Ids {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

struct State {
    random: Box<dyn Rng + Send>,
    last: Ulid,
}

impl Ids {
    /// Draws from this clock and this source of randomness (in production a cryptographic one: secrets come from it).
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>, random: Box<dyn Rng + Send>) -> Self {
        Self { clock, state: Mutex::new(State { random, last: Ulid::nil() }) }
    }

    /// An id that sorts after every id this server drew before, also within one millisecond.
    pub fn next(&self) -> Ulid {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = u64::try_from(self.clock.now().0).unwrap_or(0);
        let random = u128::from(state.random.next_u64()) << 16 | u128::from(state.random.next_u32() & 0xffff);
        let drawn = if now > state.last.timestamp_ms() {
            Ulid::from_parts(now, random)
        } else {
            state.last.increment().unwrap_or_else(|next| next)
        };
        state.last = drawn;
        drawn
    }

    /// A secret of 256 bits, with a prefix that says what it is when somebody finds it in a log.
    pub fn secret(&self) -> String {
        let mut bytes = [0; 32];
        self.state.lock().unwrap_or_else(PoisonError::into_inner).random.fill_bytes(&mut bytes);
        format!("crashyard_{}", crashyard_protocol::chunk::hex(&bytes))
    }

    /// A secret of an attempt, which says of which ([`attempt_of`]).
    pub fn attempt_secret(&self, attempt: &AttemptId) -> String {
        format!("{}{SEPARATOR}{attempt}", self.secret())
    }
}

/// Between a secret and the attempt it is of.
const SEPARATOR: char = '.';

/// The attempt that a secret says it is of.
#[must_use]
pub fn attempt_of(secret: &str) -> Option<AttemptId> {
    secret.split_once(SEPARATOR)?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crashyard_protocol::clock::{ManualClock, Timestamp};
    use rand::SeedableRng;

    #[test]
    fn ids_sort_in_the_order_they_were_drawn_even_when_the_clock_goes_back() {
        let clock = ManualClock::at(Timestamp(1_000_000));
        let ids = Ids::new(Arc::new(clock.clone()), Box::new(rand::rngs::StdRng::seed_from_u64(7)));
        let drawn: Vec<Ulid> = (0..1000).map(|_| ids.next()).collect();
        assert!(drawn.windows(2).all(|pair| pair[0] < pair[1]));
        assert_ne!(ids.secret(), ids.secret());
        let attempt = AttemptId::from_ulid(drawn[0]);
        assert_eq!(attempt_of(&ids.attempt_secret(&attempt)), Some(attempt));
        assert_eq!(attempt_of(&ids.secret()), None);
    }
}
