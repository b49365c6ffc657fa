//! Reads and writes on pooled connections.
//!
//! A pooled connection may have broken since its last use: the server was restarted, an operator ended its
//! session, or a firewall dropped it. A ping before each use would tell, but double the round trips of a
//! request. So a read is repeated once, on a connection that was opened since. A write must not be executed
//! twice, and is rare: its connection is pinged first.
//!
//! The first broken connection makes all older ones stale, so that the pool replaces them without a failure of
//! each.

use std::pin::{Pin, pin};
use std::time::Instant;

use sqlx::postgres::{PgArguments, PgConnection, PgQueryResult, PgRow};
use sqlx::{Connection, Execute, FromRow, SqlStr};

use super::statement_error::{STORE, StatementError, ValueRejected, is_connection_broken};
use super::timeouts::OPERATION_TIMEOUT;
use super::{PoolMode, PooledConnection, Postgres, begin_with_timeouts};
use crate::store::unavailable::Unavailable;

pub(crate) type Query<'q> = sqlx::query::Query<'q, sqlx::Postgres, PgArguments>;
pub(crate) type QueryAs<'q, T> = sqlx::query::QueryAs<'q, sqlx::Postgres, T, PgArguments>;

/// Executions of a read: the second one is on a connection that was opened after the first one.
const MAX_READ_ATTEMPTS: u32 = 2;

/// Query that can be run again.
struct ReadQuery {
    sql: SqlStr,
    arguments: PgArguments,
}

impl ReadQuery {
    fn new<'q>(mut query: impl Execute<'q, sqlx::Postgres>) -> Result<Self, sqlx::Error> {
        let arguments = query.take_arguments().map_err(sqlx::Error::Encode)?;
        Ok(Self {
            sql: query.sql(),
            arguments: arguments.unwrap_or_default(),
        })
    }

    fn to_query(&self) -> Query<'static> {
        sqlx::query_with(self.sql.clone(), self.arguments.clone())
    }
}

impl Postgres {
    /// Runs a query that only reads.
    pub(crate) async fn read_optional<T>(
        &self,
        query: QueryAs<'_, T>,
    ) -> Result<Option<T>, Unavailable>
    where
        T: for<'r> FromRow<'r, PgRow> + Send,
    {
        Ok(self.try_read_optional(query).await?)
    }

    pub(super) async fn try_read_optional<T>(
        &self,
        query: QueryAs<'_, T>,
    ) -> Result<Option<T>, StatementError>
    where
        T: for<'r> FromRow<'r, PgRow> + Send,
    {
        let first_row = |rows: &[PgRow]| rows.first().map(T::from_row).transpose();
        self.read(&mut None, query, first_row).await
    }

    /// Like [`Self::read_optional`], for any number of rows, and with a value from a client, which the
    /// database may reject.
    pub(crate) async fn read_all_by_input<T>(
        &self,
        query: QueryAs<'_, T>,
    ) -> Result<Result<Vec<T>, ValueRejected>, Unavailable>
    where
        T: for<'r> FromRow<'r, PgRow> + Send,
    {
        let all_rows = |rows: &[PgRow]| rows.iter().map(T::from_row).collect();
        unless_rejected(self.read(&mut None, query, all_rows).await)
    }

    /// Runs a query that only reads on the `held` connection, or on a pooled one, which is then held. After
    /// a failure none is held.
    pub(crate) async fn read_rows_on(
        &self,
        held: &mut Option<PooledConnection>,
        query: Query<'_>,
    ) -> Result<Vec<PgRow>, Unavailable> {
        let query = ReadQuery::new(query).map_err(StatementError::from)?;
        let operation = pin!(self.fetch_rows(held, &query));
        Ok(self.measure(operation).await?)
    }

    /// Runs a statement that writes and returns a row.
    pub(crate) async fn write_optional<T>(
        &self,
        query: QueryAs<'_, T>,
    ) -> Result<Option<T>, Unavailable>
    where
        T: for<'r> FromRow<'r, PgRow> + Send + Unpin,
    {
        Ok(self.try_write_optional(query).await?)
    }

    /// Like [`Self::write_optional`], with a value from a client, which the database may reject.
    pub(crate) async fn write_optional_by_input<T>(
        &self,
        query: QueryAs<'_, T>,
    ) -> Result<Result<Option<T>, ValueRejected>, Unavailable>
    where
        T: for<'r> FromRow<'r, PgRow> + Send + Unpin,
    {
        unless_rejected(self.try_write_optional(query).await)
    }

    async fn try_write_optional<T>(
        &self,
        query: QueryAs<'_, T>,
    ) -> Result<Option<T>, StatementError>
    where
        T: for<'r> FromRow<'r, PgRow> + Send + Unpin,
    {
        let query = query.persistent(self.keeps_prepared_statements());
        self.write(async |connection: &mut PgConnection| query.fetch_optional(connection).await)
            .await
    }

    /// Runs a statement that writes.
    pub(crate) async fn execute(&self, query: Query<'_>) -> Result<PgQueryResult, Unavailable> {
        let query = query.persistent(self.keeps_prepared_statements());
        let result = self
            .write(async |connection: &mut PgConnection| query.execute(connection).await)
            .await?;
        Ok(result)
    }

    fn keeps_prepared_statements(&self) -> bool {
        self.settings.pool_mode.keeps_prepared_statements()
    }

    async fn read<'q, T>(
        &self,
        held: &mut Option<PooledConnection>,
        query: impl Execute<'q, sqlx::Postgres>,
        convert: impl FnOnce(&[PgRow]) -> Result<T, sqlx::Error>,
    ) -> Result<T, StatementError> {
        let query = ReadQuery::new(query)?;
        let operation = pin!(async { convert(&self.fetch_rows(held, &query).await?) });
        self.measure(operation).await
    }

    async fn fetch_rows(
        &self,
        held: &mut Option<PooledConnection>,
        query: &ReadQuery,
    ) -> Result<Vec<PgRow>, sqlx::Error> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            match self.fetch_rows_once(held, query).await {
                Err(error) if attempts < MAX_READ_ATTEMPTS && is_connection_broken(&error) => {
                    tracing::info!(store = STORE, %error, "connection broke: the query is repeated on another one");
                }
                outcome => return outcome,
            }
        }
    }

    async fn fetch_rows_once(
        &self,
        held: &mut Option<PooledConnection>,
        query: &ReadQuery,
    ) -> Result<Vec<PgRow>, sqlx::Error> {
        let query = query
            .to_query()
            .persistent(self.keeps_prepared_statements());
        self.run_on(held, async |connection: &mut PgConnection| {
            query.fetch_all(connection).await
        })
        .await
    }

    async fn write<T>(
        &self,
        statement: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, StatementError> {
        let operation = pin!(async {
            let connection = self.acquire_alive().await?;
            self.run_on(&mut Some(connection), statement).await
        });
        self.measure(operation).await
    }

    /// Returns a pooled connection on which the server has just responded.
    async fn acquire_alive(&self) -> Result<PooledConnection, sqlx::Error> {
        let start = Instant::now();
        let mut connection = PooledConnection::acquire(&self.pool).await?;
        if connection.is_alive().await {
            return Ok(connection);
        }
        tracing::info!(store = STORE, "connection is dead and is replaced");
        self.stale.mark_opened_before(start);
        PooledConnection::acquire(&self.pool).await
    }

    /// Bounds the duration of an operation and records its outcome. The operation is pinned where it was made,
    /// since a future that is passed on by value is stored twice.
    async fn measure<T>(
        &self,
        operation: Pin<&mut impl Future<Output = Result<T, sqlx::Error>>>,
    ) -> Result<T, StatementError> {
        let (timer, start) = (self.metrics.start(), Instant::now());
        let outcome = match tokio::time::timeout(OPERATION_TIMEOUT, operation).await {
            Ok(outcome) => outcome.map_err(StatementError::from),
            Err(elapsed) => Err(elapsed.into()),
        };
        match &outcome {
            // A value that the database rejects is no failure of the store.
            Err(error) if error.is_value_rejected() => timer.stop(&Ok::<_, ()>(())),
            outcome => timer.stop(outcome),
        }
        match &outcome {
            Err(error) if error.is_read_only() => self.stale.mark(),
            // The timeouts of the server are shorter: the connection is dead.
            Err(StatementError::TimedOut(_)) => self.stale.mark_opened_before(start),
            _ => {}
        }
        outcome
    }

    async fn run_on<T>(
        &self,
        held: &mut Option<PooledConnection>,
        statement: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, sqlx::Error> {
        let start = Instant::now();
        let mut connection = match held.take() {
            Some(connection) => connection,
            None => PooledConnection::acquire(&self.pool).await?,
        };
        let outcome = self
            .run_in_pool_mode(connection.begin_statement(), statement)
            .await;
        match &outcome {
            Ok(_) => {
                connection.finish_statement();
                *held = Some(connection);
            }
            Err(error) if is_connection_broken(error) => self.stale.mark_opened_before(start),
            Err(_) => {}
        }
        outcome
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
