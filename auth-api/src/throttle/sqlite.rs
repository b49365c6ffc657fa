//! Failures in the embedded store.

use chrono::Utc;

use super::{Key, MOST_FAILURES, Outcome, WINDOW};
use crate::sqlite::{Sqlite, failed};
use crate::unavailable::Unavailable;

/// Counts in a SQLite file.
#[derive(Debug, Clone)]
pub(crate) struct SqliteThrottle(pub(crate) Sqlite);

impl SqliteThrottle {
    pub(super) async fn locked_for(&self, key: Key) -> Result<u64, Unavailable> {
        let now = Utc::now().timestamp_millis();
        let until: Option<i64> = sqlx::query_scalar(
            "SELECT until FROM failures WHERE login = ? AND until > ? AND count >= ?",
        )
        .bind(&key[..])
        .bind(now)
        .bind(MOST_FAILURES)
        .fetch_optional(&self.0.readers)
        .await
        .map_err(failed)?;
        Ok(left(until, now))
    }

    pub(super) async fn settle(&self, key: Key, outcome: Outcome) -> Result<u64, Unavailable> {
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
                .bind(&key[..])
                .bind(MOST_FAILURES)
                .fetch_optional(&mut *transaction)
                .await
                .map_err(failed)?;
        if until.is_none() {
            let window = i64::try_from(WINDOW.as_millis()).unwrap_or(i64::MAX);
            let query = match outcome {
                Outcome::Right => {
                    sqlx::query("DELETE FROM failures WHERE login = ?").bind(&key[..])
                }
                Outcome::Wrong => sqlx::query(
                    "INSERT INTO failures VALUES (?, 1, ?)
                     ON CONFLICT (login) DO UPDATE SET count = count + 1",
                )
                .bind(&key[..])
                .bind(now + window),
            };
            query.execute(&mut *transaction).await.map_err(failed)?;
        }
        transaction.commit().await.map_err(failed)?;
        Ok(left(until, now))
    }
}

/// Milliseconds until then, 0 where there is no then.
fn left(until: Option<i64>, now: i64) -> u64 {
    until.map_or(0, |until| u64::try_from(until - now).unwrap_or(0).max(1))
}
