//! Lingering close (RFC 9112, section 9.6): after the last response, the connection is closed for
//! writing and read until the client closes it.
//!
//! A socket that is closed while input is unread is reset, and the reset discards output that the
//! client has not received yet. The wait is bounded, as by nginx's `lingering_timeout` and
//! `lingering_time`.

use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::runtime::clock::Instant;
use crate::runtime::idle_timer::IdleTimer;

/// Longest time between two reads.
const READ_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest time in total.
pub(crate) const MAX_DURATION: Duration = Duration::from_secs(30);

/// State of a connection that is closed for writing and waits for its client to close it.
#[derive(Debug)]
pub(crate) struct LingeringClose {
    timer: IdleTimer,
    started_at: Instant,
    last_read_at: Instant,
}

impl LingeringClose {
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        Self {
            timer: IdleTimer::new(),
            started_at: now,
            last_read_at: now,
        }
    }

    /// Reads and discards input. Returns `Ready` once the client has closed the connection or a
    /// timeout has expired.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        mut read: impl FnMut(&mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<()> {
        let deadline = self.started_at.to_tokio() + MAX_DURATION;
        loop {
            match read(cx) {
                Poll::Ready(Ok(1..)) => self.last_read_at = Instant::now(),
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => {
                    let read_deadline = self.last_read_at.to_tokio() + READ_TIMEOUT;
                    return self.timer.poll_until(cx, read_deadline.min(deadline));
                }
            }
            if self.last_read_at.to_tokio() > deadline {
                return Poll::Ready(());
            }
        }
    }
}
