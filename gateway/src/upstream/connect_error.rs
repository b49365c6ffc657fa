//! Reasons a connection to a server was not established.

use pingora::ErrorType;
use thiserror::Error;

/// Reason a connection to a server was not established.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum ConnectError {
    #[error("connecting timed out")]
    TimedOut,
    #[error("the connection was refused, or the endpoint is unreachable")]
    Failed,
    /// The gateway has no socket: too many files are open, or all ports are in use.
    #[error("no socket is available")]
    NoSocket,
    /// The TLS handshake failed, for this reason.
    #[error("the TLS handshake failed: {0}")]
    Tls(String),
}

impl From<&ErrorType> for ConnectError {
    fn from(error: &ErrorType) -> Self {
        match error {
            ErrorType::ConnectTimedout => Self::TimedOut,
            ErrorType::SocketError | ErrorType::BindError | ErrorType::InternalError => {
                Self::NoSocket
            }
            _ => Self::Failed,
        }
    }
}
