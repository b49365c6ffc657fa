//! Errors of the endpoints of OAuth, which have the form of RFC 6749, section 5.2.

use super::body::BodyError;
use super::form::InvalidForm;
use crate::authentication::oauth_client::ClientAuthenticationError;
use crate::store::unavailable::Unavailable;
use crate::telemetry::audit::AuditUnavailable;
use crate::throttle::LockedOut;

/// Reason a request of an OAuth client failed.
#[derive(Debug)]
pub(crate) enum OAuthError {
    InvalidRequest(InvalidOAuthRequest),
    Body(BodyError),
    /// Authentication is missing or failed.
    InvalidClient,
    /// Too many authentications as this client failed at this address.
    LockedOut(LockedOut),
    Unavailable,
}

/// Reason a request is not well-formed. Its `Display` is the description for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidOAuthRequest {
    #[error("The body is not declared as application/x-www-form-urlencoded")]
    NotAForm,
    #[error(transparent)]
    Form(#[from] InvalidForm),
    #[error("The parameter token is missing")]
    TokenMissing,
    #[error("The client is authenticated by more than one method")]
    MultipleAuthenticationMethods,
}

impl From<InvalidOAuthRequest> for OAuthError {
    fn from(reason: InvalidOAuthRequest) -> Self {
        Self::InvalidRequest(reason)
    }
}

impl From<InvalidForm> for OAuthError {
    fn from(reason: InvalidForm) -> Self {
        Self::InvalidRequest(reason.into())
    }
}

impl From<BodyError> for OAuthError {
    fn from(error: BodyError) -> Self {
        Self::Body(error)
    }
}

impl From<Unavailable> for OAuthError {
    fn from(_: Unavailable) -> Self {
        Self::Unavailable
    }
}

impl From<AuditUnavailable> for OAuthError {
    fn from(_: AuditUnavailable) -> Self {
        Self::Unavailable
    }
}

impl From<ClientAuthenticationError> for OAuthError {
    fn from(error: ClientAuthenticationError) -> Self {
        match error {
            ClientAuthenticationError::Invalid => Self::InvalidClient,
            ClientAuthenticationError::LockedOut(locked_out) => Self::LockedOut(locked_out),
            ClientAuthenticationError::Unavailable(_)
            | ClientAuthenticationError::AuditUnavailable(_) => Self::Unavailable,
        }
    }
}
