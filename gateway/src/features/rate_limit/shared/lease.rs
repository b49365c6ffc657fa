//! Lease of one key: what this gateway may still spend, and until when. Pure: time is a parameter.

use std::time::Duration;

use super::command::{Grant, LeaseIdentity, LeaseReport};
use super::decision::LeaseDecision;
use super::ready::ReadyUnits;
use super::spent::SpentUnits;
use super::terms::LeaseTerms;
use crate::runtime::clock::{Instant, nanoseconds};

/// Time by which a departure from a leaky bucket may be late: the round trip in which it was granted.
const MAX_DEPARTURE_DELAY: Duration = Duration::from_millis(50);
/// Largest number of units to ask for that no request waits for.
const MAX_WANT: u32 = 1 << 20;
/// Units of a lease for a key with few requests: one command for so many.
const STEADY_LEASE: u32 = 32;
/// Part of a lease that is left when the next one is taken in the background.
const LOW_PART: u32 = 8;
/// Part of the time of a lease that is left then. It is longer than a key with requests may be idle.
const RENEWAL_PART: u32 = 8;

/// Lease of one key and what is known of the store's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct LeaseState {
    units: u32,
    /// Units that the lease began with.
    size: u32,
    end: Instant,
    /// Instant from which the next lease is taken although this one has units.
    renewal: Instant,
    last_use: Instant,
    reset: Instant,
    /// Units that the store had left after the last grant.
    store_remaining: u32,
    spent: SpentUnits,
    identity: LeaseIdentity,
    /// Next instant of departure from a leaky bucket.
    departure: Instant,
    settlement: Settlement,
    rejected_until: Instant,
    /// Time from which the store is asked again, at most `rejected_until`.
    ask_again_at: Instant,
    /// Instant of the last command.
    last_command: Instant,
    /// Units spent before the last command.
    recently_spent: u32,
    /// Units spent in this fixed window, and in the one before.
    spent_in_window: u32,
    spent_in_last_window: u32,
}

/// Need of a report about what was spent of a lease.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Settlement {
    /// It would count hardly shorter: it is reported with the next command of the key, if there is one.
    #[default]
    Optional,
    /// It would count too long.
    Due,
}

/// Use of what a lease has left.
#[derive(Debug, Clone, Copy)]
enum Unused {
    Kept,
    Returned,
}

impl LeaseState {
    /// Decides about a request. Returns `None` if the store has to be asked.
    pub(super) fn take(&mut self, terms: LeaseTerms, now: Instant) -> Option<LeaseDecision> {
        let interval = terms.departure_interval();
        if let Some(interval) = interval {
            self.skip_departures(interval, now);
        }
        if self.units > 0 && self.end > now {
            self.units -= 1;
            self.last_use = now;
            let mut delay = Duration::ZERO;
            if let Some(interval) = interval {
                delay = self.departure.since(now);
                self.departure = self.departure.saturating_add(interval);
            } else {
                self.spent.add(|| terms.spent_interval(), now);
                self.spent_in_window = self.spent_in_window.saturating_add(1);
            }
            return Some(LeaseDecision::Passed {
                remaining: self.units.saturating_add(self.store_remaining),
                reset: self.reset,
                delay,
            });
        }
        (now < self.ask_again_at).then_some(LeaseDecision::Rejected {
            until: self.rejected_until,
        })
    }

    /// Returns the units that requests may spend without this state, after one has passed by it.
    pub(super) fn ready_units(&self, terms: LeaseTerms) -> ReadyUnits {
        if terms.departure_interval().is_some() {
            return ReadyUnits::default();
        }
        // With the unit after these the lease is low.
        let units = self.units.saturating_sub(self.size / LOW_PART + 1);
        ReadyUnits {
            units,
            spent: 0,
            remaining: self.units.saturating_add(self.store_remaining),
            end: self.end.min(self.renewal).min(self.spent.newest_end()),
            last_use: self.last_use,
            idle_time_ns: nanoseconds(terms.idle_time()),
            reset: self.reset,
        }
    }

    /// Records what was spent of ready units.
    pub(super) fn record(&mut self, ready: &ReadyUnits) {
        if ready.spent > 0 {
            self.units -= ready.spent;
            self.last_use = ready.last_use;
            self.spent.add_to_newest(ready.spent);
            self.spent_in_window = self.spent_in_window.saturating_add(ready.spent);
        }
    }

    /// Returns whether the next lease should be taken before this one is used up or ends. A gateway that got nothing beyond
    /// what requests waited for does not ask in advance again.
    pub(super) fn is_low(&self, terms: LeaseTerms, now: Instant) -> bool {
        self.size > 1
            && (self.units <= self.size / LOW_PART || now >= self.renewal)
            && terms.departure_interval().is_none()
    }

    /// Returns the number of units to ask for beyond those that are kept:
    ///
    /// - after a pause, as many as were spent before the last command;
    /// - of a fixed window, as many as were spent in it, or a quarter more than in the one before;
    /// - otherwise, twice as many as were spent since the last command. If that was longer ago than a short lease lasts,
    ///   no more than twice what is spent in the time of one, or [`STEADY_LEASE`] if that is more.
    pub(super) fn want(&self, terms: LeaseTerms, now: Instant) -> u32 {
        if terms.departure_interval().is_some() {
            return 0;
        }
        let target = if now.since(self.last_use) >= terms.idle_time() {
            self.spent_last()
        } else if terms.ends_with_window() {
            let before = self.spent_in_last_window;
            let before = before.saturating_add(before / 4);
            self.spent_in_window.max(before)
        } else {
            self.paced(terms, now)
        };
        let kept = if self.end > now { self.units } else { 0 };
        target.min(MAX_WANT).saturating_sub(kept)
    }

    fn paced(&self, terms: LeaseTerms, now: Instant) -> u32 {
        let doubled = self.spent_last().saturating_mul(2);
        let elapsed = nanoseconds(now.since(self.last_command));
        let short = nanoseconds(terms.short_lease_time());
        if elapsed <= short {
            return doubled;
        }
        let in_short_time = u128::from(doubled) * u128::from(short) / u128::from(elapsed);
        let in_short_time = u32::try_from(in_short_time).expect("it is less than `doubled`");
        doubled.min(in_short_time.max(STEADY_LEASE))
    }

    fn spent_last(&self) -> u32 {
        match self.spent.total() {
            0 => self.recently_spent,
            spent => spent,
        }
    }

    /// Returns the report for the command that takes the next lease. Units that are left of a lease that has ended are removed.
    pub(super) fn report(&mut self, terms: LeaseTerms, now: Instant) -> Option<LeaseReport> {
        let unused = if self.end > now {
            Unused::Kept
        } else {
            Unused::Returned
        };
        self.make_report(terms, now, unused)
    }

    /// Adds what the store granted.
    pub(super) fn apply(&mut self, terms: LeaseTerms, grant: &Grant) {
        let now = grant.received;
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
        if grant.granted == 0 && grant.kept == 0 {
            // Near the limit units are taken one by one.
            self.size = self.size.min(1);
            return;
        }
        if grant.kept == 0 {
            // Units that the lease before may have left are lost, and this one reports nothing about them.
            self.units = 0;
            self.spent = SpentUnits::default();
        }
        if terms.ends_with_window() && self.identity != grant.identity {
            self.spent_in_last_window = std::mem::take(&mut self.spent_in_window);
        }
        self.begin_lease(terms, grant);
        if grant.granted == 0 && grant.want > 0 {
            self.size = 1;
        }
    }

    fn begin_lease(&mut self, terms: LeaseTerms, grant: &Grant) {
        self.units = self.units.saturating_add(grant.granted);
        self.size = self.units;
        self.identity = grant.identity;
        self.departure = grant.received.saturating_add(grant.first_departure);
        self.end = match terms.departure_interval() {
            Some(interval) => self
                .departure
                .saturating_add(interval.saturating_mul(grant.granted))
                .saturating_add(MAX_DEPARTURE_DELAY),
            None => LeaseTerms::lease_end(grant.sent, grant.valid),
        };
        let is_long = !terms.lease_time().is_zero() && grant.valid > terms.short_lease_time();
        (self.settlement, self.renewal) = if is_long {
            let renewal = grant.valid.saturating_sub(grant.valid / RENEWAL_PART);
            (Settlement::Due, grant.sent.saturating_add(renewal))
        } else {
            (Settlement::Optional, Instant(u64::MAX))
        };
    }

    /// Returns the report about a lease that has ended with unused units or, although it could be used, has been idle.
    pub(super) fn take_idle(&mut self, terms: LeaseTerms, now: Instant) -> Option<LeaseReport> {
        if let Some(interval) = terms.departure_interval() {
            self.skip_departures(interval, now);
        }
        let is_idle = now.since(self.last_use) >= terms.idle_time();
        let has_ended = self.units > 0 && self.end <= now;
        if is_idle || has_ended {
            self.release(terms, now)
        } else {
            None
        }
    }

    /// Removes the lease, and returns the report about it.
    pub(super) fn release(&mut self, terms: LeaseTerms, now: Instant) -> Option<LeaseReport> {
        if self.units == 0 && !self.has_to_settle() {
            return None;
        }
        self.make_report(terms, now, Unused::Returned)
    }

    /// Returns whether nothing would be lost with this state.
    pub(super) fn is_unused(&self, now: Instant) -> bool {
        /// Time for which the size of the last lease is remembered.
        const MEMORY: Duration = Duration::from_secs(10);
        self.units == 0
            && !self.has_to_settle()
            && self.ask_again_at <= now
            && now.since(self.last_use) >= MEMORY
    }

    fn has_to_settle(&self) -> bool {
        self.settlement == Settlement::Due && self.spent.total() > 0
    }

    /// Reports the units that were spent since the last report. `unused` are those that the store learns to be unused:
    /// kept for the next lease or returned.
    fn make_report(
        &mut self,
        terms: LeaseTerms,
        now: Instant,
        unused: Unused,
    ) -> Option<LeaseReport> {
        self.last_command = now;
        // A slot before the end of the queue of a leaky bucket cannot be returned.
        if terms.departure_interval().is_some() {
            return None;
        }
        let spent = std::mem::take(&mut self.spent);
        if spent.total() > 0 {
            self.recently_spent = spent.total();
        }
        if terms.ends_with_window() && self.end <= now {
            // The store has forgotten the window.
            self.units = 0;
            return None;
        }
        let (kept, returned) = match unused {
            Unused::Kept => (self.units, 0),
            Unused::Returned => (0, std::mem::take(&mut self.units)),
        };
        (spent.total() + kept + returned > 0).then_some(LeaseReport {
            identity: self.identity,
            spent,
            kept,
            returned,
            made: now,
        })
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
}

#[cfg(test)]
mod tests {
    use std::mem;

    use proptest::prelude::*;

    use super::*;
    use crate::config::RateLimitAlgorithm::{self, *};
    use crate::features::rate_limit::algorithm::QuotaPolicy;

    const MILLISECOND: u64 = 1_000_000;
    const SECOND: u64 = 1_000_000_000;

    /// Event in the life of a lease.
    #[derive(Debug, Clone, Copy)]
    enum Event {
        Request,
        Grant {
            granted: u32,
            remaining: u32,
            valid: u64,
        },
        Report,
        Sweep,
    }

    fn events() -> impl Strategy<Value = Vec<(u64, Event)>> {
        let grant = (0..200_u32, 0..200_u32, MILLISECOND..120 * SECOND);
        let grant = grant.prop_map(|(granted, remaining, valid)| Event::Grant {
            granted,
            remaining,
            valid,
        });
        let event = prop_oneof![
            20 => Just(Event::Request),
            2 => grant,
            1 => Just(Event::Report),
            1 => Just(Event::Sweep),
        ];
        let time = prop_oneof![
            8 => 0..20 * MILLISECOND,
            2 => 0..2 * SECOND,
            1 => 0..20 * SECOND,
        ];
        proptest::collection::vec((time, event), 1..400)
    }

    fn algorithms() -> impl Strategy<Value = RateLimitAlgorithm> {
        prop_oneof![
            Just(FixedWindow),
            Just(SlidingWindow),
            Just(TokenBucket),
            Just(LeakyBucket),
        ]
    }

    /// Lease as the table has it.
    #[derive(Debug, Default)]
    struct LeaseWithReadyUnits {
        ready: ReadyUnits,
        state: LeaseState,
    }

    impl LeaseWithReadyUnits {
        fn state(&mut self) -> &mut LeaseState {
            self.state.record(&mem::take(&mut self.ready));
            &mut self.state
        }
    }

    proptest! {
        #[test]
        fn ready_units_decide_as_the_state_does(
            algorithm in algorithms(),
            (quota, window_ns, bucket_size) in (1..400_u32, 100 * MILLISECOND..120 * SECOND, 1..400_u32),
            events in events(),
        ) {
            let terms = LeaseTerms::new(algorithm, QuotaPolicy { quota, window_ns, bucket_size });
            let (mut expected, mut lease) = (LeaseState::default(), LeaseWithReadyUnits::default());
            let mut now = Instant(1000 * SECOND);
            for (time, event) in events {
                now = Instant(now.0 + time);
                match event {
                    Event::Request => {
                        let decision = if let Some(decision) = lease.ready.take(now) {
                            prop_assert_eq!(Some(decision), expected.take(terms, now));
                            prop_assert!(!expected.is_low(terms, now));
                            continue;
                        } else {
                            lease.state().take(terms, now)
                        };
                        lease.ready = lease.state.ready_units(terms);
                        prop_assert_eq!(decision, expected.take(terms, now));
                    }
                    Event::Grant { granted, remaining, valid } => {
                        let grant = Grant {
                            sent: Instant(now.0 - MILLISECOND),
                            received: now,
                            need: granted.min(1),
                            want: granted,
                            granted,
                            kept: expected.want(terms, now).min(1),
                            remaining,
                            valid: Duration::from_nanos(valid),
                            retry_after: Duration::ZERO,
                            reset: Duration::from_nanos(valid),
                            identity: LeaseIdentity { incarnation: 0, slot: i64::from(remaining) },
                            first_departure: Duration::ZERO,
                        };
                        lease.state().apply(terms, &grant);
                        expected.apply(terms, &grant);
                    }
                    Event::Report => {
                        prop_assert_eq!(lease.state().report(terms, now), expected.report(terms, now));
                    }
                    Event::Sweep if lease.ready.is_in_use(now) => {
                        let mut expected = expected;
                        prop_assert_eq!(expected.take_idle(terms, now), None);
                        prop_assert!(!expected.is_unused(now));
                    }
                    Event::Sweep => {
                        let idle = lease.state().take_idle(terms, now);
                        prop_assert_eq!(idle, expected.take_idle(terms, now));
                    }
                }
            }
            prop_assert_eq!(*lease.state(), expected);
        }
    }
}
