//! Groups of which one may be impossible: what cannot be done (an object is missing, the store is away) never keeps the others
//! waiting. It steps aside for a while, alone, and is tried again.

use crate::app::AppState;
use crate::error::{AppError, AppResult};
use crashyard_protocol::clock::Timestamp;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long one lets the others go first.
const FOR: Duration = Duration::from_secs(600);

/// What could not be done, and until when it lets the others go first. Lost with the process and then not needed: everything is
/// tried again.
#[derive(Debug)]
pub struct Aside<K>(Mutex<BTreeMap<K, Timestamp>>);

impl<K> Default for Aside<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Ord + Clone> Aside<K> {
    fn all(&self) -> MutexGuard<'_, BTreeMap<K, Timestamp>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is set aside now, and until when.
    #[must_use]
    pub fn at(&self, now: Timestamp) -> BTreeMap<K, Timestamp> {
        let mut all = self.all();
        all.retain(|_, until| *until > now);
        all.clone()
    }

    /// Sets one aside.
    pub fn put(&self, one: K, now: Timestamp) {
        self.all().insert(one, now.plus(FOR));
    }
}

/// Does all of a group at once. Where that fails as a whole, one after another, up to one that fails by itself. Who failed, and
/// why; what is left of the group is found again by the next tick.
pub async fn together<T: Clone, F>(
    state: &AppState,
    group: Vec<T>,
    all: impl Fn(AppState, Vec<T>) -> F,
) -> Vec<(T, AppError)>
where
    F: Future<Output = AppResult<Vec<(T, AppError)>>>,
{
    match all(state.clone(), group.clone()).await {
        Ok(failed) => return failed,
        Err(error) => tracing::warn!(%error, count = group.len(), "not done together, so one after another"),
    }
    for one in group {
        match all(state.clone(), vec![one.clone()]).await {
            Ok(failed) if failed.is_empty() => {}
            Ok(failed) => return failed,
            Err(error) => return vec![(one, error)],
        }
    }
    Vec::new()
}
