//! Connection pool for PostgreSQL.

mod check;
mod migration;
mod pooled_connection;
mod statement_error;
mod timeouts;
mod timestamp;

use std::sync::Arc;

use sqlx::postgres::{
    PgArguments, PgConnectOptions, PgConnection, PgPoolOptions, PgQueryResult, PgRow,
};
use sqlx::{AssertSqlSafe, Connection, Executor, FromRow, PgPool};

pub(crate) use pooled_connection::PooledConnection;
pub(crate) use statement_error::{STORE, StatementError, ValueRejected};
pub(crate) use timeouts::OPERATION_TIMEOUT;
use timeouts::{ACQUIRE_TIMEOUT, LOCK_TIMEOUT, PING_AFTER_IDLE, PING_TIMEOUT, STATEMENT_TIMEOUT};
pub(crate) use timestamp::Timestamp;

use crate::store::stale_connections::StaleConnections;
use crate::store::unavailable::Unavailable;
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
    /// Connections to a server that has become a standby, or that were opened while writes were
    /// rejected. A connection whose own statement failed is closed by [`PooledConnection`].
    stale: StaleConnections,
    metrics: StoreMetrics,
}

pub(crate) type Query<'q> = sqlx::query::Query<'q, sqlx::Postgres, PgArguments>;
pub(crate) type QueryAs<'q, T> = sqlx::query::QueryAs<'q, sqlx::Postgres, T, PgArguments>;

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
                let is_stale = stale_before_acquire.includes(metadata.age);
                Box::pin(async move {
                    if is_stale || metadata.idle_for < PING_AFTER_IDLE {
                        return Ok(!is_stale);
                    }
                    let pong = tokio::time::timeout(PING_TIMEOUT, connection.ping()).await;
                    Ok(matches!(pong, Ok(Ok(()))))
                })
            })
            .connect_lazy_with(settings.connection.clone());
        Self {
            pool,
            settings: Arc::new(settings),
            stale,
            metrics,
        }
    }

    pub(crate) fn pool_usage(&self) -> PoolUsage {
        PoolUsage::of(&self.pool)
    }

    pub(crate) async fn fetch_optional<T>(
        &self,
        query: QueryAs<'_, T>,
    ) -> Result<Option<T>, Unavailable>
    where
        T: for<'r> FromRow<'r, PgRow> + Send + Unpin,
    {
        Ok(self.try_fetch_optional(query).await?)
    }

    /// Runs a query with a value from a client, which the database may reject.
    pub(crate) async fn fetch_optional_by_input<T>(
        &self,
        query: QueryAs<'_, T>,
    ) -> Result<Result<Option<T>, ValueRejected>, Unavailable>
    where
        T: for<'r> FromRow<'r, PgRow> + Send + Unpin,
    {
        unless_rejected(self.try_fetch_optional(query).await)
    }

    /// Like [`Self::fetch_optional_by_input`], for any number of rows.
    pub(crate) async fn fetch_all_by_input<T>(
        &self,
        query: QueryAs<'_, T>,
    ) -> Result<Result<Vec<T>, ValueRejected>, Unavailable>
    where
        T: for<'r> FromRow<'r, PgRow> + Send + Unpin,
    {
        let query = query.persistent(self.settings.pool_mode.keeps_prepared_statements());
        let outcome = self
            .run(&mut None, async |connection: &mut PgConnection| {
                query.fetch_all(connection).await
            })
            .await;
        unless_rejected(outcome)
    }

    async fn try_fetch_optional<T>(
        &self,
        query: QueryAs<'_, T>,
    ) -> Result<Option<T>, StatementError>
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
        let rows = self
            .run(held, async |connection: &mut PgConnection| {
                query.fetch_all(connection).await
            })
            .await?;
        Ok(rows)
    }

    pub(crate) async fn execute(&self, query: Query<'_>) -> Result<PgQueryResult, Unavailable> {
        let query = query.persistent(self.settings.pool_mode.keeps_prepared_statements());
        let result = self
            .run(&mut None, async |connection: &mut PgConnection| {
                query.execute(connection).await
            })
            .await?;
        Ok(result)
    }

    async fn run<T>(
        &self,
        held: &mut Option<PooledConnection>,
        statement: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, StatementError> {
        let timer = self.metrics.start();
        let operation = self.run_on(held, statement);
        let outcome = match tokio::time::timeout(OPERATION_TIMEOUT, operation).await {
            Ok(outcome) => outcome.map_err(StatementError::from),
            Err(elapsed) => Err(elapsed.into()),
        };
        match &outcome {
            // A value that the database rejects is no failure of the store.
            Err(error) if error.is_value_rejected() => timer.stop(&Ok::<_, ()>(())),
            outcome => timer.stop(outcome),
        }
        if outcome.as_ref().is_err_and(StatementError::is_read_only) {
            self.stale.mark();
        }
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

/// Tells a value that the database rejects from an outage.
fn unless_rejected<T>(
    outcome: Result<T, StatementError>,
) -> Result<Result<T, ValueRejected>, Unavailable> {
    match outcome {
        Ok(value) => Ok(Ok(value)),
        Err(error) if error.is_value_rejected() => {
            tracing::debug!(store = STORE, %error, "value rejected");
            Ok(Err(ValueRejected))
        }
        Err(error) => Err(error.into()),
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
