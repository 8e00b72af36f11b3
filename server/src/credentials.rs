//! Credentials that were looked up a moment ago: a lab asks with the same token many times a second.
//!
//! A token that is revoked stops working within [`FRESH`] at every server; at the one that was told, at once. An attempt's secret
//! is kept longer: ten thousand machines that say something every few seconds would be looked up almost each time. Nobody can
//! revoke it but by another lease, whose epoch fences off whoever has the old one, and whether the attempt is over is not known
//! from here anyway: whoever acts inside it looks at it.

use crate::db::token::Credential;
use crashyard_protocol::{AttemptId, TokenId};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How long a credential counts as it was found.
pub const FRESH: Duration = Duration::from_secs(5);
/// The same of an attempt's.
const FRESH_IN_ATTEMPT: Duration = Duration::from_secs(600);
/// Most that are kept, in a few megabytes: each of ten thousand machines has a token of its own while it works.
const MOST: usize = 16 * 1024;

/// Credentials by the hash of their secret.
#[derive(Debug, Default)]
pub struct Credentials(Mutex<HashMap<String, (Credential, Instant)>>);

impl Credentials {
    fn found(&self) -> std::sync::MutexGuard<'_, HashMap<String, (Credential, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a secret stood for a moment ago.
    #[must_use]
    pub fn get(&self, secret_hash: &str, now: Instant) -> Option<Credential> {
        let found = self.found();
        let (credential, since) = found.get(secret_hash)?;
        (now.duration_since(*since) < fresh(credential)).then(|| credential.clone())
    }

    /// Keeps what was found at `since`, before it was asked for.
    pub fn keep(&self, secret_hash: String, credential: &Credential, since: Instant) {
        let mut found = self.found();
        if found.len() >= MOST {
            found.retain(|_, (credential, kept)| since.duration_since(*kept) < fresh(credential));
        }
        if found.len() >= MOST {
            return;
        }
        found.insert(secret_hash, (credential.clone(), since));
    }

    /// Forgets a token that was revoked.
    pub fn forget(&self, id: &TokenId) {
        self.found().retain(|_, (credential, _)| credential.id != *id);
    }

    /// Forgets the secret of an attempt that was given another one.
    pub fn forget_attempt(&self, id: &AttemptId) {
        self.found().retain(|_, (credential, _)| credential.attempt_id.as_ref() != Some(id));
    }
}

fn fresh(credential: &Credential) -> Duration {
    if credential.attempt_id.is_some() { FRESH_IN_ATTEMPT } else { FRESH }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crashyard_protocol::Scope;

    fn credential(number: u64, attempt_id: Option<AttemptId>) -> Credential {
        Credential {
            id: TokenId::from_ulid(ulid::Ulid::from_parts(number, 1)),
            name: "one".into(),
            scope: if attempt_id.is_some() { Scope::Attempt } else { Scope::Controller },
            attempt_id,
            attempt_state: None,
            expires_at: None,
            revoked_at: None,
        }
    }

    #[test]
    fn a_credential_counts_for_a_moment_unless_it_is_revoked() {
        let (known, now) = (Credentials::default(), Instant::now());
        let one = credential(1, None);
        known.keep("a".into(), &one, now);
        assert_eq!(known.get("a", now).map(|known| known.id), Some(one.id.clone()));
        assert!(known.get("b", now).is_none());
        assert!(known.get("a", now + FRESH).is_none());
        known.forget(&one.id);
        assert!(known.get("a", now).is_none());
    }

    #[test]
    fn the_secret_of_an_attempt_is_forgotten_when_it_is_replaced() {
        let (known, now) = (Credentials::default(), Instant::now());
        let attempt = |number| AttemptId::from_ulid(ulid::Ulid::from_parts(number, 2));
        known.keep("a".into(), &credential(1, Some(attempt(1))), now);
        known.keep("b".into(), &credential(2, Some(attempt(2))), now);
        known.forget_attempt(&attempt(1));
        assert!(known.get("a", now).is_none());
        assert!(known.get("b", now).is_some());
    }

    #[test]
    fn old_ones_make_room_and_so_many_new_ones_are_not_kept() {
        let (known, now) = (Credentials::default(), Instant::now());
        for number in 0..MOST as u64 {
            known.keep(number.to_string(), &credential(number, None), now);
        }
        known.keep("more".into(), &credential(0, None), now);
        assert!(known.get("more", now).is_none() && known.get("0", now).is_some());
        known.keep("more".into(), &credential(0, None), now + FRESH);
        assert!(known.get("more", now + FRESH).is_some());
    }
}
