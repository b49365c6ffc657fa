//! Model of the scripts in `lease_store`, statement by statement. A test there compares it with the scripts, and
//! the tests here run the protocol against it.

use std::collections::BTreeMap;

use super::command::LeaseIdentity;
use super::script::{ScriptArguments, ScriptReply};
use crate::config::RateLimitAlgorithm;

/// Bound of the slots of a key: those of a window and of a lease that is as long, each in part.
const MAX_SLOTS: usize = 2 * 64 + 3;

/// State of one key.
#[derive(Debug, Default)]
pub(crate) struct ModelStore {
    window: Option<Window>,
    slots: BTreeMap<i64, i64>,
    bucket: Option<Bucket>,
    pub(crate) incarnation: Option<i64>,
}

#[derive(Debug, Clone, Copy)]
struct Window {
    end: i64,
    used: i64,
    leased: i64,
}

#[derive(Debug, Clone, Default)]
struct Bucket {
    updated: i64,
    debt: i64,
    slots: BTreeMap<i64, i64>,
}

/// Report as the scripts have it.
#[derive(Debug, Clone, Copy)]
struct Report {
    slot: i64,
    spent: i64,
    kept: i64,
    returned: i64,
}

impl Report {
    fn units(self) -> i64 {
        self.spent + self.kept + self.returned
    }
}

impl ScriptArguments {
    fn grant(&self, left: i64, leased: i64) -> i64 {
        let share = (left / (2 * i64::from(self.gateways))).max((left - leased).div_euclid(2));
        let prefetch = i64::from(self.want).min(share);
        left.min(i64::from(self.need).max(prefetch))
    }

    fn limit(&self) -> i64 {
        self.terms.limit().into()
    }

    fn period(&self) -> i64 {
        self.terms.period().try_into().unwrap()
    }

    fn lease(&self) -> i64 {
        self.terms.lease_time().as_micros().try_into().unwrap()
    }

    fn lease_for(&self, held: i64) -> i64 {
        if held > self.need.into() {
            self.lease()
        } else {
            let short = self.terms.short_lease_time();
            short.as_micros().try_into().unwrap()
        }
    }

    fn report_if(&self, matches: impl Fn(LeaseIdentity) -> bool) -> Option<Report> {
        let report = self.report.filter(|report| matches(report.identity))?;
        let report = Report {
            slot: report.identity.slot,
            spent: report.spent.total().into(),
            kept: report.kept.into(),
            returned: report.returned.into(),
        };
        (report.units() > 0).then_some(report)
    }

    /// Returns the instants by which units were spent, with their number.
    fn spent(&self, now: i64) -> impl Iterator<Item = (i64, i64)> {
        self.ages_of_spent()
            .map(move |(age, units)| (now - i64::try_from(age).unwrap(), units.into()))
    }
}

impl ModelStore {
    /// Executes a command at the time `now` of the store.
    pub(crate) fn execute(&mut self, now: i64, command: &ScriptArguments) -> ScriptReply {
        let reply = match command.terms.algorithm {
            RateLimitAlgorithm::FixedWindow => self.fixed_window(now, command),
            RateLimitAlgorithm::SlidingWindow => self.sliding_window(now, command),
            RateLimitAlgorithm::TokenBucket | RateLimitAlgorithm::LeakyBucket => {
                self.bucket(now, command)
            }
        };
        for number in [reply.granted, reply.remaining, reply.kept] {
            assert!(u32::try_from(number).is_ok(), "{reply:?}");
        }
        let times = [reply.valid, reply.retry_after, reply.reset];
        assert!(times.iter().all(|time| *time >= 0), "{reply:?}");
        assert!(reply.first_departure_ns >= 0, "{reply:?}");
        let slots = self.slots.len() + self.bucket.as_ref().map_or(0, |bucket| bucket.slots.len());
        let is_usual = command.period() >= command.lease();
        assert!(slots <= MAX_SLOTS || !is_usual, "{slots} slots");
        reply
    }

    fn fixed_window(&mut self, now: i64, command: &ScriptArguments) -> ScriptReply {
        let period = command.period();
        let mut window = self
            .window
            .filter(|window| now < window.end)
            .unwrap_or(Window {
                end: now + period,
                used: 0,
                leased: 0,
            });
        window.end = window.end.min(now + period);
        let report = command.report_if(|identity| identity.incarnation == window.end);
        if let Some(report) = report {
            window.used = (window.used - report.returned).max(0);
            window.leased = (window.leased - report.spent - report.returned).max(0);
        }
        let granted = command.grant(command.limit() - window.used, window.leased);
        window.used += granted;
        window.leased += granted;
        if granted > 0 || report.is_some() {
            self.window = Some(window);
        }
        let left = window.end - now;
        ScriptReply {
            now,
            granted,
            remaining: command.limit() - window.used,
            valid: left,
            retry_after: left,
            reset: left,
            identity: LeaseIdentity {
                incarnation: window.end,
                slot: 0,
            },
            first_departure_ns: 0,
            kept: report.map_or(0, |report| report.kept),
        }
    }

    fn sliding_window(&mut self, now: i64, command: &ScriptArguments) -> ScriptReply {
        const SLOTS: u64 = 64;
        let period = command.period();
        let slot_length = i64::try_from(period.unsigned_abs().div_ceil(SLOTS))
            .unwrap()
            .max(1);
        let slot_of = |instant: i64| instant.div_euclid(slot_length);
        let expiry = |number: i64| (number + 1) * slot_length + period;
        let (current_slot, last_slot) = (slot_of(now), slot_of(now + command.lease()));
        let mut counts = BTreeMap::new();
        for (number, count) in &self.slots {
            if expiry(*number) > now {
                if *number > last_slot {
                    self.incarnation = None;
                }
                *counts.entry((*number).min(last_slot)).or_insert(0) += count;
            }
        }
        let report = command
            .report_if(|identity| Some(identity.incarnation) == self.incarnation)
            .filter(|report| counts.get(&report.slot).copied().unwrap_or(0) >= report.units());
        if let Some(report) = report {
            *counts.entry(report.slot).or_insert(0) -= report.units();
            for (instant, units) in command.spent(now) {
                let number = slot_of(instant).min(report.slot);
                if expiry(number) > now {
                    *counts.entry(number).or_insert(0) += units;
                }
            }
        }
        let kept = report.map_or(0, |report| report.kept);
        let used = kept + counts.values().sum::<i64>();
        let later = counts.range(current_slot + 1..).map(|(_, count)| count);
        let granted = command.grant(command.limit() - used, kept + later.sum::<i64>());
        let valid = command.lease_for(kept + granted);
        let slot = slot_of(now + valid);
        if kept + granted > 0 {
            *counts.entry(slot).or_insert(0) += kept + granted;
        }
        if granted > 0 {
            self.incarnation.get_or_insert(now);
        }
        counts.retain(|_, count| *count > 0);
        let until = |number: Option<&i64>| {
            number.map_or(0, |number| expiry((*number).min(current_slot)) - now)
        };
        let reply = ScriptReply {
            now,
            granted,
            remaining: command.limit() - used - granted,
            valid,
            retry_after: until(counts.keys().next()),
            reset: until(counts.keys().next_back()),
            identity: LeaseIdentity {
                incarnation: self.incarnation.unwrap_or(0),
                slot,
            },
            first_departure_ns: 0,
            kept,
        };
        self.slots = counts;
        reply
    }

    fn bucket(&mut self, now: i64, command: &ScriptArguments) -> ScriptReply {
        let (limit, period, lease) = (command.limit(), command.period(), command.lease());
        let slots = BucketSlots::of(lease);
        let mut state = self.bucket.clone().unwrap_or(Bucket {
            updated: now,
            ..Bucket::default()
        });
        let mut is_changed = false;
        if now < state.updated {
            self.incarnation = Some(now);
            is_changed = true;
            state.updated = now;
            let last_slot = slots.of_instant(now + lease);
            let mut moved = BTreeMap::new();
            for (number, units) in state.slots {
                *moved.entry(number.min(last_slot)).or_insert(0) += units;
            }
            state.slots = moved;
        }
        let report = command
            .report_if(|identity| Some(identity.incarnation) == self.incarnation)
            .filter(|report| state.units(report.slot) >= report.units());
        let mut events: Vec<_> = state
            .slots
            .iter()
            .map(|(number, units)| (slots.end(*number), *number, *units))
            .filter(|(end, ..)| *end <= now)
            .collect();
        if let Some(report) = report {
            for (instant, units) in command.spent(now) {
                let instant = instant.min(slots.end(report.slot)).max(state.updated);
                events.push((instant, report.slot, units));
            }
        }
        events.sort_by_key(|(instant, ..)| *instant);
        for (instant, number, units) in events {
            state.drain_until(instant, period);
            let units = units.min(state.units(number));
            state.add(number, -units);
        }
        state.drain_until(now, period);
        let mut kept = 0;
        if let Some(report) = report {
            let unended = report.returned.min(state.units(report.slot));
            state.add(report.slot, -unended);
            state.debt = (state.debt - report.returned * period).max(state.leased() * period);
            if state.units(report.slot) >= report.kept {
                kept = report.kept;
            }
            is_changed = true;
        }
        let before = state.debt;
        let left = ((limit * period - state.debt).max(0)) / period;
        let granted = command.grant(left, state.leased());
        state.debt += granted * period;
        let valid = command.lease_for(kept + granted);
        let slot = slots.of_instant(now + valid);
        if lease > 0 && kept + granted > 0 {
            if let Some(report) = report {
                state.add(report.slot, -kept);
            }
            state.add(slot, kept + granted);
        }
        state.slots.retain(|_, units| *units > 0);
        if granted > 0 {
            self.incarnation.get_or_insert(now);
            is_changed = true;
        }
        let microseconds = |ns: i64| ns.max(0).unsigned_abs().div_ceil(1000).cast_signed();
        let mut retry_after = microseconds(state.debt + period - limit * period);
        if state.leased() >= limit
            && let Some(number) = state.slots.keys().next()
        {
            retry_after = retry_after.max(slots.end(*number) - now);
        }
        let reset = microseconds(state.debt);
        if is_changed {
            self.bucket = Some(state);
        }
        ScriptReply {
            now,
            granted,
            remaining: left - granted,
            valid,
            retry_after,
            reset,
            identity: LeaseIdentity {
                incarnation: self.incarnation.unwrap_or(0),
                slot,
            },
            first_departure_ns: before,
            kept,
        }
    }
}

/// Slots in which units are outstanding.
#[derive(Debug, Clone, Copy)]
struct BucketSlots {
    length: i64,
}

impl BucketSlots {
    fn of(lease: i64) -> Self {
        const SLOTS: u64 = 32;
        let length = lease.unsigned_abs().div_ceil(SLOTS).cast_signed();
        Self {
            length: length.max(1),
        }
    }

    fn of_instant(self, instant: i64) -> i64 {
        instant.div_euclid(self.length) + 1
    }

    fn end(self, number: i64) -> i64 {
        number * self.length
    }
}

impl Bucket {
    fn units(&self, number: i64) -> i64 {
        self.slots.get(&number).copied().unwrap_or(0)
    }

    fn leased(&self) -> i64 {
        self.slots.values().sum()
    }

    fn add(&mut self, number: i64, units: i64) {
        *self.slots.entry(number).or_insert(0) += units;
    }

    fn drain_until(&mut self, instant: i64, period: i64) {
        if instant > self.updated {
            let leased = self.leased() * period;
            self.debt = (self.debt - (instant - self.updated) * 1000).max(leased);
            self.updated = instant;
        }
    }
}
