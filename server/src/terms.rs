//! The terms of attempts ([`Terms`]), kept in memory: each attempt is judged some seventeen times, and each
//! time they were read and decoded again.
//!
//! What it must never do: keep anything that changes while an attempt lives.

use crate::db::attempt::{self, Terms};
use crate::db::{Db, DbResult, Tx};
use crashyard_protocol::AttemptId;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Attempts whose terms are kept; one takes two kilobytes by estimate.
const KNOWN: usize = 16_384;

/// The terms of attempts that were looked at a moment ago.
#[derive(Debug, Default)]
pub struct KnownTerms(Mutex<HashMap<AttemptId, Arc<Terms>>>);

impl KnownTerms {
    /// Those of one attempt.
    pub async fn of(&self, db: &Db, id: &AttemptId) -> DbResult<Arc<Terms>> {
        if let Some(known) = self.known().get(id) {
            return Ok(known.clone());
        }
        let terms = Arc::new(attempt::terms(db, id).await?);
        self.keep([terms.clone()]);
        Ok(terms)
    }

    /// Those of each of these attempts that there are.
    pub async fn of_all(&self, tx: &mut Tx, ids: &[&AttemptId]) -> DbResult<HashMap<AttemptId, Arc<Terms>>> {
        let mut all: HashMap<AttemptId, Arc<Terms>> = {
            let known = self.known();
            ids.iter()
                .filter_map(|id| known.get_key_value(*id))
                .map(|(id, terms)| (id.clone(), terms.clone()))
                .collect()
        };
        let unknown: Vec<&AttemptId> = ids.iter().copied().filter(|id| !all.contains_key(*id)).collect();
        if !unknown.is_empty() {
            let read: Vec<Arc<Terms>> = attempt::terms_of(tx, &unknown).await?.into_iter().map(Arc::new).collect();
            self.keep(read.iter().cloned());
            all.extend(read.into_iter().map(|terms| (terms.attempt_id.clone(), terms)));
        }
        Ok(all)
    }

    /// Forgets those of an attempt that is over.
    pub fn forget(&self, id: &AttemptId) {
        self.known().remove(id);
    }

    fn keep(&self, read: impl IntoIterator<Item = Arc<Terms>>) {
        let mut known = self.known();
        for terms in read {
            if known.len() >= KNOWN {
                known.clear();
            }
            known.insert(terms.attempt_id.clone(), terms);
        }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<AttemptId, Arc<Terms>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
