//! Failures in the embedded store. The column `login` has the key of any scope.

use chrono::Utc;

use super::policy::{FAILURE_WINDOW, LoginOutcome, MAX_FAILURES, ScopeKey};
use crate::store::sqlite::{Sqlite, failed};
use crate::store::unavailable::Unavailable;

/// The table `failures` of a SQLite file. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct SqliteThrottle(pub(crate) Sqlite);

impl SqliteThrottle {
    pub(super) async fn remaining_lock(&self, scope: ScopeKey) -> Result<u64, Unavailable> {
        let now = Utc::now().timestamp_millis();
        let until: Option<i64> = sqlx::query_scalar(
            "SELECT until FROM failures WHERE login = ? AND until > ? AND count >= ?",
        )
        .bind(&scope[..])
        .bind(now)
        .bind(MAX_FAILURES)
        .fetch_optional(&self.0.readers)
        .await
        .map_err(failed)?;
        Ok(millis_until(until, now))
    }

    pub(super) async fn clear(&self, scope: ScopeKey) -> Result<(), Unavailable> {
        sqlx::query("DELETE FROM failures WHERE login = ?")
            .bind(&scope[..])
            .execute(&self.0.writer)
            .await
            .map_err(failed)
            .map(drop)
    }

    pub(super) async fn record(
        &self,
        scope: ScopeKey,
        outcome: LoginOutcome,
    ) -> Result<u64, Unavailable> {
        let now = Utc::now().timestamp_millis();
        let mut transaction = self
            .0
            .writer
            .begin_with("BEGIN IMMEDIATE")
            .await
            .map_err(failed)?;
        sqlx::query("DELETE FROM failures WHERE until <= ?")
            .bind(now)
            .execute(&mut *transaction)
            .await
            .map_err(failed)?;
        let until: Option<i64> =
            sqlx::query_scalar("SELECT until FROM failures WHERE login = ? AND count >= ?")
                .bind(&scope[..])
                .bind(MAX_FAILURES)
                .fetch_optional(&mut *transaction)
                .await
                .map_err(failed)?;
        if until.is_none() {
            let window = i64::try_from(FAILURE_WINDOW.as_millis()).unwrap_or(i64::MAX);
            let query = match outcome {
                LoginOutcome::Success => {
                    sqlx::query("DELETE FROM failures WHERE login = ?").bind(&scope[..])
                }
                LoginOutcome::Failure => sqlx::query(
                    "INSERT INTO failures VALUES (?, 1, ?)
                     ON CONFLICT (login) DO UPDATE SET count = count + 1",
                )
                .bind(&scope[..])
                .bind(now + window),
            };
            query.execute(&mut *transaction).await.map_err(failed)?;
        }
        transaction.commit().await.map_err(failed)?;
        Ok(millis_until(until, now))
    }
}

/// Returns the milliseconds from `now` to `until`, at least 1, or 0 if `until` is `None`.
fn millis_until(until: Option<i64>, now: i64) -> u64 {
    until.map_or(0, |until| u64::try_from(until - now).unwrap_or(0).max(1))
}
