//! Fixed window counter: a window opens with its first request and lasts one `duration`; `quota`
//! requests pass in it.
//!
//! [`QuotaState::time`] is the end of the window in nanoseconds, the first counter is the number of
//! requests that passed in it.

use std::time::Duration;

use crate::features::rate_limit::algorithm::{AlgorithmDecision, QuotaPolicy, QuotaState};
use crate::runtime::clock::Instant;

pub(super) fn take(state: &mut QuotaState, policy: QuotaPolicy, now: Instant) -> AlgorithmDecision {
    if state.time <= now.0 {
        *state = QuotaState {
            time: now.0.saturating_add(policy.window_ns),
            ..QuotaState::default()
        };
    }
    let window_end = Instant(state.time);
    let passed = &mut state.counters[0];
    if *passed >= policy.quota {
        return AlgorithmDecision::Rejected {
            retry_after: window_end.since(now),
        };
    }
    *passed += 1;
    AlgorithmDecision::Passed {
        remaining: policy.quota - *passed,
        reset: window_end.since(now),
        delay: Duration::ZERO,
        expiry: window_end,
    }
}

/// Counts a request that passed in a window that ends at `window_end`. Returns the expiry of the state.
pub(super) fn record(state: &mut QuotaState, window_end: Instant, now: Instant) -> Instant {
    if state.time <= now.0 {
        *state = QuotaState {
            time: window_end.0,
            ..QuotaState::default()
        };
    }
    state.counters[0] = state.counters[0].saturating_add(1);
    Instant(state.time)
}

/// Returns the state in which `count` requests have passed at once, and its expiry.
pub(super) fn state_after(count: u32, policy: QuotaPolicy, now: Instant) -> (QuotaState, Instant) {
    let mut state = QuotaState {
        time: now.0.saturating_add(policy.window_ns),
        ..QuotaState::default()
    };
    state.counters[0] = count;
    (state, Instant(state.time))
}
