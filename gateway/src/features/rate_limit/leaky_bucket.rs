//! Leaky bucket as a queue (traffic shaping): requests leave at the constant rate of `quota` per
//! `duration`. A request is delayed until it leaves, and rejected if `bucket_size` requests are queued.
//!
//! [`QuotaState::time`] is the nanosecond in which the queue will be empty.

use std::time::Duration;

use crate::features::rate_limit::algorithm::{AlgorithmDecision, QuotaPolicy, QuotaState};
use crate::features::rate_limit::token_bucket;
use crate::runtime::clock::Instant;

pub(super) fn take(state: &mut QuotaState, policy: QuotaPolicy, now: Instant) -> AlgorithmDecision {
    let departure = Instant(state.time.max(now.0));
    // A queue of `bucket_size` admits the same requests as a token bucket of that size; they are
    // delayed instead of sent as a burst.
    match token_bucket::take(state, policy, now) {
        AlgorithmDecision::Passed {
            remaining,
            reset,
            expiry,
            delay: Duration::ZERO,
        } => AlgorithmDecision::Passed {
            remaining,
            reset,
            expiry,
            delay: departure.since(now),
        },
        other => other,
    }
}
