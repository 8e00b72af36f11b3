//! How long each kind of call took, as the labs saw it.

use crate::figures::quantile;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Times by call.
#[derive(Default)]
pub struct Calls {
    times: Mutex<BTreeMap<&'static str, Vec<f64>>>,
    counting: AtomicBool,
    repeated: AtomicU64,
}

/// One call in figures.
#[derive(Clone, Debug, Serialize)]
pub struct Call {
    /// Which.
    pub call: &'static str,
    /// How many.
    pub count: usize,
    /// Median, in milliseconds.
    pub p50_ms: f64,
    /// 99th percentile, in milliseconds.
    pub p99_ms: f64,
    /// The longest, in milliseconds.
    pub max_ms: f64,
}

impl Calls {
    /// Counts from now on, or no longer.
    pub fn count(&self, on: bool) {
        self.counting.store(on, Ordering::Relaxed);
    }

    /// Notes a call that was answered.
    pub fn took(&self, call: &'static str, time: Duration) {
        if self.counting.load(Ordering::Relaxed) {
            let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
            times.entry(call).or_default().push(time.as_secs_f64() * 1e3);
        }
    }

    /// Notes a call that has to be made again.
    pub fn repeat(&self) {
        self.repeated.fetch_add(1, Ordering::Relaxed);
    }

    /// Calls that had to be made again.
    pub fn repeated(&self) -> u64 {
        self.repeated.load(Ordering::Relaxed)
    }

    /// Each kind of call, and all together.
    pub fn figures(&self) -> (Vec<Call>, Call) {
        let times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<f64> = times.values().flatten().copied().collect();
        (times.iter().map(|(call, times)| figure(call, &mut times.clone())).collect(), figure("all", &mut all))
    }
}

fn figure(call: &'static str, times: &mut [f64]) -> Call {
    Call {
        call,
        count: times.len(),
        p50_ms: quantile(times, 0.5),
        p99_ms: quantile(times, 0.99),
        max_ms: quantile(times, 1.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_counted_is_in_the_figures() {
        let calls = Calls::default();
        calls.took("claim", Duration::from_secs(9));
        calls.count(true);
        for ms in [1, 2, 3, 40] {
            calls.took("claim", Duration::from_millis(ms));
        }
        calls.took("console", Duration::from_millis(5));
        let (each, all) = calls.figures();
        assert_eq!((each.len(), each[0].count, all.count), (2, 4, 5));
        assert!((each[0].p99_ms - 40.0).abs() < 0.01 && (all.p50_ms - 3.0).abs() < 0.01);
    }
}
