//! A session: one login of one person, until it ends.

use std::fmt;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::refresh_token::{RefreshHash, SealedSecret};
use super::token::Principal;

/// What a session is known by: 122 random bits, which nobody can guess.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct SessionId(Uuid);

impl SessionId {
    pub(crate) fn random() -> Self {
        Self(Uuid::new_v4())
    }

    /// One spelling only: 32 lower-case digits.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let id = Uuid::try_parse(text).ok().map(Self)?;
        (id.to_string() == text).then_some(id)
    }

    pub(crate) fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }

    pub(crate) fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.simple().fmt(f)
    }
}

/// Where a session came from, for its owner to recognise it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) address: String,
    pub(crate) user_agent: String,
}

/// A session to be stored.
#[derive(Debug, Clone)]
pub(crate) struct NewSession {
    pub(crate) principal: Principal,
    pub(crate) refresh: RefreshHash,
    pub(crate) created_at: DateTime<Utc>,
    pub(crate) expires_at: DateTime<Utc>,
    pub(crate) origin: Origin,
}

/// What became of a session that was to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    Now,
    Before,
}

/// A live session as its owner sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LiveSession {
    pub(crate) id: SessionId,
    pub(crate) created_at: DateTime<Utc>,
    /// To the minute.
    pub(crate) last_used: DateTime<Utc>,
    pub(crate) origin: Origin,
}

/// An exchange of a refresh token for the next.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Exchange {
    pub(crate) principal: Principal,
    pub(crate) presented: RefreshHash,
    pub(crate) next: RefreshHash,
    /// The next token, for a client that asks again with the same one.
    pub(crate) sealed: SealedSecret,
    pub(crate) now: DateTime<Utc>,
    pub(crate) expires_at: DateTime<Utc>,
}

/// What came of an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exchanged {
    /// The next token is the current one now.
    Rotated,
    /// The token was used a moment ago: this is the successor that was made then.
    Repeated(SealedSecret),
    /// The session lives, and its token is another: this one was used before.
    Used,
    /// No such session lives.
    Gone,
}
