//! Sessions: each begins with a login and lives until it is ended or expires.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::principal::{Principal, SessionId};
use super::refresh_token::{RefreshTokenGeneration, RefreshTokenHash, SealedSuccessor};
use super::session_cutoff::{AuthTime, SessionCutoff};

/// Durations that bound a session.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SessionPolicy {
    /// Time from a login or a refresh to the next refresh, at most.
    pub(crate) lifetime: Duration,
    /// Time from the login to the end of the session, however often it is refreshed.
    pub(crate) max_age: Option<Duration>,
    /// Time from a refresh for which the used token may be presented again, although its successor
    /// was used.
    pub(crate) refresh_grace: Duration,
}

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
    pub(crate) refresh_generation: RefreshTokenGeneration,
    pub(crate) created_at: DateTime<Utc>,
    pub(crate) auth_time: AuthTime,
    pub(crate) policy: SessionPolicy,
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
    pub(crate) auth_time: AuthTime,
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
    pub(crate) presented_generation: RefreshTokenGeneration,
    pub(crate) successor: RefreshTokenHash,
    pub(crate) successor_generation: RefreshTokenGeneration,
    /// Returned to a client that retries with the same token.
    pub(crate) sealed_successor: SealedSuccessor,
    /// A session that it does not permit is not found.
    pub(crate) cutoff: SessionCutoff,
    pub(crate) now: DateTime<Utc>,
    pub(crate) policy: SessionPolicy,
}

/// Question whether a refresh token could be exchanged. It changes nothing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RefreshTokenQuery {
    pub(crate) principal: Principal,
    pub(crate) presented: RefreshTokenHash,
    pub(crate) presented_generation: RefreshTokenGeneration,
    /// A session that it does not permit is not found.
    pub(crate) cutoff: SessionCutoff,
    pub(crate) policy: SessionPolicy,
}

/// Time for which an unused refresh token of an active session is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RefreshTokenValidity {
    /// `None` if the token is not the last one that was issued in its session.
    pub(crate) issued_at: Option<DateTime<Utc>>,
    pub(crate) expires_at: DateTime<Utc>,
}

/// Outcome of a rotation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RotationOutcome {
    /// The successor is now the session's current token.
    Rotated,
    /// The token was rotated a moment ago. Each of these successors is sealed by the token before it;
    /// the last one is the session's current token.
    Retried(Vec<SealedSuccessor>),
    /// The session is active and its client has used a successor of the presented token.
    Reused,
    /// No such session is active.
    SessionNotFound,
}

impl NewSession {
    pub(crate) fn expires_at(&self) -> DateTime<Utc> {
        self.policy.expires_at(self.created_at, self.created_at)
    }
}

impl SessionPolicy {
    /// Returns whether a session that was created at `created_at` has reached its maximum age.
    pub(crate) fn is_past_max_age(&self, created_at: DateTime<Utc>, now: DateTime<Utc>) -> bool {
        let age = (now - created_at).to_std().ok();
        self.max_age
            .zip(age)
            .is_some_and(|(max_age, age)| age >= max_age)
    }

    /// Returns the time at which a session expires that was used to refresh tokens at `now`.
    pub(crate) fn expires_at(
        &self,
        created_at: DateTime<Utc>,
        now: DateTime<Utc>,
    ) -> DateTime<Utc> {
        self.limit_to_max_age(created_at, now + self.lifetime)
    }

    /// Returns the time at which a session ends that would expire at `expires_at`.
    pub(crate) fn limit_to_max_age(
        &self,
        created_at: DateTime<Utc>,
        expires_at: DateTime<Utc>,
    ) -> DateTime<Utc> {
        match self.max_age {
            Some(max_age) => TimeDelta::from_std(max_age)
                .ok()
                .and_then(|max_age| created_at.checked_add_signed(max_age))
                .map_or(expires_at, |end| expires_at.min(end)),
            None => expires_at,
        }
    }
}
