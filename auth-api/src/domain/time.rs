//! Times that clients can represent.

use std::ops::RangeInclusive;

use chrono::{DateTime, Datelike, Utc};

/// Years that RFC 3339 and Python's `datetime` have in common.
const REPRESENTABLE_YEARS: RangeInclusive<i32> = 1..=9999;

/// Converts microseconds since 1970. Returns `None` for a time that clients cannot represent.
pub(crate) fn from_micros(micros: i64) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp_micros(micros)
        .filter(|time| REPRESENTABLE_YEARS.contains(&time.year()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_outside_the_years_1_to_9999_are_none() {
        let (year_1, year_10000) = (-62_135_596_800_000_000, 253_402_300_800_000_000);
        for micros in [i64::MIN, year_1 - 1, year_10000, i64::MAX] {
            assert_eq!(from_micros(micros), None, "{micros}");
        }
        for micros in [year_1, 0, year_10000 - 1] {
            assert!(from_micros(micros).is_some(), "{micros}");
        }
    }
}
