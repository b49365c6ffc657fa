//! Leases of one key: what this gateway may still spend, and until when. Pure: time is a parameter.

use std::time::Duration;

use super::command::{GiveBack, Grant, LeaseIdentity};
use super::terms::LeaseTerms;
use crate::runtime::clock::{Instant, nanoseconds};

/// Time by which a departure from a leaky bucket may be late: the round trip in which it was granted.
const MAX_DEPARTURE_DELAY: Duration = Duration::from_millis(50);
/// Largest number of units to ask for that no request waits for.
const MAX_WANT: u32 = 1 << 20;

/// Units of one lease.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Lease {
    units: u32,
    end: Instant,
    identity: LeaseIdentity,
    /// Next instant of departure from a leaky bucket.
    departure: Instant,
}

/// Leases of one key and what is known of the store's state.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct LeaseState {
    current: Lease,
    /// Lease that was taken before the current one was used up.
    next: Lease,
    /// Lease that has ended with units left, which are to be returned.
    ended: Lease,
    /// Units of the last grant.
    size: u32,
    /// Units that the store had left after the last grant.
    store_remaining: u32,
    reset: Instant,
    rejected_until: Instant,
    /// Time from which the store is asked again, at most `rejected_until`.
    ask_again_at: Instant,
    last_use: Instant,
}

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

impl LeaseState {
    /// Decides about a request. Returns `None` if the store has to be asked.
    pub(super) fn take(&mut self, terms: LeaseTerms, now: Instant) -> Option<LeaseDecision> {
        self.advance(terms, now);
        if self.current.units > 0 && self.current.end > now {
            self.current.units -= 1;
            self.last_use = now;
            let mut delay = Duration::ZERO;
            if let Some(interval) = terms.departure_interval() {
                delay = self.current.departure.since(now);
                self.current.departure = self.current.departure.saturating_add(interval);
            }
            return Some(LeaseDecision::Passed {
                remaining: self.units().saturating_add(self.store_remaining),
                reset: self.reset,
                delay,
            });
        }
        (now < self.ask_again_at).then_some(LeaseDecision::Rejected {
            until: self.rejected_until,
        })
    }

    /// Returns whether the lease should be refilled before it is used up. A gateway that got nothing beyond what
    /// requests waited for does not ask in advance again.
    pub(super) fn is_low(&self, terms: LeaseTerms) -> bool {
        terms.departure_interval().is_none()
            && self.size > 1
            && self.next.units == 0
            && self.current.units <= self.size / 4
    }

    /// Returns the number of units to ask for: twice as many as the last lease had if it was used up, else
    /// as many as were used of it.
    pub(super) fn want(&self, terms: LeaseTerms) -> u32 {
        if terms.departure_interval().is_some() {
            0
        } else if self.ended.units > 0 {
            self.size.saturating_sub(self.ended.units).max(1)
        } else {
            self.size.saturating_mul(2).min(MAX_WANT)
        }
    }

    /// Adds what the store granted.
    pub(super) fn apply(&mut self, terms: LeaseTerms, grant: &Grant) {
        let now = grant.received;
        self.advance(terms, now);
        self.store_remaining = grant.remaining;
        self.reset = grant.sent.saturating_add(grant.reset);
        self.last_use = self.last_use.max(now);
        if grant.granted < grant.need {
            // The store may decide differently no sooner than so long after it decided.
            self.rejected_until = grant.sent.saturating_add(grant.retry_after);
            // Unless another gateway returns idle units, or the store loses its state.
            let idle_time = now.saturating_add(terms.idle_time());
            self.ask_again_at = self.rejected_until.min(idle_time);
        }
        if grant.granted == 0 {
            // Near the limit units are taken one by one.
            self.size = self.size.min(1);
            return;
        }
        self.size = grant.granted;
        let lease = Lease::new(terms, grant);
        if lease.end <= now {
            self.ended = lease;
        } else if self.current.units == 0 || self.current.end <= now {
            self.current = lease;
        } else if self.current.identity == lease.identity {
            self.current.units = self.current.units.saturating_add(lease.units);
            self.current.end = self.current.end.min(lease.end);
        } else if self.next.units == 0 {
            self.next = lease;
        } else {
            self.ended = lease;
        }
    }

    /// Removes the units of a lease that has ended, so that they can be returned.
    pub(super) fn take_ended(&mut self) -> Option<GiveBack> {
        let lease = std::mem::take(&mut self.ended);
        lease.give_back()
    }

    /// Removes one lease with unused units if it has ended or, although it could be used, has been idle.
    pub(super) fn take_idle(&mut self, terms: LeaseTerms, now: Instant) -> Option<GiveBack> {
        self.advance(terms, now);
        if let Some(ended) = self.take_ended() {
            // The next lease has twice as many: what was used of this one.
            let used = self.size.saturating_sub(ended.units);
            self.size = used.div_ceil(2).max(1);
            return Some(ended);
        }
        let is_idle = now.since(self.last_use) >= terms.idle_time();
        if is_idle { self.release(terms) } else { None }
    }

    /// Removes one lease with unused units.
    pub(super) fn release(&mut self, terms: LeaseTerms) -> Option<GiveBack> {
        for lease in [&mut self.ended, &mut self.current, &mut self.next] {
            let lease = std::mem::take(lease);
            // A slot before the end of the queue cannot be returned.
            if lease.units > 0 && terms.departure_interval().is_none() {
                self.size = 1;
                return lease.give_back();
            }
        }
        None
    }

    /// Returns whether nothing would be lost with this state.
    pub(super) fn is_unused(&self, now: Instant) -> bool {
        /// Time for which the size of the last lease is remembered.
        const MEMORY: Duration = Duration::from_secs(10);
        self.units() == 0
            && self.ended.units == 0
            && self.ask_again_at <= now
            && now.since(self.last_use) >= MEMORY
    }

    fn units(&self) -> u32 {
        self.current.units.saturating_add(self.next.units)
    }

    /// Ends leases, and begins the next one where the current one cannot be used any more.
    fn advance(&mut self, terms: LeaseTerms, now: Instant) {
        if let Some(interval) = terms.departure_interval() {
            self.current.skip_departures(interval, now);
        }
        if self.current.units > 0 && self.current.end > now {
            return;
        }
        // Where another ended lease waits to be returned, this one waits too, unless the next one can be used.
        let is_next_usable = self.next.units > 0 && self.next.end > now;
        if self.current.units > 0 {
            if self.ended.units > 0 && !is_next_usable {
                return;
            }
            self.ended = self.current;
        }
        self.current = std::mem::take(&mut self.next);
    }
}

impl Lease {
    fn new(terms: LeaseTerms, grant: &Grant) -> Self {
        let departure = grant.received.saturating_add(grant.first_departure);
        let end = match terms.departure_interval() {
            Some(interval) => departure
                .saturating_add(interval.saturating_mul(grant.granted))
                .saturating_add(MAX_DEPARTURE_DELAY),
            None => LeaseTerms::lease_end(grant.sent, grant.valid),
        };
        Self {
            units: grant.granted,
            end,
            identity: grant.identity,
            departure,
        }
    }

    /// Removes the departures that have passed.
    fn skip_departures(&mut self, interval: Duration, now: Instant) {
        let interval_ns = nanoseconds(interval).max(1);
        let late = now.since(self.departure.saturating_add(MAX_DEPARTURE_DELAY));
        let passed = nanoseconds(late)
            .div_ceil(interval_ns)
            .min(self.units.into());
        self.units -= u32::try_from(passed).expect("it is at most the number of units");
        self.departure = Instant(self.departure.0.saturating_add(passed * interval_ns));
    }

    fn give_back(self) -> Option<GiveBack> {
        (self.units > 0).then_some(GiveBack {
            units: self.units,
            identity: self.identity,
        })
    }
}
