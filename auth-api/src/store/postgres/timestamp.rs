//! Times in PostgreSQL, which has more of them than this program: `infinity`, `-infinity`, and years from
//! 4714 BC to 294276.
//!
//! sqlx's own conversion to [`DateTime`] panics for those. This one succeeds for every value.

mod column;

use chrono::{DateTime, Utc};

use crate::domain::time;

/// Microseconds from 1970 to 2000, the epoch of PostgreSQL.
const EPOCH_MICROS: i64 = 946_684_800_000_000;

/// Value of a column of the type `timestamptz` or `timestamp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Timestamp {
    /// Microseconds since 1970; the extremes mean minus infinity and infinity.
    micros: i64,
}

impl Timestamp {
    /// Converts the microseconds since 2000 that the server sends. Its `infinity` is the largest number
    /// and `-infinity` the smallest.
    pub(crate) fn from_server(micros: i64) -> Self {
        let micros = match micros {
            i64::MIN => i64::MIN,
            finite => finite.saturating_add(EPOCH_MICROS),
        };
        Self { micros }
    }

    /// Returns microseconds since 1970. Minus infinity is the smallest number; infinity and times later than
    /// it can express are the largest.
    pub(crate) fn micros(self) -> i64 {
        self.micros
    }

    /// Returns `None` for a time that clients could not represent, infinity included.
    pub(crate) fn to_datetime(self) -> Option<DateTime<Utc>> {
        time::from_micros(self.micros)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_are_counted_from_the_epoch_of_the_server() {
        let time = Timestamp::from_server(0)
            .to_datetime()
            .map(|time| time.to_rfc3339());
        assert_eq!(time.as_deref(), Some("2000-01-01T00:00:00+00:00"));
    }

    #[test]
    fn infinite_times_are_none() {
        for micros in [i64::MIN, i64::MAX] {
            assert_eq!(Timestamp::from_server(micros).to_datetime(), None);
            assert_eq!(Timestamp::from_server(micros).micros(), micros);
        }
    }

    proptest! {
        #[test]
        fn every_value_is_converted_and_keeps_its_order(one: i64, other: i64) {
            let times = [one, other].map(Timestamp::from_server);
            let _ = times.map(Timestamp::to_datetime);
            prop_assert!((one <= other) == (times[0] <= times[1]) || times[0] == times[1]);
        }
    }
}
