//! Terms of the leases of one quota.

use std::time::Duration;

use super::spent::INTERVALS;
use crate::config::RateLimitAlgorithm;
use crate::features::rate_limit::algorithm::QuotaPolicy;
use crate::runtime::clock::{Instant, nanoseconds};

/// Longest lease: time for which a crashed gateway keeps what it has leased from a bucket. Requests that come at least
/// once in [`MAX_IDLE_TIME`] are thirty in it.
const MAX_LEASE: Duration = Duration::from_mins(5);
/// Part of the window, or of the time in which a bucket fills, for which a lease lasts whose units requests wait
/// for. They are reported with the next command, if there is one: without it they count that much longer than they would
/// without leases.
const SHORT_LEASES_PER_WINDOW: u64 = 32;
const MAX_SHORT_LEASE: Duration = Duration::from_secs(5);
/// Shortest lease: some round trips to the store.
const MIN_LEASE: Duration = Duration::from_millis(20);
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
    ///
    /// It is at most the window: what a gateway has spent in a lease, and reports before it ends, would not be free any sooner
    /// without leases.
    pub(crate) fn lease_time(self) -> Duration {
        self.recovery_time()
            .map_or(Duration::ZERO, |window| window.clamp(MIN_LEASE, MAX_LEASE))
    }

    /// Returns the time that a lease lasts of which each unit has a request that waits for it.
    pub(crate) fn short_lease_time(self) -> Duration {
        self.recovery_time().map_or(Duration::ZERO, |window| {
            let part = Duration::from_nanos(nanoseconds(window) / SHORT_LEASES_PER_WINDOW);
            part.clamp(MIN_LEASE, MAX_SHORT_LEASE)
        })
    }

    /// Returns the time after which the units of a quota are available again, where its leases do not end with a window.
    fn recovery_time(self) -> Option<Duration> {
        let window = match self.algorithm {
            RateLimitAlgorithm::FixedWindow | RateLimitAlgorithm::LeakyBucket => return None,
            RateLimitAlgorithm::SlidingWindow => self.policy.window_ns,
            RateLimitAlgorithm::TokenBucket => {
                self.policy.window_ns.min(self.policy.drain_time_ns())
            }
        };
        Some(Duration::from_nanos(window))
    }

    /// Returns the nanoseconds of an interval in which spent units are counted together: all of them, where it does not
    /// matter when they were spent.
    pub(crate) fn spent_interval(self) -> u64 {
        let lease = nanoseconds(self.lease_time());
        match lease / INTERVALS as u64 {
            0 => u64::MAX,
            interval => interval,
        }
    }

    /// Returns whether a lease ends with the window of its quota.
    pub(super) fn ends_with_window(self) -> bool {
        self.algorithm == RateLimitAlgorithm::FixedWindow
    }

    /// Returns the time after which unused units go back before their lease ends.
    pub(super) fn idle_time(self) -> Duration {
        Duration::from_nanos(self.policy.window_ns / IDLE_TIMES_PER_WINDOW).min(MAX_IDLE_TIME)
    }

    /// Returns the time between two departures from a leaky bucket.
    pub(super) fn departure_interval(self) -> Option<Duration> {
        let interval = || Duration::from_nanos(self.policy.emission_interval_ns());
        (self.algorithm == RateLimitAlgorithm::LeakyBucket).then(interval)
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
