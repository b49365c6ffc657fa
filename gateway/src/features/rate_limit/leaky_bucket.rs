//! A queue that drains evenly, `quota` requests in each `duration`: a request is held back until
//! its place drains, and refused where `bucket_size` places are taken.
//!
//! `mark` is when the last place drains.

use std::time::Duration;

use super::{Allowance, Outcome, State, token_bucket};
use crate::moment::Moment;

pub(super) fn take(state: &mut State, allowance: Allowance, now: Moment) -> Outcome {
    let turn = Moment(state.mark.max(now.0));
    // What may wait here is what may burst there: only when it goes on is another matter.
    match token_bucket::take(state, allowance, now) {
        Outcome::Passed {
            remaining,
            reset,
            forget,
            delay: Duration::ZERO,
        } => Outcome::Passed {
            remaining,
            reset,
            forget,
            delay: turn.since(now),
        },
        other => other,
    }
}
