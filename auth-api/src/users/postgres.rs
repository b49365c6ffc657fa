//! User accounts in PostgreSQL, in the table of the Python service.

use chrono::{DateTime, Utc};
use sqlx::Row;
use sqlx::postgres::PgRow;
use supervision::Supervisor;

use super::add_user_error::AddUserError;
use super::profile_batcher::{FetchProfiles, FetchedProfile, ProfileBatcher};
use super::rows::{to_account, to_standing};
use crate::domain::login::Login;
use crate::domain::password_hash::PasswordHash;
use crate::domain::session_cutoff::{AuthTime, SessionCutoff};
use crate::domain::user::{
    Account, AccountStatus, AccountSummary, DeleteOutcome, Profile, Standing, UserId,
};
use crate::store::check::CheckError;
use crate::store::postgres::{
    OPERATION_TIMEOUT, PooledConnection, Postgres, STORE, Timestamp, ValueRejected,
};
use crate::store::unavailable::Unavailable;
use crate::telemetry::metrics::PoolUsage;

/// The table `users` of a PostgreSQL database. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct PostgresUsers {
    postgres: Postgres,
    profiles: ProfileBatcher,
}

/// `sessions_valid_after` in µs since 1970, which has no value for `infinity`: no session counts then.
macro_rules! valid_after {
    () => {
        "CASE WHEN isfinite(sessions_valid_after) THEN (date_part('epoch', sessions_valid_after) * 1000000)::bigint
         WHEN sessions_valid_after > now() THEN 9223372036854775807 END"
    };
}

/// Columns that [`to_summary`] reads.
macro_rules! summary_columns {
    () => {
        concat!(
            "id::bigint, login, created_at, last_login, disabled_at IS NOT NULL AS is_disabled, ",
            valid_after!(),
            " AS valid_after"
        )
    };
}

/// Assignment that ends every session up to the given time, and up to the last login, which a replica
/// with another clock may have recorded.
macro_rules! end_sessions {
    ($time:literal) => {
        concat!(
            "sessions_valid_after = greatest(sessions_valid_after, ",
            $time,
            ", CASE WHEN isfinite(last_login) THEN last_login END)"
        )
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

    pub(super) async fn add(
        &self,
        login: &Login,
        hash: &PasswordHash,
    ) -> Result<UserId, AddUserError> {
        let insert = sqlx::query_as(
            // Sessions of another account that had the id before a backup was restored do not count.
            "INSERT INTO users (login, password_hash, sessions_valid_after) VALUES ($1, $2, $3)
             ON CONFLICT (login) DO NOTHING RETURNING id::bigint",
        )
        .bind(login.as_str())
        .bind(hash.as_str())
        .bind(Utc::now());
        match self.postgres.fetch_optional_by_input(insert).await? {
            Ok(Some((id,))) => Ok(UserId(id)),
            Ok(None) => Err(AddUserError::LoginTaken),
            Err(ValueRejected) => Err(AddUserError::LoginNotStorable),
        }
    }

    pub(super) async fn find_by_login(
        &self,
        login: &Login,
    ) -> Result<Option<Account>, Unavailable> {
        let select = sqlx::query_as(concat!(
            "SELECT id::bigint, password_hash, disabled_at IS NOT NULL, ",
            valid_after!(),
            " FROM users WHERE login = $1"
        ))
        .bind(login.as_str());
        // The Python service's table is accepted as it is: without NOT NULL, a hash may be missing.
        let row: Option<(i64, Option<String>, bool, Option<i64>)> = self
            .postgres
            .fetch_optional_by_input(select)
            .await?
            // No account has a login that the database cannot represent.
            .unwrap_or(None);
        Ok(row.map(|(id, hash, is_disabled, valid_after)| {
            let hash = hash.unwrap_or_default();
            to_account(id, login, hash, is_disabled, valid_after)
        }))
    }

    pub(super) async fn login_and_standing(
        &self,
        user: UserId,
    ) -> Result<Option<(Login, Standing)>, Unavailable> {
        let select = sqlx::query_as(concat!(
            "SELECT login, disabled_at IS NOT NULL, ",
            valid_after!(),
            " FROM users WHERE id = $1"
        ))
        .bind(user.0);
        let row: Option<(String, bool, Option<i64>)> = self.postgres.fetch_optional(select).await?;
        Ok(row.and_then(|(login, is_disabled, valid_after)| {
            let standing = to_standing(is_disabled, valid_after);
            Some((Login::for_lookup(&login)?, standing))
        }))
    }

    pub(super) async fn summary(
        &self,
        user: UserId,
    ) -> Result<Option<AccountSummary>, Unavailable> {
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
        auth_time: AuthTime,
    ) -> Result<bool, Unavailable> {
        let update = sqlx::query(
            "UPDATE users SET last_login = $3
             WHERE id = $1 AND password_hash = $2 AND disabled_at IS NULL
             AND (sessions_valid_after IS NULL OR sessions_valid_after < $3)",
        )
        .bind(account.id.0)
        .bind(account.hash.as_str())
        .bind(auth_time.to_utc());
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

    pub(super) async fn change_password(
        &self,
        user: UserId,
        old: &PasswordHash,
        new: &PasswordHash,
        cutoff: DateTime<Utc>,
    ) -> Result<Option<SessionCutoff>, Unavailable> {
        let update = sqlx::query_as(concat!(
            "UPDATE users SET password_hash = $3, ",
            end_sessions!("$4"),
            " WHERE id = $1 AND password_hash = $2 RETURNING ",
            valid_after!()
        ))
        .bind(user.0)
        .bind(old.as_str())
        .bind(new.as_str())
        .bind(cutoff);
        let row: Option<(Option<i64>,)> = self.postgres.fetch_optional(update).await?;
        Ok(row.map(|(valid_after,)| SessionCutoff::from_micros(valid_after)))
    }

    pub(super) async fn end_sessions(
        &self,
        first: UserId,
        last: UserId,
        cutoff: DateTime<Utc>,
    ) -> Result<(), Unavailable> {
        let update = sqlx::query(concat!(
            "UPDATE users SET ",
            end_sessions!("$3"),
            " WHERE id BETWEEN $1 AND $2"
        ))
        .bind(first.0)
        .bind(last.0)
        .bind(cutoff);
        self.postgres.execute(update).await.map(drop)
    }

    pub(super) async fn set_status(
        &self,
        user: UserId,
        status: AccountStatus,
        now: DateTime<Utc>,
    ) -> Result<(), Unavailable> {
        let update = match status {
            AccountStatus::Active => {
                sqlx::query("UPDATE users SET disabled_at = NULL WHERE id = $1").bind(user.0)
            }
            AccountStatus::Disabled => sqlx::query(concat!(
                "UPDATE users SET disabled_at = coalesce(disabled_at, $2), ",
                end_sessions!("$2"),
                " WHERE id = $1"
            ))
            .bind(user.0)
            .bind(now),
        };
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
            summary_columns!(),
            " FROM users WHERE id > $1 ORDER BY users.id LIMIT $2",
        ))
        .bind(after.0)
        .bind(i64::from(count));
        let rows = self.postgres.fetch_all(select).await?;
        rows.iter()
            .map(to_summary)
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

    pub(super) async fn check(&self) -> Result<(), CheckError> {
        self.postgres.check().await
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
            summary_columns!(),
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
    Some((UserId(id), to_summary(row).map_err(failed)))
}

fn to_summary(row: &PgRow) -> Result<AccountSummary, sqlx::Error> {
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
    let profile = Profile {
        id: UserId(id),
        login: row.try_get("login")?,
        created_at: time("created_at")?,
        last_login: time("last_login")?,
    };
    Ok(AccountSummary {
        profile,
        standing: to_standing(row.try_get("is_disabled")?, row.try_get("valid_after")?),
    })
}
