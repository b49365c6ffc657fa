//! Check whether the database can do what requests need of it.

use super::Postgres;
use super::statement::QueryAs;
use super::statement_error::StatementError;
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
            Ok(_) => Ok(()),
            Err(error) if error.is_schema_missing() => Err(CheckError::SchemaMissing),
            Err(error) if error.is_read_only() => Err(CheckError::ReadOnly),
            Err(error) if error.is_permission_denied() => Err(CheckError::PermissionDenied),
            Err(error) => Err(unavailable(error)),
        }
    }
}

fn unavailable(error: StatementError) -> CheckError {
    Unavailable::from(error).into()
}
