//! Least interval between two events of a kind in the log, for events that a client can cause at any rate.

use std::time::Duration;

use crate::runtime::clock::Instant;
use crate::runtime::sync::{AtomicU64, Ordering};

const INTERVAL: Duration = Duration::from_secs(1);

/// Time before which no further event is logged.
#[derive(Debug, Default)]
pub(crate) struct EventInterval(AtomicU64);

impl EventInterval {
    /// Returns whether an event may be logged at `now`, which begins the next interval.
    pub(crate) fn begin(&self, now: Instant) -> bool {
        let until = self.0.load(Ordering::Relaxed);
        let next = now.saturating_add(INTERVAL).0;
        let swap = || {
            self.0
                .compare_exchange(until, next, Ordering::Relaxed, Ordering::Relaxed)
        };
        until <= now.0 && swap().is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_event_is_logged_in_each_interval() {
        let interval = EventInterval::default();
        let now = Instant(5);
        assert!(interval.begin(now));
        assert!(!interval.begin(now));
        assert!(interval.begin(now.saturating_add(INTERVAL)));
    }
}
