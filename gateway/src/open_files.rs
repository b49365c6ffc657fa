//! How many files the process may have open: each connection is one, on either side.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Listeners, logs, certificates, health checks.
const OTHERS: u64 = 100;

/// Allows as many as the system lets us. It begins with few, for programs that cannot count beyond
/// 1,024 (select(2)).
pub(crate) fn allow() {
    let limit = getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if setrlimit(Resource::Nofile, most).is_err() {
        tracing::warn!(limit = ?limit.current, "the limit of open files cannot be raised");
    }
}

/// How many there may be for connections, to clients and to replicas.
pub(crate) fn allowed() -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(limit.saturating_sub(OTHERS)).unwrap_or(usize::MAX)
}

/// Connections of clients that there are files for, each with one to a replica.
pub(crate) fn connections() -> usize {
    allowed() / 2
}

/// Says where they are too few for `max_connections`.
pub(crate) fn warn_of(max_connections: usize) {
    let room = connections();
    if room < max_connections {
        tracing::warn!(
            room,
            max_connections,
            "too few files may be open for limits.max_connections: raise the limit (LimitNOFILE, ulimit -n) or lower that"
        );
    }
}
