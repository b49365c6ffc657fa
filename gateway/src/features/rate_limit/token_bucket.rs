//! A bucket of `bucket_size` tokens, refilled evenly with `quota` of them in each `duration`.
//!
//! Kept as the one number of the generic cell rate algorithm (ITU-T I.371, annex A): `mark` is
//! when the bucket will be full again.

use std::time::Duration;

use super::{Allowance, Outcome, State};
use crate::moment::Moment;

pub(super) fn take(state: &mut State, allowance: Allowance, now: Moment) -> Outcome {
    let (interval, depth) = (allowance.interval(), allowance.depth());
    let full = state.mark.max(now.0).saturating_add(interval);
    let missing = full - now.0;
    if missing > depth {
        return Outcome::Refused {
            retry_after: Duration::from_nanos(missing - depth),
        };
    }
    state.mark = full;
    Outcome::Passed {
        remaining: u32::try_from((depth - missing) / interval).unwrap_or(u32::MAX),
        reset: Duration::from_nanos(missing),
        delay: Duration::ZERO,
        forget: Moment(full),
    }
}
