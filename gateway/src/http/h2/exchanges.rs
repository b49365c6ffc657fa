//! Exchanges of a connection: futures that one task polls, each when it was woken.
//!
//! Invariant: no wake-up is lost. A wake-up of an exchange marks it as ready and wakes the task, unless it is ready
//! already: then the task was woken, or is running and about to poll it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

/// Futures of the exchanges.
pub(super) struct Exchanges<F>(Vec<Exchange<F>>);

struct Exchange<F> {
    stream: u32,
    future: Pin<Box<F>>,
    /// `None` before the first poll.
    readiness: Option<(Arc<Readiness>, Waker)>,
}

struct Readiness {
    is_ready: AtomicBool,
    task: Waker,
}

impl Wake for Readiness {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.is_ready.swap(true, Ordering::AcqRel) {
            self.task.wake_by_ref();
        }
    }
}

impl Readiness {
    fn new(task: &Waker) -> (Arc<Self>, Waker) {
        let readiness = Arc::new(Self {
            is_ready: AtomicBool::new(true),
            task: task.clone(),
        });
        let waker = Waker::from(Arc::clone(&readiness));
        (readiness, waker)
    }
}

impl<F: Future> Exchanges<F> {
    pub(super) fn new() -> Self {
        Self(Vec::new())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Adds the exchange of a stream, to be polled next.
    pub(super) fn push(&mut self, stream: u32, future: Pin<Box<F>>) {
        self.0.push(Exchange {
            stream,
            future,
            readiness: None,
        });
    }

    /// Wakes the exchange of a stream by `waker`, which it has registered, without waking the task, which is about to
    /// poll.
    pub(super) fn wake(&self, stream: u32, waker: Waker) {
        let exchange = self.0.iter().find(|exchange| exchange.stream == stream);
        if let Some((readiness, _)) = exchange.and_then(|exchange| exchange.readiness.as_ref()) {
            readiness.is_ready.store(true, Ordering::Release);
            waker.wake();
        }
    }

    /// Polls the exchanges that are ready, and returns the output of one that has ended.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<F::Output> {
        for position in 0..self.0.len() {
            let exchange = &mut self.0[position];
            exchange
                .readiness
                .take_if(|(readiness, _)| !readiness.task.will_wake(cx.waker()));
            let (readiness, waker) = exchange
                .readiness
                .get_or_insert_with(|| Readiness::new(cx.waker()));
            let is_ready = &readiness.is_ready;
            if !is_ready.load(Ordering::Relaxed) || !is_ready.swap(false, Ordering::AcqRel) {
                continue;
            }
            let mut cx = Context::from_waker(waker);
            if let Poll::Ready(output) = exchange.future.as_mut().poll(&mut cx) {
                self.0.swap_remove(position);
                return Poll::Ready(output);
            }
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::future::poll_fn;
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
    fn an_exchange_is_polled_when_it_was_woken() {
        let wake_ups = Arc::new(CountingWaker::default());
        let task = Waker::from(Arc::clone(&wake_ups));
        let mut cx = Context::from_waker(&task);
        let count = || wake_ups.0.load(Ordering::Relaxed);
        let polls = RefCell::new(Vec::new());
        let mut exchanges = Exchanges::new();
        for id in [1, 3] {
            let polls = &polls;
            let exchange = poll_fn(move |cx: &mut Context<'_>| {
                polls.borrow_mut().push((id, cx.waker().clone()));
                if polls.borrow().len() < 4 {
                    Poll::Pending
                } else {
                    Poll::Ready(id)
                }
            });
            exchanges.push(id, Box::pin(exchange));
        }
        let polled = || -> Vec<u32> { polls.borrow().iter().map(|(id, _)| *id).collect() };
        assert!(exchanges.poll(&mut cx).is_pending());
        assert!(exchanges.poll(&mut cx).is_pending());
        assert_eq!(polled(), [1, 3]);
        // From outside: the task is woken, once.
        let waker = polls.borrow()[1].1.clone();
        waker.wake_by_ref();
        waker.wake_by_ref();
        assert_eq!(count(), 1);
        assert!(exchanges.poll(&mut cx).is_pending());
        assert_eq!(polled(), [1, 3, 3]);
        // By the task itself, which is about to poll.
        let waker = polls.borrow()[0].1.clone();
        exchanges.wake(1, waker);
        assert_eq!(count(), 1);
        assert_eq!(exchanges.poll(&mut cx), Poll::Ready(1));
        assert_eq!((polled(), exchanges.len()), (vec![1, 3, 3, 1], 1));
    }
}
