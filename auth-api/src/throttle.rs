//! Guessing is slowed for each login: after 10 failures within 15 minutes every further try is
//! refused until the window has passed, whatever the address, and whether or not the login exists
//! (ASVS V6.3.1). Live sessions of its owner go on.
//!
//! Failures are counted once they are known, and every verdict asks for the count once more: of
//! many guesses at once no more than 10 learn anything.

mod redis;
mod sqlite;

use std::time::Duration;

pub(crate) use redis::RedisThrottle;
pub(crate) use sqlite::SqliteThrottle;

use crate::domain::login::Login;
use crate::domain::refresh_token::sha256;
use crate::unavailable::Unavailable;

const MOST_FAILURES: u32 = 10;
pub(crate) const WINDOW: Duration = Duration::from_mins(15);

/// What a login is counted under: names in a store are nobody's business.
type Key = [u8; 32];

/// Too many failures: come back after so long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LockedOut {
    pub(crate) retry_after: Duration,
}

/// How a check of a password went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Right,
    Wrong,
}

/// Where failures are counted.
#[derive(Debug, Clone)]
pub(crate) enum Throttle {
    Redis(RedisThrottle),
    Sqlite(SqliteThrottle),
}

macro_rules! either {
    ($self:ident.$method:ident($($argument:expr),*)) => {
        match $self {
            Self::Redis(throttle) => throttle.$method($($argument),*).await,
            Self::Sqlite(throttle) => throttle.0.timed(throttle.$method($($argument),*)).await,
        }
    };
}

impl Throttle {
    /// Whether a password for this login may be checked at all.
    pub(crate) async fn may_try(
        &self,
        login: &Login,
    ) -> Result<Result<(), LockedOut>, Unavailable> {
        Ok(verdict(either!(self.locked_for(key(login)))?))
    }

    /// Counts an outcome. Even a right password counts for nothing if the login was locked meanwhile.
    pub(crate) async fn settle(
        &self,
        login: &Login,
        outcome: Outcome,
    ) -> Result<Result<(), LockedOut>, Unavailable> {
        Ok(verdict(either!(self.settle(key(login), outcome))?))
    }
}

fn key(login: &Login) -> Key {
    sha256(&[login.as_str().as_bytes()])
}

/// `left` milliseconds of a lock, 0 where there is none.
fn verdict(left: u64) -> Result<(), LockedOut> {
    match left {
        0 => Ok(()),
        left => Err(LockedOut {
            retry_after: Duration::from_millis(left),
        }),
    }
}
