//! Result of checking whether a store can do what requests need of it.

/// Reason a store cannot serve requests, for operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CheckError {
    #[error("unavailable")]
    Unavailable,
    #[error("no connection: check that the server runs and can be reached; the log has the error")]
    Unreachable,
    #[error(
        "no connection left: the server, the database or the role has too many (max_connections, CONNECTION LIMIT)"
    )]
    TooManyConnections,
    #[error("all connections of this replica are in use: statements are slow or wait for locks")]
    ConnectionsInUse,
    #[error("schema is missing or older than this program: run `auth-api migrate`")]
    SchemaMissing,
    #[error("read-only: a standby, or a database that is set to read-only")]
    ReadOnly,
    #[error(
        "cut off from its replicas: it has fewer than min-replicas-to-write, and another one may be the primary"
    )]
    TooFewReplicas,
    #[error("permission denied: the role must be able to select, insert, update and delete")]
    PermissionDenied,
    #[error("out of memory: raise maxmemory")]
    OutOfMemory,
    #[error("disk full or not writable")]
    NotPersistent,
    #[error("locked by another program for too long")]
    Locked,
    #[error("connection rejected: check the user, the password and the database")]
    ConnectionRejected,
    #[error("encoding is not UTF8: move the data to a database with ENCODING 'UTF8'")]
    NotUtf8,
}

impl CheckError {
    /// Returns whether there is no connection on which the store could be asked for anything.
    pub(crate) fn is_connection_missing(self) -> bool {
        matches!(
            self,
            Self::Unreachable
                | Self::TooManyConnections
                | Self::ConnectionsInUse
                | Self::ConnectionRejected
        )
    }
}
