//! Where sessions live: Redis, or a SQLite file.
//!
//! A session is a record under its id, with an index of each user's sessions, so that ending one
//! or all costs what it touches. No token is ever stored: an access token names its session, and
//! of a refresh token only the SHA-256 is kept.

mod redis;
mod sqlite;

pub(crate) use redis::RedisSessions;
pub(crate) use sqlite::SqliteSessions;

use crate::domain::session::{Ended, NewSession};
use crate::domain::token::Principal;
use crate::domain::user::UserId;
use crate::unavailable::Unavailable;

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
            Self::Sqlite(sessions) => sessions.$method($($argument),*).await,
        }
    };
}

impl Sessions {
    /// Stores a new session.
    pub(crate) async fn create(&self, session: &NewSession) -> Result<(), Unavailable> {
        either!(self.create(session))
    }

    /// Whether the session that `principal` speaks for lives.
    pub(crate) async fn is_live(&self, principal: Principal) -> Result<bool, Unavailable> {
        either!(self.is_live(principal))
    }

    /// Ends one session; of several at once, one does.
    pub(crate) async fn end(&self, principal: Principal) -> Result<Ended, Unavailable> {
        either!(self.end(principal))
    }

    /// Ends every session of a user and says how many there were.
    pub(crate) async fn end_all(&self, user: UserId) -> Result<u64, Unavailable> {
        either!(self.end_all(user))
    }

    /// Asks the store for the least that shows that it answers.
    pub(crate) async fn ping(&self) -> Result<(), Unavailable> {
        either!(self.ping())
    }
}
