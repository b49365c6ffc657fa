//! Limit of open files (`RLIMIT_NOFILE`): each connection, downstream or upstream, is an open file.

use rustix::process::{Resource, getrlimit};
use supervision::raise_open_file_limit;
use thiserror::Error;

/// Files that are not connections: listeners, logs, certificates, health checks.
const RESERVED_FILES: u64 = 100;
/// A client connection and its upstream connection.
const FILES_PER_CLIENT_CONNECTION: u64 = 2;
/// Least number of client connections with which the gateway starts. With fewer it would be ready and reject nearly
/// every connection.
const MIN_CLIENT_CONNECTIONS: u64 = 50;

/// Error of [`raise`].
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "the limit of open files is {limit}: raise it to {required} or more (LimitNOFILE, ulimit -n)"
)]
pub(crate) struct LimitTooLow {
    limit: u64,
    required: u64,
}

/// Raises the limit as far as the process may.
///
/// # Errors
/// Returns an error if the limit is too low for the gateway to serve.
pub(crate) fn raise() -> Result<(), LimitTooLow> {
    let limit = raise_open_file_limit();
    let required = RESERVED_FILES + FILES_PER_CLIENT_CONNECTION * MIN_CLIENT_CONNECTIONS;
    if limit < required {
        return Err(LimitTooLow { limit, required });
    }
    Ok(())
}

fn files_for_connections() -> u64 {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    limit.saturating_sub(RESERVED_FILES)
}

/// Returns the number of connections, downstream and upstream together, that may be open.
pub(crate) fn max_connections() -> usize {
    usize::try_from(files_for_connections()).unwrap_or(usize::MAX)
}

/// Returns the number of client connections that may be open, each with one upstream connection.
pub(crate) fn max_client_connections() -> usize {
    usize::try_from(files_for_connections() / FILES_PER_CLIENT_CONNECTION).unwrap_or(usize::MAX)
}

/// Logs a warning if the limit allows fewer client connections than `limits.max_connections`.
pub(crate) fn warn_if_exceeded(max_connections: usize) {
    let allowed = max_client_connections();
    if allowed < max_connections {
        tracing::warn!(
            allowed,
            max_connections,
            "limit of open files is too low for limits.max_connections: raise it (LimitNOFILE, ulimit -n) or lower max_connections"
        );
    }
}
