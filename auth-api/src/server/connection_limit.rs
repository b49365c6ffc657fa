//! Limits of open connections, derived from the limit of open files (`RLIMIT_NOFILE`).
//!
//! Without them, clients that open connections and send nothing would use up the files that the stores
//! and the other listener need. At a limit, further connections wait in the listener's queue.

use std::sync::Arc;
use std::time::{Duration, Instant};

use supervision::raise_open_file_limit;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Files that are not client connections: standard streams, listeners, the runtime's, and those of
/// ten connections to PostgreSQL and two to Redis, or of five to SQLite with three files each.
const RESERVED_FILES: u64 = 48;
/// Connections of the internal listener: probes and Prometheus.
const MAX_INTERNAL_CONNECTIONS: usize = 16;
/// Connections of the public listener, where the limit of open files allows more.
const MAX_PUBLIC_CONNECTIONS: u64 = 100_000;
/// Shortest time between two warnings.
const WARNING_INTERVAL: Duration = Duration::from_mins(1);

/// Limit of the open connections of one listener.
#[derive(Debug)]
pub(super) struct ConnectionLimit {
    listener: &'static str,
    limit: usize,
    permits: Arc<Semaphore>,
    last_warning: Option<Instant>,
}

impl ConnectionLimit {
    fn new(listener: &'static str, limit: usize) -> Self {
        Self {
            listener,
            limit,
            permits: Arc::new(Semaphore::new(limit)),
            last_warning: None,
        }
    }

    /// Returns the limit of the public listener. Raises the limit of open files as far as the process may.
    pub(super) fn public() -> Self {
        let files = raise_open_file_limit();
        Self::new("public", public_limit(files))
    }

    /// Returns the limit of the internal listener, which is apart so that operators can see a replica
    /// whose public listener is at its limit.
    pub(super) fn internal() -> Self {
        Self::new("internal", MAX_INTERNAL_CONNECTIONS)
    }

    /// Waits until another connection may be accepted. The permit is held while it is open.
    pub(super) async fn acquire(&mut self) -> OwnedSemaphorePermit {
        if let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() {
            return permit;
        }
        if self
            .last_warning
            .is_none_or(|warned| warned.elapsed() > WARNING_INTERVAL)
        {
            self.last_warning = Some(Instant::now());
            let (listener, limit) = (self.listener, self.limit);
            tracing::warn!(
                listener,
                limit,
                "too many connections: further ones wait (raise the limit of open files: LimitNOFILE, ulimit -n)"
            );
        }
        Arc::clone(&self.permits)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed")
    }
}

/// Returns the number of public connections for a limit of open files.
fn public_limit(files: u64) -> usize {
    let internal = MAX_INTERNAL_CONNECTIONS as u64;
    let available = files.saturating_sub(RESERVED_FILES + internal);
    // A program with fewer files than it needs itself serves at least one connection at a time.
    let limit = available.clamp(1, MAX_PUBLIC_CONNECTIONS);
    usize::try_from(limit).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_files_for_the_stores_and_the_internal_listener() {
        for (files, connections) in [(0, 1), (64, 1), (128, 64), (1024, 960), (u64::MAX, 100_000)] {
            assert_eq!(public_limit(files), connections, "{files}");
        }
    }

    #[tokio::test]
    async fn a_closed_connection_makes_room_for_the_next_one() {
        let mut limit = ConnectionLimit::new("test", 1);
        let first = limit.acquire().await;
        assert_eq!(limit.permits.available_permits(), 0);
        drop(first);
        drop(limit.acquire().await);
    }
}
