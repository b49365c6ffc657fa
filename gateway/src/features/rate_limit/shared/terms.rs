//! Terms of the leases of one quota.

use std::time::Duration;

use crate::config::RateLimitAlgorithm;
use crate::features::rate_limit::algorithm::QuotaPolicy;
use crate::runtime::clock::Instant;

/// Part of a sliding window, or of the time in which a bucket fills, for which its leases last. Units of a sliding
/// window count that much longer than they would without leases, and what a bucket has leased is not refilled
/// beyond its size.
const LEASES_PER_WINDOW: u64 = 32;
/// Shortest lease: some round trips to the store.
const MIN_LEASE: Duration = Duration::from_millis(20);
/// Longest lease: time for which a crashed gateway keeps what it has leased from a bucket.
const MAX_LEASE: Duration = Duration::from_secs(5);
/// Part of a fixed window after which the units of an idle lease go back.
const IDLE_TIMES_PER_WINDOW: u64 = 10;
const MAX_IDLE_TIME: Duration = Duration::from_secs(10);
const NANOSECONDS_PER_MICROSECOND: u64 = 1000;

/// Algorithm and parameters of a quota, as leases need them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LeaseTerms {
    pub(crate) algorithm: RateLimitAlgorithm,
    policy: QuotaPolicy,
}

impl LeaseTerms {
    pub(in crate::features::rate_limit) fn new(
        algorithm: RateLimitAlgorithm,
        policy: QuotaPolicy,
    ) -> Self {
        Self { algorithm, policy }
    }

    /// Returns the terms of a rule.
    #[cfg(test)]
    pub(crate) fn of(rule: &crate::config::RateLimitSettings) -> Self {
        Self::new(rule.algorithm, QuotaPolicy::of(rule))
    }

    /// Returns the largest number of units that may be spent at once.
    pub(crate) fn limit(self) -> u32 {
        match self.algorithm {
            RateLimitAlgorithm::FixedWindow | RateLimitAlgorithm::SlidingWindow => {
                self.policy.quota
            }
            RateLimitAlgorithm::TokenBucket | RateLimitAlgorithm::LeakyBucket => {
                self.policy.bucket_size
            }
        }
    }

    /// Returns the window in microseconds, rounded up, or for a bucket the nanoseconds in which one
    /// unit is refilled.
    pub(crate) fn period(self) -> u64 {
        match self.algorithm {
            RateLimitAlgorithm::FixedWindow | RateLimitAlgorithm::SlidingWindow => self
                .policy
                .window_ns
                .div_ceil(NANOSECONDS_PER_MICROSECOND)
                .max(1),
            RateLimitAlgorithm::TokenBucket | RateLimitAlgorithm::LeakyBucket => {
                self.policy.emission_interval_ns()
            }
        }
    }

    /// Returns the time that a lease lasts, where it does not end with its window. The units of a leaky
    /// bucket are instants of departure, which have passed when they cannot be used any more.
    pub(crate) fn lease_time(self) -> Duration {
        match self.algorithm {
            RateLimitAlgorithm::FixedWindow | RateLimitAlgorithm::LeakyBucket => Duration::ZERO,
            RateLimitAlgorithm::SlidingWindow => lease_of(self.policy.window_ns),
            RateLimitAlgorithm::TokenBucket => {
                lease_of(self.policy.window_ns.min(self.policy.drain_time_ns()))
            }
        }
    }

    /// Returns the time after which unused units go back before their lease ends.
    pub(super) fn idle_time(self) -> Duration {
        Duration::from_nanos(self.policy.window_ns / IDLE_TIMES_PER_WINDOW).min(MAX_IDLE_TIME)
    }

    /// Returns the time between two departures from a leaky bucket.
    pub(super) fn departure_interval(self) -> Option<Duration> {
        let interval = Duration::from_nanos(self.policy.emission_interval_ns());
        (self.algorithm == RateLimitAlgorithm::LeakyBucket).then_some(interval)
    }

    /// Returns the instant before which units of a lease that the store granted for `valid` may be
    /// spent. It runs from the sending of the command, which is before the store's decision: a response that
    /// is late, or a process that is paused, makes it no longer. It is one thousandth shorter,
    /// since two clocks may differ in rate (NTP changes it by at most 500 ppm).
    pub(super) fn lease_end(sent: Instant, valid: Duration) -> Instant {
        const RATE_MARGIN: u32 = 1000;
        sent.saturating_add(valid.saturating_sub(valid / RATE_MARGIN))
    }
}

fn lease_of(nanoseconds: u64) -> Duration {
    Duration::from_nanos(nanoseconds / LEASES_PER_WINDOW).clamp(MIN_LEASE, MAX_LEASE)
}
