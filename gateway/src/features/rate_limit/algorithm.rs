//! Types that the rate limiting algorithms share: the policy, the state and the decision.

use std::time::Duration;

use crate::config::{RateLimitAlgorithm, RateLimitSettings};
use crate::runtime::clock::{Instant, nanoseconds};

/// State of one quota for one key. The state of a new key is all zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct QuotaState {
    /// Time that the counters refer to. Each algorithm documents its meaning and unit.
    pub(super) time: u64,
    /// Requests that passed.
    pub(super) counters: [u32; COUNTERS_PER_STATE],
}

/// With these counters a state and its expiry fill a cache line of 64 bytes.
pub(super) const COUNTERS_PER_STATE: usize = 12;

/// Decision of an algorithm about a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AlgorithmDecision {
    Passed {
        /// Requests that may still pass.
        remaining: u32,
        /// Time until the whole quota is available again.
        reset: Duration,
        /// Time by which the request is delayed.
        delay: Duration,
        /// Instant from which on the state equals that of a new key.
        expiry: Instant,
    },
    Rejected {
        /// Time until a request passes.
        retry_after: Duration,
    },
}

impl AlgorithmDecision {
    /// Returns the decision about a request that has to pass under two keys.
    pub(super) fn and(self, other: Self) -> Self {
        match (self, other) {
            (
                Self::Passed {
                    remaining,
                    reset,
                    delay,
                    expiry,
                },
                Self::Passed {
                    remaining: other_remaining,
                    reset: other_reset,
                    delay: other_delay,
                    expiry: other_expiry,
                },
            ) => Self::Passed {
                remaining: remaining.min(other_remaining),
                reset: reset.max(other_reset),
                delay: delay.max(other_delay),
                expiry: expiry.max(other_expiry),
            },
            (rejected @ Self::Rejected { .. }, _) | (_, rejected @ Self::Rejected { .. }) => {
                rejected
            }
        }
    }
}

/// Returns the number by which other processes know an algorithm.
pub(super) fn number_of(algorithm: RateLimitAlgorithm) -> u8 {
    match algorithm {
        RateLimitAlgorithm::FixedWindow => 0,
        RateLimitAlgorithm::SlidingWindow => 1,
        RateLimitAlgorithm::TokenBucket => 2,
        RateLimitAlgorithm::LeakyBucket => 3,
    }
}

/// Parameters of a quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct QuotaPolicy {
    pub(super) quota: u32,
    /// Duration of the window, in nanoseconds.
    pub(super) window_ns: u64,
    /// Burst of a token bucket, queue length of a leaky bucket.
    pub(super) bucket_size: u32,
}

impl QuotaPolicy {
    pub(super) fn of(rule: &RateLimitSettings) -> Self {
        Self {
            quota: rule.quota.get(),
            window_ns: nanoseconds(rule.duration),
            bucket_size: rule.bucket_size.get(),
        }
    }

    /// Returns the emission interval of the generic cell rate algorithm: nanoseconds between two
    /// requests at the permitted rate. Rounded up: at most `quota` requests pass in a window.
    pub(super) fn emission_interval_ns(self) -> u64 {
        self.window_ns.div_ceil(u64::from(self.quota)).max(1)
    }

    /// Returns the nanoseconds in which a full bucket drains.
    pub(super) fn drain_time_ns(self) -> u64 {
        self.emission_interval_ns()
            .saturating_mul(u64::from(self.bucket_size))
    }

    /// Returns the longest time in nanoseconds after which a state equals that of a new key.
    pub(super) fn max_lifetime_ns(self) -> u64 {
        // A sliding window expires one slot late.
        let window = self.window_ns.saturating_add(self.window_ns / 8);
        window.max(self.drain_time_ns())
    }
}
