//! User accounts in the embedded store.

use chrono::{DateTime, Utc};

use super::rows::{to_account, to_standing};
use crate::domain::login::{Login, PresentedLogin};
use crate::domain::password_hash::PasswordHash;
use crate::domain::session_cutoff::{AuthTime, SessionCutoff};
use crate::domain::user::{
    Account, AccountStatus, AccountSummary, DeleteOutcome, Profile, Standing, UserId,
};
use crate::store::sqlite::{Sqlite, StoredText, failed, time_from_micros};
use crate::store::unavailable::Unavailable;

/// The table `users` of a SQLite file. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct SqliteUsers(pub(crate) Sqlite);

type AccountRow = (i64, StoredText, StoredText, bool, Option<i64>);
type SummaryRow = (i64, StoredText, i64, Option<i64>, bool, Option<i64>);

/// Assignment that ends every session up to the given time, up to the last login, which a replica may have recorded
/// before the clock was set back, and the one that the last change of the password has kept, a microsecond after the
/// cutoff.
macro_rules! end_sessions {
    ($time:literal) => {
        concat!(
            "sessions_valid_after = max(",
            $time,
            ", coalesce(min(sessions_valid_after, 9223372036854775806) + 1, 0), coalesce(last_login, 0))"
        )
    };
}

impl SqliteUsers {
    /// Returns `None` if the login is taken.
    pub(super) async fn add(
        &self,
        login: &Login,
        hash: &PasswordHash,
    ) -> Result<Option<UserId>, Unavailable> {
        let insert = sqlx::query_scalar(
            // Sessions of another account that had the id before a backup was restored do not count.
            "INSERT INTO users (login, password_hash, created_at, sessions_valid_after)
             SELECT ?1, ?2, ?3, ?3 WHERE NOT EXISTS (SELECT 1 FROM users WHERE login IN (SELECT value FROM json_each(?4)))
             ON CONFLICT (login) DO NOTHING RETURNING id",
        )
        .bind(login.as_str())
        .bind(hash.as_str())
        .bind(Utc::now().timestamp_micros())
        .bind(json_array(&login.spellings()));
        Ok(self.0.write_returning(insert).await?.map(UserId))
    }

    /// Returns the accounts with any spelling of this login.
    pub(super) async fn find_by_spellings(
        &self,
        login: &PresentedLogin,
    ) -> Result<Vec<Account>, Unavailable> {
        let rows: Vec<AccountRow> = sqlx::query_as(
            "SELECT id, login, password_hash, disabled_at IS NOT NULL, sessions_valid_after FROM users
             WHERE login IN (SELECT value FROM json_each(?))",
        )
        .bind(json_array(&login.spellings()))
        .fetch_all(&self.0.readers)
        .await
        .map_err(failed)?;
        Ok(rows.into_iter().map(row_to_account).collect())
    }

    pub(super) async fn find(&self, user: UserId) -> Result<Option<Account>, Unavailable> {
        let row: Option<AccountRow> = sqlx::query_as(
            "SELECT id, login, password_hash, disabled_at IS NOT NULL, sessions_valid_after FROM users
             WHERE id = ?",
        )
        .bind(user.0)
        .fetch_optional(&self.0.readers)
        .await
        .map_err(failed)?;
        Ok(row.map(row_to_account))
    }

    pub(super) async fn costliest_hash(&self, max_cost: u32) -> Result<Option<u32>, Unavailable> {
        // The digits are compared as text, which orders two digits as numbers.
        let cost: Option<String> = sqlx::query_scalar(
            "SELECT max(substr(password_hash, 5, 2)) FROM users
             WHERE password_hash GLOB '$2[aby]$[0-9][0-9]$*' AND substr(password_hash, 5, 2) <= ?",
        )
        .bind(format!("{max_cost:02}"))
        .fetch_one(&self.0.readers)
        .await
        .map_err(failed)?;
        Ok(cost.and_then(|cost| cost.parse().ok()))
    }

    pub(super) async fn login_and_standing(
        &self,
        user: UserId,
    ) -> Result<Option<(Login, Standing)>, Unavailable> {
        let account = self.summary(user).await?;
        Ok(account.map(|account| (Login::from_stored(account.profile.login), account.standing)))
    }

    pub(super) async fn summary(
        &self,
        user: UserId,
    ) -> Result<Option<AccountSummary>, Unavailable> {
        let row: Option<SummaryRow> = sqlx::query_as(
            "SELECT id, login, created_at, last_login, disabled_at IS NOT NULL, sessions_valid_after FROM users
             WHERE id = ?",
        )
        .bind(user.0)
        .fetch_optional(&self.0.readers)
        .await
        .map_err(failed)?;
        Ok(row.map(to_summary))
    }

    pub(super) async fn record_login(
        &self,
        account: &Account,
        auth_time: AuthTime,
    ) -> Result<bool, Unavailable> {
        let result = sqlx::query(
            "UPDATE users SET last_login = max(?1, coalesce(last_login, 0))
             WHERE id = ?2 AND password_hash = ?3 AND disabled_at IS NULL
             AND (sessions_valid_after IS NULL OR sessions_valid_after < ?1)",
        )
        .bind(auth_time.0)
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

    pub(super) async fn change_password(
        &self,
        user: UserId,
        old: &PasswordHash,
        new: &PasswordHash,
        cutoff: DateTime<Utc>,
    ) -> Result<Option<SessionCutoff>, Unavailable> {
        let update = sqlx::query_scalar(concat!(
            "UPDATE users SET password_hash = ?1, ",
            end_sessions!("?2"),
            // A hash that is not UTF-8 was read with replacement characters, so it does not equal `old`. One that a
            // concurrent change has stored is printable ASCII.
            " WHERE id = ?3 AND (password_hash = ?4 OR (?5 AND password_hash GLOB '*[^ -~]*'))
              RETURNING sessions_valid_after"
        ))
        .bind(new.as_str())
        .bind(cutoff.timestamp_micros())
        .bind(user.0)
        .bind(old.as_str())
        .bind(old.as_bcrypt().is_none());
        let valid_after = self.0.write_returning(update).await?;
        Ok(valid_after.map(SessionCutoff::from_micros))
    }

    pub(super) async fn end_sessions(
        &self,
        first: UserId,
        last: UserId,
        cutoff: DateTime<Utc>,
    ) -> Result<(), Unavailable> {
        sqlx::query(concat!(
            "UPDATE users SET ",
            end_sessions!("?1"),
            " WHERE id BETWEEN ?2 AND ?3"
        ))
        .bind(cutoff.timestamp_micros())
        .bind(first.0)
        .bind(last.0)
        .execute(&self.0.writer)
        .await
        .map_err(failed)
        .map(drop)
    }

    pub(super) async fn set_status(
        &self,
        user: UserId,
        status: AccountStatus,
        now: DateTime<Utc>,
    ) -> Result<(), Unavailable> {
        let statement = match status {
            AccountStatus::Active => "UPDATE users SET disabled_at = nullif(?1, ?1) WHERE id = ?2",
            AccountStatus::Disabled => concat!(
                "UPDATE users SET disabled_at = coalesce(disabled_at, ?1), ",
                end_sessions!("?1"),
                " WHERE id = ?2"
            ),
        };
        sqlx::query(statement)
            .bind(now.timestamp_micros())
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
            "SELECT id, login, created_at, last_login, disabled_at IS NOT NULL, sessions_valid_after FROM users
             WHERE id > ? ORDER BY id LIMIT ?",
        )
        .bind(after.0)
        .bind(count)
        .fetch_all(&self.0.readers)
        .await
        .map_err(failed)?;
        Ok(rows.into_iter().map(to_summary).collect())
    }

    pub(super) async fn delete(&self, user: UserId) -> Result<DeleteOutcome, Unavailable> {
        let result = sqlx::query("DELETE FROM users WHERE id = ?")
            .bind(user.0)
            .execute(&self.0.writer)
            .await
            .map_err(failed)?;
        Ok(DeleteOutcome::of_count(result.rows_affected()))
    }

    pub(super) async fn delete_verified(
        &self,
        user: UserId,
        verified: &PasswordHash,
    ) -> Result<DeleteOutcome, Unavailable> {
        let result = sqlx::query("DELETE FROM users WHERE id = ? AND password_hash = ?")
            .bind(user.0)
            .bind(verified.as_str())
            .execute(&self.0.writer)
            .await
            .map_err(failed)?;
        Ok(DeleteOutcome::of_count(result.rows_affected()))
    }
}

fn row_to_account((id, login, hash, is_disabled, valid_after): AccountRow) -> Account {
    to_account(id, login.0, hash.0, is_disabled, valid_after)
}

/// Returns a list as a parameter of `json_each`.
fn json_array(texts: &[String]) -> String {
    serde_json::Value::from(texts).to_string()
}

fn to_summary(
    (id, StoredText(login), created_at, last_login, is_disabled, valid_after): SummaryRow,
) -> AccountSummary {
    AccountSummary {
        profile: Profile {
            id: UserId(id),
            login,
            created_at: time_from_micros(created_at),
            last_login: last_login.and_then(time_from_micros),
        },
        standing: to_standing(is_disabled, valid_after),
    }
}
