//! Units of a lease that requests spend without its [state](super::lease): what most decisions need, in one cache line
//! together with the key.
//!
//! Invariant: a decision by ready units is the one that the state would make, and the state learns what was spent of them
//! before it is used. So they are fewer than make the next lease due, and end no later than the lease, its
//! renewal and the interval in which the state counts spent units.

use std::time::Duration;

use super::decision::LeaseDecision;
use crate::runtime::clock::{Instant, nanoseconds};

/// Units that requests may spend until an instant. By default there are none.
#[derive(Debug, Default)]
pub(super) struct ReadyUnits {
    pub(super) units: u32,
    /// Units that the state of the lease does not know to be spent.
    pub(super) spent: u32,
    /// Units that gateway and store have left.
    pub(super) remaining: u32,
    pub(super) end: Instant,
    pub(super) last_use: Instant,
    /// Time after the last use from which the lease is idle.
    pub(super) idle_time_ns: u64,
    pub(super) reset: Instant,
}

impl ReadyUnits {
    /// Decides about a request. Returns `None` if that takes the state of the lease.
    pub(super) fn take(&mut self, now: Instant) -> Option<LeaseDecision> {
        if self.units == 0 || self.end <= now {
            return None;
        }
        self.units -= 1;
        self.spent += 1;
        self.remaining = self.remaining.saturating_sub(1);
        self.last_use = now;
        Some(LeaseDecision::Passed {
            remaining: self.remaining,
            reset: self.reset,
            delay: Duration::ZERO,
        })
    }

    /// Returns whether the lease neither has ended nor is idle.
    pub(super) fn is_in_use(&self, now: Instant) -> bool {
        now < self.end && nanoseconds(now.since(self.last_use)) < self.idle_time_ns
    }
}
