//! Reasons an access token is not accepted.

/// Reason a token is not accepted. Its `Display` is the message for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidAccessToken {
    #[error("Invalid token")]
    Malformed,
    #[error("Token has expired")]
    Expired,
    #[error("Invalid token payload")]
    InvalidPayload,
    /// The signature is valid and the session is not active: it has ended, or the Python service
    /// issued the token.
    #[error("Token not found or expired")]
    SessionNotFound,
}
