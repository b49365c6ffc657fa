//! Work that is cancelled when the client disconnects.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use crate::http::downstream::{Backpressure, Downstream};

/// Returns the output of `work`, or `None` if the client disconnects before.
pub(crate) async fn unless_disconnected<T>(
    downstream: &mut impl Downstream,
    work: impl Future<Output = T>,
) -> Option<T> {
    let mut work = pin!(work);
    poll_fn(|cx| {
        if let Poll::Ready(output) = work.as_mut().poll(cx) {
            return Poll::Ready(Some(output));
        }
        downstream
            .poll(cx, Backpressure::Blocked)
            .map(|_disconnected| None)
    })
    .await
}

/// Delays a request. Returns `None` if the client disconnects before the end of the delay.
pub(crate) async fn delay_unless_disconnected(
    delay: Duration,
    downstream: &mut impl Downstream,
) -> Option<()> {
    if delay.is_zero() {
        return Some(());
    }
    // Boxed because it is rare: inline, the timer would enlarge the future of every request.
    unless_disconnected(downstream, Box::pin(tokio::time::sleep(delay))).await
}
