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

/// Time until which input is read and discarded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LingeringDeadline {
    started_at: Instant,
    last_read_at: Instant,
}

impl LingeringDeadline {
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        Self {
            started_at: now,
            last_read_at: now,
        }
    }

    /// Records that input was read.
    pub(crate) fn record_read(&mut self) {
        self.last_read_at = Instant::now();
    }

    pub(crate) fn instant(self) -> Instant {
        let read_deadline = self.last_read_at.saturating_add(READ_TIMEOUT);
        read_deadline.min(self.last_instant())
    }

    fn last_instant(self) -> Instant {
        self.started_at.saturating_add(MAX_DURATION)
    }
}

/// State of a connection that is closed for writing and waits for its client to close it.
#[derive(Debug)]
pub(crate) struct LingeringClose {
    timer: IdleTimer,
    deadline: LingeringDeadline,
}

impl LingeringClose {
    pub(crate) fn new() -> Self {
        Self {
            timer: IdleTimer::new(),
            deadline: LingeringDeadline::new(),
        }
    }

    /// Reads and discards input. Returns `Ready` once the client has closed the connection or a
    /// timeout has expired.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        mut read: impl FnMut(&mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<()> {
        loop {
            match read(cx) {
                Poll::Ready(Ok(1..)) => self.deadline.record_read(),
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => {
                    let deadline = self.deadline.instant();
                    return self.timer.poll_until(cx, deadline.to_tokio());
                }
            }
            if self.deadline.last_read_at > self.deadline.last_instant() {
                return Poll::Ready(());
            }
        }
    }
}
