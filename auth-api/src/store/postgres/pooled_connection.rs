//! Guard of a pooled connection that closes it if a statement was interrupted.
//!
//! sqlx pings each connection that is returned to the pool and waits for the reply without a limit.
//! If the peer is gone without closing the connection, no reply arrives, and ten such connections
//! exhaust the pool. So a connection that is returned during a statement, whatever interrupted it
//! (an error, the timeout, a client that disconnected), is closed without a ping, and the ping of
//! the others has a time limit.

use sqlx::pool::PoolConnection;
use sqlx::postgres::PgConnection;
use sqlx::{Connection, PgPool, Postgres};

use super::timeouts::{OPERATION_TIMEOUT, PING_TIMEOUT};

#[derive(Debug)]
pub(crate) struct PooledConnection {
    connection: PoolConnection<Postgres>,
    state: PooledConnectionState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PooledConnectionState {
    Idle,
    InStatement,
}

impl PooledConnection {
    pub(super) async fn acquire(pool: &PgPool) -> Result<Self, sqlx::Error> {
        Ok(Self {
            connection: pool.acquire().await?,
            state: PooledConnectionState::Idle,
        })
    }

    /// Returns the connection for a statement. If the guard is dropped before
    /// [`Self::finish_statement`], the connection is closed.
    pub(super) fn begin_statement(&mut self) -> &mut PgConnection {
        self.state = PooledConnectionState::InStatement;
        &mut self.connection
    }

    /// Returns whether the server responds on the connection. If not, the connection is closed when the
    /// guard is dropped.
    pub(super) async fn is_alive(&mut self) -> bool {
        let ping = self.begin_statement().ping();
        let response = tokio::time::timeout(PING_TIMEOUT, ping).await;
        let is_alive = matches!(response, Ok(Ok(())));
        if is_alive {
            self.finish_statement();
        }
        is_alive
    }

    /// Marks the statement's response as completely received.
    pub(super) fn finish_statement(&mut self) {
        self.state = PooledConnectionState::Idle;
    }
}

impl Drop for PooledConnection {
    fn drop(&mut self) {
        match self.state {
            PooledConnectionState::InStatement => self.connection.close_on_drop(),
            // At the time limit the connection is dropped, which closes it.
            PooledConnectionState::Idle => drop(tokio::spawn(tokio::time::timeout(
                OPERATION_TIMEOUT,
                self.connection.return_to_pool(),
            ))),
        }
    }
}
