//! Outcomes of a request.

use crate::proxy::error_response::ErrorResponse;

/// Outcome of a request.
#[derive(Debug)]
pub(crate) enum RequestOutcome {
    /// The client has received the response.
    Completed,
    /// No part of a response has been sent to the client: this one is sent.
    Failed(ErrorResponse),
    /// The response has begun and cannot be completed.
    Truncated,
    /// The client disconnected.
    ClientDisconnected,
}
