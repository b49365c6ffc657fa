//! Sessions in the embedded store.

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::SqliteConnection;

use super::{GRACE, MOST_OF_A_USER, TOUCH};
use crate::domain::refresh_token::SealedSecret;
use crate::domain::session::{
    Ended, Exchange, Exchanged, LiveSession, NewSession, Origin, SessionId,
};
use crate::domain::token::Principal;
use crate::domain::user::UserId;
use crate::sqlite::{STORE, Sqlite, failed, time};
use crate::unavailable::Unavailable;

/// The sessions' table of a SQLite file.
#[derive(Debug, Clone)]
pub(crate) struct SqliteSessions(pub(crate) Sqlite);

/// What an exchange looks at: the current token, the one before, when it was exchanged, its successor.
type Tokens = (Vec<u8>, Option<Vec<u8>>, Option<i64>, Option<Vec<u8>>);
/// What a list tells: id, created, used, address, user agent.
type Listed = (String, i64, i64, String, String);

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
        sqlx::query(
            "INSERT INTO sessions (id, user_id, refresh_hash, created_at, last_used, expires_at, address, user_agent)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(session.principal.session.to_string())
        .bind(session.principal.user.0)
        .bind(session.refresh.0.as_slice())
        .bind(created)
        .bind(created)
        .bind(session.expires_at.timestamp_micros())
        .bind(&session.origin.address)
        .bind(&session.origin.user_agent)
        .execute(&mut *transaction)
        .await
        .map_err(failed)?;
        sqlx::query(
            "DELETE FROM sessions WHERE id IN
             (SELECT id FROM sessions WHERE user_id = ? ORDER BY expires_at DESC LIMIT -1 OFFSET ?)",
        )
        .bind(session.principal.user.0)
        .bind(MOST_OF_A_USER)
        .execute(&mut *transaction)
        .await
        .map_err(failed)?;
        transaction.commit().await.map_err(failed)
    }

    pub(super) async fn is_live(&self, principal: Principal) -> Result<bool, Unavailable> {
        let now = Utc::now();
        let used: Option<i64> = sqlx::query_scalar(
            "SELECT last_used FROM sessions WHERE id = ? AND user_id = ? AND expires_at > ?",
        )
        .bind(principal.session.to_string())
        .bind(principal.user.0)
        .bind(now.timestamp_micros())
        .fetch_optional(&self.0.readers)
        .await
        .map_err(failed)?;
        let Some(used) = used else { return Ok(false) };
        if time(used).is_some_and(|used| now - used >= delta(TOUCH)) {
            let noted = sqlx::query("UPDATE sessions SET last_used = ? WHERE id = ?")
                .bind(now.timestamp_micros())
                .bind(principal.session.to_string())
                .execute(&self.0.writer)
                .await;
            // A file that takes no writes (its disk is full) still knows who is logged in.
            if let Err(error) = noted {
                tracing::warn!(store = STORE, %error, "a use was not noted");
            }
        }
        Ok(true)
    }

    pub(super) async fn exchange(&self, exchange: &Exchange) -> Result<Exchanged, Unavailable> {
        // Taking the writer's lock before reading makes reading and writing one step.
        let mut transaction = self
            .0
            .writer
            .begin_with("BEGIN IMMEDIATE")
            .await
            .map_err(failed)?;
        let outcome = rotate(&mut transaction, exchange).await?;
        transaction.commit().await.map_err(failed)?;
        Ok(outcome)
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

    pub(super) async fn end_all(
        &self,
        user: UserId,
        kept: Option<SessionId>,
    ) -> Result<u64, Unavailable> {
        let kept = kept.map(|kept| kept.to_string()).unwrap_or_default();
        let done = sqlx::query("DELETE FROM sessions WHERE user_id = ? AND id <> ?")
            .bind(user.0)
            .bind(kept)
            .execute(&self.0.writer)
            .await
            .map_err(failed)?;
        Ok(done.rows_affected())
    }

    pub(super) async fn list(&self, user: UserId) -> Result<Vec<LiveSession>, Unavailable> {
        let listed: Vec<Listed> = sqlx::query_as(
            "SELECT id, created_at, last_used, address, user_agent FROM sessions
             WHERE user_id = ? AND expires_at > ?",
        )
        .bind(user.0)
        .bind(Utc::now().timestamp_micros())
        .fetch_all(&self.0.readers)
        .await
        .map_err(failed)?;
        listed.into_iter().map(live).collect()
    }

    pub(super) async fn ping(&self) -> Result<(), Unavailable> {
        sqlx::query("SELECT 1")
            .execute(&self.0.readers)
            .await
            .map_err(failed)
            .map(drop)
    }
}

async fn rotate(
    connection: &mut SqliteConnection,
    exchange: &Exchange,
) -> Result<Exchanged, Unavailable> {
    let session = exchange.principal.session.to_string();
    let now = exchange.now.timestamp_micros();
    let tokens: Option<Tokens> = sqlx::query_as(
        "SELECT refresh_hash, previous_hash, rotated_at, successor FROM sessions
         WHERE id = ? AND user_id = ? AND expires_at > ?",
    )
    .bind(&session)
    .bind(exchange.principal.user.0)
    .bind(now)
    .fetch_optional(&mut *connection)
    .await
    .map_err(failed)?;
    let Some((current, previous, rotated, successor)) = tokens else {
        return Ok(Exchanged::Gone);
    };
    let presented = &exchange.presented.0[..];
    if current == presented {
        sqlx::query(
            "UPDATE sessions SET refresh_hash = ?, previous_hash = ?, rotated_at = ?, successor = ?,
             last_used = ?, expires_at = ? WHERE id = ?",
        )
        .bind(&exchange.next.0[..])
        .bind(presented)
        .bind(now)
        .bind(&exchange.sealed.0[..])
        .bind(now)
        .bind(exchange.expires_at.timestamp_micros())
        .bind(&session)
        .execute(&mut *connection)
        .await
        .map_err(failed)?;
        return Ok(Exchanged::Rotated);
    }
    let is_recent = rotated
        .and_then(time)
        .is_some_and(|rotated| exchange.now - rotated <= delta(GRACE));
    match successor.map(<[u8; 32]>::try_from) {
        Some(Ok(sealed)) if is_recent && previous.as_deref() == Some(presented) => {
            Ok(Exchanged::Repeated(SealedSecret(sealed)))
        }
        _ => Ok(Exchanged::Used),
    }
}

fn live((id, created, used, address, user_agent): Listed) -> Result<LiveSession, Unavailable> {
    let nonsense = |what: &str| Unavailable::because(STORE, &what);
    let time = |micros| -> Result<DateTime<Utc>, Unavailable> {
        time(micros).ok_or_else(|| nonsense("a time out of range"))
    };
    Ok(LiveSession {
        id: SessionId::parse(&id).ok_or_else(|| nonsense("a session without an id"))?,
        created_at: time(created)?,
        last_used: time(used)?,
        origin: Origin {
            address,
            user_agent,
        },
    })
}

fn delta(duration: std::time::Duration) -> TimeDelta {
    TimeDelta::from_std(duration).unwrap_or(TimeDelta::MAX)
}
