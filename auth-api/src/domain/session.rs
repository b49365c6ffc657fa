//! Sessions: each begins with a login and lives until it is ended or expires.

use chrono::{DateTime, Utc};

use super::principal::{Principal, SessionId};
use super::refresh_token::{RefreshTokenHash, SealedSuccessor};

/// Client that began a session, shown to the owner, who can recognise a device by it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ClientInfo {
    pub(crate) address: String,
    pub(crate) user_agent: String,
}

/// Session to be stored.
#[derive(Debug, Clone)]
pub(crate) struct NewSession {
    pub(crate) principal: Principal,
    pub(crate) refresh_hash: RefreshTokenHash,
    pub(crate) created_at: DateTime<Utc>,
    pub(crate) expires_at: DateTime<Utc>,
    pub(crate) client: ClientInfo,
}

/// Outcome of a request to end a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EndOutcome {
    Ended,
    /// The session has ended before, or never existed.
    NotFound,
}

/// Active session as its owner sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ActiveSession {
    pub(crate) id: SessionId,
    pub(crate) created_at: DateTime<Utc>,
    /// Accurate to a minute.
    pub(crate) last_used: DateTime<Utc>,
    pub(crate) client: ClientInfo,
}

/// Replacement of a refresh token by its successor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rotation {
    pub(crate) principal: Principal,
    pub(crate) presented: RefreshTokenHash,
    pub(crate) successor: RefreshTokenHash,
    /// Returned to a client that retries with the same token.
    pub(crate) sealed_successor: SealedSuccessor,
    pub(crate) now: DateTime<Utc>,
    pub(crate) expires_at: DateTime<Utc>,
}

/// Outcome of a rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RotationOutcome {
    /// The successor is now the session's current token.
    Rotated,
    /// The token was rotated within the grace period, to this successor.
    RetriedWithinGrace(SealedSuccessor),
    /// The session is active and its current token is another one: the presented token was used before.
    Reused,
    /// No such session is active.
    SessionNotFound,
}
