//! Check whether the database can do what requests need of it.

use sqlx::{Connection, PgConnection};

use super::Postgres;
use super::statement::QueryAs;
use super::statement_error::{STORE, connect_problem, describe};
use super::timeouts::CONNECT_TIMEOUT;
use crate::store::check::CheckError;
use crate::store::unavailable::Unavailable;

/// Encoding in which every login can be stored. A database in `SQL_ASCII` stores any bytes, but counts
/// and compares them as bytes, and may return some that are not text.
pub(super) const ENCODING: &str = "UTF8";

/// Uses every column and privilege that requests need, but concerns no row: the server checks its
/// permissions and whether it accepts writes, and writes nothing.
const CHECK: &str = "
    WITH inserted AS (
        INSERT INTO users (login, password_hash) SELECT '', '' WHERE false RETURNING id
    ), updated AS (
        UPDATE users SET password_hash = '', last_login = NULL, disabled_at = NULL, sessions_valid_after = NULL
        WHERE false RETURNING id, login, created_at
    ), deleted AS (
        DELETE FROM users WHERE false RETURNING id
    )
    SELECT current_setting('server_encoding')
    WHERE NOT EXISTS (SELECT id, name, secret_hash, created_at FROM oauth_clients WHERE false)";

impl Postgres {
    /// Checks that the schema is present, the server accepts writes, and every login can be stored.
    pub(crate) async fn check(&self) -> Result<(), CheckError> {
        let query: QueryAs<'_, (String,)> = sqlx::query_as(CHECK);
        match self.try_read_optional(query).await {
            Ok(Some((encoding,))) if encoding != ENCODING => Err(CheckError::NotUtf8),
            Ok(_) => {
                self.logged_connect_error.lock().take();
                Ok(())
            }
            Err(error) if error.is_without_connection() => Err(self.connect_problem().await),
            // The caller logs a problem of a known kind once.
            Err(error) => match error.problem() {
                CheckError::Unavailable => Err(Unavailable::from(error).into()),
                problem => Err(problem),
            },
        }
    }

    /// Returns why the pool has no connection: it does not tell why it cannot open one. Each error is logged once until a
    /// check succeeds.
    async fn connect_problem(&self) -> CheckError {
        let connecting = PgConnection::connect_with(&self.settings.connection);
        let (problem, reason) = match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(Ok(connection)) => {
                drop(tokio::spawn(connection.close()));
                return CheckError::ConnectionsInUse;
            }
            Ok(Err(error)) => (connect_problem(&error), describe(&error)),
            Err(_) => (
                CheckError::Unreachable,
                format!("no response within {CONNECT_TIMEOUT:?}"),
            ),
        };
        let mut logged = self.logged_connect_error.lock();
        if logged.as_ref() != Some(&reason) {
            tracing::error!(store = STORE, error = reason, "store connection failed");
            *logged = Some(reason);
        }
        problem
    }
}
