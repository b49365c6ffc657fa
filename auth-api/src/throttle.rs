//! Throttling of failed verifications of passwords and of clients' secrets, per [`ThrottleScope`] (ASVS V6.3.1).
//!
//! After 10 failed attempts within 15 minutes every further attempt is rejected until the window
//! has passed, whatever the client's address and whether or not the login exists. Active sessions of
//! the account are not affected, and verifications within them have counters of their own: strangers who
//! lock the login stop neither a session nor a change of the password or a deletion from it.
//!
//! Invariant: of any number of concurrent attempts at most 10 reveal whether their password was
//! right. A failure is counted when the password has been verified, and the count is checked again
//! in the same step, before the result is reported; a result reported without that check would break
//! the invariant. So would work that a right password causes before that check, by the time that it takes
//! (`hashing/pool.rs`).

mod policy;
mod redis;
mod sqlite;

use std::time::Duration;

pub(crate) use policy::{FAILURE_WINDOW, LoginOutcome};
pub(crate) use redis::RedisThrottle;
pub(crate) use sqlite::SqliteThrottle;

use crate::domain::digest::sha256;
use crate::domain::login::PresentedLogin;
use crate::domain::oauth_client::OAuthClientId;
use crate::domain::principal::SessionId;
use crate::store::unavailable::Unavailable;
use policy::ScopeKey;

/// Subject that failures are counted for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ThrottleScope {
    /// Verifications by anyone, for a login in any spelling, which all find the same account.
    Login(PresentedLogin),
    /// Verifications within a session of the account whose password is verified. Only that session's
    /// client can fail them, and it cannot get another session without the password.
    Session(SessionId),
    /// Authentications as an OAuth client from one address, so that strangers elsewhere cannot add to the
    /// failures of a service.
    OAuthClient { id: OAuthClientId, address: String },
}

impl ThrottleScope {
    fn key(&self) -> ScopeKey {
        match self {
            Self::Login(login) => sha256(&[login.normalized().as_bytes()]),
            // No login contains NUL.
            Self::Session(session) => sha256(&[b"session\0", session.as_bytes()]),
            Self::OAuthClient { id, address } => {
                sha256(&[b"oauth client\0", id.as_bytes(), address.as_bytes()])
            }
        }
    }
}

/// The scope is locked: the client may retry after this time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LockedOut {
    pub(crate) retry_after: Duration,
}

/// Counter of failed logins in one of the stores. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) enum Throttle {
    Redis(RedisThrottle),
    Sqlite(SqliteThrottle),
}

/// Calls a method of the store that is in use. Redis measures its operations itself.
macro_rules! dispatch {
    ($self:ident.$method:ident($($argument:expr),*)) => {
        match $self {
            Self::Redis(throttle) => throttle.$method($($argument),*).await,
            Self::Sqlite(throttle) => throttle.0.timed(throttle.$method($($argument),*)).await,
        }
    };
}

impl Throttle {
    /// Checks whether a password may be verified.
    pub(crate) async fn check(
        &self,
        scope: &ThrottleScope,
    ) -> Result<Result<(), LockedOut>, Unavailable> {
        Ok(to_result(dispatch!(self.remaining_lock(scope.key()))?))
    }

    /// Forgets all failures, which lifts a lock.
    pub(crate) async fn clear(&self, scope: &ThrottleScope) -> Result<(), Unavailable> {
        dispatch!(self.clear(scope.key()))
    }

    /// Records the outcome of a verification. If the scope was locked meanwhile, the outcome must not
    /// be reported, even if the password was right.
    pub(crate) async fn record(
        &self,
        scope: &ThrottleScope,
        outcome: LoginOutcome,
    ) -> Result<Result<(), LockedOut>, Unavailable> {
        Ok(to_result(dispatch!(self.record(scope.key(), outcome))?))
    }
}

/// Converts the remaining milliseconds of a lock, which are 0 if there is none.
fn to_result(remaining: u64) -> Result<(), LockedOut> {
    match remaining {
        0 => Ok(()),
        remaining => Err(LockedOut {
            retry_after: Duration::from_millis(remaining),
        }),
    }
}
