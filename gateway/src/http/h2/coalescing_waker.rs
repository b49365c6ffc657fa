//! Coalescing waker: suppresses wake-ups of a task that is running and is about to poll anyway.
//!
//! Data that is sent on a stream of an HTTP/2 connection wakes the task that drives the connection.
//! Where that is the same task, each response would cost it one more run without work.
//!
//! Invariant: no wake-up is lost. A wake-up either reaches the task, or happens before the task polls,
//! and then the poll sees its cause. A task that suspends wake-ups and returns `Pending` without
//! [`CoalescingWaker::resume_and_poll`] breaks it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::task::{Context, Wake, Waker};

use futures::task::AtomicWaker;

/// Waker that forwards to the task's own waker unless it is suspended.
#[derive(Debug, Default)]
struct SuspendableWaker {
    task: AtomicWaker,
    is_suspended: AtomicBool,
}

impl Wake for SuspendableWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Store buffering (Dekker): the waker publishes its cause and then reads `is_suspended`, the
        // task clears `is_suspended` and then polls for causes. The two fences rule out that each
        // misses the other's write.
        fence(Ordering::SeqCst);
        if !self.is_suspended.load(Ordering::Relaxed) {
            self.task.wake();
        }
    }
}

/// The task's side of the waker.
#[derive(Debug)]
pub(super) struct CoalescingWaker {
    shared: Arc<SuspendableWaker>,
    waker: Waker,
}

impl CoalescingWaker {
    pub(super) fn new() -> Self {
        let shared = Arc::new(SuspendableWaker::default());
        let waker = Waker::from(Arc::clone(&shared));
        Self { shared, waker }
    }

    /// Suppresses wake-ups until [`CoalescingWaker::resume_and_poll`], which must be called before the
    /// task returns `Pending`.
    pub(super) fn suspend(&self) {
        self.shared.is_suspended.store(true, Ordering::Relaxed);
    }

    /// Stops suppressing wake-ups, and calls `poll` with a context that wakes `task`.
    pub(super) fn resume_and_poll<T>(
        &self,
        task: &Context<'_>,
        poll: impl FnOnce(&mut Context<'_>) -> T,
    ) -> T {
        self.shared.task.register(task.waker());
        self.shared.is_suspended.store(false, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        poll(&mut Context::from_waker(&self.waker))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Default)]
    struct CountingWaker(AtomicUsize);

    impl Wake for CountingWaker {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn the_task_is_woken_unless_it_is_about_to_poll() {
        let wake_ups = Arc::new(CountingWaker::default());
        let task = Waker::from(Arc::clone(&wake_ups));
        let coalescing = CoalescingWaker::new();
        let poll =
            || coalescing.resume_and_poll(&Context::from_waker(&task), |cx| cx.waker().clone());
        let count = || wake_ups.0.load(Ordering::Relaxed);
        let waker = poll();
        waker.wake_by_ref();
        assert_eq!(count(), 1);
        coalescing.suspend();
        waker.wake_by_ref();
        assert_eq!(count(), 1);
        poll();
        waker.wake();
        assert_eq!(count(), 2);
    }
}
