//! Credentials that were looked up a moment ago: a lab asks with the same token many times a second.
//!
//! A token that is revoked stops working within [`FRESH`] at every server; at the one that was told, at once. What an attempt's
//! token may do depends on the attempt, so those are looked up each time.

use crate::db::token::Credential;
use crashyard_protocol::{Scope, TokenId};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How long a credential counts as it was found.
pub const FRESH: Duration = Duration::from_secs(5);
/// Most that are kept; a farm has far fewer tokens that are in use at one moment.
const MOST: usize = 1024;

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
        (now.duration_since(*since) < FRESH).then(|| credential.clone())
    }

    /// Keeps what was found at `since`, before it was asked for.
    pub fn keep(&self, secret_hash: String, credential: &Credential, since: Instant) {
        if credential.scope == Scope::Attempt {
            return;
        }
        let mut found = self.found();
        if found.len() >= MOST {
            found.clear();
        }
        found.insert(secret_hash, (credential.clone(), since));
    }

    /// Forgets a token that was revoked.
    pub fn forget(&self, id: &TokenId) {
        self.found().retain(|_, (credential, _)| credential.id != *id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credential(scope: Scope) -> Credential {
        let id = TokenId::from_ulid(ulid::Ulid::from_parts(1, 1));
        Credential {
            id,
            name: "one".into(),
            scope,
            attempt_id: None,
            attempt_state: None,
            expires_at: None,
            revoked_at: None,
        }
    }

    #[test]
    fn a_credential_counts_for_a_moment_unless_it_is_revoked() {
        let (known, now) = (Credentials::default(), Instant::now());
        let one = credential(Scope::Controller);
        known.keep("a".into(), &one, now);
        assert_eq!(known.get("a", now).map(|known| known.id), Some(one.id.clone()));
        assert!(known.get("b", now).is_none());
        assert!(known.get("a", now + FRESH).is_none());
        known.forget(&one.id);
        assert!(known.get("a", now).is_none());
    }

    #[test]
    fn the_token_of_an_attempt_is_looked_up_each_time() {
        let (known, now) = (Credentials::default(), Instant::now());
        known.keep("a".into(), &credential(Scope::Attempt), now);
        assert!(known.get("a", now).is_none());
    }
}
