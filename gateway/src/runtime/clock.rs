//! Monotonic clock. It is read where an event happens; pure logic takes the time as a parameter.

use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

static START: LazyLock<std::time::Instant> = LazyLock::new(std::time::Instant::now);

/// Monotonic time in nanoseconds since the process started; it wraps after 584 years.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Instant(pub(crate) u64);

impl Instant {
    pub(crate) fn now() -> Self {
        Self(nanoseconds(START.elapsed()))
    }

    /// Returns the time as tokio's timers take it.
    pub(crate) fn to_tokio(self) -> tokio::time::Instant {
        (*START + Duration::from_nanos(self.0)).into()
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
