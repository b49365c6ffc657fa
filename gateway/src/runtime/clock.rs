//! Monotonic clock. It is read where an event happens; pure logic takes the time as a parameter.

use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, clock_gettime};

static ORIGIN: LazyLock<Origin> = LazyLock::new(Origin::read);
/// Readings of two clocks of which the closest pair is used.
const ORIGIN_READINGS: usize = 8;

/// One instant on the clock of the standard library, which does not show its value, and on that of the machine, which is
/// the same clock (`CLOCK_MONOTONIC`, `clock_gettime(2)`).
#[derive(Debug, Clone, Copy)]
struct Origin {
    instant: std::time::Instant,
    /// Nanoseconds since the machine started.
    nanoseconds: u64,
}

impl Origin {
    fn read() -> Self {
        let readings = (0..ORIGIN_READINGS).map(|_| {
            let instant = std::time::Instant::now();
            let time = clock_gettime(ClockId::Monotonic);
            let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
            let subsecond = u64::try_from(time.tv_nsec).unwrap_or_default();
            let origin = Self {
                instant,
                nanoseconds: seconds
                    .saturating_mul(1_000_000_000)
                    .saturating_add(subsecond),
            };
            (instant.elapsed(), origin)
        });
        let closest = readings.min_by_key(|(distance, _)| *distance);
        closest.expect("there are readings").1
    }
}

/// Monotonic time in nanoseconds since the machine started; it wraps after 584 years. All processes of a machine have the
/// same one, unless they are in different time namespaces (`time_namespaces(7)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Instant(pub(crate) u64);

impl Instant {
    pub(crate) fn now() -> Self {
        // By tokio's clock, which is the same one but in tests that pause it.
        let now = tokio::time::Instant::now().into_std();
        Self(ORIGIN.nanoseconds + nanoseconds(now.saturating_duration_since(ORIGIN.instant)))
    }

    /// Returns the time as tokio's timers take it.
    pub(crate) fn to_tokio(self) -> tokio::time::Instant {
        let since_origin = Duration::from_nanos(self.0.saturating_sub(ORIGIN.nanoseconds));
        (ORIGIN.instant + since_origin).into()
    }

    /// Returns the instant that is `duration` later, at most the latest one.
    pub(crate) fn saturating_add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(nanoseconds(duration)))
    }

    /// Returns the time that has passed since `earlier`, zero if that is later than `self`.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// Returns a duration in nanoseconds, at most [`u64::MAX`].
pub(crate) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Returns a duration in whole seconds, rounded up, as `Retry-After` and `RateLimit` give it.
pub(crate) fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

/// Returns the seconds since the Unix epoch, 0 for an earlier time.
pub(crate) fn unix_seconds(time: SystemTime) -> i64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .ok()
        .and_then(|since| i64::try_from(since.as_secs()).ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_is_that_of_the_machine() {
        let time = clock_gettime(ClockId::Monotonic);
        let machine = Duration::new(
            time.tv_sec.try_into().unwrap(),
            time.tv_nsec.try_into().unwrap(),
        );
        let now = Duration::from_nanos(Instant::now().0);
        assert!(
            now + Duration::from_millis(1) > machine,
            "{now:?} {machine:?}"
        );
        assert!(
            now < machine + Duration::from_secs(10),
            "{now:?} {machine:?}"
        );
    }
}
