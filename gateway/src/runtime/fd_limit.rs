//! Limit of open files (`RLIMIT_NOFILE`): each connection, downstream or upstream, is an open file.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files that are not connections: listeners, logs, certificates, health checks.
const RESERVED_FILES: u64 = 100;

/// Raises the soft limit to the hard limit. The soft limit is low by default, for programs that use
/// select(2), which supports 1,024 files.
pub(crate) fn raise() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if setrlimit(Resource::Nofile, raised).is_err() {
        tracing::warn!(limit = ?limit.current, "limit of open files could not be raised");
    }
}

/// Returns the number of connections, downstream and upstream together, that may be open.
pub(crate) fn max_connections() -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(limit.saturating_sub(RESERVED_FILES)).unwrap_or(usize::MAX)
}

/// Returns the number of client connections that may be open, each with one upstream connection.
pub(crate) fn max_client_connections() -> usize {
    max_connections() / 2
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
