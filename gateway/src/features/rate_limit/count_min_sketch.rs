//! Counters of the keys for which the [store](super::store) has no slot: a count-min sketch
//! (Cormode and Muthukrishnan, 2005) of one quota.
//!
//! Requests are counted in fixed windows of `duration` since the start of the process, whichever
//! algorithm is configured. The sketch may add requests of other keys to a key's count (with 400 keys
//! in it, the probability is 7 in 10⁵) and never counts too few: when memory is exhausted, a quota
//! gets stricter, never laxer.

use std::fmt;
use std::time::Duration;

use parking_lot::Mutex;
use pingora_limits::estimator::Estimator;

use crate::features::rate_limit::algorithm::{AlgorithmDecision, QuotaPolicy};
use crate::runtime::clock::Instant;

/// Hash functions, each with a row of counters.
const ROWS: usize = 4;
/// Counters per row.
const COLUMNS: usize = 4096;

/// Sketch of the current window. Its memory is allocated by the first request that it counts.
#[derive(Default)]
pub(super) struct CountMinSketch(Mutex<Option<SketchWindow>>);

struct SketchWindow {
    /// Number of the window since the start of the process.
    number: u64,
    passed: Estimator,
}

impl CountMinSketch {
    pub(super) fn take(&self, key: u64, policy: QuotaPolicy, now: Instant) -> AlgorithmDecision {
        let window_ns = policy.window_ns.max(1);
        let number = now.0 / window_ns;
        let window_end = Instant((number + 1).saturating_mul(window_ns));
        // The lock makes reading and counting atomic, which the estimator is not.
        let mut window = self.0.lock();
        let window = window.get_or_insert_with(|| SketchWindow {
            number,
            passed: Estimator::new(ROWS, COLUMNS),
        });
        if window.number != number {
            window.passed.reset();
            window.number = number;
        }
        // Counting returns the estimate: to read it before would hash the key once more.
        let count = u32::try_from(window.passed.incr(key, 1)).unwrap_or(u32::MAX);
        if count > policy.quota {
            window.passed.decr(key, 1);
            return AlgorithmDecision::Rejected {
                retry_after: window_end.since(now),
            };
        }
        AlgorithmDecision::Passed {
            remaining: policy.quota - count,
            reset: window_end.since(now),
            delay: Duration::ZERO,
            expiry: window_end,
        }
    }
}

impl fmt::Debug for CountMinSketch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("CountMinSketch")
            .finish_non_exhaustive()
    }
}
