//! Connections to a replica that wait for their next request.

use std::collections::VecDeque;
use std::time::Duration;

use parking_lot::Mutex;

use super::connection::Connection;
use crate::moment::Moment;
use crate::open_files;

/// How long an idle connection is kept: less than a replica keeps it, so that none is used that the
/// other end is just closing.
const IDLE: Duration = Duration::from_secs(55);
/// Idle connections of one replica.
const MOST: usize = 1024;
/// The part of the files that may be open which they may take.
const SHARE: usize = 8;

/// The idle connections of a replica, the one used last at the end.
pub(super) struct Pool {
    idle: Mutex<VecDeque<Idle>>,
    most: usize,
}

struct Idle {
    connection: Connection,
    since: Moment,
}

impl Pool {
    pub(super) fn new() -> Self {
        Self {
            idle: Mutex::default(),
            most: MOST.min(open_files::allowed() / SHARE),
        }
    }

    /// Closes all of them: their files are needed.
    pub(super) fn clear(&self) {
        let closed = std::mem::take(&mut *self.idle.lock());
        drop(closed);
    }

    /// A connection that the replica has not closed.
    pub(super) fn take(&self) -> Option<Connection> {
        loop {
            let mut connection = self.idle.lock().pop_back()?.connection;
            if connection.is_quiet() {
                return Some(connection);
            }
        }
    }

    /// Keeps a connection for later, if it can have a later.
    pub(super) fn put(&self, mut connection: Connection, now: Moment) {
        if !connection.is_reusable() {
            return;
        }
        connection.rest();
        let idle = Idle {
            connection,
            since: now,
        };
        let mut pool = self.idle.lock();
        pool.push_back(idle);
        let oldest = (pool.len() > self.most).then(|| pool.pop_front());
        drop(pool);
        drop(oldest);
    }

    /// Closes what has been idle for too long, or was closed by the replica.
    pub(super) fn tidy(&self, now: Moment) {
        let mut closed = Vec::new();
        let mut pool = self.idle.lock();
        for _ in 0..pool.len() {
            let mut idle = pool.pop_front().expect("it was counted");
            let is_young = now.since(idle.since) < IDLE;
            if is_young && idle.connection.is_quiet() {
                pool.push_back(idle);
            } else {
                closed.push(idle);
            }
        }
        drop(pool);
        // Closing takes system calls, for which nobody should wait.
        drop(closed);
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let idle = self.idle.lock().len();
        formatter
            .debug_struct("Pool")
            .field("idle", &idle)
            .finish_non_exhaustive()
    }
}
