//! Whether the program is about to end, and whether somebody still wants something of it.
//!
//! A gateway keeps connections to us open. To close one in the moment in which it sends a request
//! on it would fail that request, so before the end each answer says that it is the last of its
//! connection, and we go on until nobody asks any more (RFC 9112, section 9.6).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Shared by whoever answers requests and whoever ends the program. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lifecycle(Arc<State>);

#[derive(Debug, Default)]
struct State {
    is_ending: AtomicBool,
    requests: AtomicU64,
}

impl Lifecycle {
    /// From now on every answer is its connection's last.
    pub(crate) fn begin_to_end(&self) {
        self.0.is_ending.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_ending(&self) -> bool {
        self.0.is_ending.load(Ordering::Relaxed)
    }

    /// Somebody asked for something.
    pub(crate) fn request(&self) {
        self.0.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// How many requests there have been.
    pub(crate) fn requests(&self) -> u64 {
        self.0.requests.load(Ordering::Relaxed)
    }
}
