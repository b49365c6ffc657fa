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
/// Time after which the subscriber's connection counts as dead if a heartbeat has not returned.
pub(crate) const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(2);

/// State of the lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Lease {
    Subscribed(Heartbeats),
    /// The subscriber receives no invalidations.
    #[default]
    Unsubscribed,
}

/// Heartbeats, by the time at which they were sent. They are sent on the connection that delivers messages, in the order of these
/// times, each after a write. So if one was delivered and the write of another one not rejected, the server was the primary, and had
/// delivered everything that was published, at the sending of the earlier one.
///
/// The first one that returns after an interruption does not renew the lease. A primary that was stopped and has been replaced
/// accepts what has waited for it before it notices that its replicas are gone; what is sent after it has responded it rejects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Heartbeats {
    /// Time at which the subscription began. Those that were sent before concern another connection.
    subscribed_at: Instant,
    /// The last one that returned, unless it was the first after an interruption.
    delivered: Option<Instant>,
    /// The last one whose write was not rejected.
    confirmed: Option<Instant>,
    /// The last one that returned.
    last_received: Option<Instant>,
    /// Time at which the first one returned of those that were sent within [`LEASE_DURATION`] of each other.
    responding_since: Option<Instant>,
    /// The first one that was sent after `last_received` had returned.
    first_pending: Option<Instant>,
}

impl Lease {
    /// Creates a lease that begins with the second heartbeat that returns.
    pub(crate) fn subscribed(now: Instant) -> Self {
        Self::Subscribed(Heartbeats {
            subscribed_at: now,
            delivered: None,
            confirmed: None,
            last_received: None,
            responding_since: None,
            first_pending: None,
        })
    }

    pub(crate) fn is_valid(self, now: Instant) -> bool {
        match self {
            Self::Subscribed(heartbeats) => heartbeats
                .delivered
                .min(heartbeats.confirmed)
                .is_some_and(|sent| now + CLOCK_RATE_MARGIN < sent + LEASE_DURATION),
            Self::Unsubscribed => false,
        }
    }

    /// Records that a heartbeat is sent at `sent`.
    pub(crate) fn heartbeat_sent(&mut self, sent: Instant) {
        if let Self::Subscribed(heartbeats) = self {
            heartbeats.first_pending.get_or_insert(sent);
        }
    }

    /// Records that Redis accepted the write before the heartbeat that was sent at `sent`.
    pub(crate) fn primary_confirmed(&mut self, sent: Instant) {
        if let Self::Subscribed(heartbeats) = self
            && heartbeats.subscribed_at <= sent
        {
            heartbeats.confirmed = heartbeats.confirmed.max(Some(sent));
        }
    }

    /// Records that the heartbeat that was sent at `sent` has returned, and renews the lease if another one had returned before it
    /// was sent.
    pub(crate) fn heartbeat_received(&mut self, sent: Instant, now: Instant) {
        if let Self::Subscribed(heartbeats) = self {
            heartbeats.received(sent, now);
        }
    }

    /// Returns whether a heartbeat did not return within [`HEARTBEAT_TIMEOUT`].
    pub(crate) fn is_heartbeat_overdue(self, now: Instant) -> bool {
        match self {
            Self::Subscribed(heartbeats) => heartbeats
                .first_pending
                .is_some_and(|sent| now > sent + HEARTBEAT_TIMEOUT),
            Self::Unsubscribed => false,
        }
    }
}

impl Heartbeats {
    fn received(&mut self, sent: Instant, now: Instant) {
        let is_uninterrupted = self
            .last_received
            .is_some_and(|last| sent < last + LEASE_DURATION);
        if !is_uninterrupted {
            self.responding_since = None;
        }
        if now < sent + LEASE_DURATION {
            self.responding_since.get_or_insert(now);
        }
        if self.responding_since.is_some_and(|since| since <= sent) {
            self.delivered = self.delivered.max(Some(sent));
        }
        self.last_received = self.last_received.max(Some(sent));
        self.first_pending = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns until when the lease is valid that heartbeats renew which were sent and returned at these times, in milliseconds.
    fn valid_until(heartbeats: &[(u64, u64)]) -> Option<u64> {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut lease = Lease::subscribed(start);
        for (sent, returned) in heartbeats {
            lease.primary_confirmed(at(*sent));
            lease.heartbeat_received(at(*sent), at(*returned));
        }
        (0..30_000).rfind(|now| lease.is_valid(at(*now)))
    }

    #[test]
    fn a_lease_begins_with_a_heartbeat_that_is_sent_after_another_one_has_returned() {
        assert_eq!(valid_until(&[(0, 10)]), None);
        assert_eq!(valid_until(&[(0, 10), (5, 15)]), None);
        assert_eq!(valid_until(&[(0, 10), (5, 15), (250, 260)]), Some(1_239));
        assert_eq!(valid_until(&[(0, 10), (250, 260), (500, 510)]), Some(1_489));
    }

    #[test]
    fn a_lease_counts_from_the_last_heartbeat_whose_write_was_accepted() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut lease = Lease::subscribed(start);
        for sent in [0, 250, 500, 750] {
            lease.heartbeat_received(at(sent), at(sent + 10));
        }
        assert!(!lease.is_valid(at(760)));
        lease.primary_confirmed(at(250));
        assert!(lease.is_valid(at(1_239)) && !lease.is_valid(at(1_240)));
        lease.primary_confirmed(at(1_000));
        assert!(lease.is_valid(at(1_739)) && !lease.is_valid(at(1_740)));
    }

    #[test]
    fn slow_responses_do_not_end_a_lease() {
        let slow = [
            (0, 600),
            (250, 850),
            (500, 1_100),
            (750, 1_350),
            (1_000, 1_600),
        ];
        assert_eq!(valid_until(&slow), Some(1_989));
    }

    #[test]
    fn the_first_heartbeat_after_an_interruption_does_not_renew_the_lease() {
        let before = [(0, 10), (250, 260)];
        let with = |after: &[(u64, u64)]| valid_until(&[&before, after].concat());
        assert_eq!(with(&[(1_250, 20_000)]), Some(1_239));
        assert_eq!(with(&[(1_249, 20_000)]), Some(2_238));
        assert_eq!(with(&[(19_900, 20_000)]), Some(1_239));
        assert_eq!(with(&[(19_900, 20_000), (20_000, 20_010)]), Some(20_989));
        // One that was under way for a lease says nothing of the server's state now.
        assert_eq!(with(&[(5_000, 20_000), (5_900, 20_000)]), Some(1_239));
    }
}
