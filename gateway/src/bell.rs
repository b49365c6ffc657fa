//! Wakes a task, but not while it runs and is about to look anyway.
//!
//! What is said on a stream of an HTTP/2 connection wakes whoever drives the connection. Where that
//! is the same task, it would run once more for nothing after each answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::task::{Context, Wake, Waker};

use futures::task::AtomicWaker;

/// What wakes the task.
#[derive(Debug, Default)]
struct Bell {
    task: AtomicWaker,
    is_hushed: AtomicBool,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Either the task sees what this is about when it looks, or it is seen here to have looked:
        // the fences forbid that neither is the case.
        fence(Ordering::SeqCst);
        if !self.is_hushed.load(Ordering::Relaxed) {
            self.task.wake();
        }
    }
}

/// The task's side of it.
#[derive(Debug)]
pub(crate) struct Quiet {
    bell: Arc<Bell>,
    waker: Waker,
}

impl Quiet {
    pub(crate) fn new() -> Self {
        let bell = Arc::new(Bell::default());
        let waker = Waker::from(Arc::clone(&bell));
        Self { bell, waker }
    }

    /// From now until [`Quiet::look`], which must follow before the task rests, nothing wakes it.
    pub(crate) fn hush(&self) {
        self.bell.is_hushed.store(true, Ordering::Relaxed);
    }

    /// Polls what the bell is for. From now on it wakes the task again.
    pub(crate) fn look<T>(
        &self,
        task: &Context<'_>,
        poll: impl FnOnce(&mut Context<'_>) -> T,
    ) -> T {
        self.bell.task.register(task.waker());
        self.bell.is_hushed.store(false, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        poll(&mut Context::from_waker(&self.waker))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn it_rings_only_for_who_is_not_about_to_look() {
        let count = Arc::new(Count::default());
        let task = Waker::from(Arc::clone(&count));
        let quiet = Quiet::new();
        let look = || quiet.look(&Context::from_waker(&task), |cx| cx.waker().clone());
        let rung = || count.0.load(Ordering::Relaxed);
        let waker = look();
        waker.wake_by_ref();
        assert_eq!(rung(), 1);
        quiet.hush();
        waker.wake_by_ref();
        assert_eq!(rung(), 1);
        look();
        waker.wake();
        assert_eq!(rung(), 2);
    }
}
