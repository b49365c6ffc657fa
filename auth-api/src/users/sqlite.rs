//! User accounts in the embedded store.

use chrono::{DateTime, Utc};

use super::rows::{to_account, to_status};
use crate::domain::login::Login;
use crate::domain::password_hash::PasswordHash;
use crate::domain::user::{Account, AccountStatus, AccountSummary, DeleteOutcome, Profile, UserId};
use crate::store::sqlite::{Sqlite, failed, time_from_micros};
use crate::store::unavailable::Unavailable;

/// The table `users` of a SQLite file. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct SqliteUsers(pub(crate) Sqlite);

type ProfileRow = (i64, String, i64, Option<i64>);
type SummaryRow = (i64, String, i64, Option<i64>, bool);

impl SqliteUsers {
    /// Returns `None` if the login is taken.
    pub(super) async fn add(
        &self,
        login: &Login,
        hash: &PasswordHash,
    ) -> Result<Option<UserId>, Unavailable> {
        let id: Option<i64> = sqlx::query_scalar(
            "INSERT INTO users (login, password_hash, created_at) VALUES (?, ?, ?)
             ON CONFLICT (login) DO NOTHING RETURNING id",
        )
        .bind(login.as_str())
        .bind(hash.as_str())
        .bind(Utc::now().timestamp_micros())
        .fetch_optional(&self.0.writer)
        .await
        .map_err(failed)?;
        Ok(id.map(UserId))
    }

    pub(super) async fn find_by_login(
        &self,
        login: &Login,
    ) -> Result<Option<Account>, Unavailable> {
        let row: Option<(i64, String, bool)> = sqlx::query_as(
            "SELECT id, password_hash, disabled_at IS NOT NULL FROM users WHERE login = ?",
        )
        .bind(login.as_str())
        .fetch_optional(&self.0.readers)
        .await
        .map_err(failed)?;
        Ok(row.map(|(id, hash, is_disabled)| to_account(id, login, hash, is_disabled)))
    }

    pub(super) async fn login_and_status(
        &self,
        user: UserId,
    ) -> Result<Option<(Login, AccountStatus)>, Unavailable> {
        let row: Option<(String, bool)> =
            sqlx::query_as("SELECT login, disabled_at IS NOT NULL FROM users WHERE id = ?")
                .bind(user.0)
                .fetch_optional(&self.0.readers)
                .await
                .map_err(failed)?;
        Ok(row.and_then(|(login, is_disabled)| {
            Some((Login::for_lookup(&login)?, to_status(is_disabled)))
        }))
    }

    pub(super) async fn profile(&self, user: UserId) -> Result<Option<Profile>, Unavailable> {
        let row: Option<ProfileRow> =
            sqlx::query_as("SELECT id, login, created_at, last_login FROM users WHERE id = ?")
                .bind(user.0)
                .fetch_optional(&self.0.readers)
                .await
                .map_err(failed)?;
        Ok(row.map(|(id, login, created_at, last_login)| Profile {
            id: UserId(id),
            login,
            created_at: time_from_micros(created_at),
            last_login: last_login.and_then(time_from_micros),
        }))
    }

    pub(super) async fn record_login(
        &self,
        account: &Account,
        now: DateTime<Utc>,
    ) -> Result<bool, Unavailable> {
        let result = sqlx::query(
            "UPDATE users SET last_login = ?
             WHERE id = ? AND password_hash = ? AND disabled_at IS NULL",
        )
        .bind(now.timestamp_micros())
        .bind(account.id.0)
        .bind(account.hash.as_str())
        .execute(&self.0.writer)
        .await
        .map_err(failed)?;
        Ok(result.rows_affected() == 1)
    }

    pub(super) async fn replace_hash(
        &self,
        user: UserId,
        old: &PasswordHash,
        new: &PasswordHash,
    ) -> Result<bool, Unavailable> {
        let result =
            sqlx::query("UPDATE users SET password_hash = ? WHERE id = ? AND password_hash = ?")
                .bind(new.as_str())
                .bind(user.0)
                .bind(old.as_str())
                .execute(&self.0.writer)
                .await
                .map_err(failed)?;
        Ok(result.rows_affected() == 1)
    }

    pub(super) async fn set_status(
        &self,
        user: UserId,
        status: AccountStatus,
    ) -> Result<(), Unavailable> {
        let disabled_at = match status {
            AccountStatus::Active => None,
            AccountStatus::Disabled => Some(Utc::now().timestamp_micros()),
        };
        sqlx::query("UPDATE users SET disabled_at = ? WHERE id = ?")
            .bind(disabled_at)
            .bind(user.0)
            .execute(&self.0.writer)
            .await
            .map_err(failed)
            .map(drop)
    }

    pub(super) async fn page(
        &self,
        after: UserId,
        count: u32,
    ) -> Result<Vec<AccountSummary>, Unavailable> {
        let rows: Vec<SummaryRow> = sqlx::query_as(
            "SELECT id, login, created_at, last_login, disabled_at IS NOT NULL FROM users
             WHERE id > ? ORDER BY id LIMIT ?",
        )
        .bind(after.0)
        .bind(count)
        .fetch_all(&self.0.readers)
        .await
        .map_err(failed)?;
        let summary =
            |(id, login, created_at, last_login, is_disabled): SummaryRow| AccountSummary {
                profile: Profile {
                    id: UserId(id),
                    login,
                    created_at: time_from_micros(created_at),
                    last_login: last_login.and_then(time_from_micros),
                },
                status: to_status(is_disabled),
            };
        Ok(rows.into_iter().map(summary).collect())
    }

    pub(super) async fn delete(&self, user: UserId) -> Result<DeleteOutcome, Unavailable> {
        let result = sqlx::query("DELETE FROM users WHERE id = ?")
            .bind(user.0)
            .execute(&self.0.writer)
            .await
            .map_err(failed)?;
        Ok(match result.rows_affected() {
            0 => DeleteOutcome::NotFound,
            _ => DeleteOutcome::Deleted,
        })
    }

    pub(super) async fn ping(&self) -> Result<(), Unavailable> {
        self.0.ping().await
    }
}
