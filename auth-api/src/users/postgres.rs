//! Users in PostgreSQL, in the Python service's table.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

use super::{Deleted, NotAdded};
use crate::domain::login::Login;
use crate::domain::password::PasswordHash;
use crate::domain::user::{Account, Listed, Profile, Standing, UserId};
use crate::metrics::StoreMetrics;
use crate::unavailable::Unavailable;

const STORE: &str = "PostgreSQL";
/// A statement is over, or given up, well within a request's three seconds.
const DEADLINE: Duration = Duration::from_millis(2500);
const CONNECTIONS: u32 = 10;

/// A pool of connections.
#[derive(Debug, Clone)]
pub(crate) struct PostgresUsers {
    pool: PgPool,
    metrics: StoreMetrics,
}

type Row = (i64, String, Option<DateTime<Utc>>, Option<DateTime<Utc>>);
type ListedRow = (
    i64,
    String,
    Option<DateTime<Utc>>,
    Option<DateTime<Utc>>,
    bool,
);

impl PostgresUsers {
    /// A pool that connects when it is first used: the server may come later than we.
    pub(crate) fn new(options: PgConnectOptions, metrics: StoreMetrics) -> Self {
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(DEADLINE)
            .connect_lazy_with(options);
        Self { pool, metrics }
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
        self.within(insert)
            .await?
            .map(UserId)
            .ok_or(NotAdded::Taken)
    }

    pub(super) async fn account(&self, login: &Login) -> Result<Option<Account>, Unavailable> {
        let select = sqlx::query_as(
            "SELECT id::bigint, password_hash, disabled_at IS NOT NULL FROM users WHERE login = $1",
        )
        .bind(login.as_str())
        .fetch_optional(&self.pool);
        let row: Option<(i64, String, bool)> = self.within(select).await?;
        row.map(|(id, hash, is_disabled)| super::account(STORE, id, login, &hash, is_disabled))
            .transpose()
    }

    pub(super) async fn holder(
        &self,
        user: UserId,
    ) -> Result<Option<(Login, Standing)>, Unavailable> {
        let select =
            sqlx::query_as("SELECT login, disabled_at IS NOT NULL FROM users WHERE id = $1")
                .bind(user.0)
                .fetch_optional(&self.pool);
        let row: Option<(String, bool)> = self.within(select).await?;
        Ok(row.and_then(|(login, is_disabled)| {
            Some((Login::existing(&login)?, super::standing(is_disabled)))
        }))
    }

    pub(super) async fn profile(&self, user: UserId) -> Result<Option<Profile>, Unavailable> {
        let select = sqlx::query_as(
            "SELECT id::bigint, login, created_at, last_login FROM users WHERE id = $1",
        )
        .bind(user.0)
        .fetch_optional(&self.pool);
        let row: Option<Row> = self.within(select).await?;
        Ok(row.map(|(id, login, created_at, last_login)| Profile {
            id: UserId(id),
            login,
            created_at,
            last_login,
        }))
    }

    pub(super) async fn log_in(
        &self,
        account: &Account,
        now: DateTime<Utc>,
    ) -> Result<bool, Unavailable> {
        let update = sqlx::query(
            "UPDATE users SET last_login = $3
             WHERE id = $1 AND password_hash = $2 AND disabled_at IS NULL",
        )
        .bind(account.id.0)
        .bind(account.hash.as_str())
        .bind(now)
        .execute(&self.pool);
        Ok(self.within(update).await?.rows_affected() == 1)
    }

    pub(super) async fn set_hash(
        &self,
        user: UserId,
        old: &PasswordHash,
        new: &PasswordHash,
    ) -> Result<bool, Unavailable> {
        let update =
            sqlx::query("UPDATE users SET password_hash = $3 WHERE id = $1 AND password_hash = $2")
                .bind(user.0)
                .bind(old.as_str())
                .bind(new.as_str())
                .execute(&self.pool);
        Ok(self.within(update).await?.rows_affected() == 1)
    }

    pub(super) async fn set_standing(
        &self,
        user: UserId,
        standing: Standing,
    ) -> Result<(), Unavailable> {
        let statement = match standing {
            Standing::Active => "UPDATE users SET disabled_at = NULL WHERE id = $1",
            Standing::Disabled => {
                "UPDATE users SET disabled_at = coalesce(disabled_at, now()) WHERE id = $1"
            }
        };
        let update = sqlx::query(statement).bind(user.0).execute(&self.pool);
        self.within(update).await.map(drop)
    }

    pub(super) async fn page(&self, after: UserId, count: u32) -> Result<Vec<Listed>, Unavailable> {
        let select = sqlx::query_as(
            "SELECT id::bigint, login, created_at, last_login, disabled_at IS NOT NULL FROM users
             WHERE id > $1 ORDER BY id LIMIT $2",
        )
        .bind(after.0)
        .bind(i64::from(count))
        .fetch_all(&self.pool);
        let rows: Vec<ListedRow> = self.within(select).await?;
        let listed = |(id, login, created_at, last_login, is_disabled)| Listed {
            profile: Profile {
                id: UserId(id),
                login,
                created_at,
                last_login,
            },
            standing: super::standing(is_disabled),
        };
        Ok(rows.into_iter().map(listed).collect())
    }

    pub(super) async fn delete(&self, user: UserId) -> Result<Deleted, Unavailable> {
        let delete = sqlx::query("DELETE FROM users WHERE id = $1")
            .bind(user.0)
            .execute(&self.pool);
        Ok(match self.within(delete).await?.rows_affected() {
            0 => Deleted::Before,
            _ => Deleted::Now,
        })
    }

    pub(super) async fn ping(&self) -> Result<(), Unavailable> {
        self.within(sqlx::query("SELECT 1").execute(&self.pool))
            .await
            .map(drop)
    }

    async fn within<T>(
        &self,
        work: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, Unavailable> {
        let timer = self.metrics.start();
        let outcome = match tokio::time::timeout(DEADLINE, work).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(Unavailable::because(STORE, &error)),
            Err(late) => Err(Unavailable::because(STORE, &late)),
        };
        timer.end(&outcome);
        outcome
    }
}
