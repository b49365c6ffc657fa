//! Pool of an endpoint's idle connections.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::runtime::clock::Instant;
use crate::runtime::fd_limit;
use crate::upstream::connection::Connection;
use crate::upstream::tls::TlsClient;

/// Longest time for which an idle connection is kept. Shorter than the keep-alive timeout of the
/// endpoints, so that no connection is used while the endpoint closes it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(55);
/// Maximum number of idle connections of an endpoint.
const MAX_IDLE_CONNECTIONS: usize = 1024;
/// Fraction of the file descriptor limit that the idle connections of an endpoint may use: one in
/// this many.
const FD_LIMIT_DIVISOR: usize = 8;

/// Idle connections of an endpoint, the most recently used one last.
pub(super) struct ConnectionPool {
    idle: Mutex<VecDeque<IdleConnection>>,
    max_idle: usize,
}

struct IdleConnection {
    connection: Connection,
    since: Instant,
}

impl ConnectionPool {
    pub(super) fn new() -> Self {
        Self {
            idle: Mutex::default(),
            max_idle: MAX_IDLE_CONNECTIONS.min(fd_limit::max_connections() / FD_LIMIT_DIVISOR),
        }
    }

    /// Closes all connections, to free their file descriptors.
    pub(super) fn clear(&self) {
        let closed = std::mem::take(&mut *self.idle.lock());
        drop(closed);
    }

    /// Takes the most recently used connection by `tls`, or in cleartext, that the endpoint has not closed.
    /// Closes the others that it finds: their TLS settings are no longer those of the configuration.
    pub(super) fn take(&self, tls: Option<&Arc<TlsClient>>) -> Option<Connection> {
        loop {
            let mut connection = self.idle.lock().pop_back()?.connection;
            if connection.is_by(tls) && connection.is_still_idle() {
                return Some(connection);
            }
        }
    }

    /// Adds a connection if it is reusable. Closes the least recently used one if the pool is full.
    pub(super) fn put(&self, mut connection: Connection, now: Instant) {
        if !connection.is_reusable() {
            return;
        }
        connection.mark_pooled();
        let idle_connection = IdleConnection {
            connection,
            since: now,
        };
        let mut idle = self.idle.lock();
        idle.push_back(idle_connection);
        let evicted = (idle.len() > self.max_idle).then(|| idle.pop_front());
        drop(idle);
        drop(evicted);
    }

    /// Closes the connections that have been idle for too long or that the endpoint has closed.
    pub(super) fn close_expired(&self, now: Instant) {
        let mut closed = Vec::new();
        let mut idle = self.idle.lock();
        for _ in 0..idle.len() {
            let mut candidate = idle.pop_front().expect("the loop runs once per connection");
            let is_expired = now.since(candidate.since) >= IDLE_TIMEOUT;
            if !is_expired && candidate.connection.is_still_idle() {
                idle.push_back(candidate);
            } else {
                closed.push(candidate);
            }
        }
        drop(idle);
        // Closing takes system calls: the lock is released first.
        drop(closed);
    }
}

impl fmt::Debug for ConnectionPool {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let idle = self.idle.lock().len();
        formatter
            .debug_struct("ConnectionPool")
            .field("idle", &idle)
            .finish_non_exhaustive()
    }
}
