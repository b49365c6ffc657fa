//! In no span of `duration`, wherever it begins, pass more than `quota` requests.
//!
//! `duration` is cut into slots, a ring of counts: the current one and as many as a span can
//! touch. The oldest counts whole although the span may have left it in part, so a request comes
//! back into the quota up to one slot (an eleventh of `duration`) late, and never early.
//! `mark` is the number of the current slot.

use std::time::Duration;

use super::{Allowance, COUNTS, Outcome, State};
use crate::moment::Moment;

const SLOTS: u64 = COUNTS as u64;

pub(super) fn take(state: &mut State, allowance: Allowance, now: Moment) -> Outcome {
    let length = allowance.duration.div_ceil(SLOTS - 1).max(1);
    let current = now.0 / length;
    forget_left_slots(state, current);
    let passed: u32 = state.counts.iter().sum();
    // When a slot is no part of any span that ends now or later.
    let leaves = |slot: u64| Moment((slot + SLOTS).saturating_mul(length));
    if passed >= allowance.quota {
        let first = first_counted(state, current, passed - allowance.quota + 1);
        return Outcome::Refused {
            retry_after: leaves(first).since(now),
        };
    }
    state.counts[index(current)] += 1;
    Outcome::Passed {
        remaining: allowance.quota - passed - 1,
        reset: leaves(current).since(now),
        delay: Duration::ZERO,
        forget: leaves(current),
    }
}

fn index(slot: u64) -> usize {
    usize::try_from(slot % SLOTS).expect("less than the number of slots")
}

fn forget_left_slots(state: &mut State, current: u64) {
    let left = current.saturating_sub(state.mark).min(SLOTS);
    for step in 1..=left {
        state.counts[index(state.mark + step)] = 0;
    }
    if left == SLOTS {
        state.counts = [0; COUNTS];
    }
    state.mark = current.max(state.mark);
}

/// The slot with whose leaving so many requests have left.
fn first_counted(state: &State, current: u64, wanted: u32) -> u64 {
    let mut left = 0;
    for slot in current.saturating_sub(SLOTS - 1)..current {
        left += state.counts[index(slot)];
        if left >= wanted {
            return slot;
        }
    }
    current
}
