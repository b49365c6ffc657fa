//! How long a connection may be silent, measured with one timer for all of its requests.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

/// A connection's timer. It is set once and not for each request: where it rings for a time that is
/// no longer the one that counts, it is set again.
#[derive(Debug)]
pub(crate) struct Patience(Pin<Box<Sleep>>);

impl Patience {
    pub(crate) fn new() -> Self {
        Self(Box::pin(sleep(Duration::MAX)))
    }

    /// What `work` comes to, `None` where that takes longer than `limit`.
    pub(crate) async fn within<T>(
        &mut self,
        limit: Duration,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        let end = Instant::now() + limit;
        let mut work = pin!(work);
        poll_fn(|cx| match work.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending => self.poll_until(cx, end).map(|()| None),
        })
        .await
    }

    /// Whether it is `end` yet. The task is woken then, and may be before.
    pub(crate) fn poll_until(&mut self, cx: &mut Context<'_>, end: Instant) -> Poll<()> {
        if self.0.deadline() > end {
            self.0.as_mut().reset(end);
        }
        loop {
            ready!(self.0.as_mut().poll(cx));
            if self.0.deadline() >= end {
                return Poll::Ready(());
            }
            self.0.as_mut().reset(end);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_ends_when_the_last_limit_is_over_and_not_an_earlier_one() {
        let mut patience = Patience::new();
        let start = Instant::now();
        let (long, short) = (Duration::from_mins(1), Duration::from_secs(10));
        assert_eq!(patience.within(short, ready(1)).await, Some(1));
        assert_eq!(patience.within(long, sleep(short * 2)).await, Some(()));
        assert_eq!(patience.within(long, pending::<()>()).await, None);
        assert!(start.elapsed() >= short * 2 + long);
        assert!(start.elapsed() < short * 3 + long);
        let start = Instant::now();
        assert_eq!(patience.within(short, pending::<()>()).await, None);
        assert!(start.elapsed() < short * 2);
    }
}
