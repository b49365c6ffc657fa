//! Idle timeouts of an HTTP/2 connection, by the event that it waits for.

use std::task::{Context, Poll, ready};
use std::time::Duration;

use crate::config::Limits;
use crate::http::downstream::HIGH_WATERMARK;
use crate::http::h2::frame::Reason;
use crate::runtime::clock::Instant;
use crate::runtime::idle_timer::IdleTimer;

/// Time for which the connection stays open for a request that the client sent before it received the
/// GOAWAY frame.
const GOAWAY_DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Phase of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ConnectionPhase {
    Serving,
    /// A GOAWAY frame was sent (RFC 9113, section 6.8): open streams are completed.
    Draining,
}

/// Work that remains on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RemainingWork {
    /// Open exchanges, each with its own timeouts.
    Exchanges,
    /// Request bodies that are discarded after their responses, each with its own timeouts.
    UnreadBodies,
    /// Complete responses that are not sent yet.
    UnsentResponses,
    None,
}

/// Progress of the client.
#[derive(Debug, Clone, Copy)]
pub(super) struct ClientProgress {
    /// Start of the header block that is incomplete.
    pub(super) header_block_since: Option<Instant>,
    /// Number of bytes that the socket has taken.
    pub(super) sent_bytes: u64,
    /// True if the socket takes no more bytes at present.
    pub(super) is_write_blocked: bool,
}

/// Event that an idle connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum IdleWait {
    HeaderBlockEnd,
    NextRequest,
    /// Request that the client sent before it received the GOAWAY frame.
    LastRequest,
    /// The client reads data that was sent.
    ReadProgress,
}

/// Action after an idle timeout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IdleAction {
    /// Send GOAWAY and complete the open streams.
    Drain,
    /// Send GOAWAY with this reason and abort the open streams.
    Close(Reason),
}

/// Timer of a connection that waits.
#[derive(Debug)]
pub(super) struct IdleMonitor {
    limits: Limits,
    timer: IdleTimer,
    current: Option<CurrentWait>,
}

#[derive(Debug, Clone, Copy)]
struct CurrentWait {
    wait: IdleWait,
    since: Instant,
    /// Number of bytes that the client had been sent at `since`.
    sent_bytes: u64,
}

impl IdleMonitor {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            timer: IdleTimer::new(),
            current: None,
        }
    }

    /// Restarts the current wait.
    pub(super) fn restart(&mut self) {
        self.current = None;
    }

    /// Returns `Ready` once the connection has waited for too long. Called only when no other event is
    /// ready.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        remaining: RemainingWork,
        phase: ConnectionPhase,
        progress: ClientProgress,
    ) -> Poll<IdleAction> {
        let Some(wait) = wait(remaining, phase, progress) else {
            self.current = None;
            return Poll::Pending;
        };
        loop {
            let current = self.start_or_continue(wait, progress);
            let deadline = current.since.to_tokio() + self.timeout(wait);
            ready!(self.timer.poll_until(cx, deadline));
            let needed_bytes = current.sent_bytes + HIGH_WATERMARK as u64;
            match wait {
                IdleWait::NextRequest => return Poll::Ready(IdleAction::Drain),
                IdleWait::LastRequest => {
                    return Poll::Ready(IdleAction::Close(Reason::NoError));
                }
                IdleWait::ReadProgress if progress.sent_bytes >= needed_bytes => {
                    self.current = None;
                }
                IdleWait::HeaderBlockEnd | IdleWait::ReadProgress => {
                    return Poll::Ready(IdleAction::Close(Reason::EnhanceYourCalm));
                }
            }
        }
    }

    fn start_or_continue(&mut self, wait: IdleWait, progress: ClientProgress) -> CurrentWait {
        let since = match wait {
            // Each header block is a wait of its own.
            IdleWait::HeaderBlockEnd => progress.header_block_since,
            _ => None,
        };
        match self.current {
            Some(current)
                if current.wait == wait && since.is_none_or(|since| since == current.since) =>
            {
                current
            }
            _ => *self.current.insert(CurrentWait {
                wait,
                since: since.unwrap_or_else(Instant::now),
                sent_bytes: progress.sent_bytes,
            }),
        }
    }

    fn timeout(&self, wait: IdleWait) -> Duration {
        match wait {
            IdleWait::HeaderBlockEnd => self.limits.header_timeout,
            IdleWait::NextRequest | IdleWait::ReadProgress => self.limits.idle_timeout,
            IdleWait::LastRequest => GOAWAY_DRAIN_TIMEOUT,
        }
    }
}

/// Returns the event that the connection waits for, `None` if that has timeouts of its own.
fn wait(
    remaining: RemainingWork,
    phase: ConnectionPhase,
    progress: ClientProgress,
) -> Option<IdleWait> {
    if progress.header_block_since.is_some() {
        return Some(IdleWait::HeaderBlockEnd);
    }
    match (remaining, phase) {
        (RemainingWork::Exchanges | RemainingWork::UnreadBodies, _) => {
            progress.is_write_blocked.then_some(IdleWait::ReadProgress)
        }
        (RemainingWork::UnsentResponses, _) => Some(IdleWait::ReadProgress),
        (RemainingWork::None, ConnectionPhase::Serving) => Some(IdleWait::NextRequest),
        (RemainingWork::None, ConnectionPhase::Draining) => Some(IdleWait::LastRequest),
    }
}
