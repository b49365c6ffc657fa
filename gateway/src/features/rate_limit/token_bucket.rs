//! Token bucket of `bucket_size` tokens, refilled at the constant rate of `quota` tokens per
//! `duration`, as the generic cell rate algorithm (GCRA; ITU-T I.371, annex A).
//!
//! [`QuotaState::time`] is the theoretical arrival time (TAT): the nanosecond in which the bucket will be
//! full. Invariant: it is never later than now plus the time in which an empty bucket fills.

use std::time::Duration;

use crate::features::rate_limit::algorithm::{AlgorithmDecision, QuotaPolicy, QuotaState};
use crate::runtime::clock::Instant;

pub(super) fn take(state: &mut QuotaState, policy: QuotaPolicy, now: Instant) -> AlgorithmDecision {
    let (interval, drain_time) = (policy.emission_interval_ns(), policy.drain_time_ns());
    let full_at = state.time.max(now.0).saturating_add(interval);
    let time_to_full = full_at - now.0;
    if time_to_full > drain_time {
        return AlgorithmDecision::Rejected {
            retry_after: Duration::from_nanos(time_to_full - drain_time),
        };
    }
    state.time = full_at;
    AlgorithmDecision::Passed {
        remaining: u32::try_from((drain_time - time_to_full) / interval).unwrap_or(u32::MAX),
        reset: Duration::from_nanos(time_to_full),
        delay: Duration::ZERO,
        expiry: Instant(full_at),
    }
}

/// Counts a request that passed. Returns the expiry of the state.
pub(super) fn record(state: &mut QuotaState, policy: QuotaPolicy, now: Instant) -> Instant {
    let full_at = state
        .time
        .max(now.0)
        .saturating_add(policy.emission_interval_ns());
    state.time = full_at.min(now.0.saturating_add(policy.drain_time_ns()));
    Instant(state.time)
}

/// Returns the state in which `count` requests have passed at once, and its expiry.
pub(super) fn state_after(count: u32, policy: QuotaPolicy, now: Instant) -> (QuotaState, Instant) {
    let taken = policy
        .emission_interval_ns()
        .saturating_mul(u64::from(count))
        .min(policy.drain_time_ns());
    let state = QuotaState {
        time: now.0.saturating_add(taken),
        ..QuotaState::default()
    };
    (state, Instant(state.time))
}
