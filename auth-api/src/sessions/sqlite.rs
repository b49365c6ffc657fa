//! Sessions in the embedded store.

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::SqliteConnection;

use super::policy::{GRACE_PERIOD, LAST_USED_INTERVAL, MAX_SESSIONS_PER_USER};
use crate::domain::principal::{Principal, SessionId};
use crate::domain::refresh_token::SealedSuccessor;
use crate::domain::session::{
    ActiveSession, ClientInfo, EndOutcome, NewSession, Rotation, RotationOutcome,
};
use crate::domain::user::UserId;
use crate::store::sqlite::{STORE, Sqlite, failed, time_from_micros};
use crate::store::unavailable::Unavailable;

/// The table `sessions` of a SQLite file. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct SqliteSessions(pub(crate) Sqlite);

/// Columns that a rotation reads: hash of the current token, hash of the previous one, time of the
/// last rotation, sealed successor.
type RotationRow = (Vec<u8>, Option<Vec<u8>>, Option<i64>, Option<Vec<u8>>);
/// Columns of a listed session: id, created, last used (µs since 1970), address, user agent.
type ListedSession = (String, i64, i64, String, String);

impl SqliteSessions {
    pub(super) async fn create(&self, session: &NewSession) -> Result<(), Unavailable> {
        let created = session.created_at.timestamp_micros();
        let mut transaction = self.0.writer.begin().await.map_err(failed)?;
        // Each login deletes the sessions that have expired since the last one.
        sqlx::query("DELETE FROM sessions WHERE expires_at <= ?")
            .bind(created)
            .execute(&mut *transaction)
            .await
            .map_err(failed)?;
        sqlx::query(
            "INSERT INTO sessions (id, user_id, refresh_hash, created_at, last_used, expires_at, address, user_agent)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(session.principal.session.to_string())
        .bind(session.principal.user.0)
        .bind(session.refresh_hash.0.as_slice())
        .bind(created)
        .bind(created)
        .bind(session.expires_at.timestamp_micros())
        .bind(&session.client.address)
        .bind(&session.client.user_agent)
        .execute(&mut *transaction)
        .await
        .map_err(failed)?;
        sqlx::query(
            "DELETE FROM sessions WHERE id IN
             (SELECT id FROM sessions WHERE user_id = ? ORDER BY expires_at DESC LIMIT -1 OFFSET ?)",
        )
        .bind(session.principal.user.0)
        .bind(MAX_SESSIONS_PER_USER)
        .execute(&mut *transaction)
        .await
        .map_err(failed)?;
        transaction.commit().await.map_err(failed)
    }

    pub(super) async fn is_active(&self, principal: Principal) -> Result<bool, Unavailable> {
        let now = Utc::now();
        let last_used: Option<i64> = sqlx::query_scalar(
            "SELECT last_used FROM sessions WHERE id = ? AND user_id = ? AND expires_at > ?",
        )
        .bind(principal.session.to_string())
        .bind(principal.user.0)
        .bind(now.timestamp_micros())
        .fetch_optional(&self.0.readers)
        .await
        .map_err(failed)?;
        let Some(last_used) = last_used else {
            return Ok(false);
        };
        let is_due = |last_used| now - last_used >= time_delta(LAST_USED_INTERVAL);
        if time_from_micros(last_used).is_some_and(is_due) {
            let update = sqlx::query("UPDATE sessions SET last_used = ? WHERE id = ?")
                .bind(now.timestamp_micros())
                .bind(principal.session.to_string())
                .execute(&self.0.writer)
                .await;
            // A store that cannot be written (the disk is full) still serves reads.
            if let Err(error) = update {
                tracing::warn!(store = STORE, %error, "updating a session's last use failed");
            }
        }
        Ok(true)
    }

    pub(super) async fn rotate(&self, rotation: &Rotation) -> Result<RotationOutcome, Unavailable> {
        // Taking the write lock before reading makes reading and writing atomic.
        let mut transaction = self
            .0
            .writer
            .begin_with("BEGIN IMMEDIATE")
            .await
            .map_err(failed)?;
        let outcome = rotate(&mut transaction, rotation).await?;
        transaction.commit().await.map_err(failed)?;
        Ok(outcome)
    }

    pub(super) async fn end(&self, principal: Principal) -> Result<EndOutcome, Unavailable> {
        let result =
            sqlx::query("DELETE FROM sessions WHERE id = ? AND user_id = ? AND expires_at > ?")
                .bind(principal.session.to_string())
                .bind(principal.user.0)
                .bind(Utc::now().timestamp_micros())
                .execute(&self.0.writer)
                .await
                .map_err(failed)?;
        Ok(match result.rows_affected() {
            0 => EndOutcome::NotFound,
            _ => EndOutcome::Ended,
        })
    }

    pub(super) async fn end_all(
        &self,
        user: UserId,
        kept: Option<SessionId>,
    ) -> Result<u64, Unavailable> {
        let kept = kept.map(|kept| kept.to_string()).unwrap_or_default();
        let result = sqlx::query("DELETE FROM sessions WHERE user_id = ? AND id <> ?")
            .bind(user.0)
            .bind(kept)
            .execute(&self.0.writer)
            .await
            .map_err(failed)?;
        Ok(result.rows_affected())
    }

    pub(super) async fn list(&self, user: UserId) -> Result<Vec<ActiveSession>, Unavailable> {
        let listed: Vec<ListedSession> = sqlx::query_as(
            "SELECT id, created_at, last_used, address, user_agent FROM sessions
             WHERE user_id = ? AND expires_at > ?",
        )
        .bind(user.0)
        .bind(Utc::now().timestamp_micros())
        .fetch_all(&self.0.readers)
        .await
        .map_err(failed)?;
        listed.into_iter().map(to_active_session).collect()
    }

    pub(super) async fn ping(&self) -> Result<(), Unavailable> {
        self.0.ping().await
    }
}

async fn rotate(
    connection: &mut SqliteConnection,
    rotation: &Rotation,
) -> Result<RotationOutcome, Unavailable> {
    let session = rotation.principal.session.to_string();
    let now = rotation.now.timestamp_micros();
    let row: Option<RotationRow> = sqlx::query_as(
        "SELECT refresh_hash, previous_hash, rotated_at, successor FROM sessions
         WHERE id = ? AND user_id = ? AND expires_at > ?",
    )
    .bind(&session)
    .bind(rotation.principal.user.0)
    .bind(now)
    .fetch_optional(&mut *connection)
    .await
    .map_err(failed)?;
    let Some((current, previous, rotated_at, successor)) = row else {
        return Ok(RotationOutcome::SessionNotFound);
    };
    let presented = &rotation.presented.0[..];
    if current == presented {
        sqlx::query(
            "UPDATE sessions SET refresh_hash = ?, previous_hash = ?, rotated_at = ?, successor = ?,
             last_used = ?, expires_at = ? WHERE id = ?",
        )
        .bind(&rotation.successor.0[..])
        .bind(presented)
        .bind(now)
        .bind(&rotation.sealed_successor.0[..])
        .bind(now)
        .bind(rotation.expires_at.timestamp_micros())
        .bind(&session)
        .execute(&mut *connection)
        .await
        .map_err(failed)?;
        return Ok(RotationOutcome::Rotated);
    }
    let is_within_grace = rotated_at
        .and_then(time_from_micros)
        .is_some_and(|rotated_at| rotation.now - rotated_at <= time_delta(GRACE_PERIOD));
    match successor.map(<[u8; 32]>::try_from) {
        Some(Ok(sealed)) if is_within_grace && previous.as_deref() == Some(presented) => {
            Ok(RotationOutcome::RetriedWithinGrace(SealedSuccessor(sealed)))
        }
        _ => Ok(RotationOutcome::Reused),
    }
}

fn to_active_session(
    (id, created, used, address, user_agent): ListedSession,
) -> Result<ActiveSession, Unavailable> {
    let invalid_row = |description: &str| Unavailable::because(STORE, &description);
    let time = |micros| -> Result<DateTime<Utc>, Unavailable> {
        time_from_micros(micros).ok_or_else(|| invalid_row("stored time out of range"))
    };
    Ok(ActiveSession {
        id: SessionId::parse(&id).ok_or_else(|| invalid_row("invalid session id"))?,
        created_at: time(created)?,
        last_used: time(used)?,
        client: ClientInfo {
            address,
            user_agent,
        },
    })
}

fn time_delta(duration: std::time::Duration) -> TimeDelta {
    TimeDelta::from_std(duration).unwrap_or(TimeDelta::MAX)
}
