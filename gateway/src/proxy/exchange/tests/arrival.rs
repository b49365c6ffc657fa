//! Request that has reached the endpoint, and what its fate permits and demands.

use std::time::Duration;

use tokio::time::Instant;

/// Time in which a close of a pooled connection counts as that of an idle one.
const STALE_CLOSE_DELAY: Duration = Duration::from_millis(250);

/// Request that has reached the endpoint.
pub(super) struct Arrival {
    at: Instant,
    connection: ConnectionUse,
    response: ResponseStart,
    /// Status of the complete response.
    status: Option<u16>,
    /// Time at which the endpoint closed the connection.
    closed: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ResponseStart {
    NothingSent,
    /// The connection was reset after bytes that the gateway may not have read.
    MaybeDiscarded,
    BytesSent,
}

/// Earlier use of a connection to the endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ConnectionUse {
    First,
    /// The last exchange ended as it should.
    Clean,
    /// The connection must not be used again, for this reason.
    Unclean(&'static str),
}

impl Arrival {
    /// Returns the time since the headers have arrived.
    pub(super) fn age(&self) -> Duration {
        self.at.elapsed()
    }

    pub(super) fn new(connection: ConnectionUse) -> Self {
        Self {
            at: Instant::now(),
            connection,
            response: ResponseStart::NothingSent,
            status: None,
            closed: None,
        }
    }

    pub(super) fn send_response(&mut self) {
        self.response = ResponseStart::BytesSent;
    }

    pub(super) fn complete_response(&mut self, status: u16) {
        self.status = Some(status);
    }

    pub(super) fn close(&mut self) {
        self.closed = Some(Instant::now());
    }

    pub(super) fn reset(&mut self) {
        if self.response == ResponseStart::BytesSent {
            self.response = ResponseStart::MaybeDiscarded;
        }
        self.close();
    }

    /// Returns whether the gateway may take the connection for one that was closed while it was idle.
    pub(super) fn may_be_stale(&self) -> bool {
        self.response != ResponseStart::BytesSent && self.was_closed_early()
    }

    /// Returns whether the gateway must do so.
    pub(super) fn is_stale(&self) -> bool {
        self.response == ResponseStart::NothingSent && self.was_closed_early()
    }

    fn was_closed_early(&self) -> bool {
        self.connection != ConnectionUse::First
            && self
                .closed
                .is_some_and(|closed| closed - self.at <= STALE_CLOSE_DELAY)
    }

    /// Returns whether the connection was closed before the response was complete.
    pub(super) fn is_broken(&self) -> bool {
        self.closed.is_some() && self.status.is_none()
    }

    /// Returns whether another attempt may follow.
    pub(super) fn may_be_retried(&self) -> bool {
        self.status.is_none_or(is_temporary)
    }

    /// Returns whether another attempt follows if the configuration permits one.
    pub(super) fn is_to_be_retried(&self) -> bool {
        self.status.is_some_and(is_temporary)
            || self.closed.is_some() && self.response == ResponseStart::NothingSent
    }
}

fn is_temporary(status: u16) -> bool {
    matches!(status, 502..=504)
}
