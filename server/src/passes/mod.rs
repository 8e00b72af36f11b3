//! Background work, as passes over the ledger.
//!
//! Each pass is a `tick`: it reads what is due, does it, and says when there will be something again. It may run at
//! any time, twice, and on two servers. The loops here only decide *when*: at that moment, when somebody wakes them,
//! or once in a while in case nobody did. A test calls `tick` itself.

pub mod aside;
pub mod compact;
pub mod deadlines;
pub mod dumps;
pub mod findings;
pub mod fold;
pub mod glimpse;
pub mod health;
pub mod idle;
pub mod leases;
pub mod machines;
pub mod notices;
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
use tokio::time::Instant;

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

/// How long a pass rests after it found nothing more to do, before anybody can wake it.
#[derive(Clone, Copy)]
struct Rest {
    least: Duration,
    /// At least so many times as long as the look took.
    times: u32,
}

const NO_REST: Rest = Rest { least: Duration::ZERO, times: 0 };
/// For looks at what has ended or grown: whatever does so meanwhile is dealt with together, for the price of one.
const TOGETHER: Rest = Rest { least: Duration::from_millis(250), times: 0 };
/// For looks at what is due, which every judgement may have moved.
const DUE: Rest = Rest { least: Duration::from_millis(100), times: 0 };
/// For looks at all dumps, which cost more the more are kept: a hundredth of a processor at most, however many they are.
const DUMPS: Rest = Rest { least: Duration::from_secs(5), times: 100 };
/// For looks at how all machines did, the same.
const HEALTH: Rest = Rest { least: health::EVERY, times: 100 };

/// Starts every pass; they end when the server stops.
pub fn start(state: &AppState) -> JoinSet<()> {
    let mut set = JoinSet::new();
    macro_rules! pass {
        ($name:ident, $woken:expr) => {
            pass!($name, $woken, NO_REST)
        };
        ($name:ident, $woken:expr, $rest:expr) => {
            set.spawn(run(
                state.clone(),
                stringify!($name),
                $woken,
                $rest,
                |state| async move { $name::tick(&state).await },
            ))
        };
    }
    pass!(deadlines, Some(Pass::Deadlines), DUE);
    pass!(leases, Some(Pass::Leases));
    pass!(verify, Some(Pass::Verify));
    pass!(compact, Some(Pass::Compact), TOGETHER);
    pass!(findings, Some(Pass::Compact), TOGETHER);
    pass!(glimpse, Some(Pass::Glimpse), TOGETHER);
    pass!(dumps, Some(Pass::Dumps), DUMPS);
    pass!(queue, Some(Pass::Queue));
    pass!(machines, Some(Pass::Machines));
    pass!(notices, Some(Pass::Notices));
    pass!(health, None, HEALTH);
    pass!(owed, None);
    pass!(idle, None);
    pass!(fold, None);
    pass!(presence, None);
    set
}

async fn run<F>(state: AppState, name: &'static str, pass: Option<Pass>, rest: Rest, tick: impl Fn(AppState) -> F)
where
    F: Future<Output = AppResult<Next>>,
{
    let mut waiter = pass.map(|pass| state.wake.subscribe(Topic::Pass(pass)));
    while !state.stop.is_cancelled() {
        let begun = Instant::now();
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
        let rest = rest.least.max(begun.elapsed().saturating_mul(rest.times));
        let woken = async {
            tokio::time::sleep(rest).await;
            match &mut waiter {
                Some(waiter) => waiter.woken().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = tokio::time::sleep(sleep.min(SAFETY).max(rest)) => {}
            () = woken => {}
            () = state.stop.cancelled() => {}
        }
    }
}
