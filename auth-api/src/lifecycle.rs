//! Whether the program is about to end, and whether somebody still wants something of it.
//!
//! A gateway keeps connections to us open. To close one in the moment in which it sends a request
//! on it would fail that request, so before the end each answer says that it is the last of its
//! connection, and we go on until nobody asks any more (RFC 9112, section 9.6).
//!
//! A client may also go away amid its request, and its handler with it. What changes an account or a
//! session is done to its end all the same.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// Shared by whoever answers requests and whoever ends the program. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lifecycle(Arc<State>);

#[derive(Debug, Default)]
struct State {
    is_ending: AtomicBool,
    requests: AtomicU64,
    /// What is being done to its end.
    at_work: AtomicUsize,
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

    /// Does `work` to its end, whether or not its client waits for it: several changes that are one,
    /// and the line of the audit about them.
    pub(crate) async fn complete<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> T {
        let at_work = AtWork::begin(&self.0);
        let work = tokio::spawn(async move {
            let _at_work = at_work;
            work.await
        });
        work.await.expect("nobody aborts it")
    }

    /// Whether something has yet to be done to its end.
    pub(crate) fn is_at_work(&self) -> bool {
        self.0.at_work.load(Ordering::Relaxed) > 0
    }
}

struct AtWork(Arc<State>);

impl AtWork {
    fn begin(state: &Arc<State>) -> Self {
        state.at_work.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(state))
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.0.at_work.fetch_sub(1, Ordering::Relaxed);
    }
}
