//! Store of sessions: Redis, or the embedded SQLite file.
//!
//! A session is a record under its id, with an index of each user's sessions, so that the cost of
//! ending one or all of them does not depend on how many others exist. Tokens are not stored: an
//! access token names its session, and of a refresh token only the SHA-256 is stored.

mod policy;
mod redis;
pub(crate) mod rows;
mod sqlite;

pub(crate) use redis::RedisSessions;
pub(crate) use sqlite::SqliteSessions;

use chrono::Utc;

use crate::domain::principal::Principal;
use crate::domain::session::{
    ActiveSession, EndOutcome, NewSession, RefreshTokenQuery, RefreshTokenValidity, Rotation,
    RotationOutcome, SessionPolicy,
};
use crate::domain::session_cutoff::{AuthTime, SessionCutoff};
use crate::domain::user::UserId;
use crate::store::check::CheckError;
use crate::store::unavailable::Unavailable;

/// Sessions in one of the stores. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) enum Sessions {
    Redis(RedisSessions),
    Sqlite(SqliteSessions),
}

/// Calls a method of the store that is in use. Redis measures its operations itself.
macro_rules! dispatch {
    ($self:ident.$method:ident($($argument:expr),*)) => {
        match $self {
            Self::Redis(sessions) => sessions.$method($($argument),*).await,
            Self::Sqlite(sessions) => sessions.0.timed(sessions.$method($($argument),*)).await,
        }
    };
}

impl Sessions {
    /// Stores a new session.
    pub(crate) async fn create(&self, session: &NewSession) -> Result<(), Unavailable> {
        dispatch!(self.create(session))
    }

    /// Returns when the password was last verified in the session of `principal`, `None` if there is
    /// no such session, and records its use at intervals. The account decides whether it is active.
    pub(crate) async fn auth_time(
        &self,
        principal: Principal,
        policy: SessionPolicy,
    ) -> Result<Option<AuthTime>, Unavailable> {
        dispatch!(self.auth_time(principal, policy))
    }

    /// Rotates a refresh token. Of several concurrent calls with one token, one rotates it; within
    /// the grace period the others return the same successor.
    ///
    /// As long as no successor of a token was used, presenting it again is a retry of a client that
    /// lost the response, and has another successor after the grace period. If a successor was
    /// used, it is a retry within the grace period, unless a successor of that one was used too.
    /// Everything else is reuse: two parties hold the token (RFC 9700, section 4.14.2).
    pub(crate) async fn rotate(&self, rotation: &Rotation) -> Result<RotationOutcome, Unavailable> {
        dispatch!(self.rotate(rotation))
    }

    /// Returns the validity of a refresh token, `None` unless it is unused and its session is active. It is not
    /// used up, and one that was used does not count as reused.
    pub(crate) async fn refresh_token_validity(
        &self,
        query: &RefreshTokenQuery,
    ) -> Result<Option<RefreshTokenValidity>, Unavailable> {
        dispatch!(self.refresh_token_validity(query))
    }

    /// Ends one session. Of several concurrent calls for one session, one returns `Ended`.
    pub(crate) async fn end(&self, principal: Principal) -> Result<EndOutcome, Unavailable> {
        dispatch!(self.end(principal))
    }

    /// Ends every session of a user and returns their number.
    pub(crate) async fn end_all(&self, user: UserId) -> Result<u64, Unavailable> {
        dispatch!(self.end_all(user, None))
    }

    /// Ends every session of a user except `kept`, in which the password was verified at `auth_time`,
    /// and returns their number.
    pub(crate) async fn end_others(
        &self,
        kept: Principal,
        auth_time: AuthTime,
    ) -> Result<u64, Unavailable> {
        dispatch!(self.end_all(kept.user, Some((kept.session, auth_time))))
    }

    /// Makes every cache of sessions forget one that the store has and its account refuses: what ended it may have been
    /// interrupted before gateways were told. The store keeps it, since a change of the password that is under way in it
    /// renews it.
    pub(crate) async fn refuse(
        &self,
        principal: Principal,
        auth_time: AuthTime,
    ) -> Result<(), Unavailable> {
        match self {
            Self::Redis(sessions) => sessions.refuse(principal, auth_time).await,
            // Sessions in SQLite are not cached.
            Self::Sqlite(_) => Ok(()),
        }
    }

    /// Makes every cache of sessions forget all of them, after the accounts have ended them.
    pub(crate) async fn invalidate_all(&self) -> Result<(), Unavailable> {
        match self {
            Self::Redis(sessions) => sessions.invalidate_all().await,
            // Sessions in SQLite are not cached.
            Self::Sqlite(_) => Ok(()),
        }
    }

    /// Returns the active sessions of a user that `cutoff` and `policy` permit, the newest first.
    pub(crate) async fn list(
        &self,
        user: UserId,
        cutoff: SessionCutoff,
        policy: SessionPolicy,
    ) -> Result<Vec<ActiveSession>, Unavailable> {
        let mut sessions: Vec<ActiveSession> = dispatch!(self.list(user))?;
        let now = Utc::now();
        sessions.retain(|session| {
            cutoff.permits(session.auth_time) && !policy.is_past_max_age(session.created_at, now)
        });
        sessions.sort_by_key(|session| std::cmp::Reverse(session.created_at));
        Ok(sessions)
    }

    /// Returns the name of the store in metrics.
    pub(crate) fn store_label(&self) -> &'static str {
        match self {
            Self::Redis(_) => "redis",
            Self::Sqlite(_) => "sqlite",
        }
    }

    /// Checks whether the store can do what requests need of it.
    pub(crate) async fn check(&self) -> Result<(), CheckError> {
        match self {
            Self::Redis(sessions) => sessions.check().await,
            Self::Sqlite(sessions) => sessions.0.check().await,
        }
    }
}
