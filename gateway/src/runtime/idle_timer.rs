//! Idle timer of a connection, shared by all of its requests.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

/// Timer of one connection. It is not reset for each request, which would cost an update of tokio's
/// timer wheel: if it fires before the current deadline, it is reset then.
#[derive(Debug)]
pub(crate) struct IdleTimer(Pin<Box<Sleep>>);

impl IdleTimer {
    pub(crate) fn new() -> Self {
        Self(Box::pin(sleep(Duration::MAX)))
    }

    /// Returns the result of `work`, or `None` if it takes longer than `limit`.
    pub(crate) async fn timeout<T>(
        &mut self,
        limit: Duration,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        let deadline = Instant::now() + limit;
        let mut work = pin!(work);
        poll_fn(|cx| match work.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending => self.poll_until(cx, deadline).map(|()| None),
        })
        .await
    }

    /// Returns `Ready` once `deadline` has passed. The task is woken then, and may be woken earlier.
    pub(crate) fn poll_until(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        if self.0.deadline() > deadline {
            self.0.as_mut().reset(deadline);
        }
        loop {
            ready!(self.0.as_mut().poll(cx));
            if self.0.deadline() >= deadline {
                return Poll::Ready(());
            }
            self.0.as_mut().reset(deadline);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_latest_limit_counts_and_not_an_earlier_one() {
        let mut timer = IdleTimer::new();
        let start = Instant::now();
        let (long, short) = (Duration::from_mins(1), Duration::from_secs(10));
        assert_eq!(timer.timeout(short, ready(1)).await, Some(1));
        assert_eq!(timer.timeout(long, sleep(short * 2)).await, Some(()));
        assert_eq!(timer.timeout(long, pending::<()>()).await, None);
        assert!(start.elapsed() >= short * 2 + long);
        assert!(start.elapsed() < short * 3 + long);
        let start = Instant::now();
        assert_eq!(timer.timeout(short, pending::<()>()).await, None);
        assert!(start.elapsed() < short * 2);
    }
}
