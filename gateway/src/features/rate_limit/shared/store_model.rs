//! Model of the scripts in `lease_store`, statement by statement. A test there compares it with the scripts, and
//! the tests here run the protocol against it.

use std::collections::BTreeMap;

use super::command::LeaseIdentity;
use super::script::{ScriptArguments, ScriptReply};
use crate::config::RateLimitAlgorithm;

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
}

#[derive(Debug, Clone, Copy, Default)]
struct Bucket {
    updated: i64,
    debt: i64,
    a_units: i64,
    a_start: i64,
    a_end: i64,
    b_units: i64,
    b_start: i64,
    b_end: i64,
    a_lowest: i64,
    b_lowest: i64,
}

impl ScriptArguments {
    fn grant(&self, left: i64) -> i64 {
        let share = left / (2 * i64::from(self.gateways));
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

    fn returned_if(&self, matches: impl Fn(LeaseIdentity) -> bool) -> Option<(i64, i64)> {
        let give_back = self.give_back?;
        matches(give_back.identity).then(|| (give_back.units.into(), give_back.identity.slot))
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
        for number in [reply.granted, reply.remaining] {
            assert!(u32::try_from(number).is_ok(), "{reply:?}");
        }
        let times = [reply.valid, reply.retry_after, reply.reset];
        assert!(times.iter().all(|time| *time >= 0), "{reply:?}");
        assert!(reply.first_departure_ns >= 0, "{reply:?}");
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
            });
        window.end = window.end.min(now + period);
        let returned = command.returned_if(|identity| identity.incarnation == window.end);
        if let Some((units, _)) = returned {
            window.used = (window.used - units).max(0);
        }
        let granted = command.grant(command.limit() - window.used);
        window.used += granted;
        if granted > 0 || returned.is_some() {
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
        }
    }

    fn sliding_window(&mut self, now: i64, command: &ScriptArguments) -> ScriptReply {
        const SLOTS: u64 = 64;
        let period = command.period();
        let slot_length = i64::try_from(period.unsigned_abs().div_ceil(SLOTS))
            .unwrap()
            .max(1);
        let slot = (now + command.lease()).div_euclid(slot_length);
        let expiry = |number: i64| (number + 1) * slot_length + period;
        let mut slots = BTreeMap::new();
        for (number, count) in &self.slots {
            if expiry(*number) > now {
                if *number > slot {
                    self.incarnation = None;
                }
                *slots.entry((*number).min(slot)).or_insert(0) += count;
            }
        }
        if let Some((units, number)) =
            command.returned_if(|identity| Some(identity.incarnation) == self.incarnation)
            && let Some(count) = slots.get_mut(&number)
            && *count >= units
        {
            *count -= units;
        }
        let used: i64 = slots.values().sum();
        let granted = command.grant(command.limit() - used);
        if granted > 0 {
            self.incarnation.get_or_insert(now);
            *slots.entry(slot).or_insert(0) += granted;
        }
        let occupied = || slots.iter().filter(|(_, count)| **count > 0);
        let until =
            |number: Option<(&i64, &i64)>| number.map_or(0, |(number, _)| expiry(*number) - now);
        let reply = ScriptReply {
            now,
            granted,
            remaining: command.limit() - used - granted,
            valid: command.lease(),
            retry_after: until(occupied().next()),
            reset: until(occupied().next_back()),
            identity: LeaseIdentity {
                incarnation: self.incarnation.unwrap_or(0),
                slot,
            },
            first_departure_ns: 0,
        };
        self.slots = slots;
        reply
    }

    fn bucket(&mut self, now: i64, command: &ScriptArguments) -> ScriptReply {
        let (limit, period, lease) = (command.limit(), command.period(), command.lease());
        let mut state = self.bucket.unwrap_or(Bucket {
            updated: now,
            ..Bucket::default()
        });
        let mut is_changed = false;
        if now < state.updated {
            self.incarnation = Some(now);
            is_changed = true;
            state.updated = now;
            state.a_end = state.a_end.min(now + 2 * lease);
            state.b_end = state.b_end.min(now + 2 * lease);
            state.b_start = state.b_start.min(now);
        }
        state.advance(now, period);
        if let Some((units, slot)) =
            command.returned_if(|identity| Some(identity.incarnation) == self.incarnation)
        {
            let mut credit = units * period;
            if (state.b_start + lease..=state.b_end).contains(&slot) {
                if state.b_units > 0 {
                    state.b_units = (state.b_units - units).max(0);
                } else {
                    credit = credit.min(state.b_lowest);
                }
            } else if (state.a_start + lease..=state.a_end).contains(&slot) {
                if state.a_units > 0 {
                    state.a_units = (state.a_units - units).max(0);
                } else {
                    credit = credit.min(state.a_lowest);
                }
            } else {
                credit = 0;
            }
            let outstanding = state.a_units + state.b_units;
            state.debt = (state.debt - credit).max(outstanding * period);
            state.a_lowest = (state.a_lowest - credit).max(0);
            state.b_lowest = (state.b_lowest - credit).max(0);
            is_changed = true;
        }
        let before = state.debt;
        let left = ((limit * period - state.debt).max(0)) / period;
        let granted = command.grant(left);
        if granted > 0 {
            state.debt += granted * period;
            if lease > 0 {
                if state.b_units == 0 || now >= state.b_start + lease {
                    if state.b_units > 0 || state.b_end <= now {
                        if state.a_units == 0 {
                            state.a_start = state.b_start;
                        }
                        state.a_units += state.b_units;
                        state.a_end = state.b_end;
                        state.a_lowest = state.b_lowest;
                    }
                    state.b_units = 0;
                    state.b_start = now;
                }
                state.b_units += granted;
                state.b_end = now + lease;
            }
            self.incarnation.get_or_insert(now);
            is_changed = true;
        }
        let microseconds = |ns: i64| ns.max(0).unsigned_abs().div_ceil(1000).cast_signed();
        let mut retry_after = microseconds(state.debt + period - limit * period);
        if state.a_units + state.b_units >= limit {
            let end = if state.a_units > 0 {
                state.a_end
            } else {
                state.b_end
            };
            retry_after = retry_after.max(end - now);
        }
        if is_changed {
            self.bucket = Some(state);
        }
        ScriptReply {
            now,
            granted,
            remaining: left - granted,
            valid: lease,
            retry_after,
            reset: microseconds(state.debt),
            identity: LeaseIdentity {
                incarnation: self.incarnation.unwrap_or(0),
                slot: now + lease,
            },
            first_departure_ns: before,
        }
    }
}

impl Bucket {
    fn advance(&mut self, now: i64, period: i64) {
        if self.a_units > 0 && self.a_end <= now {
            self.drain_until(self.a_end, period);
            self.a_units = 0;
            self.a_lowest = self.debt;
        }
        if self.b_units > 0 && self.b_end <= now {
            self.drain_until(self.b_end, period);
            self.b_units = 0;
            self.b_lowest = self.debt;
        }
        self.drain_until(now, period);
        self.a_lowest = self.a_lowest.min(self.debt);
        self.b_lowest = self.b_lowest.min(self.debt);
    }

    fn drain_until(&mut self, instant: i64, period: i64) {
        if instant > self.updated {
            let outstanding = (self.a_units + self.b_units) * period;
            self.debt = (self.debt - (instant - self.updated) * 1000).max(outstanding);
            self.updated = instant;
        }
    }
}
