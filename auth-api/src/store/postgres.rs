//! Connection pool for PostgreSQL.

mod pooled_connection;
mod timeouts;
mod timestamp;

use std::sync::Arc;
use std::time::Instant;

use sqlx::postgres::{
    PgArguments, PgConnectOptions, PgConnection, PgPoolOptions, PgQueryResult, PgRow,
};
use sqlx::{AssertSqlSafe, Connection, Executor, FromRow, PgPool};

pub(crate) use pooled_connection::PooledConnection;
pub(crate) use timeouts::OPERATION_TIMEOUT;
use timeouts::{
    ACQUIRE_TIMEOUT, LOCK_TIMEOUT, PING_AFTER_IDLE, PING_TIMEOUT, STARTUP_RETRY_DELAY,
    STARTUP_TIMEOUT, STATEMENT_TIMEOUT,
};
pub(crate) use timestamp::Timestamp;

use crate::store::migrations;
use crate::store::unavailable::Unavailable;
use crate::telemetry::metrics::{PoolUsage, StoreMetrics};

pub(crate) const STORE: &str = "PostgreSQL";
const MAX_CONNECTIONS: u32 = 10;
/// Key of the advisory lock that serialises the migrations of replicas that start together: the
/// bytes of `auth-api`, which no other program uses.
const MIGRATION_LOCK: i64 = 0x6175_7468_2d61_7069;
/// `cannot_connect_now`: the server is starting up or shutting down (PostgreSQL, appendix A).
const CANNOT_CONNECT_NOW: &str = "57P03";

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

/// Connection settings.
#[derive(Debug, Clone)]
pub(crate) struct PostgresSettings {
    pub(crate) connection: PgConnectOptions,
    pub(crate) pool_mode: PoolMode,
}

/// Pool of connections. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Postgres {
    pool: PgPool,
    settings: Arc<PostgresSettings>,
    metrics: StoreMetrics,
}

pub(crate) type Query<'q> = sqlx::query::Query<'q, sqlx::Postgres, PgArguments>;
pub(crate) type QueryAs<'q, T> = sqlx::query::QueryAs<'q, sqlx::Postgres, T, PgArguments>;

impl Postgres {
    /// Creates a pool that connects on first use: the server may start after this program.
    pub(crate) fn new(settings: PostgresSettings, metrics: StoreMetrics) -> Self {
        let pool_mode = settings.pool_mode;
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
            .before_acquire(|connection, metadata| {
                Box::pin(async move {
                    if metadata.idle_for < PING_AFTER_IDLE {
                        return Ok(true);
                    }
                    let pong = tokio::time::timeout(PING_TIMEOUT, connection.ping()).await;
                    Ok(matches!(pong, Ok(Ok(()))))
                })
            })
            .connect_lazy_with(settings.connection.clone());
        Self {
            pool,
            settings: Arc::new(settings),
            metrics,
        }
    }

    /// Applies the migrations. Of several replicas that start together one applies them, in a
    /// single transaction, since a pooler may not keep a session for longer.
    pub(crate) async fn migrate(&self) -> Result<(), sqlx::migrate::MigrateError> {
        let mut migrator = migrations::ignoring_unknown(sqlx::migrate!("../migrations/postgres"));
        migrator.set_locking(false);
        // A connection of its own, closed afterwards, because its prepared statements are discarded.
        let mut connection = self.connect_when_ready().await?;
        let mut transaction = connection.begin().await?;
        let lock = format!("DEALLOCATE ALL; SELECT pg_advisory_xact_lock({MIGRATION_LOCK})");
        transaction.execute(AssertSqlSafe(lock)).await?;
        migrator.run(&mut *transaction).await?;
        migrations::warn_if_newer(&migrator, &mut *transaction).await?;
        transaction.execute("DEALLOCATE ALL").await?;
        transaction.commit().await?;
        connection.close().await?;
        Ok(())
    }

    /// Connects, and retries while the server may still be starting.
    async fn connect_when_ready(&self) -> Result<PgConnection, sqlx::Error> {
        let start = Instant::now();
        loop {
            let error = match PgConnection::connect_with(&self.settings.connection).await {
                Ok(connection) => return Ok(connection),
                Err(error) => error,
            };
            if !is_transient(&error) || start.elapsed() > STARTUP_TIMEOUT {
                return Err(error);
            }
            tracing::warn!(store = STORE, %error, "waiting for a store");
            tokio::time::sleep(STARTUP_RETRY_DELAY).await;
        }
    }

    pub(crate) fn pool_usage(&self) -> PoolUsage {
        PoolUsage::of(&self.pool)
    }

    /// Runs the cheapest statement that shows that the store responds.
    pub(crate) async fn ping(&self) -> Result<(), Unavailable> {
        self.execute(sqlx::query("SELECT 1")).await.map(drop)
    }

    pub(crate) async fn fetch_optional<T>(
        &self,
        query: QueryAs<'_, T>,
    ) -> Result<Option<T>, Unavailable>
    where
        T: for<'r> FromRow<'r, PgRow> + Send + Unpin,
    {
        let query = query.persistent(self.settings.pool_mode.keeps_prepared_statements());
        self.run(&mut None, async |connection: &mut PgConnection| {
            query.fetch_optional(connection).await
        })
        .await
    }

    pub(crate) async fn fetch_all(&self, query: Query<'_>) -> Result<Vec<PgRow>, Unavailable> {
        self.fetch_all_on(&mut None, query).await
    }

    /// Runs a query on the `held` connection, or on a pooled one, which is then held. After a
    /// failure none is held.
    pub(crate) async fn fetch_all_on(
        &self,
        held: &mut Option<PooledConnection>,
        query: Query<'_>,
    ) -> Result<Vec<PgRow>, Unavailable> {
        let query = query.persistent(self.settings.pool_mode.keeps_prepared_statements());
        self.run(held, async |connection: &mut PgConnection| {
            query.fetch_all(connection).await
        })
        .await
    }

    pub(crate) async fn execute(&self, query: Query<'_>) -> Result<PgQueryResult, Unavailable> {
        let query = query.persistent(self.settings.pool_mode.keeps_prepared_statements());
        self.run(&mut None, async |connection: &mut PgConnection| {
            query.execute(connection).await
        })
        .await
    }

    async fn run<T>(
        &self,
        held: &mut Option<PooledConnection>,
        statement: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, Unavailable> {
        let timer = self.metrics.start();
        let operation = self.run_on(held, statement);
        let outcome = match tokio::time::timeout(OPERATION_TIMEOUT, operation).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(Unavailable::because(STORE, &error)),
            Err(elapsed) => Err(Unavailable::because(STORE, &elapsed)),
        };
        timer.stop(&outcome);
        outcome
    }

    async fn run_on<T>(
        &self,
        held: &mut Option<PooledConnection>,
        statement: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, sqlx::Error> {
        let mut connection = match held.take() {
            Some(connection) => connection,
            None => PooledConnection::acquire(&self.pool).await?,
        };
        let value = self
            .run_in_pool_mode(connection.begin_statement(), statement)
            .await?;
        connection.finish_statement();
        *held = Some(connection);
        Ok(value)
    }

    async fn run_in_pool_mode<T>(
        &self,
        connection: &mut PgConnection,
        statement: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, sqlx::Error> {
        match self.settings.pool_mode {
            PoolMode::Session => statement(connection).await,
            PoolMode::Transaction => {
                let mut transaction = connection.begin_with(begin_with_timeouts()).await?;
                let value = statement(&mut transaction).await?;
                transaction.commit().await?;
                Ok(value)
            }
        }
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

/// Returns whether a connection attempt may succeed later.
fn is_transient(error: &sqlx::Error) -> bool {
    match error {
        // An untrusted certificate is reported as invalid data and does not become trusted.
        sqlx::Error::Io(error) => error.kind() != std::io::ErrorKind::InvalidData,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| code == CANNOT_CONNECT_NOW),
        _ => false,
    }
}
