//! Errors of statements, by what they say about the store.

use std::borrow::Cow;

use sqlx::error::DatabaseError;
use tokio::time::error::Elapsed;

use crate::store::check::CheckError;
use crate::store::unavailable::Unavailable;

/// Store name in log lines and errors.
pub(crate) const STORE: &str = "PostgreSQL";

/// Reason a statement has no result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StatementError {
    #[error(transparent)]
    Failed(#[from] sqlx::Error),
    #[error(transparent)]
    TimedOut(#[from] Elapsed),
}

/// The database does not accept a value of a statement. Another attempt would fail too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the database does not accept a value")]
pub(crate) struct ValueRejected;

// Error codes (PostgreSQL, appendix A).
/// Class of data exceptions: a character that the encoding of the database does not have, a string
/// longer than its column, and the like.
const DATA_EXCEPTIONS: &str = "22";
const CHECK_VIOLATION: &str = "23514";
const READ_ONLY_TRANSACTION: &str = "25006";
const INSUFFICIENT_PRIVILEGE: &str = "42501";
const LOCK_NOT_AVAILABLE: &str = "55P03";
/// The server is starting up or shutting down.
const CANNOT_CONNECT_NOW: &str = "57P03";
/// The server, the database or the role has no connection left.
const TOO_MANY_CONNECTIONS: &str = "53300";
/// Class of rejected users and passwords.
const INVALID_AUTHORIZATION: &str = "28";
const INVALID_DATABASE: &str = "3D000";
/// Class of connection exceptions, which poolers report too.
const CONNECTION_EXCEPTIONS: &str = "08";
/// Errors after which the server closes the connection.
const CONNECTION_ENDED: [&str; 5] = [
    "57P01", // by an operator or a shutdown of the server
    "57P02", // since another process of the server crashed
    "57P04", // since the database was dropped
    "57P05", // after the idle timeout of the server
    CANNOT_CONNECT_NOW,
];
const MISSING_OBJECTS: [&str; 3] = [
    "3F000", // schema
    "42703", // column
    "42P01", // table
];

impl StatementError {
    /// Returns whether the pool had no connection within its limit, be it that all were in use or that none could be opened.
    pub(super) fn is_without_connection(&self) -> bool {
        matches!(self, Self::Failed(sqlx::Error::PoolTimedOut))
    }

    /// Returns whether the error concerns the values of the statement and not the store.
    pub(super) fn is_value_rejected(&self) -> bool {
        self.code()
            .is_some_and(|code| code.starts_with(DATA_EXCEPTIONS) || code == CHECK_VIOLATION)
    }

    /// Returns whether the server accepts no writes on the connection, as a standby does.
    pub(super) fn is_read_only(&self) -> bool {
        self.has_code(READ_ONLY_TRANSACTION)
    }

    pub(super) fn is_schema_missing(&self) -> bool {
        self.code()
            .is_some_and(|code| MISSING_OBJECTS.contains(&code.as_ref()))
    }

    pub(super) fn is_permission_denied(&self) -> bool {
        self.has_code(INSUFFICIENT_PRIVILEGE)
    }

    /// Returns what the error says about the store, for operators.
    pub(super) fn problem(&self) -> CheckError {
        if self.is_schema_missing() {
            CheckError::SchemaMissing
        } else if self.is_read_only() {
            CheckError::ReadOnly
        } else if self.is_permission_denied() {
            CheckError::PermissionDenied
        } else if let Self::Failed(error) = self {
            connect_problem(error)
        } else {
            CheckError::Unavailable
        }
    }

    fn has_code(&self, expected: &str) -> bool {
        self.code().is_some_and(|code| code == expected)
    }

    fn code(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Failed(error) => code_of(error),
            Self::TimedOut(_) => None,
        }
    }
}

fn code_of(error: &sqlx::Error) -> Option<Cow<'_, str>> {
    error.as_database_error().and_then(DatabaseError::code)
}

/// Returns why a connection could not be opened, for operators.
pub(super) fn connect_problem(error: &sqlx::Error) -> CheckError {
    match (error, code_of(error).as_deref()) {
        (sqlx::Error::Io(_) | sqlx::Error::Tls(_), _) => CheckError::Unreachable,
        (_, Some(TOO_MANY_CONNECTIONS)) => CheckError::TooManyConnections,
        (_, Some(code)) if code.starts_with(INVALID_AUTHORIZATION) || code == INVALID_DATABASE => {
            CheckError::ConnectionRejected
        }
        _ => CheckError::Unavailable,
    }
}

/// Returns the text of an error for operators: what the server says, without the place in its source that the library adds.
pub(super) fn describe(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(error) => {
            let code = error.code();
            format!(
                "{} (SQLSTATE {})",
                error.message(),
                code.as_deref().unwrap_or("unknown")
            )
        }
        error => error.to_string(),
    }
}

impl From<StatementError> for Unavailable {
    fn from(error: StatementError) -> Self {
        let problem = error.problem();
        if error.is_without_connection() {
            // The text of the library sends operators to look for a pool that is too small.
            let reason = "no connection could be opened, or none was free, within the time limit";
            return Self::with_problem(STORE, problem, &reason);
        }
        Self::with_problem(STORE, problem, &error)
    }
}

/// Returns whether the connection ended before the response to a statement.
pub(super) fn is_connection_broken(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) => true,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| {
            code.starts_with(CONNECTION_EXCEPTIONS) || CONNECTION_ENDED.contains(&code.as_ref())
        }),
        _ => false,
    }
}

/// Returns whether a lock was not available within `lock_timeout`.
pub(super) fn is_lock_timeout(error: &sqlx::Error) -> bool {
    code_of(error).is_some_and(|code| code == LOCK_NOT_AVAILABLE)
}

/// Returns whether a connection attempt may succeed later.
pub(super) fn is_connect_error_transient(error: &sqlx::Error) -> bool {
    match error {
        // An untrusted certificate is reported as invalid data and does not become trusted.
        sqlx::Error::Io(error) => error.kind() != std::io::ErrorKind::InvalidData,
        sqlx::Error::Database(error) => error
            .code()
            .is_some_and(|code| [CANNOT_CONNECT_NOW, TOO_MANY_CONNECTIONS].contains(&&*code)),
        _ => false,
    }
}
