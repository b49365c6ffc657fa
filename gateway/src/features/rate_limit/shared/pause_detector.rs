//! Detection of pauses of this process (`SIGSTOP`, a stopped virtual machine). When it goes on, every time limit has
//! passed at once, which says nothing about the store: the responses may wait in the socket.

use std::time::Duration;

use crate::runtime::clock::Instant;
use crate::runtime::sync::{AtomicU64, Ordering};

/// Time between two calls of [`PauseDetector::tick`] that means that the process was paused.
const MIN_PAUSE: Duration = Duration::from_millis(750);
/// Time after a pause in which failures are attributed to it. Connections may have to be replaced.
const RECOVERY_TIME: Duration = Duration::from_secs(2);

/// Last sign that the process runs, and the end of its last pause.
#[derive(Debug, Default)]
pub(super) struct PauseDetector {
    last_tick: AtomicU64,
    resumed: AtomicU64,
}

impl PauseDetector {
    /// Records that the process runs. Called several times in [`MIN_PAUSE`], by one task.
    pub(super) fn tick(&self, now: Instant) {
        let last = self.last_tick.load(Ordering::Relaxed);
        if last != 0 && now.since(Instant(last)) >= MIN_PAUSE {
            // Before the tick, which ends the first sign of the pause: a thread that sees the tick sees this too.
            self.resumed.store(now.0, Ordering::Relaxed);
        }
        self.last_tick.store(now.0, Ordering::Release);
    }

    /// Returns whether the process was paused a short time ago.
    pub(super) fn was_paused(&self, now: Instant) -> bool {
        let last_tick = self.last_tick.load(Ordering::Acquire);
        let resumed = self.resumed.load(Ordering::Relaxed);
        last_tick != 0 && now.since(Instant(last_tick)) >= MIN_PAUSE
            || resumed != 0 && now.since(Instant(resumed)) < RECOVERY_TIME
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_noticed_before_and_after_the_first_tick_that_follows_it() {
        let detector = PauseDetector::default();
        let at = |milliseconds: u64| Instant(milliseconds * 1_000_000);
        assert!(!detector.was_paused(at(10_000)));
        for tick in [10_000, 10_250, 10_500] {
            detector.tick(at(tick));
        }
        assert!(!detector.was_paused(at(10_700)));
        assert!(detector.was_paused(at(15_000)));
        for tick in (15_000..17_000).step_by(250) {
            detector.tick(at(tick));
            assert!(detector.was_paused(at(tick)));
        }
        detector.tick(at(17_000));
        assert!(!detector.was_paused(at(17_000)));
    }
}
