//! The window opens with the first request and lasts `duration`; `quota` requests pass.
//!
//! `mark` is when the window ends, the first count is what has passed in it.

use std::time::Duration;

use super::{Allowance, Outcome, State};
use crate::moment::Moment;

pub(super) fn take(state: &mut State, allowance: Allowance, now: Moment) -> Outcome {
    if state.mark <= now.0 {
        *state = State {
            mark: now.0.saturating_add(allowance.duration),
            ..State::default()
        };
    }
    let end = Moment(state.mark);
    let passed = &mut state.counts[0];
    if *passed >= allowance.quota {
        return Outcome::Refused {
            retry_after: end.since(now),
        };
    }
    *passed += 1;
    Outcome::Passed {
        remaining: allowance.quota - *passed,
        reset: end.since(now),
        delay: Duration::ZERO,
        forget: end,
    }
}
