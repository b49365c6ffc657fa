//! Result of checking whether a store can do what requests need of it.

/// Reason a store cannot serve requests, for operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CheckError {
    #[error("unavailable")]
    Unavailable,
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
