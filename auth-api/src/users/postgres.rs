//! Users in PostgreSQL, in the Python service's table.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

use super::{Deleted, NotAdded};
use crate::domain::login::Login;
use crate::domain::password::PasswordHash;
use crate::domain::user::{Account, Profile, UserId};
use crate::unavailable::Unavailable;

const STORE: &str = "PostgreSQL";
/// A statement is over, or given up, well within a request's three seconds.
const DEADLINE: Duration = Duration::from_millis(2500);
const CONNECTIONS: u32 = 10;

/// A pool of connections.
#[derive(Debug, Clone)]
pub(crate) struct PostgresUsers {
    pool: PgPool,
}

type Row = (i64, String, Option<DateTime<Utc>>, Option<DateTime<Utc>>);

impl PostgresUsers {
    /// A pool that connects when it is first used: the server may come later than we.
    pub(crate) fn new(options: PgConnectOptions) -> Self {
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(DEADLINE)
            .connect_lazy_with(options);
        Self { pool }
    }

    /// Brings the table up to date. Of several replicas that start at once, one does it.
    pub(crate) async fn migrate(&self) -> Result<(), sqlx::migrate::MigrateError> {
        sqlx::migrate!("../migrations/postgres")
            .run(&self.pool)
            .await
    }

    pub(super) async fn add(&self, login: &Login, hash: &PasswordHash) -> Result<UserId, NotAdded> {
        let insert = sqlx::query_scalar(
            "INSERT INTO users (login, password_hash) VALUES ($1, $2)
             ON CONFLICT (login) DO NOTHING RETURNING id::bigint",
        )
        .bind(login.as_str())
        .bind(hash.as_str())
        .fetch_optional(&self.pool);
        within(insert).await?.map(UserId).ok_or(NotAdded::Taken)
    }

    pub(super) async fn account(&self, login: &Login) -> Result<Option<Account>, Unavailable> {
        let select = sqlx::query_as("SELECT id::bigint, password_hash FROM users WHERE login = $1")
            .bind(login.as_str())
            .fetch_optional(&self.pool);
        let row: Option<(i64, String)> = within(select).await?;
        row.map(|(id, hash)| super::account(STORE, id, login, &hash))
            .transpose()
    }

    pub(super) async fn profile(&self, user: UserId) -> Result<Option<Profile>, Unavailable> {
        let select = sqlx::query_as(
            "SELECT id::bigint, login, created_at, last_login FROM users WHERE id = $1",
        )
        .bind(user.0)
        .fetch_optional(&self.pool);
        let row: Option<Row> = within(select).await?;
        Ok(row.map(|(id, login, created_at, last_login)| Profile {
            id: UserId(id),
            login,
            created_at,
            last_login,
        }))
    }

    pub(super) async fn logged_in(
        &self,
        user: UserId,
        now: DateTime<Utc>,
    ) -> Result<(), Unavailable> {
        let update = sqlx::query("UPDATE users SET last_login = $2 WHERE id = $1")
            .bind(user.0)
            .bind(now)
            .execute(&self.pool);
        within(update).await.map(drop)
    }

    pub(super) async fn renew_hash(
        &self,
        user: UserId,
        old: &PasswordHash,
        new: &PasswordHash,
    ) -> Result<(), Unavailable> {
        let update =
            sqlx::query("UPDATE users SET password_hash = $3 WHERE id = $1 AND password_hash = $2")
                .bind(user.0)
                .bind(old.as_str())
                .bind(new.as_str())
                .execute(&self.pool);
        within(update).await.map(drop)
    }

    pub(super) async fn delete(&self, user: UserId) -> Result<Deleted, Unavailable> {
        let delete = sqlx::query("DELETE FROM users WHERE id = $1")
            .bind(user.0)
            .execute(&self.pool);
        Ok(match within(delete).await?.rows_affected() {
            0 => Deleted::Before,
            _ => Deleted::Now,
        })
    }

    pub(super) async fn ping(&self) -> Result<(), Unavailable> {
        within(sqlx::query("SELECT 1").execute(&self.pool))
            .await
            .map(drop)
    }
}

async fn within<T>(work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, Unavailable> {
    match tokio::time::timeout(DEADLINE, work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Unavailable::because(STORE, &error)),
        Err(late) => Err(Unavailable::because(STORE, &late)),
    }
}
