//! Where users live: PostgreSQL, or a SQLite file.

mod lent;
mod postgres;
mod profiles;
mod sqlite;

use chrono::{DateTime, Utc};

pub(crate) use postgres::{PoolMode, PostgresUsers, Settings as PostgresSettings};
pub(crate) use sqlite::SqliteUsers;

use crate::domain::login::Login;
use crate::domain::password::PasswordHash;
use crate::domain::user::{Account, Listed, Profile, Standing, UserId};
use crate::metrics::PoolUse;
use crate::unavailable::Unavailable;

/// The users, wherever they are.
#[derive(Debug, Clone)]
pub(crate) enum Users {
    Postgres(PostgresUsers),
    Sqlite(SqliteUsers),
}

/// Why an account was not made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotAdded {
    #[error("the login is taken")]
    Taken,
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// What became of an account that was to be deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deleted {
    Now,
    Before,
}

macro_rules! either {
    ($self:ident.$method:ident($($argument:expr),*)) => {
        match $self {
            Self::Postgres(users) => users.$method($($argument),*).await,
            Self::Sqlite(users) => users.0.timed(users.$method($($argument),*)).await,
        }
    };
}

impl Users {
    /// Adds an account; of several at once with one login, one is added.
    pub(crate) async fn add(&self, login: &Login, hash: &PasswordHash) -> Result<UserId, NotAdded> {
        either!(self.add(login, hash))?.ok_or(NotAdded::Taken)
    }

    /// The account of `login`.
    pub(crate) async fn account(&self, login: &Login) -> Result<Option<Account>, Unavailable> {
        either!(self.account(login))
    }

    /// What `user` may see of the account.
    pub(crate) async fn profile(&self, user: UserId) -> Result<Option<Profile>, Unavailable> {
        either!(self.profile(user))
    }

    /// The login and standing of `user`.
    pub(crate) async fn holder(
        &self,
        user: UserId,
    ) -> Result<Option<(Login, Standing)>, Unavailable> {
        either!(self.holder(user))
    }

    /// Notes that somebody logged in, if the account is still as it was when that was decided.
    pub(crate) async fn log_in(
        &self,
        account: &Account,
        now: DateTime<Utc>,
    ) -> Result<bool, Unavailable> {
        either!(self.log_in(account, now))
    }

    /// Replaces `old` by `new`, unless the password has changed meanwhile.
    pub(crate) async fn set_hash(
        &self,
        user: UserId,
        old: &PasswordHash,
        new: &PasswordHash,
    ) -> Result<bool, Unavailable> {
        either!(self.set_hash(user, old, new))
    }

    /// Lets an account be used or not.
    pub(crate) async fn set_standing(
        &self,
        user: UserId,
        standing: Standing,
    ) -> Result<(), Unavailable> {
        either!(self.set_standing(user, standing))
    }

    /// Up to `count` accounts whose numbers come after `after`, in their order.
    pub(crate) async fn page(&self, after: UserId, count: u32) -> Result<Vec<Listed>, Unavailable> {
        either!(self.page(after, count))
    }

    /// Deletes an account; of several at once, one does.
    pub(crate) async fn delete(&self, user: UserId) -> Result<Deleted, Unavailable> {
        either!(self.delete(user))
    }

    /// The connections to the store, and how many of them are at work.
    pub(crate) fn pool_use(&self) -> (&'static str, PoolUse) {
        match self {
            Self::Postgres(users) => ("postgres", users.pool_use()),
            Self::Sqlite(users) => ("sqlite", users.0.pool_use()),
        }
    }

    /// Asks the store for the least that shows that it answers.
    pub(crate) async fn ping(&self) -> Result<(), Unavailable> {
        either!(self.ping())
    }
}

/// An account as a store has it. Where its hash is none an operator has to give it a new password.
fn account(id: i64, login: &Login, hash: String, is_disabled: bool) -> Account {
    let hash = PasswordHash::stored(hash);
    if hash.bcrypt().is_none() {
        tracing::warn!(
            user = id,
            "a stored password hash is no bcrypt hash: `auth-api user set-password` mends it"
        );
    }
    Account {
        id: UserId(id),
        login: login.clone(),
        hash,
        standing: standing(is_disabled),
    }
}

fn standing(is_disabled: bool) -> Standing {
    if is_disabled {
        Standing::Disabled
    } else {
        Standing::Active
    }
}
