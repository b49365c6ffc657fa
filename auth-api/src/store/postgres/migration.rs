//! Application of the migrations.
//!
//! A statement that changes a table waits for every transaction that uses it, and all later
//! statements on the table queue behind it: an idle transaction of another program could stop the
//! logins of all running replicas. So it waits only briefly for a lock, gives up and is retried
//! with back-off.

use std::time::{Duration, Instant};

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::{PgConnection, Postgres as Database};
use sqlx::{AssertSqlSafe, Connection, Executor, Transaction};

use super::check::ENCODING;
use super::statement_error::{STORE, describe, is_connect_error_transient, is_lock_timeout};
use super::timeouts::{STARTUP_ATTEMPT_TIMEOUT, STARTUP_RETRY_DELAY, STARTUP_TIMEOUT};
use super::{Postgres, PostgresSettings};
use crate::store::migrations::{self, Progress};
/// Key of the advisory lock that serialises the migrations of replicas that start together: the
/// bytes of `auth-api`, which no other program uses.
const MIGRATION_LOCK: i64 = 0x6175_7468_2d61_7069;
/// Longest wait for the lock of a table, for which statements of other clients wait too.
const TABLE_LOCK_TIMEOUT: Duration = Duration::from_millis(500);
/// Pause after the first attempt that got no lock. It doubles with each further one.
const FIRST_RETRY_DELAY: Duration = Duration::from_millis(500);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(10);
/// Time after which attempts to get the locks end.
const MAX_LOCK_WAIT: Duration = Duration::from_mins(5);

/// Reason the schema is not as this program needs it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MigrationError {
    #[error(
        "the database is encoded in {encoding}, which cannot store every login: create one with \
         CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0, restore a dump of this one (pg_dump) \
         into it, and set DB_TABLE or DATABASE_URL to its name"
    )]
    NotUtf8 { encoding: String },
    #[error(
        "other transactions have used a table for {} minutes: find them in pg_stat_activity, end them, \
         and start again",
        MAX_LOCK_WAIT.as_secs() / 60
    )]
    TableInUse,
    #[error(
        "the server does not respond within {} seconds: check that DB_HOST, DB_PORT or DATABASE_URL \
         name a PostgreSQL server that runs",
        STARTUP_ATTEMPT_TIMEOUT.as_secs()
    )]
    Unresponsive,
    /// Without the error as its source, whose text it has.
    #[error("{}", describe(.0))]
    Statement(sqlx::Error),
    #[error(transparent)]
    Migration(#[from] MigrateError),
}

impl MigrationError {
    /// Returns whether another attempt to connect may succeed.
    fn is_transient(&self) -> bool {
        match self {
            Self::Unresponsive => true,
            Self::Statement(error) => is_connect_error_transient(error),
            Self::NotUtf8 { .. } | Self::TableInUse | Self::Migration(_) => false,
        }
    }
}

impl From<sqlx::Error> for MigrationError {
    fn from(error: sqlx::Error) -> Self {
        Self::Statement(error)
    }
}

/// Outcome of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attempt {
    Applied,
    LockTimeout,
}

impl Postgres {
    /// Applies the migrations that are pending. If there is none, it needs no other privilege than
    /// to read their table.
    pub(crate) async fn migrate(&self) -> Result<(), MigrationError> {
        let migrator = migrations::migrator(&migrations::POSTGRES);
        let (mut connection, progress) = connect_when_ready(&self.settings, &migrator).await?;
        if progress == Progress::Pending {
            apply(migrator, &mut connection).await?;
        }
        connection.close().await?;
        Ok(())
    }
}

/// Connects and reads the state of the schema, and retries while the server may still be starting.
async fn connect_when_ready(
    settings: &PostgresSettings,
    migrator: &Migrator,
) -> Result<(PgConnection, Progress), MigrationError> {
    let start = Instant::now();
    loop {
        let attempt = tokio::time::timeout(STARTUP_ATTEMPT_TIMEOUT, connect(settings, migrator));
        let error = match attempt.await {
            Ok(Ok(connected)) => return Ok(connected),
            Ok(Err(error)) => error,
            Err(_) => MigrationError::Unresponsive,
        };
        if !error.is_transient() || start.elapsed() > STARTUP_TIMEOUT {
            return Err(error);
        }
        tracing::warn!(store = STORE, %error, "waiting for a store");
        tokio::time::sleep(STARTUP_RETRY_DELAY).await;
    }
}

/// Returns a connection of its own, to be closed afterwards, because its prepared statements are
/// discarded.
async fn connect(
    settings: &PostgresSettings,
    migrator: &Migrator,
) -> Result<(PgConnection, Progress), MigrationError> {
    let mut connection = PgConnection::connect_with(&settings.connection).await?;
    require_utf8(&mut connection).await?;
    let progress = progress(migrator, &mut connection).await?;
    Ok((connection, progress))
}

async fn require_utf8(connection: &mut PgConnection) -> Result<(), MigrationError> {
    let mut transaction = begin(connection).await?;
    let encoding: String = sqlx::query_scalar("SELECT current_setting('server_encoding')")
        .persistent(false)
        .fetch_one(&mut *transaction)
        .await?;
    commit(transaction).await?;
    if encoding != ENCODING {
        return Err(MigrationError::NotUtf8 { encoding });
    }
    Ok(())
}

/// Returns whether migrations are pending, without changing or locking anything.
async fn progress(
    migrator: &Migrator,
    connection: &mut PgConnection,
) -> Result<Progress, MigrationError> {
    let mut transaction = begin(connection).await?;
    let exists: bool = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
        .bind(migrations::TABLE)
        .persistent(false)
        .fetch_one(&mut *transaction)
        .await?;
    let progress = if exists {
        migrations::progress(migrator, &mut *transaction).await?
    } else {
        Progress::Pending
    };
    commit(transaction).await?;
    Ok(progress)
}

async fn apply(
    mut migrator: Migrator,
    connection: &mut PgConnection,
) -> Result<(), MigrationError> {
    migrator.set_locking(false);
    let (start, mut delay) = (Instant::now(), FIRST_RETRY_DELAY);
    while attempt(&migrator, connection).await? == Attempt::LockTimeout {
        if start.elapsed() > MAX_LOCK_WAIT {
            return Err(MigrationError::TableInUse);
        }
        tracing::warn!(
            store = STORE,
            retry_in_ms = delay.as_millis(),
            "another transaction uses a table that a migration changes: the migration is retried"
        );
        tokio::time::sleep(delay).await;
        delay = (2 * delay).min(MAX_RETRY_DELAY);
    }
    Ok(())
}

/// Applies the migrations in a single transaction, since a pooler may not keep a session for
/// longer. Of several replicas that start together one applies them and the others wait for it.
async fn attempt(
    migrator: &Migrator,
    connection: &mut PgConnection,
) -> Result<Attempt, MigrationError> {
    let mut transaction = begin(connection).await?;
    let locks = format!(
        "SELECT pg_advisory_xact_lock({MIGRATION_LOCK}); SET LOCAL lock_timeout = {}",
        TABLE_LOCK_TIMEOUT.as_millis()
    );
    transaction.execute(AssertSqlSafe(locks)).await?;
    match migrator.run(&mut *transaction).await {
        Ok(()) => {}
        Err(MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _))
            if is_lock_timeout(&error) =>
        {
            transaction.rollback().await?;
            return Ok(Attempt::LockTimeout);
        }
        Err(error) => return Err(error.into()),
    }
    migrations::warn_if_newer(migrator, &mut *transaction).await?;
    commit(transaction).await?;
    Ok(Attempt::Applied)
}

/// Begins a transaction without prepared statements: behind a pooler, the server's session may lack
/// those of the transaction before, and have some of the same names of another client.
async fn begin(connection: &mut PgConnection) -> Result<Transaction<'_, Database>, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    transaction.clear_cached_statements().await?;
    transaction.execute("DEALLOCATE ALL").await?;
    Ok(transaction)
}

/// Commits a transaction and leaves no prepared statements to the next user of the server's session.
async fn commit(mut transaction: Transaction<'_, Database>) -> Result<(), sqlx::Error> {
    transaction.execute("DEALLOCATE ALL").await?;
    transaction.commit().await
}
