//! How long an HTTP/2 connection may rest, by what it waits for.

use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::Reason;

use super::Stage;
use super::traffic::Traffic;
use crate::config::Limits;
use crate::moment::Moment;
use crate::patience::Patience;
use crate::wire::FULL;

/// For a request that crosses the farewell to come.
const LAST_CALL: Duration = Duration::from_secs(1);

/// What is left to do on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    /// Exchanges, each with limits of its own.
    Exchanges,
    /// Answers are whole and on their way.
    Unsent,
    /// To be closed when the client has read everything, which has a limit of its own.
    Reading,
    Nothing,
}

/// What a connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Awaited {
    /// The rest of a header.
    Header,
    /// The next request.
    Request,
    /// A request, if one crosses the farewell.
    LastRequest,
    /// The client, to take what it is sent.
    Reader,
}

/// What becomes of a connection that waited for too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is told that it ends.
    Farewell,
    /// It ends, whatever is under way.
    Close(Reason),
}

/// Keeps a connection from resting for ever.
#[derive(Debug)]
pub(super) struct Watch {
    traffic: Arc<Traffic>,
    limits: Limits,
    patience: Patience,
    wait: Option<Wait>,
}

#[derive(Debug, Clone, Copy)]
struct Wait {
    awaited: Awaited,
    since: Moment,
    /// Bytes that the client had taken then.
    taken: u64,
}

impl Watch {
    pub(super) fn new(traffic: Arc<Traffic>, limits: Limits) -> Self {
        Self {
            traffic,
            limits,
            patience: Patience::new(),
            wait: None,
        }
    }

    /// What the connection waits for, where that is for the connection to bound.
    pub(super) fn awaited(&self, left: Left, stage: Stage) -> Option<Awaited> {
        if self.traffic.header_since().is_some() {
            return Some(Awaited::Header);
        }
        match (left, stage) {
            (Left::Exchanges, _) => self.traffic.is_blocked().then_some(Awaited::Reader),
            (Left::Unsent, _) => Some(Awaited::Reader),
            (Left::Reading, _) => None,
            (Left::Nothing, Stage::Serving) => Some(Awaited::Request),
            (Left::Nothing, Stage::Ending) => Some(Awaited::LastRequest),
        }
    }

    /// Something has happened: whatever is waited for next is waited for anew.
    pub(super) fn start_over(&mut self) {
        self.wait = None;
    }

    /// Polled when nothing happens: whether that has lasted for too long.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, awaited: Option<Awaited>) -> Poll<Verdict> {
        if self.traffic.is_a_flood() {
            return Poll::Ready(Verdict::Close(Reason::ENHANCE_YOUR_CALM));
        }
        let Some(awaited) = awaited else {
            self.wait = None;
            return Poll::Pending;
        };
        loop {
            let wait = self.wait_for(awaited);
            let end = wait.since.instant() + self.limit(awaited);
            ready!(self.patience.poll_until(cx, end));
            match awaited {
                Awaited::Request => return Poll::Ready(Verdict::Farewell),
                Awaited::LastRequest => return Poll::Ready(Verdict::Close(Reason::NO_ERROR)),
                // Who takes enough goes on.
                Awaited::Reader if self.traffic.taken() >= wait.taken + FULL as u64 => {
                    self.wait = None;
                }
                Awaited::Header | Awaited::Reader => {
                    return Poll::Ready(Verdict::Close(Reason::ENHANCE_YOUR_CALM));
                }
            }
        }
    }

    fn wait_for(&mut self, awaited: Awaited) -> Wait {
        let since = match awaited {
            // A further header is another wait.
            Awaited::Header => self.traffic.header_since(),
            _ => None,
        };
        match self.wait {
            Some(wait) if wait.awaited == awaited && since.is_none_or(|at| at == wait.since) => {
                wait
            }
            _ => *self.wait.insert(Wait {
                awaited,
                since: since.unwrap_or_else(Moment::now),
                taken: self.traffic.taken(),
            }),
        }
    }

    fn limit(&self, awaited: Awaited) -> Duration {
        match awaited {
            Awaited::Header => self.limits.header_timeout,
            Awaited::Request | Awaited::Reader => self.limits.idle_timeout,
            Awaited::LastRequest => LAST_CALL,
        }
    }
}
