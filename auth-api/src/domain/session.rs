//! A session: one login of one person, until it ends.

use std::fmt;

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use secrecy::{ExposeSecret, SecretString};
use uuid::Uuid;

use super::user::UserId;

/// What a session is known by: 122 random bits, which nobody can guess.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct SessionId(Uuid);

impl SessionId {
    pub(crate) fn random() -> Self {
        Self(Uuid::new_v4())
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        Uuid::try_parse(text).ok().map(Self)
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.simple().fmt(f)
    }
}

/// What a client presents to go on with its session: the session's id and 256 random bits.
#[derive(Debug)]
pub(crate) struct RefreshToken(SecretString);

impl RefreshToken {
    /// A new one for `session`.
    pub(crate) fn random(session: SessionId) -> Self {
        let mut bytes = [0; 32];
        aws_lc_rs::rand::fill(&mut bytes).expect("the operating system has random bytes");
        Self(format!("{session}.{}", URL_SAFE_NO_PAD.encode(bytes)).into())
    }

    /// SHA-256 of it, which is all that is stored: it has bits enough to need no slow hash.
    pub(crate) fn hash(&self) -> RefreshHash {
        let hash = digest::digest(&digest::SHA256, self.0.expose_secret().as_bytes());
        RefreshHash(hash.as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }

    /// The text, for the one answer that carries it.
    pub(crate) fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

/// A refresh token's SHA-256.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct RefreshHash(pub(crate) [u8; 32]);

impl fmt::Debug for RefreshHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RefreshHash(…)")
    }
}

/// Where a session came from, for its owner to recognise it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Origin {
    pub(crate) address: String,
    pub(crate) user_agent: String,
}

/// A session to be stored.
#[derive(Debug, Clone)]
pub(crate) struct NewSession {
    pub(crate) id: SessionId,
    pub(crate) user: UserId,
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
