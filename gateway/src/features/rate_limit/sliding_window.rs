//! Sliding window counter: at most `quota` requests pass in any span of `duration`.
//!
//! `duration` is divided into slots, and a ring of counters holds the current slot and as many earlier
//! ones as a span can overlap. The oldest slot counts in full although the span may overlap it in part:
//! quota becomes available up to one slot (an eleventh of `duration`) late, and never early.
//!
//! [`QuotaState::time`] is the number of the current slot since the start of the machine.

use std::time::Duration;

use crate::features::rate_limit::algorithm::{
    AlgorithmDecision, COUNTERS_PER_STATE, QuotaPolicy, QuotaState,
};
use crate::runtime::clock::Instant;

/// Slots in the ring.
const SLOTS: u64 = COUNTERS_PER_STATE as u64;

pub(super) fn take(state: &mut QuotaState, policy: QuotaPolicy, now: Instant) -> AlgorithmDecision {
    let slot_ns = slot_length_ns(policy);
    let current = now.0 / slot_ns;
    advance(state, current);
    let passed: u32 = state.counters.iter().sum();
    let slot_expiry = |slot| slot_expiry(slot, slot_ns);
    if passed >= policy.quota {
        let slot = oldest_slot_that_frees(state, current, passed - policy.quota + 1);
        return AlgorithmDecision::Rejected {
            retry_after: slot_expiry(slot).since(now),
        };
    }
    state.counters[index(current)] += 1;
    AlgorithmDecision::Passed {
        remaining: policy.quota - passed - 1,
        reset: slot_expiry(current).since(now),
        delay: Duration::ZERO,
        expiry: slot_expiry(current),
    }
}

/// Counts a request that passed. Returns the expiry of the state.
pub(super) fn record(state: &mut QuotaState, policy: QuotaPolicy, now: Instant) -> Instant {
    let slot_ns = slot_length_ns(policy);
    let current = now.0 / slot_ns;
    advance(state, current);
    let counter = &mut state.counters[index(current)];
    *counter = counter.saturating_add(1);
    slot_expiry(current, slot_ns)
}

/// Returns the state in which `count` requests have passed at once, and its expiry.
pub(super) fn state_after(count: u32, policy: QuotaPolicy, now: Instant) -> (QuotaState, Instant) {
    let slot_ns = slot_length_ns(policy);
    let current = now.0 / slot_ns;
    let mut state = QuotaState {
        time: current,
        ..QuotaState::default()
    };
    state.counters[index(current)] = count;
    (state, slot_expiry(current, slot_ns))
}

fn slot_length_ns(policy: QuotaPolicy) -> u64 {
    policy.window_ns.div_ceil(SLOTS - 1).max(1)
}

/// Returns the first instant at which no span that ends then or later overlaps the slot.
fn slot_expiry(slot: u64, slot_ns: u64) -> Instant {
    Instant((slot + SLOTS).saturating_mul(slot_ns))
}

fn index(slot: u64) -> usize {
    usize::try_from(slot % SLOTS).expect("the remainder is less than SLOTS")
}

/// Moves the ring to the current slot and clears the counters of expired slots.
fn advance(state: &mut QuotaState, current: u64) {
    let expired = current.saturating_sub(state.time).min(SLOTS);
    for step in 1..=expired {
        state.counters[index(state.time + step)] = 0;
    }
    if expired == SLOTS {
        state.counters = [0; COUNTERS_PER_STATE];
    }
    state.time = current.max(state.time);
}

/// Returns the oldest slot whose expiry, with that of the slots before it, frees at least `wanted`
/// requests.
fn oldest_slot_that_frees(state: &QuotaState, current: u64, wanted: u32) -> u64 {
    let mut freed = 0;
    for slot in current.saturating_sub(SLOTS - 1)..current {
        freed += state.counters[index(slot)];
        if freed >= wanted {
            return slot;
        }
    }
    current
}
