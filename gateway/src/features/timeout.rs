//! Deadline of the upstream side of a request: all attempts and the delays between them.
//!
//! Time in which the client sends its request or reads the response does not count: it extends the
//! deadline.

use std::time::Duration;

use crate::config::TimeoutSettings;
use crate::runtime::clock::Instant;

/// Endpoints are in the same network: one that takes longer to accept a connection is unavailable.
const MAX_CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Zero would mean no timeout at all.
const MIN_CONNECT_TIMEOUT: Duration = Duration::from_millis(1);

/// Time that an attempt to connect may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConnectTimeout {
    /// The time that every endpoint has: one that exceeds it is unavailable.
    Full,
    /// Time that the deadline of the request leaves: exceeding it says nothing about the endpoint.
    Shortened(Duration),
}

impl ConnectTimeout {
    pub(crate) fn duration(self) -> Duration {
        match self {
            Self::Full => MAX_CONNECT_TIMEOUT,
            Self::Shortened(duration) => duration,
        }
    }
}

/// Instant by which the upstream side of a request must be complete, if the route has a timeout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Deadline(Option<Instant>);

impl Deadline {
    pub(crate) const NONE: Self = Self(None);

    /// Returns the deadline of a request that is forwarded from `start` on.
    pub(crate) fn starting_at(start: Instant, timeout: Option<&TimeoutSettings>) -> Self {
        Self(timeout.map(|timeout| start.saturating_add(timeout.limit)))
    }

    pub(crate) fn has_passed(self, now: Instant) -> bool {
        self.0.is_some_and(|deadline| deadline <= now)
    }

    /// Returns the deadline moved by time that was spent waiting for the client.
    pub(crate) fn extended_by(self, duration: Duration) -> Self {
        Self(self.0.map(|deadline| deadline.saturating_add(duration)))
    }

    /// Returns the remaining time, `None` if there is no deadline.
    pub(crate) fn remaining(self, now: Instant) -> Option<Duration> {
        self.0.map(|deadline| deadline.since(now))
    }

    pub(crate) fn connect_timeout(self, now: Instant) -> ConnectTimeout {
        match self.remaining(now) {
            Some(remaining) if remaining < MAX_CONNECT_TIMEOUT => {
                ConnectTimeout::Shortened(remaining.max(MIN_CONNECT_TIMEOUT))
            }
            _ => ConnectTimeout::Full,
        }
    }
}
