//! Outcomes of a request.

use crate::http::downstream::Downstream;
use crate::proxy::error_response::ErrorResponse;
use crate::telemetry::access_log::Termination;

/// Outcome of a request.
#[derive(Debug)]
pub(crate) enum RequestOutcome {
    /// The complete response was sent: over HTTP/1.1 to the socket, over HTTP/2 to the output of the connection.
    Completed,
    /// No part of a response has been sent to the client: this one is sent.
    Failed(ErrorResponse),
    /// The request was a preflight of a permitted origin, and no response has been sent yet.
    Preflight,
    /// The response has begun, and the endpoint does not complete it.
    Truncated,
    /// The response has begun, and the gateway ends it because of the request body or, on an upgraded
    /// connection, of the idle timeout.
    Aborted,
    /// The client disconnected.
    ClientDisconnected,
}

impl From<ErrorResponse> for RequestOutcome {
    fn from(response: ErrorResponse) -> Self {
        Self::Failed(response)
    }
}

impl RequestOutcome {
    /// Returns the outcome of a request whose handling panicked.
    pub(crate) fn after_panic(downstream: &impl Downstream) -> Self {
        match downstream.status() {
            None => Self::Failed(ErrorResponse::INTERNAL_ERROR),
            Some(_) => Self::Aborted,
        }
    }

    /// Returns the outcome as the access log and the metrics show it.
    pub(crate) fn termination(&self) -> Termination {
        match self {
            Self::Completed | Self::Failed(_) | Self::Preflight => Termination::Complete,
            Self::Truncated => Termination::Truncated,
            Self::Aborted => Termination::Aborted,
            Self::ClientDisconnected => Termination::ClientDisconnected,
        }
    }
}
