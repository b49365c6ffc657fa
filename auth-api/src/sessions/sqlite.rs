//! Sessions in the embedded store.

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::sqlite::SqliteRow;
use sqlx::{FromRow, Row, SqliteConnection, SqliteExecutor};

use super::policy::{LAST_USED_INTERVAL, MAX_LOST_ROTATIONS, MAX_SESSIONS_PER_USER, MAX_SIBLINGS};
use super::rows::{SessionRow, to_active_session};
use crate::domain::principal::{Principal, SessionId};
use crate::domain::refresh_token::{RefreshTokenGeneration, SealedSuccessor};
use crate::domain::session::{
    ActiveSession, EndOutcome, NewSession, RefreshTokenQuery, RefreshTokenValidity, Rotation,
    RotationOutcome, SessionPolicy,
};
use crate::domain::session_cutoff::{AuthTime, SessionCutoff};
use crate::domain::user::UserId;
use crate::store::sqlite::{STORE, Sqlite, StoredText, failed, time_from_micros};
use crate::store::unavailable::Unavailable;

/// The table `sessions` of a SQLite file. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct SqliteSessions(pub(crate) Sqlite);

/// Columns of a session that decide about its refresh tokens. Times are µs since 1970.
struct RotationRow {
    auth_time: i64,
    created_at: i64,
    expires_at: i64,
    refresh_hash: Vec<u8>,
    generation: Option<i64>,
    previous_hash: Option<Vec<u8>>,
    rotated_at: Option<i64>,
    successor: Option<Vec<u8>>,
    siblings: Option<Vec<u8>>,
    grandparent_hash: Option<Vec<u8>>,
    grandparent_rotated_at: Option<i64>,
    grandparent_successor: Option<Vec<u8>>,
}

impl FromRow<'_, SqliteRow> for RotationRow {
    fn from_row(row: &SqliteRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            auth_time: row.try_get("auth_time")?,
            created_at: row.try_get("created_at")?,
            expires_at: row.try_get("expires_at")?,
            refresh_hash: row.try_get("refresh_hash")?,
            generation: row.try_get("generation")?,
            previous_hash: row.try_get("previous_hash")?,
            rotated_at: row.try_get("rotated_at")?,
            successor: row.try_get("successor")?,
            siblings: row.try_get("siblings")?,
            grandparent_hash: row.try_get("grandparent_hash")?,
            grandparent_rotated_at: row.try_get("grandparent_rotated_at")?,
            grandparent_successor: row.try_get("grandparent_successor")?,
        })
    }
}

const HASH_BYTES: usize = 32;

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
            "INSERT INTO sessions (id, user_id, refresh_hash, created_at, last_used, expires_at, address, user_agent,
             authenticated_at, generation) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(session.principal.session.to_string())
        .bind(session.principal.user.0)
        .bind(session.refresh_hash.0.as_slice())
        .bind(created)
        .bind(created)
        .bind(session.expires_at().timestamp_micros())
        .bind(&session.client.address)
        .bind(&session.client.user_agent)
        .bind(session.auth_time.0)
        .bind(session.refresh_generation.0)
        .execute(&mut *transaction)
        .await
        .map_err(failed)?;
        // Not the new one, which would expire first if the lifetime of sessions was shortened.
        sqlx::query(
            "DELETE FROM sessions WHERE id IN
             (SELECT id FROM sessions WHERE user_id = ? AND id <> ? ORDER BY expires_at DESC LIMIT -1 OFFSET ?)",
        )
        .bind(session.principal.user.0)
        .bind(session.principal.session.to_string())
        .bind(MAX_SESSIONS_PER_USER - 1)
        .execute(&mut *transaction)
        .await
        .map_err(failed)?;
        transaction.commit().await.map_err(failed)
    }

    pub(super) async fn auth_time(
        &self,
        principal: Principal,
        policy: SessionPolicy,
    ) -> Result<Option<AuthTime>, Unavailable> {
        let now = Utc::now();
        let row: Option<(i64, i64, i64)> = sqlx::query_as(
            "SELECT created_at, last_used, coalesce(authenticated_at, created_at) FROM sessions
             WHERE id = ? AND user_id = ? AND expires_at > ?",
        )
        .bind(principal.session.to_string())
        .bind(principal.user.0)
        .bind(now.timestamp_micros())
        .fetch_optional(&self.0.readers)
        .await
        .map_err(failed)?;
        let Some((created_at, last_used, auth_time)) = row else {
            return Ok(None);
        };
        if is_past_max_age(created_at, policy, now) {
            return Ok(None);
        }
        let is_due = |last_used| now - last_used >= time_delta(LAST_USED_INTERVAL);
        if time_from_micros(last_used).is_some_and(is_due) {
            let update = sqlx::query("UPDATE sessions SET last_used = ? WHERE id = ?")
                .bind(now.timestamp_micros())
                .bind(principal.session.to_string())
                .execute(&self.0.writer)
                .await;
            // A store that cannot be written (the disk is full) still serves reads.
            if let Err(error) = update {
                self.0.statement_failed();
                tracing::warn!(store = STORE, %error, "updating a session's last use failed");
            }
        }
        Ok(Some(AuthTime(auth_time)))
    }

    pub(super) async fn rotate(&self, rotation: &Rotation) -> Result<RotationOutcome, Unavailable> {
        // Taking the write lock before reading makes reading and writing atomic.
        let mut transaction = self
            .0
            .writer
            .begin_with("BEGIN IMMEDIATE")
            .await
            .map_err(failed)?;
        // Under the lock, so that no rotation before this one is in the future: concurrent requests that
        // wait for it would be taken for a clock that was set back.
        let rotation = Rotation {
            now: Utc::now(),
            ..*rotation
        };
        let outcome = rotate(&mut transaction, &rotation).await?;
        transaction.commit().await.map_err(failed)?;
        Ok(outcome)
    }

    pub(super) async fn refresh_token_validity(
        &self,
        query: &RefreshTokenQuery,
    ) -> Result<Option<RefreshTokenValidity>, Unavailable> {
        let now = Utc::now();
        let row = find_rotation_row(&self.0.readers, query.principal, now).await?;
        let is_valid = |row: &RotationRow| {
            row.is_active(query.cutoff, query.policy, now)
                && row.is_unused(&query.presented.0, query.presented_generation)
        };
        let Some(row) = row.filter(is_valid) else {
            return Ok(None);
        };
        let invalid_time = || Unavailable::because(STORE, &"stored time out of range");
        let expires_at = time_from_micros(row.expires_at).ok_or_else(invalid_time)?;
        let expires_at = time_from_micros(row.created_at).map_or(expires_at, |created_at| {
            query.policy.limit_to_max_age(created_at, expires_at)
        });
        let issued_at = row.rotated_at.unwrap_or(row.created_at);
        let is_current = row.refresh_hash == query.presented.0;
        Ok(Some(RefreshTokenValidity {
            issued_at: time_from_micros(issued_at).filter(|_| is_current),
            expires_at,
        }))
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
        kept: Option<(SessionId, AuthTime)>,
    ) -> Result<u64, Unavailable> {
        let (kept, auth_time) = kept
            .map(|(session, auth_time)| (session.to_string(), auth_time.0))
            .unwrap_or_default();
        let mut transaction = self.0.writer.begin().await.map_err(failed)?;
        // They have ended by themselves and are not counted.
        sqlx::query("DELETE FROM sessions WHERE user_id = ? AND expires_at <= ?")
            .bind(user.0)
            .bind(Utc::now().timestamp_micros())
            .execute(&mut *transaction)
            .await
            .map_err(failed)?;
        let result = sqlx::query("DELETE FROM sessions WHERE user_id = ? AND id <> ?")
            .bind(user.0)
            .bind(&kept)
            .execute(&mut *transaction)
            .await
            .map_err(failed)?;
        // Not to an earlier time: of two changes of the password in one session, the one that fails may be the last.
        sqlx::query(
            "UPDATE sessions SET authenticated_at = max(coalesce(authenticated_at, 0), ?)
             WHERE user_id = ? AND id = ?",
        )
        .bind(auth_time)
        .bind(user.0)
        .bind(kept)
        .execute(&mut *transaction)
        .await
        .map_err(failed)?;
        transaction.commit().await.map_err(failed)?;
        Ok(result.rows_affected())
    }

    pub(super) async fn list(&self, user: UserId) -> Result<Vec<ActiveSession>, Unavailable> {
        let listed: Vec<ListedRow> = sqlx::query_as(
            "SELECT id, created_at, last_used, address, user_agent, coalesce(authenticated_at, created_at)
             FROM sessions WHERE user_id = ? AND expires_at > ?",
        )
        .bind(user.0)
        .bind(Utc::now().timestamp_micros())
        .fetch_all(&self.0.readers)
        .await
        .map_err(failed)?;
        listed
            .into_iter()
            .map(|row| to_active_session(to_session_row(row), time_from_micros))
            .collect::<Result<_, _>>()
            .map_err(|damaged| Unavailable::because(STORE, &damaged))
    }
}

/// [`SessionRow`] as it is stored.
type ListedRow = (StoredText, i64, i64, StoredText, StoredText, i64);

fn to_session_row((id, created, used, address, user_agent, auth_time): ListedRow) -> SessionRow {
    (id.0, created, used, address.0, user_agent.0, auth_time)
}

async fn find_rotation_row(
    executor: impl SqliteExecutor<'_>,
    principal: Principal,
    now: DateTime<Utc>,
) -> Result<Option<RotationRow>, Unavailable> {
    sqlx::query_as(
        "SELECT coalesce(authenticated_at, created_at) AS auth_time, created_at, expires_at, refresh_hash, generation,
         previous_hash, rotated_at, successor, siblings, grandparent_hash, grandparent_rotated_at,
         grandparent_successor FROM sessions WHERE id = ? AND user_id = ? AND expires_at > ?",
    )
    .bind(principal.session.to_string())
    .bind(principal.user.0)
    .bind(now.timestamp_micros())
    .fetch_optional(executor)
    .await
    .map_err(failed)
}

async fn rotate(
    connection: &mut SqliteConnection,
    rotation: &Rotation,
) -> Result<RotationOutcome, Unavailable> {
    let row = find_rotation_row(&mut *connection, rotation.principal, rotation.now).await?;
    let is_active =
        |row: &RotationRow| row.is_active(rotation.cutoff, rotation.policy, rotation.now);
    let Some(row) = row.filter(is_active) else {
        return Ok(RotationOutcome::SessionNotFound);
    };
    let presented = &rotation.presented.0[..];
    if row.is_unused(presented, rotation.presented_generation) {
        issue_successor(connection, rotation, row.after_rotation(presented)).await?;
        return Ok(RotationOutcome::Rotated);
    }
    if row.previous_hash.as_deref() == Some(presented) {
        if is_within_grace(row.rotated_at, rotation) {
            return Ok(retried(&[row.successor]));
        }
        // The response with the successor was lost, since no successor was used.
        issue_successor(connection, rotation, row.after_retry()).await?;
        return Ok(RotationOutcome::Rotated);
    }
    if row.grandparent_hash.as_deref() == Some(presented)
        && is_within_grace(row.grandparent_rotated_at, rotation)
    {
        return Ok(retried(&[row.grandparent_successor, row.successor]));
    }
    Ok(RotationOutcome::Reused)
}

impl RotationRow {
    fn is_active(&self, cutoff: SessionCutoff, policy: SessionPolicy, now: DateTime<Utc>) -> bool {
        cutoff.permits(AuthTime(self.auth_time)) && !is_past_max_age(self.created_at, policy, now)
    }

    /// Returns the unused successors of the previous token other than the current one.
    fn siblings(&self) -> &[u8] {
        // The hash of the previous token comes first: an earlier version of the program leaves old ones.
        match (&self.siblings, &self.previous_hash) {
            (Some(siblings), Some(previous)) => siblings.strip_prefix(&previous[..]),
            _ => None,
        }
        .unwrap_or_default()
    }

    /// Returns whether the presented token is the current one, a sibling of it, or newer.
    fn is_unused(&self, presented: &[u8], generation: RefreshTokenGeneration) -> bool {
        // Only this service issues tokens, so one that is newer than the current token was issued by a
        // rotation that the store has lost.
        let current = self
            .generation
            .and_then(|number| u32::try_from(number).ok());
        let lost = current.map_or(0, |current| {
            let current = RefreshTokenGeneration(current);
            generation.distance_from(current)
        });
        self.refresh_hash == presented
            || self
                .siblings()
                .chunks_exact(HASH_BYTES)
                .any(|sibling| sibling == presented)
            || (1..=MAX_LOST_ROTATIONS).contains(&lost)
    }

    /// Returns the row after the first use of `presented`, without its successor.
    fn after_rotation(self, presented: &[u8]) -> Self {
        // The sealed successor leads to the current token, not to a sibling.
        let (grandparent_hash, grandparent_rotated_at, grandparent_successor) =
            if self.refresh_hash == presented {
                (self.previous_hash, self.rotated_at, self.successor)
            } else {
                (None, None, None)
            };
        Self {
            previous_hash: Some(presented.to_vec()),
            siblings: None,
            successor: None,
            grandparent_hash,
            grandparent_rotated_at,
            grandparent_successor,
            ..self
        }
    }

    /// Returns the row after the previous token was presented again, without its new successor.
    fn after_retry(self) -> Self {
        let unused = [self.siblings(), &self.refresh_hash].concat();
        let surplus = unused.len().saturating_sub(MAX_SIBLINGS * HASH_BYTES);
        let previous = self.previous_hash.as_deref().unwrap_or_default();
        let siblings = [previous, &unused[surplus..]].concat();
        Self {
            siblings: Some(siblings),
            ..self
        }
    }
}

/// Stores the successor of a rotation as the current token, with the other columns of `row`.
async fn issue_successor(
    connection: &mut SqliteConnection,
    rotation: &Rotation,
    row: RotationRow,
) -> Result<(), Unavailable> {
    let now = rotation.now.timestamp_micros();
    let created_at = time_from_micros(row.created_at).unwrap_or(rotation.now);
    let expires_at = rotation.policy.expires_at(created_at, rotation.now);
    sqlx::query(
        "UPDATE sessions SET refresh_hash = ?, generation = ?, previous_hash = ?, rotated_at = ?, successor = ?,
         siblings = ?, grandparent_hash = ?, grandparent_rotated_at = ?, grandparent_successor = ?,
         last_used = ?, expires_at = ? WHERE id = ?",
    )
    .bind(&rotation.successor.0[..])
    .bind(rotation.successor_generation.0)
    .bind(row.previous_hash)
    .bind(now)
    .bind(&rotation.sealed_successor.0[..])
    .bind(row.siblings)
    .bind(row.grandparent_hash)
    .bind(row.grandparent_rotated_at)
    .bind(row.grandparent_successor)
    .bind(now)
    .bind(expires_at.timestamp_micros())
    .bind(rotation.principal.session.to_string())
    .execute(&mut *connection)
    .await
    .map_err(failed)
    .map(drop)
}

/// Returns the successors that lead to the current token.
fn retried(sealed: &[Option<Vec<u8>>]) -> RotationOutcome {
    let sealed: Option<_> = sealed
        .iter()
        .map(|sealed| sealed.as_deref()?.try_into().ok().map(SealedSuccessor))
        .collect();
    sealed.map_or(RotationOutcome::Reused, RotationOutcome::Retried)
}

/// Returns whether the grace period after a rotation has not passed. A time in the future means that
/// the clock was set back.
fn is_within_grace(rotated_at: Option<i64>, rotation: &Rotation) -> bool {
    let elapsed = rotated_at
        .and_then(time_from_micros)
        .and_then(|rotated_at| (rotation.now - rotated_at).to_std().ok());
    elapsed.is_some_and(|elapsed| elapsed <= rotation.policy.refresh_grace)
}

fn is_past_max_age(created_at: i64, policy: SessionPolicy, now: DateTime<Utc>) -> bool {
    time_from_micros(created_at).is_some_and(|created_at| policy.is_past_max_age(created_at, now))
}

fn time_delta(duration: std::time::Duration) -> TimeDelta {
    TimeDelta::from_std(duration).unwrap_or(TimeDelta::MAX)
}
