//! A connection that the pool has lent.
//!
//! The pool asks each connection that comes back whether it still stands, and waits for the answer
//! without end. Where the peer has gone without a word none comes, and ten such connections are the
//! whole pool. So one that comes back amid a statement is closed unasked, whatever broke that off
//! (an error, the deadline, a client that has gone), and the others are asked within a limit.

use sqlx::pool::PoolConnection;
use sqlx::postgres::PgConnection;
use sqlx::{PgPool, Postgres};

use super::postgres::DEADLINE;

#[derive(Debug)]
pub(super) struct Lent {
    connection: PoolConnection<Postgres>,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    AtRest,
    AmidStatement,
}

impl Lent {
    pub(super) async fn by(pool: &PgPool) -> Result<Self, sqlx::Error> {
        Ok(Self {
            connection: pool.acquire().await?,
            state: State::AtRest,
        })
    }

    /// For a statement. Whoever drops this before its [`Lent::end`] closes the connection.
    pub(super) fn begin(&mut self) -> &mut PgConnection {
        self.state = State::AmidStatement;
        &mut self.connection
    }

    /// The statement was answered, whole.
    pub(super) fn end(&mut self) {
        self.state = State::AtRest;
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        match self.state {
            State::AmidStatement => self.connection.close_on_drop(),
            // Past the limit the connection is dropped, and with it closed.
            State::AtRest => drop(tokio::spawn(tokio::time::timeout(
                DEADLINE,
                self.connection.return_to_pool(),
            ))),
        }
    }
}
