//! Units that a gateway spent and has not reported to the store, by the time at which they were spent.

use crate::runtime::clock::Instant;

/// Intervals in which a lease is divided. With a slot of the store, an interval and the margin for clocks of different rates
/// a unit counts at most 3/64 of `duration` too long.
pub(super) const INTERVALS: usize = 40;
/// Ages are one thousandth shorter than this gateway measures, since two clocks may differ in rate (NTP changes it by at
/// most 500 ppm).
const RATE_MARGIN: u64 = 1000;
const NANOSECONDS_PER_MICROSECOND: u64 = 1000;

/// Number of units by intervals of equal length. A unit counts as spent at the end of its interval, never before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SpentUnits {
    /// Number of the newest interval since the start of the clock, and its end.
    newest: u64,
    newest_end: Instant,
    newest_units: u32,
    total: u32,
    /// Ring of the intervals before. Units that are older than it count for a later interval.
    earlier: [u32; INTERVALS],
}

impl Default for SpentUnits {
    fn default() -> Self {
        Self {
            newest: 0,
            newest_end: Instant::default(),
            newest_units: 0,
            total: 0,
            earlier: [0; INTERVALS],
        }
    }
}

impl SpentUnits {
    /// Adds a unit. `interval` returns the length of an interval in nanoseconds.
    pub(crate) fn add(&mut self, interval: impl Fn() -> u64, now: Instant) {
        if now >= self.newest_end {
            self.begin_interval(interval(), now);
        }
        self.add_to_newest(1);
    }

    /// Adds units that were spent before the end of the newest interval.
    pub(super) fn add_to_newest(&mut self, units: u32) {
        self.newest_units = self.newest_units.saturating_add(units);
        self.total = self.total.saturating_add(units);
    }

    pub(super) fn newest_end(&self) -> Instant {
        self.newest_end
    }

    #[cold]
    fn begin_interval(&mut self, interval: u64, now: Instant) {
        let index = index(self.newest);
        self.earlier[index] = self.earlier[index].saturating_add(self.newest_units);
        self.newest_units = 0;
        self.newest = now.0 / interval;
        self.newest_end = Instant((self.newest + 1).saturating_mul(interval));
    }

    pub(crate) fn total(&self) -> u32 {
        self.total
    }

    /// Returns the ages in microseconds that units have at least at the instant `now`, with the number of units.
    pub(super) fn ages(self, interval: u64, now: Instant) -> impl Iterator<Item = (u64, u32)> {
        let first = (self.newest + 1).saturating_sub(INTERVALS as u64);
        (first..=self.newest).filter_map(move |number| {
            let mut units = self.earlier[index(number)];
            if number == self.newest {
                units += self.newest_units;
            }
            let end = (number + 1).saturating_mul(interval);
            let age = now.0.saturating_sub(end);
            let age = (age - age.div_ceil(RATE_MARGIN)) / NANOSECONDS_PER_MICROSECOND;
            (units > 0).then_some((age, units))
        })
    }
}

fn index(interval: u64) -> usize {
    usize::try_from(interval % INTERVALS as u64).expect("it is less than INTERVALS")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Length of a lease, and of an interval of it.
    const LEASE: u64 = 60_000_000_000;
    const INTERVAL: u64 = LEASE / INTERVALS as u64;

    proptest! {
        #[test]
        fn no_unit_is_reported_as_older_than_it_is(
            mut before in proptest::collection::vec(0..2 * LEASE, 0..200),
        ) {
            const NOW: u64 = 1000 * LEASE;
            before.sort_unstable_by(|one, other| other.cmp(one));
            let mut spent = SpentUnits::default();
            for age in &before {
                spent.add(|| INTERVAL, Instant(NOW - age));
            }
            let reported: Vec<_> = spent
                .ages(INTERVAL, Instant(NOW))
                .flat_map(|(age, units)| std::iter::repeat_n(age * 1000, units as usize))
                .collect();
            prop_assert_eq!(reported.len(), before.len());
            // The oldest unit of a ring that is too short is counted with a later one.
            let is_within_lease = before.first().is_none_or(|oldest| *oldest < LEASE - INTERVAL);
            for (age, reported) in before.iter().zip(reported) {
                prop_assert!(reported <= *age, "{} for {}", reported, age);
                let least = age.saturating_sub(INTERVAL + age / 1000 + 2000);
                prop_assert!(!is_within_lease || reported >= least, "{} for {}", reported, age);
            }
        }
    }
}
