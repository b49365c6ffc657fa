//! Decision about a request by a lease.

use std::time::Duration;

use crate::runtime::clock::Instant;

/// Decision about a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::features::rate_limit) enum LeaseDecision {
    Passed {
        remaining: u32,
        reset: Instant,
        delay: Duration,
    },
    Rejected {
        until: Instant,
    },
}

impl LeaseDecision {
    /// Returns the decision about a request that has to pass under two keys.
    pub(in crate::features::rate_limit) fn and(self, other: Self) -> Self {
        match (self, other) {
            (
                Self::Passed {
                    remaining,
                    reset,
                    delay,
                },
                Self::Passed {
                    remaining: other_remaining,
                    reset: other_reset,
                    delay: other_delay,
                },
            ) => Self::Passed {
                remaining: remaining.min(other_remaining),
                reset: reset.max(other_reset),
                delay: delay.max(other_delay),
            },
            (Self::Passed { .. }, other) => other,
            (first, _) => first,
        }
    }
}
