//! User accounts in PostgreSQL, in the table of the Python service.

use chrono::{DateTime, Utc};

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row};
use supervision::Supervisor;

use super::add_user_error::AddUserError;
use super::profile_batcher::{FetchProfiles, FetchedProfile, ProfileBatcher, ProfileSource};
use super::rows::{to_account, to_standing};
use crate::domain::login::{Login, PresentedLogin};
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
    profiles: ProfileBatcher<Postgres>,
}

/// Columns that [`to_summary`] reads.
const SUMMARY_COLUMNS: &str = "id::bigint, login, created_at, last_login, disabled_at IS NOT NULL AS is_disabled, sessions_valid_after";

/// Columns that [`row_to_account`] reads.
const ACCOUNT_COLUMNS: &str =
    "id::bigint, login, password_hash, disabled_at IS NOT NULL, sessions_valid_after";

/// The Python service's table is accepted as it is: without NOT NULL, a login or a hash may be missing.
type AccountRow = (i64, Option<String>, Option<String>, bool, Option<Timestamp>);

/// Assignment that ends every session up to the given time, up to the last login, which a replica with another clock may
/// have recorded, and the one that the last change of the password has kept, a microsecond after the cutoff.
macro_rules! end_sessions {
    ($time:literal) => {
        concat!(
            "sessions_valid_after = greatest(sessions_valid_after + interval '1 microsecond', ",
            $time,
            ", CASE WHEN isfinite(last_login) THEN last_login END)"
        )
    };
}

impl PostgresUsers {
    /// `supervisor` restarts the tasks that fetch profiles.
    pub(crate) fn new(postgres: Postgres, supervisor: &Supervisor) -> Self {
        Self {
            profiles: ProfileBatcher::new(postgres.clone(), supervisor),
            postgres,
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
        let outcome = self.insert(login, hash, login.spellings()).await?;
        // No account has a spelling that the encoding of the database lacks.
        let outcome = match outcome {
            Err(ValueRejected) => {
                let representable = vec![login.as_str().to_owned()];
                self.insert(login, hash, representable).await?
            }
            outcome => outcome,
        };
        match outcome {
            Ok(Some((id,))) => Ok(UserId(id)),
            Ok(None) => Err(AddUserError::LoginTaken),
            Err(ValueRejected) => Err(AddUserError::LoginNotStorable),
        }
    }

    /// Inserts an account unless one of `taken` is the login of an account.
    async fn insert(
        &self,
        login: &Login,
        hash: &PasswordHash,
        taken: Vec<String>,
    ) -> Result<Result<Option<(i64,)>, ValueRejected>, Unavailable> {
        let insert = sqlx::query_as(
            // Sessions of another account that had the id before a backup was restored do not count.
            "INSERT INTO users (login, password_hash, sessions_valid_after)
             SELECT $1, $2, $3 WHERE NOT EXISTS (SELECT FROM users WHERE login = ANY($4))
             ON CONFLICT (login) DO NOTHING RETURNING id::bigint",
        )
        .bind(login.as_str())
        .bind(hash.as_str())
        .bind(Utc::now())
        .bind(taken);
        self.postgres.write_optional_by_input(insert).await
    }

    /// Returns the accounts with any spelling of this login.
    pub(super) async fn find_by_spellings(
        &self,
        login: &PresentedLogin,
    ) -> Result<Vec<Account>, Unavailable> {
        let spellings = login.spellings();
        if let Ok(accounts) = self.find_by_logins(spellings.clone()).await? {
            return Ok(accounts);
        }
        // No account has a spelling that the encoding of the database lacks.
        let mut accounts = Vec::new();
        for spelling in spellings {
            let found = self.find_by_logins(vec![spelling]).await?;
            accounts.extend(found.unwrap_or_default());
        }
        Ok(accounts)
    }

    async fn find_by_logins(
        &self,
        logins: Vec<String>,
    ) -> Result<Result<Vec<Account>, ValueRejected>, Unavailable> {
        let select = format!("SELECT {ACCOUNT_COLUMNS} FROM users WHERE login = ANY($1)");
        let select = sqlx::query_as(AssertSqlSafe(select)).bind(logins);
        let rows: Result<Vec<AccountRow>, _> = self.postgres.read_all_by_input(select).await?;
        Ok(rows.map(|rows| rows.into_iter().map(row_to_account).collect()))
    }

    pub(super) async fn find(&self, user: UserId) -> Result<Option<Account>, Unavailable> {
        let select = format!("SELECT {ACCOUNT_COLUMNS} FROM users WHERE id = $1");
        let select = sqlx::query_as(AssertSqlSafe(select)).bind(user.0);
        let row: Option<AccountRow> = self.postgres.read_optional(select).await?;
        Ok(row.map(row_to_account))
    }

    pub(super) async fn costliest_hash(&self, max_cost: u32) -> Result<Option<u32>, Unavailable> {
        // The digits are compared as text, which orders two digits as numbers.
        let select = sqlx::query_as(
            "SELECT max(substr(password_hash, 5, 2)) FROM users
             WHERE password_hash ~ '^[$]2[aby][$][0-9]{2}[$]' AND substr(password_hash, 5, 2) <= $1",
        )
        .bind(format!("{max_cost:02}"));
        let row: Option<(Option<String>,)> = self.postgres.read_optional(select).await?;
        Ok(row.and_then(|(cost,)| cost?.parse().ok()))
    }

    pub(super) async fn login_and_standing(
        &self,
        user: UserId,
    ) -> Result<Option<(Login, Standing)>, Unavailable> {
        let select = sqlx::query_as(
            "SELECT login, disabled_at IS NOT NULL, sessions_valid_after FROM users WHERE id = $1",
        )
        .bind(user.0);
        let row: Option<(Option<String>, bool, Option<Timestamp>)> =
            self.postgres.read_optional(select).await?;
        Ok(row.map(|(login, is_disabled, valid_after)| {
            let login = Login::from_stored(login.unwrap_or_default());
            let standing = to_standing(is_disabled, valid_after.map(Timestamp::micros));
            (login, standing)
        }))
    }

    pub(super) async fn summary(
        &self,
        user: UserId,
    ) -> Result<Option<AccountSummary>, Unavailable> {
        let profile = self.profiles.request(user);
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
            "UPDATE users
             SET last_login = greatest($3, CASE WHEN isfinite(last_login) THEN last_login END)
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
            " WHERE id = $1 AND coalesce(password_hash, '') = $2 RETURNING sessions_valid_after"
        ))
        .bind(user.0)
        .bind(old.as_str())
        .bind(new.as_str())
        .bind(cutoff);
        let row: Option<(Option<Timestamp>,)> = self.postgres.write_optional(update).await?;
        Ok(
            row.map(|(valid_after,)| {
                SessionCutoff::from_micros(valid_after.map(Timestamp::micros))
            }),
        )
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
        let select =
            format!("SELECT {SUMMARY_COLUMNS} FROM users WHERE id > $1 ORDER BY users.id LIMIT $2");
        let select = sqlx::query(AssertSqlSafe(select))
            .bind(after.0)
            .bind(i64::from(count));
        let rows = self.postgres.read_rows_on(&mut None, select).await?;
        rows.iter()
            .map(to_summary)
            .collect::<Result<_, sqlx::Error>>()
            .map_err(|error| Unavailable::because(STORE, &error))
    }

    pub(super) async fn delete(&self, user: UserId) -> Result<DeleteOutcome, Unavailable> {
        let delete = sqlx::query("DELETE FROM users WHERE id = $1").bind(user.0);
        let deleted = self.postgres.execute(delete).await?.rows_affected();
        Ok(DeleteOutcome::of_count(deleted))
    }

    pub(super) async fn delete_verified(
        &self,
        user: UserId,
        verified: &PasswordHash,
    ) -> Result<DeleteOutcome, Unavailable> {
        let delete =
            sqlx::query("DELETE FROM users WHERE id = $1 AND coalesce(password_hash, '') = $2")
                .bind(user.0)
                .bind(verified.as_str());
        let deleted = self.postgres.execute(delete).await?.rows_affected();
        Ok(DeleteOutcome::of_count(deleted))
    }

    pub(super) async fn check(&self) -> Result<(), CheckError> {
        self.postgres.check().await
    }
}

/// Query of the profile batcher. It keeps its connection between runs, because returning one to the
/// pool costs a ping, which would double the round trips.
#[derive(Debug)]
pub(super) struct ProfileQuery {
    postgres: Postgres,
    connection: Option<PooledConnection>,
}

impl ProfileSource for Postgres {
    type Query = ProfileQuery;

    fn new_query(&self) -> ProfileQuery {
        ProfileQuery {
            postgres: self.clone(),
            connection: None,
        }
    }
}

impl FetchProfiles for ProfileQuery {
    async fn fetch(&mut self, users: &[UserId]) -> Result<Vec<FetchedProfile>, Unavailable> {
        let ids: Vec<_> = users.iter().map(|user| user.0).collect();
        let select = format!("SELECT {SUMMARY_COLUMNS} FROM users WHERE id = ANY($1)");
        let select = sqlx::query(AssertSqlSafe(select)).bind(ids);
        let rows = self
            .postgres
            .read_rows_on(&mut self.connection, select)
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

fn row_to_account((id, login, hash, is_disabled, valid_after): AccountRow) -> Account {
    let (login, hash) = (login.unwrap_or_default(), hash.unwrap_or_default());
    let valid_after = valid_after.map(Timestamp::micros);
    to_account(id, login, hash, is_disabled, valid_after)
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
    let login: Option<String> = row.try_get("login")?;
    let valid_after: Option<Timestamp> = row.try_get("sessions_valid_after")?;
    let profile = Profile {
        id: UserId(id),
        login: login.unwrap_or_default(),
        created_at: time("created_at")?,
        last_login: time("last_login")?,
    };
    Ok(AccountSummary {
        profile,
        standing: to_standing(
            row.try_get("is_disabled")?,
            valid_after.map(Timestamp::micros),
        ),
    })
}
