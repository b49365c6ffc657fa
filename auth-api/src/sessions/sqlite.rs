//! Sessions in the embedded store.

use chrono::Utc;

use crate::domain::session::{Ended, NewSession};
use crate::domain::token::Principal;
use crate::domain::user::UserId;
use crate::sqlite::{Sqlite, failed};
use crate::unavailable::Unavailable;

/// The sessions' table of a SQLite file.
#[derive(Debug, Clone)]
pub(crate) struct SqliteSessions(pub(crate) Sqlite);

impl SqliteSessions {
    pub(super) async fn create(&self, session: &NewSession) -> Result<(), Unavailable> {
        let created = session.created_at.timestamp_micros();
        let mut transaction = self.0.writer.begin().await.map_err(failed)?;
        // Each login sweeps up what expired since the one before.
        sqlx::query("DELETE FROM sessions WHERE expires_at <= ?")
            .bind(created)
            .execute(&mut *transaction)
            .await
            .map_err(failed)?;
        sqlx::query("INSERT INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?, ?)")
            .bind(session.id.to_string())
            .bind(session.user.0)
            .bind(session.refresh.0.as_slice())
            .bind(created)
            .bind(created)
            .bind(session.expires_at.timestamp_micros())
            .bind(&session.origin.address)
            .bind(&session.origin.user_agent)
            .execute(&mut *transaction)
            .await
            .map_err(failed)?;
        transaction.commit().await.map_err(failed)
    }

    pub(super) async fn is_live(&self, principal: Principal) -> Result<bool, Unavailable> {
        let found: Option<i64> = sqlx::query_scalar(
            "SELECT 1 FROM sessions WHERE id = ? AND user_id = ? AND expires_at > ?",
        )
        .bind(principal.session.to_string())
        .bind(principal.user.0)
        .bind(Utc::now().timestamp_micros())
        .fetch_optional(&self.0.readers)
        .await
        .map_err(failed)?;
        Ok(found.is_some())
    }

    pub(super) async fn end(&self, principal: Principal) -> Result<Ended, Unavailable> {
        let done =
            sqlx::query("DELETE FROM sessions WHERE id = ? AND user_id = ? AND expires_at > ?")
                .bind(principal.session.to_string())
                .bind(principal.user.0)
                .bind(Utc::now().timestamp_micros())
                .execute(&self.0.writer)
                .await
                .map_err(failed)?;
        Ok(match done.rows_affected() {
            0 => Ended::Before,
            _ => Ended::Now,
        })
    }

    pub(super) async fn end_all(&self, user: UserId) -> Result<u64, Unavailable> {
        let done = sqlx::query("DELETE FROM sessions WHERE user_id = ?")
            .bind(user.0)
            .execute(&self.0.writer)
            .await
            .map_err(failed)?;
        Ok(done.rows_affected())
    }

    pub(super) async fn ping(&self) -> Result<(), Unavailable> {
        sqlx::query("SELECT 1")
            .execute(&self.0.readers)
            .await
            .map_err(failed)
            .map(drop)
    }
}
