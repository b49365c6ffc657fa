//! Delays between the restarts of a task.

use std::time::Duration;

const MIN_DELAY: Duration = Duration::from_millis(100);
/// Longest delay. A task that has run for longer than this is restarted after [`MIN_DELAY`] again.
const MAX_DELAY: Duration = Duration::from_secs(10);

/// Exponential back-off.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: MIN_DELAY }
    }
}

impl Backoff {
    /// Returns the delay before the restart of a task that has run for `ran_for`.
    pub(crate) fn next_delay(&mut self, ran_for: Duration) -> Duration {
        if ran_for > MAX_DELAY {
            *self = Self::default();
        }
        let delay = self.next;
        self.next = (delay * 2).min(MAX_DELAY);
        delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_a_limit_and_start_again_after_a_long_run() {
        let mut backoff = Backoff::default();
        let delays: Vec<_> = (0..9)
            .map(|_| backoff.next_delay(Duration::ZERO).as_millis())
            .collect();
        let expected = [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000];
        assert_eq!(delays, expected);
        assert_eq!(backoff.next_delay(MAX_DELAY * 2), MIN_DELAY);
    }
}
