//! Lease under which a participant may use its cached sessions, renewed by heartbeats.

use std::time::{Duration, Instant};

/// Time from the sending of a heartbeat after which the other participants count the lease that it renewed as
/// expired. Measured with [`Instant`], which advances while a process is stopped.
pub(crate) const LEASE_DURATION: Duration = Duration::from_secs(1);
/// Time by which the holder of a lease stops using it earlier, since its clock may run slower than that of a
/// participant that waits for the expiry (the ε of Gray and Cheriton): by 1 %, where clocks deviate by 0.01 % and
/// are corrected by 0.05 % (`adjtimex(2)`).
const CLOCK_RATE_MARGIN: Duration = Duration::from_millis(10);
/// Interval of heartbeats, short enough that the lease survives a lost or late one.
pub(crate) const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(250);
/// Time after which the subscriber's connection counts as dead if a heartbeat that Redis accepted
/// has not returned.
pub(crate) const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(2);

/// State of the lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Lease {
    Subscribed(Heartbeats),
    /// The subscriber receives no invalidations.
    #[default]
    Unsubscribed,
}

/// Heartbeats, by the time at which they were sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Heartbeats {
    /// The last one that returned.
    last_received: Option<Instant>,
    /// The first one after it that Redis accepted.
    first_pending: Option<Instant>,
}

impl Lease {
    /// Creates a lease that begins with the first heartbeat that returns.
    pub(crate) fn subscribed() -> Self {
        Self::Subscribed(Heartbeats::default())
    }

    pub(crate) fn is_valid(self, now: Instant) -> bool {
        match self {
            Self::Subscribed(heartbeats) => heartbeats
                .last_received
                .is_some_and(|sent| now + CLOCK_RATE_MARGIN < sent + LEASE_DURATION),
            Self::Unsubscribed => false,
        }
    }

    /// Records that Redis accepted the heartbeat that was sent at `sent`.
    pub(crate) fn heartbeat_published(&mut self, sent: Instant) {
        // It may have returned already.
        if let Self::Subscribed(heartbeats) = self
            && heartbeats.last_received.is_none_or(|last| last < sent)
        {
            heartbeats.first_pending.get_or_insert(sent);
        }
    }

    /// Renews the lease: the heartbeat that was sent at `sent` has returned.
    pub(crate) fn heartbeat_received(&mut self, sent: Instant) {
        if let Self::Subscribed(heartbeats) = self {
            heartbeats.last_received = heartbeats.last_received.max(Some(sent));
            heartbeats.first_pending = None;
        }
    }

    /// Returns whether a published heartbeat did not return within [`HEARTBEAT_TIMEOUT`].
    pub(crate) fn is_heartbeat_overdue(self, now: Instant) -> bool {
        match self {
            Self::Subscribed(heartbeats) => heartbeats
                .first_pending
                .is_some_and(|sent| now > sent + HEARTBEAT_TIMEOUT),
            Self::Unsubscribed => false,
        }
    }
}
