//! Counts that found no place in the table: a count-min sketch of one rule.
//!
//! Whatever the algorithm, a window of `duration` is counted, aligned with the clock. The sketch
//! may count somebody for somebody else's requests (with 400 keys, one in 10⁷ of them), and never
//! too few: where memory ends, a quota gets stricter and not laxer.

use std::fmt;
use std::time::Duration;

use parking_lot::Mutex;
use pingora_limits::estimator::Estimator;

use super::{Allowance, Outcome};
use crate::moment::Moment;

const ROWS: usize = 4;
const COLUMNS: usize = 4096;

/// The sketch of the current window, once one was needed.
#[derive(Default)]
pub(super) struct Overflow(Mutex<Option<Window>>);

struct Window {
    number: u64,
    passed: Estimator,
}

impl Overflow {
    pub(super) fn take(&self, key: u64, allowance: Allowance, now: Moment) -> Outcome {
        let duration = allowance.duration.max(1);
        let number = now.0 / duration;
        let end = Moment((number + 1).saturating_mul(duration));
        // The lock makes reading and counting one step, which the sketch by itself does not.
        let mut window = self.0.lock();
        let window = window.get_or_insert_with(|| Window {
            number,
            passed: Estimator::new(ROWS, COLUMNS),
        });
        if window.number != number {
            window.passed.reset();
            window.number = number;
        }
        // Counting says how many there are: looking first would hash the key twice as often.
        let counted = u32::try_from(window.passed.incr(key, 1)).unwrap_or(u32::MAX);
        if counted > allowance.quota {
            window.passed.decr(key, 1);
            return Outcome::Refused {
                retry_after: end.since(now),
            };
        }
        Outcome::Passed {
            remaining: allowance.quota - counted,
            reset: end.since(now),
            delay: Duration::ZERO,
            forget: end,
        }
    }
}

impl fmt::Debug for Overflow {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Overflow").finish_non_exhaustive()
    }
}
