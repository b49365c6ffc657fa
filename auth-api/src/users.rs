//! Store of user accounts: PostgreSQL, or the embedded SQLite file.

mod add_user_error;
mod postgres;
mod profile_batcher;
pub(crate) mod rows;
mod sqlite;

use chrono::{DateTime, Utc};

pub(crate) use add_user_error::AddUserError;
pub(crate) use postgres::PostgresUsers;
pub(crate) use sqlite::SqliteUsers;

use crate::domain::login::{Login, PresentedLogin};
use crate::domain::password_hash::PasswordHash;
use crate::domain::session_cutoff::{AuthTime, SessionCutoff};
use crate::domain::user::{
    Account, AccountStatus, AccountSummary, DeleteOutcome, Standing, UserId,
};
use crate::store::check::CheckError;
use crate::store::unavailable::Unavailable;
use crate::telemetry::metrics::PoolUsage;

/// User accounts in one of the stores. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) enum Users {
    Postgres(PostgresUsers),
    Sqlite(SqliteUsers),
}

/// Calls a method of the store that is in use. PostgreSQL measures its operations itself.
macro_rules! dispatch {
    ($self:ident.$method:ident($($argument:expr),*)) => {
        match $self {
            Self::Postgres(users) => users.$method($($argument),*).await,
            Self::Sqlite(users) => users.0.timed(users.$method($($argument),*)).await,
        }
    };
}

impl Users {
    /// Adds an account. Of several concurrent calls with one login, one succeeds. An account whose login is
    /// another spelling of this one takes it too.
    ///
    /// # Errors
    /// Returns an error if the login is taken, the database does not accept it, or the store is
    /// unavailable.
    pub(crate) async fn add(
        &self,
        login: &Login,
        hash: &PasswordHash,
    ) -> Result<UserId, AddUserError> {
        match self {
            Self::Postgres(users) => users.add(login, hash).await,
            Self::Sqlite(users) => {
                let id = users.0.timed(users.add(login, hash)).await?;
                id.ok_or(AddUserError::LoginTaken)
            }
        }
    }

    /// Returns the account with this login, or with another spelling of it: the presented one is
    /// preferred, as [`PresentedLogin::spellings`] says.
    pub(crate) async fn find_by_login(
        &self,
        login: &PresentedLogin,
    ) -> Result<Option<Account>, Unavailable> {
        let accounts = dispatch!(self.find_by_spellings(login))?;
        let preference = login.spellings();
        Ok(accounts.into_iter().min_by_key(|account| {
            let login = account.login.as_str();
            preference.iter().position(|spelling| spelling == login)
        }))
    }

    /// Returns the account with this id.
    pub(crate) async fn find(&self, user: UserId) -> Result<Option<Account>, Unavailable> {
        dispatch!(self.find(user))
    }

    /// Returns the highest bcrypt cost of the stored hashes, of those up to `max_cost`. Reads the whole table.
    pub(crate) async fn costliest_hash(&self, max_cost: u32) -> Result<Option<u32>, Unavailable> {
        dispatch!(self.costliest_hash(max_cost))
    }

    pub(crate) async fn summary(
        &self,
        user: UserId,
    ) -> Result<Option<AccountSummary>, Unavailable> {
        dispatch!(self.summary(user))
    }

    pub(crate) async fn login_and_standing(
        &self,
        user: UserId,
    ) -> Result<Option<(Login, Standing)>, Unavailable> {
        dispatch!(self.login_and_standing(user))
    }

    /// Sets the time of the last login. Returns `false` and changes nothing if the account was
    /// deleted or disabled, its hash replaced, or its sessions ended, since `account` was read.
    pub(crate) async fn record_login(
        &self,
        account: &Account,
        auth_time: AuthTime,
    ) -> Result<bool, Unavailable> {
        dispatch!(self.record_login(account, auth_time))
    }

    /// Replaces the password hash. Returns `false` and changes nothing if it is no longer `old`.
    pub(crate) async fn replace_hash(
        &self,
        user: UserId,
        old: &PasswordHash,
        new: &PasswordHash,
    ) -> Result<bool, Unavailable> {
        dispatch!(self.replace_hash(user, old, new))
    }

    /// Replaces the password hash and ends every session up to `cutoff`, or to the last login if that
    /// is later. Returns the cutoff, or `None` and changes nothing if the hash is no longer `old`.
    pub(crate) async fn change_password(
        &self,
        user: UserId,
        old: &PasswordHash,
        new: &PasswordHash,
        cutoff: DateTime<Utc>,
    ) -> Result<Option<SessionCutoff>, Unavailable> {
        dispatch!(self.change_password(user, old, new, cutoff))
    }

    /// Ends every session of the accounts with ids from `first` to `last`, up to `cutoff` or to the
    /// last login if that is later.
    pub(crate) async fn end_sessions(
        &self,
        (first, last): (UserId, UserId),
        cutoff: DateTime<Utc>,
    ) -> Result<(), Unavailable> {
        dispatch!(self.end_sessions(first, last, cutoff))
    }

    /// Enables an account, or disables it and ends its sessions.
    pub(crate) async fn set_status(
        &self,
        user: UserId,
        status: AccountStatus,
        now: DateTime<Utc>,
    ) -> Result<(), Unavailable> {
        dispatch!(self.set_status(user, status, now))
    }

    /// Returns up to `count` accounts with ids above `after`, ordered by id.
    pub(crate) async fn page(
        &self,
        after: UserId,
        count: u32,
    ) -> Result<Vec<AccountSummary>, Unavailable> {
        dispatch!(self.page(after, count))
    }

    /// Deletes an account. Of several concurrent calls for one account, one returns `Deleted`.
    pub(crate) async fn delete(&self, user: UserId) -> Result<DeleteOutcome, Unavailable> {
        dispatch!(self.delete(user))
    }

    /// Deletes an account if its hash is still the one with which its password was verified. Otherwise
    /// returns `NotFound`.
    pub(crate) async fn delete_verified(
        &self,
        user: UserId,
        verified: &PasswordHash,
    ) -> Result<DeleteOutcome, Unavailable> {
        dispatch!(self.delete_verified(user, verified))
    }

    /// Returns the name of the store in metrics.
    pub(crate) fn store_label(&self) -> &'static str {
        match self {
            Self::Postgres(_) => "postgres",
            Self::Sqlite(_) => "sqlite",
        }
    }

    /// Returns the number of connections to the store.
    pub(crate) fn pool_usage(&self) -> PoolUsage {
        match self {
            Self::Postgres(users) => users.pool_usage(),
            Self::Sqlite(users) => users.0.pool_usage(),
        }
    }

    /// Checks whether the store can do what requests need of it.
    pub(crate) async fn check(&self) -> Result<(), CheckError> {
        match self {
            Self::Postgres(users) => users.check().await,
            Self::Sqlite(users) => users.0.check().await,
        }
    }
}
