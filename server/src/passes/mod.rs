//! Background work, as passes over the ledger.
//!
//! Each pass is a `tick`: it reads what is due, does it, and says when there will be something again. It may run at
//! any time, twice, and on two servers. The loops here only decide *when*: at that moment, when somebody wakes them,
//! or once in a while in case nobody did. A test calls `tick` itself.

pub mod compact;
pub mod deadlines;
pub mod dumps;
pub mod findings;
pub mod fold;
pub mod glimpse;
pub mod health;
pub mod leases;
pub mod machines;
pub mod owed;
pub mod presence;
pub mod queue;
pub mod verify;

use crate::app::AppState;
use crate::error::AppResult;
use crate::wake::{Pass, SAFETY, Topic};
use crashyard_protocol::clock::Timestamp;
use futures::FutureExt as _;
use metrics::Label;
use std::panic::AssertUnwindSafe;
use std::time::Duration;
use tokio::task::JoinSet;

/// Things a pass does in one tick; what is left follows at once.
const BATCH: i64 = 100;
/// How soon a pass that failed is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// When a pass wants to run next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// At once: there is more.
    Now,
    /// At this time.
    At(Timestamp),
    /// When it is woken.
    Woken,
}

/// Starts every pass; they end when the server stops.
pub fn start(state: &AppState) -> JoinSet<()> {
    let mut set = JoinSet::new();
    set.spawn(run(
        state.clone(),
        "deadlines",
        Some(Pass::Deadlines),
        |state| async move { deadlines::tick(&state).await },
    ));
    set.spawn(run(state.clone(), "leases", Some(Pass::Leases), |state| async move { leases::tick(&state).await }));
    set.spawn(run(state.clone(), "verify", Some(Pass::Verify), |state| async move { verify::tick(&state).await }));
    set.spawn(run(state.clone(), "compact", Some(Pass::Compact), |state| async move { compact::tick(&state).await }));
    set.spawn(run(state.clone(), "findings", Some(Pass::Compact), |state| async move { findings::tick(&state).await }));
    set.spawn(run(state.clone(), "glimpse", Some(Pass::Glimpse), |state| async move { glimpse::tick(&state).await }));
    set.spawn(run(state.clone(), "dumps", Some(Pass::Dumps), |state| async move { dumps::tick(&state).await }));
    set.spawn(run(state.clone(), "queue", Some(Pass::Queue), |state| async move { queue::tick(&state).await }));
    set.spawn(run(
        state.clone(),
        "machines",
        Some(Pass::Machines),
        |state| async move { machines::tick(&state).await },
    ));
    set.spawn(run(state.clone(), "health", None, |state| async move { health::tick(&state).await }));
    set.spawn(run(state.clone(), "owed", None, |state| async move { owed::tick(&state).await }));
    set.spawn(run(state.clone(), "fold", None, |state| async move { fold::tick(&state).await }));
    set.spawn(run(state.clone(), "presence", None, |state| async move { presence::tick(&state).await }));
    set
}

async fn run<F>(state: AppState, name: &'static str, pass: Option<Pass>, tick: impl Fn(AppState) -> F)
where
    F: Future<Output = AppResult<Next>>,
{
    let mut waiter = pass.map(|pass| state.wake.subscribe(Topic::Pass(pass)));
    while !state.stop.is_cancelled() {
        // A pass that panics must not take the others with it, nor stay away.
        let sleep = match AssertUnwindSafe(tick(state.clone())).catch_unwind().await {
            Ok(Ok(Next::Now)) => continue,
            Ok(Ok(Next::At(at))) => at.since(state.now()),
            Ok(Ok(Next::Woken)) => Duration::MAX,
            Ok(Err(error)) => {
                tracing::error!(pass = name, %error, "pass failed");
                state.metrics.add("crashyard_pass_failures_total", vec![Label::new("pass", name)], 1);
                AGAIN
            }
            Err(_) => {
                tracing::error!(pass = name, "pass panicked");
                state.metrics.add("crashyard_pass_failures_total", vec![Label::new("pass", name)], 1);
                AGAIN
            }
        };
        let woken = async {
            match &mut waiter {
                Some(waiter) => waiter.woken().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = tokio::time::sleep(sleep.min(SAFETY)) => {}
            () = woken => {}
            () = state.stop.cancelled() => {}
        }
    }
}
