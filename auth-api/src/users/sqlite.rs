//! Users in the embedded store.

use chrono::{DateTime, Utc};

use super::Deleted;
use crate::domain::login::Login;
use crate::domain::password::PasswordHash;
use crate::domain::user::{Account, Listed, Profile, Standing, UserId};
use crate::sqlite::{Sqlite, failed, time};
use crate::unavailable::Unavailable;

/// The users' table of a SQLite file.
#[derive(Debug, Clone)]
pub(crate) struct SqliteUsers(pub(crate) Sqlite);

type Row = (i64, String, i64, Option<i64>);
type ListedRow = (i64, String, i64, Option<i64>, bool);

impl SqliteUsers {
    /// `None` where the login is taken.
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

    pub(super) async fn account(&self, login: &Login) -> Result<Option<Account>, Unavailable> {
        let row: Option<(i64, String, bool)> = sqlx::query_as(
            "SELECT id, password_hash, disabled_at IS NOT NULL FROM users WHERE login = ?",
        )
        .bind(login.as_str())
        .fetch_optional(&self.0.readers)
        .await
        .map_err(failed)?;
        Ok(row.map(|(id, hash, is_disabled)| super::account(id, login, hash, is_disabled)))
    }

    pub(super) async fn holder(
        &self,
        user: UserId,
    ) -> Result<Option<(Login, Standing)>, Unavailable> {
        let row: Option<(String, bool)> =
            sqlx::query_as("SELECT login, disabled_at IS NOT NULL FROM users WHERE id = ?")
                .bind(user.0)
                .fetch_optional(&self.0.readers)
                .await
                .map_err(failed)?;
        Ok(row.and_then(|(login, is_disabled)| {
            Some((Login::existing(&login)?, super::standing(is_disabled)))
        }))
    }

    pub(super) async fn profile(&self, user: UserId) -> Result<Option<Profile>, Unavailable> {
        let row: Option<Row> =
            sqlx::query_as("SELECT id, login, created_at, last_login FROM users WHERE id = ?")
                .bind(user.0)
                .fetch_optional(&self.0.readers)
                .await
                .map_err(failed)?;
        Ok(row.map(|(id, login, created_at, last_login)| Profile {
            id: UserId(id),
            login,
            created_at: time(created_at),
            last_login: last_login.and_then(time),
        }))
    }

    pub(super) async fn log_in(
        &self,
        account: &Account,
        now: DateTime<Utc>,
    ) -> Result<bool, Unavailable> {
        let done = sqlx::query(
            "UPDATE users SET last_login = ?
             WHERE id = ? AND password_hash = ? AND disabled_at IS NULL",
        )
        .bind(now.timestamp_micros())
        .bind(account.id.0)
        .bind(account.hash.as_str())
        .execute(&self.0.writer)
        .await
        .map_err(failed)?;
        Ok(done.rows_affected() == 1)
    }

    pub(super) async fn set_hash(
        &self,
        user: UserId,
        old: &PasswordHash,
        new: &PasswordHash,
    ) -> Result<bool, Unavailable> {
        let done =
            sqlx::query("UPDATE users SET password_hash = ? WHERE id = ? AND password_hash = ?")
                .bind(new.as_str())
                .bind(user.0)
                .bind(old.as_str())
                .execute(&self.0.writer)
                .await
                .map_err(failed)?;
        Ok(done.rows_affected() == 1)
    }

    pub(super) async fn set_standing(
        &self,
        user: UserId,
        standing: Standing,
    ) -> Result<(), Unavailable> {
        let since = match standing {
            Standing::Active => None,
            Standing::Disabled => Some(Utc::now().timestamp_micros()),
        };
        sqlx::query("UPDATE users SET disabled_at = ? WHERE id = ?")
            .bind(since)
            .bind(user.0)
            .execute(&self.0.writer)
            .await
            .map_err(failed)
            .map(drop)
    }

    pub(super) async fn page(&self, after: UserId, count: u32) -> Result<Vec<Listed>, Unavailable> {
        let rows: Vec<ListedRow> = sqlx::query_as(
            "SELECT id, login, created_at, last_login, disabled_at IS NOT NULL FROM users
             WHERE id > ? ORDER BY id LIMIT ?",
        )
        .bind(after.0)
        .bind(count)
        .fetch_all(&self.0.readers)
        .await
        .map_err(failed)?;
        let listed = |(id, login, created_at, last_login, is_disabled): ListedRow| Listed {
            profile: Profile {
                id: UserId(id),
                login,
                created_at: time(created_at),
                last_login: last_login.and_then(time),
            },
            standing: super::standing(is_disabled),
        };
        Ok(rows.into_iter().map(listed).collect())
    }

    pub(super) async fn delete(&self, user: UserId) -> Result<Deleted, Unavailable> {
        let done = sqlx::query("DELETE FROM users WHERE id = ?")
            .bind(user.0)
            .execute(&self.0.writer)
            .await
            .map_err(failed)?;
        Ok(match done.rows_affected() {
            0 => Deleted::Before,
            _ => Deleted::Now,
        })
    }

    pub(super) async fn ping(&self) -> Result<(), Unavailable> {
        sqlx::query("SELECT 1")
            .execute(&self.0.readers)
            .await
            .map_err(failed)
            .map(drop)
    }
}
