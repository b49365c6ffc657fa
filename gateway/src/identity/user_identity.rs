//! Identity that a token gives a request.

use std::sync::Arc;

use http::HeaderName;
use session_invalidation::Owner;

/// Headers of the verify endpoint's response and of requests that are forwarded. The login is percent-encoded.
pub(crate) const USER_ID: HeaderName = HeaderName::from_static("x-user-id");
pub(crate) const USER_LOGIN: HeaderName = HeaderName::from_static("x-user-login");
pub(crate) const SESSION_ID: HeaderName = HeaderName::from_static("x-session-id");

/// User and session of a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) owner: Owner,
    /// The headers as they are sent upstream.
    pub(crate) header_lines: Box<[u8]>,
}

/// Identity that the requests with one token share.
pub(crate) type SharedIdentity = Arc<Identity>;
