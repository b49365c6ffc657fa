//! User accounts in PostgreSQL, in the table of the Python service.

use chrono::{DateTime, Utc};
use sqlx::Row;
use sqlx::postgres::PgRow;
use supervision::Supervisor;

use super::profile_batcher::{FetchProfiles, FetchedProfile, ProfileBatcher};
use super::rows::{to_account, to_status};
use crate::domain::login::Login;
use crate::domain::password_hash::PasswordHash;
use crate::domain::user::{Account, AccountStatus, AccountSummary, DeleteOutcome, Profile, UserId};
use crate::store::postgres::{OPERATION_TIMEOUT, PooledConnection, Postgres, STORE, Timestamp};
use crate::store::unavailable::Unavailable;
use crate::telemetry::metrics::PoolUsage;

/// The table `users` of a PostgreSQL database. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct PostgresUsers {
    postgres: Postgres,
    profiles: ProfileBatcher,
}

/// Columns that [`to_profile`] reads.
macro_rules! profile_columns {
    () => {
        "id::bigint, login, created_at, last_login"
    };
}

impl PostgresUsers {
    /// `supervisor` restarts the tasks that fetch profiles.
    pub(crate) fn new(postgres: Postgres, supervisor: &Supervisor) -> Self {
        Self {
            postgres,
            profiles: ProfileBatcher::new(supervisor),
        }
    }

    pub(super) fn pool_usage(&self) -> PoolUsage {
        self.postgres.pool_usage()
    }

    /// Returns `None` if the login is taken.
    pub(super) async fn add(
        &self,
        login: &Login,
        hash: &PasswordHash,
    ) -> Result<Option<UserId>, Unavailable> {
        let insert = sqlx::query_as(
            "INSERT INTO users (login, password_hash) VALUES ($1, $2)
             ON CONFLICT (login) DO NOTHING RETURNING id::bigint",
        )
        .bind(login.as_str())
        .bind(hash.as_str());
        let row: Option<(i64,)> = self.postgres.fetch_optional(insert).await?;
        Ok(row.map(|(id,)| UserId(id)))
    }

    pub(super) async fn find_by_login(
        &self,
        login: &Login,
    ) -> Result<Option<Account>, Unavailable> {
        let select = sqlx::query_as(
            "SELECT id::bigint, password_hash, disabled_at IS NOT NULL FROM users WHERE login = $1",
        )
        .bind(login.as_str());
        // The Python service's table is accepted as it is: without NOT NULL, a hash may be missing.
        let row: Option<(i64, Option<String>, bool)> = self.postgres.fetch_optional(select).await?;
        Ok(row.map(|(id, hash, is_disabled)| {
            to_account(id, login, hash.unwrap_or_default(), is_disabled)
        }))
    }

    pub(super) async fn login_and_status(
        &self,
        user: UserId,
    ) -> Result<Option<(Login, AccountStatus)>, Unavailable> {
        let select =
            sqlx::query_as("SELECT login, disabled_at IS NOT NULL FROM users WHERE id = $1")
                .bind(user.0);
        let row: Option<(String, bool)> = self.postgres.fetch_optional(select).await?;
        Ok(row.and_then(|(login, is_disabled)| {
            Some((Login::for_lookup(&login)?, to_status(is_disabled)))
        }))
    }

    pub(super) async fn profile(&self, user: UserId) -> Result<Option<Profile>, Unavailable> {
        let profile = self.profiles.request(user, || ProfileQuery {
            postgres: self.postgres.clone(),
            connection: None,
        });
        match tokio::time::timeout(OPERATION_TIMEOUT, profile).await {
            Ok(Ok(result)) => result,
            Ok(Err(error)) => Err(Unavailable::because(STORE, &error)),
            Err(elapsed) => Err(Unavailable::because(STORE, &elapsed)),
        }
    }

    pub(super) async fn record_login(
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
        .bind(now);
        Ok(self.postgres.execute(update).await?.rows_affected() == 1)
    }

    pub(super) async fn replace_hash(
        &self,
        user: UserId,
        old: &PasswordHash,
        new: &PasswordHash,
    ) -> Result<bool, Unavailable> {
        let update =
            sqlx::query("UPDATE users SET password_hash = $3 WHERE id = $1 AND password_hash = $2")
                .bind(user.0)
                .bind(old.as_str())
                .bind(new.as_str());
        Ok(self.postgres.execute(update).await?.rows_affected() == 1)
    }

    pub(super) async fn set_status(
        &self,
        user: UserId,
        status: AccountStatus,
    ) -> Result<(), Unavailable> {
        let statement = match status {
            AccountStatus::Active => "UPDATE users SET disabled_at = NULL WHERE id = $1",
            AccountStatus::Disabled => {
                "UPDATE users SET disabled_at = coalesce(disabled_at, now()) WHERE id = $1"
            }
        };
        let update = sqlx::query(statement).bind(user.0);
        self.postgres.execute(update).await.map(drop)
    }

    pub(super) async fn page(
        &self,
        after: UserId,
        count: u32,
    ) -> Result<Vec<AccountSummary>, Unavailable> {
        // In ORDER BY, `id` alone would mean the output column `id::bigint`, which has no index.
        let select = sqlx::query(concat!(
            "SELECT ",
            profile_columns!(),
            ", disabled_at IS NOT NULL AS is_disabled FROM users
             WHERE id > $1 ORDER BY users.id LIMIT $2",
        ))
        .bind(after.0)
        .bind(i64::from(count));
        let rows = self.postgres.fetch_all(select).await?;
        let summary = |row: &PgRow| {
            Ok(AccountSummary {
                profile: to_profile(row)?,
                status: to_status(row.try_get("is_disabled")?),
            })
        };
        rows.iter()
            .map(summary)
            .collect::<Result<_, sqlx::Error>>()
            .map_err(|error| Unavailable::because(STORE, &error))
    }

    pub(super) async fn delete(&self, user: UserId) -> Result<DeleteOutcome, Unavailable> {
        let delete = sqlx::query("DELETE FROM users WHERE id = $1").bind(user.0);
        Ok(match self.postgres.execute(delete).await?.rows_affected() {
            0 => DeleteOutcome::NotFound,
            _ => DeleteOutcome::Deleted,
        })
    }

    pub(super) async fn ping(&self) -> Result<(), Unavailable> {
        self.postgres.ping().await
    }
}

/// Query of the profile batcher. It keeps its connection between runs, because returning one to the
/// pool costs a ping, which would double the round trips.
#[derive(Debug)]
struct ProfileQuery {
    postgres: Postgres,
    connection: Option<PooledConnection>,
}

impl FetchProfiles for ProfileQuery {
    async fn fetch(&mut self, users: &[UserId]) -> Result<Vec<FetchedProfile>, Unavailable> {
        let ids: Vec<_> = users.iter().map(|user| user.0).collect();
        let select = sqlx::query(concat!(
            "SELECT ",
            profile_columns!(),
            " FROM users WHERE id = ANY($1)"
        ))
        .bind(ids);
        let rows = self
            .postgres
            .fetch_all_on(&mut self.connection, select)
            .await?;
        Ok(rows.iter().filter_map(to_fetched_profile).collect())
    }
}

/// Converts a row, whose failure is one of its user alone. Returns `None` if not even the id can be read.
fn to_fetched_profile(row: &PgRow) -> Option<FetchedProfile> {
    let failed = |error: sqlx::Error| Unavailable::because(STORE, &error);
    let id = row.try_get("id").map_err(failed).ok()?;
    Some((UserId(id), to_profile(row).map_err(failed)))
}

fn to_profile(row: &PgRow) -> Result<Profile, sqlx::Error> {
    let id = row.try_get("id")?;
    let time = |column| {
        let stored: Option<Timestamp> = row.try_get(column)?;
        let time = stored.and_then(Timestamp::to_datetime);
        if stored.is_some() && time.is_none() {
            tracing::warn!(
                user = id,
                column,
                "stored time is outside the years 1 to 9999 and is returned as null"
            );
        }
        Ok::<_, sqlx::Error>(time)
    };
    Ok(Profile {
        id: UserId(id),
        login: row.try_get("login")?,
        created_at: time("created_at")?,
        last_login: time("last_login")?,
    })
}
