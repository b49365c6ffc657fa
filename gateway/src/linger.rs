//! Closing a connection so that its client can read what it was told last: what is unread when a socket
//! is closed resets it, and takes back what has not arrived yet (RFC 9112, section 9.6).

use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::moment::Moment;
use crate::patience::Patience;

/// Between two reads of what the client goes on sending.
const BETWEEN: Duration = Duration::from_secs(2);
/// In all.
pub(crate) const MOST: Duration = Duration::from_secs(30);

/// A connection that says nothing more, and waits for its client to close.
#[derive(Debug)]
pub(crate) struct Linger {
    patience: Patience,
    since: Moment,
    /// When the client last sent something.
    last: Moment,
}

impl Linger {
    pub(crate) fn new() -> Self {
        let now = Moment::now();
        Self {
            patience: Patience::new(),
            since: now,
            last: now,
        }
    }

    /// Reads, and forgets what that brings, until the client has closed or had its time.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        mut read: impl FnMut(&mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<()> {
        let end = self.since.instant() + MOST;
        loop {
            match read(cx) {
                Poll::Ready(Ok(1..)) => self.last = Moment::now(),
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => {
                    let silent = self.last.instant() + BETWEEN;
                    return self.patience.poll_until(cx, silent.min(end));
                }
            }
            if self.last.instant() > end {
                return Poll::Ready(());
            }
        }
    }
}
