//! Replacement of pooled connections whose state is unknown after an error.
//!
//! A driver cannot know what a failed statement left behind: an open transaction that it no longer
//! counts, a session of a server that has become a standby, a file that was deleted. So an error
//! makes all connections stale that were open at that time, and the pool replaces each one instead
//! of using it again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Time of the last error after which the open connections were not to be used again. Cheap to
/// clone.
#[derive(Debug, Clone, Default)]
pub(super) struct StaleConnections(Arc<Mutex<Option<Instant>>>);

impl StaleConnections {
    /// Makes every connection stale that is open now.
    pub(super) fn mark(&self) {
        self.mark_opened_before(Instant::now());
    }

    /// Makes every connection stale that was opened before `instant`, and none that has replaced one since.
    pub(super) fn mark_opened_before(&self, instant: Instant) {
        let mut marked_at = self.0.lock();
        *marked_at = (*marked_at).max(Some(instant));
    }

    /// Returns whether there was an error at `instant` or later.
    pub(super) fn were_marked_since(&self, instant: Instant) -> bool {
        self.0.lock().is_some_and(|marked_at| marked_at >= instant)
    }

    /// Returns whether a connection that was opened `age` ago has to be replaced.
    pub(super) fn includes(&self, age: Duration) -> bool {
        let opened_at = Instant::now().checked_sub(age);
        self.0
            .lock()
            .is_some_and(|marked_at| opened_at.is_none_or(|opened_at| opened_at <= marked_at))
    }
}
