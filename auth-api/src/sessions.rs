//! Where sessions live: Redis, or a SQLite file.
//!
//! A session is a record under its id, with an index of each user's sessions, so that ending one
//! or all costs what it touches. No token is ever stored: an access token names its session, and
//! of a refresh token only the SHA-256 is kept.

mod announcement;
mod cache;
mod ears;
mod redis;
mod sqlite;

use std::time::Duration;

pub(crate) use redis::RedisSessions;
pub(crate) use sqlite::SqliteSessions;

use crate::domain::session::{Ended, Exchange, Exchanged, LiveSession, NewSession};
use crate::domain::token::Principal;
use crate::domain::user::UserId;
use crate::unavailable::Unavailable;

/// How long a client that lost an answer may present a used refresh token again.
const GRACE: Duration = Duration::from_secs(10);
/// Uses of a session are noted no more often than this.
const TOUCH: Duration = Duration::from_mins(1);
/// Past so many, a login ends the session of that user that would end first.
const MOST_OF_A_USER: u32 = 1000;

/// The sessions, wherever they are.
#[derive(Debug, Clone)]
pub(crate) enum Sessions {
    Redis(RedisSessions),
    Sqlite(SqliteSessions),
}

macro_rules! either {
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
        either!(self.create(session))
    }

    /// Whether the session that `principal` speaks for lives. That it is used is noted, now and then.
    pub(crate) async fn is_live(&self, principal: Principal) -> Result<bool, Unavailable> {
        either!(self.is_live(principal))
    }

    /// Exchanges a refresh token for the next; of several at once, one does, and within a grace the
    /// others are told what it made.
    pub(crate) async fn exchange(&self, exchange: &Exchange) -> Result<Exchanged, Unavailable> {
        either!(self.exchange(exchange))
    }

    /// Ends one session; of several at once, one does.
    pub(crate) async fn end(&self, principal: Principal) -> Result<Ended, Unavailable> {
        either!(self.end(principal))
    }

    /// Ends every session of a user and says how many there were.
    pub(crate) async fn end_all(&self, user: UserId) -> Result<u64, Unavailable> {
        either!(self.end_all(user, None))
    }

    /// Ends every session of a user but this one and says how many there were.
    pub(crate) async fn end_others(&self, kept: Principal) -> Result<u64, Unavailable> {
        either!(self.end_all(kept.user, Some(kept.session)))
    }

    /// The live sessions of a user, the newest first.
    pub(crate) async fn list(&self, user: UserId) -> Result<Vec<LiveSession>, Unavailable> {
        let mut sessions: Vec<LiveSession> = either!(self.list(user))?;
        sessions.sort_by_key(|session| std::cmp::Reverse(session.created_at));
        Ok(sessions)
    }

    /// Asks the store for the least that shows that it answers.
    pub(crate) async fn ping(&self) -> Result<(), Unavailable> {
        either!(self.ping())
    }
}
