//! Atomics of loom, and the parts of tokio that the modules under test use, by their documented behaviour.

use std::collections::VecDeque;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use loom::sync::Mutex;
pub(crate) use loom::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use loom::sync::atomic::{AtomicUsize as LoomUsize, fence};

/// Atomic whose sequentially consistent operations are so in a model too. loom takes `SeqCst` for `AcqRel`, and would report
/// interleavings that do not exist; fences, which it implements, before and after the operation order it.
#[derive(Debug)]
pub(crate) struct AtomicUsize(LoomUsize);

fn fenced<T>(order: Ordering, operation: impl FnOnce() -> T) -> T {
    if order != Ordering::SeqCst {
        return operation();
    }
    fence(Ordering::SeqCst);
    let result = operation();
    fence(Ordering::SeqCst);
    result
}

impl Default for AtomicUsize {
    fn default() -> Self {
        Self(LoomUsize::new(0))
    }
}

impl AtomicUsize {
    pub(crate) fn load(&self, order: Ordering) -> usize {
        fenced(order, || self.0.load(order))
    }

    pub(crate) fn store(&self, value: usize, order: Ordering) {
        fenced(order, || self.0.store(value, order));
    }

    pub(crate) fn fetch_add(&self, value: usize, order: Ordering) -> usize {
        fenced(order, || self.0.fetch_add(value, order))
    }

    pub(crate) fn fetch_sub(&self, value: usize, order: Ordering) -> usize {
        fenced(order, || self.0.fetch_sub(value, order))
    }

    pub(crate) fn fetch_update(
        &self,
        set_order: Ordering,
        fetch_order: Ordering,
        update: impl FnMut(usize) -> Option<usize>,
    ) -> Result<usize, usize> {
        fenced(set_order, || {
            self.0.fetch_update(set_order, fetch_order, update)
        })
    }
}

/// Notifications as those of tokio: `notify_one` wakes the task that has waited longest, or lets the next one pass; a
/// task that was notified and stops to wait passes the notification on.
#[derive(Debug, Default)]
pub(crate) struct Notify(Mutex<Waiters>);

#[derive(Debug, Default)]
struct Waiters {
    has_permit: bool,
    next: usize,
    waiting: VecDeque<(usize, Waker)>,
    notified: Vec<usize>,
}

impl Waiters {
    /// Returns the task to be woken.
    fn notify_one(&mut self) -> Option<Waker> {
        let Some((number, waker)) = self.waiting.pop_front() else {
            self.has_permit = true;
            return None;
        };
        self.notified.push(number);
        Some(waker)
    }
}

impl Notify {
    fn lock(&self) -> loom::sync::MutexGuard<'_, Waiters> {
        self.0.lock().expect("no thread has panicked")
    }

    pub(crate) fn notify_one(&self) {
        let waker = self.lock().notify_one();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub(crate) fn notified(&self) -> Notified<'_> {
        Notified {
            notify: self,
            number: None,
        }
    }
}

/// Wait for a notification.
#[derive(Debug)]
pub(crate) struct Notified<'n> {
    notify: &'n Notify,
    /// Number among those that wait, once it was polled and until it is notified.
    number: Option<usize>,
}

impl Future for Notified<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let notify = self.notify;
        let mut waiters = notify.lock();
        let Some(number) = self.number else {
            if std::mem::take(&mut waiters.has_permit) {
                return Poll::Ready(());
            }
            waiters.next += 1;
            let number = waiters.next;
            waiters.waiting.push_back((number, cx.waker().clone()));
            self.number = Some(number);
            return Poll::Pending;
        };
        if let Some(index) = waiters.notified.iter().position(|other| *other == number) {
            waiters.notified.swap_remove(index);
            self.number = None;
            return Poll::Ready(());
        }
        if let Some((_, waker)) = waiters
            .waiting
            .iter_mut()
            .find(|(other, _)| *other == number)
        {
            waker.clone_from(cx.waker());
        }
        Poll::Pending
    }
}

impl Drop for Notified<'_> {
    fn drop(&mut self) {
        let Some(number) = self.number else { return };
        let mut waiters = self.notify.lock();
        waiters.waiting.retain(|(other, _)| *other != number);
        let notified = waiters.notified.iter().position(|other| *other == number);
        let waker = notified.and_then(|index| {
            waiters.notified.swap_remove(index);
            waiters.notify_one()
        });
        drop(waiters);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// The time limit has passed.
#[derive(Debug)]
pub(crate) struct Elapsed;

/// Returns the output of `future`. A limit of zero has passed when the future is polled for the first time; any other one never
/// passes.
///
/// # Errors
/// Returns an error if the limit has passed.
pub(crate) async fn timeout<F: Future>(limit: Duration, future: F) -> Result<F::Output, Elapsed> {
    let mut future = pin!(future);
    std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Ok(output)),
        Poll::Pending if limit.is_zero() => Poll::Ready(Err(Elapsed)),
        Poll::Pending => Poll::Pending,
    })
    .await
}
