//! Connection pool for PostgreSQL.

mod check;
mod migration;
mod pooled_connection;
mod statement;
mod statement_error;
mod timeouts;
mod timestamp;

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection, Executor, PgPool};

pub(crate) use pooled_connection::PooledConnection;
pub(crate) use statement_error::{STORE, ValueRejected};
pub(crate) use timeouts::OPERATION_TIMEOUT;
use timeouts::{ACQUIRE_TIMEOUT, LOCK_TIMEOUT, PING_AFTER_IDLE, PING_TIMEOUT, STATEMENT_TIMEOUT};
pub(crate) use timestamp::Timestamp;

use crate::store::stale_connections::StaleConnections;
use crate::telemetry::metrics::{PoolUsage, StoreMetrics};

const MAX_CONNECTIONS: u32 = 10;

/// Time for which a server session belongs to one client, in the terms of `PgBouncer`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PoolMode {
    /// As long as the connection: statements are prepared once.
    Session,
    /// One transaction: each statement is prepared and run in a transaction of its own.
    Transaction,
}

impl PoolMode {
    fn keeps_prepared_statements(self) -> bool {
        self == Self::Session
    }
}

/// Connection settings. Their `Debug` does not show the connection, which may have a password.
#[derive(Clone)]
pub(crate) struct PostgresSettings {
    pub(crate) connection: PgConnectOptions,
    pub(crate) pool_mode: PoolMode,
}

impl fmt::Debug for PostgresSettings {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("PostgresSettings")
            .field("pool_mode", &self.pool_mode)
            .finish_non_exhaustive()
    }
}

/// Pool of connections. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Postgres {
    pool: PgPool,
    settings: Arc<PostgresSettings>,
    /// Connections to a server that has become a standby, that were opened while writes were
    /// rejected, or that are older than one that was found broken. A connection whose own statement
    /// failed is closed by [`PooledConnection`].
    stale: StaleConnections,
    /// Last error of connecting that was logged since a check succeeded.
    logged_connect_error: Arc<Mutex<Option<String>>>,
    metrics: StoreMetrics,
}

impl Postgres {
    /// Creates a pool that connects on first use: the server may start after this program.
    pub(crate) fn new(settings: PostgresSettings, metrics: StoreMetrics) -> Self {
        let pool_mode = settings.pool_mode;
        let stale = StaleConnections::default();
        let stale_before_acquire = stale.clone();
        let pool = PgPoolOptions::new()
            .max_connections(MAX_CONNECTIONS)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .after_connect(move |connection, _| {
                Box::pin(async move {
                    if pool_mode == PoolMode::Session {
                        connection.execute(set_session_timeouts()).await?;
                    }
                    Ok(())
                })
            })
            // A ping before each use would double the round trips of a request.
            .test_before_acquire(false)
            .before_acquire(move |connection, metadata| {
                let stale = stale_before_acquire.clone();
                Box::pin(async move {
                    let is_stale = stale.includes(metadata.age);
                    if is_stale || metadata.idle_for < PING_AFTER_IDLE {
                        return Ok(!is_stale);
                    }
                    let start = Instant::now();
                    let pong = tokio::time::timeout(PING_TIMEOUT, connection.ping()).await;
                    let is_alive = matches!(pong, Ok(Ok(())));
                    if !is_alive {
                        stale.mark_opened_before(start);
                    }
                    Ok(is_alive)
                })
            })
            .connect_lazy_with(settings.connection.clone());
        Self {
            pool,
            settings: Arc::new(settings),
            stale,
            logged_connect_error: Arc::default(),
            metrics,
        }
    }

    pub(crate) fn pool_usage(&self) -> PoolUsage {
        PoolUsage::of(&self.pool)
    }
}

/// Returns the statement that sets the timeouts of a session that belongs to this program.
fn set_session_timeouts() -> AssertSqlSafe<String> {
    AssertSqlSafe(set_timeouts("SET"))
}

/// Returns the statement that begins a transaction behind a pooler. A pooler rejects settings in the
/// connection's startup parameters, and would pass those of a session on to other clients.
fn begin_with_timeouts() -> AssertSqlSafe<String> {
    AssertSqlSafe(format!("BEGIN; {}", set_timeouts("SET LOCAL")))
}

fn set_timeouts(set: &str) -> String {
    let (statement, lock) = (STATEMENT_TIMEOUT.as_millis(), LOCK_TIMEOUT.as_millis());
    format!("{set} statement_timeout = {statement}; {set} lock_timeout = {lock}")
}
