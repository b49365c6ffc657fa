//! Embedded store: one SQLite file, which replicas on one machine may share.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

use crate::domain::time;
use crate::store::migrations;
use crate::store::unavailable::Unavailable;
use crate::telemetry::metrics::{PoolUsage, StoreMetrics};

pub(crate) const STORE: &str = "SQLite";
/// Longest wait for the write lock, which also bounds the duration of a statement.
const BUSY_TIMEOUT: Duration = Duration::from_millis(2500);
const MAX_READERS: u32 = 4;

/// One connection for writing and several for reading. SQLite has one writer at a time, and waiting
/// for a pooled connection is cheaper than waiting for its lock. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Sqlite {
    pub(crate) writer: SqlitePool,
    pub(crate) readers: SqlitePool,
    metrics: StoreMetrics,
}

impl Sqlite {
    /// Opens or creates `file` and applies the migrations.
    ///
    /// Replicas that start together do so one after the other, under a lock file: changing the
    /// journal mode and migrating take locks for which SQLite's busy timeout does not apply.
    pub(crate) async fn open(file: &Path, metrics: StoreMetrics) -> Result<Self, sqlx::Error> {
        let start_lock = open_private(&file.with_extension("lock"))?;
        start_lock.lock()?;
        // SQLite gives the files that it creates beside this one the same permissions.
        open_private(file)?;
        let options = SqliteConnectOptions::new()
            .filename(file)
            .journal_mode(SqliteJournalMode::Wal)
            // An acknowledged write survives a crash of the machine.
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT);
        let pool = |connections| {
            SqlitePoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(BUSY_TIMEOUT)
        };
        let writer = pool(1).connect_with(options.clone()).await?;
        let migrator = migrations::ignoring_unknown(sqlx::migrate!("../migrations/sqlite"));
        migrator.run(&writer).await?;
        migrations::warn_if_newer(&migrator, &mut *writer.acquire().await?).await?;
        Ok(Self {
            writer,
            readers: pool(MAX_READERS).connect_lazy_with(options.optimize_on_close(true, None)),
            metrics,
        })
    }

    /// Runs `operation` and records its duration and outcome.
    pub(crate) async fn timed<T>(
        &self,
        operation: impl Future<Output = Result<T, Unavailable>>,
    ) -> Result<T, Unavailable> {
        let timer = self.metrics.start();
        let outcome = operation.await;
        timer.stop(&outcome);
        outcome
    }

    /// Runs the cheapest statement that shows that the store responds.
    pub(crate) async fn ping(&self) -> Result<(), Unavailable> {
        sqlx::query("SELECT 1")
            .execute(&self.readers)
            .await
            .map_err(failed)
            .map(drop)
    }

    pub(crate) fn pool_usage(&self) -> PoolUsage {
        PoolUsage::of(&self.writer) + PoolUsage::of(&self.readers)
    }
}

/// Opens or creates a file that only its owner can read, since it contains password hashes. The
/// permissions of an existing file are not changed.
fn open_private(file: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(file)
}

/// Converts a failed statement to an outage.
#[expect(
    clippy::needless_pass_by_value,
    reason = "signature required by map_err"
)]
pub(crate) fn failed(error: sqlx::Error) -> Unavailable {
    Unavailable::because(STORE, &error)
}

/// Converts a stored time, in microseconds since 1970. Returns `None` for one that clients cannot represent.
pub(crate) fn time_from_micros(micros: i64) -> Option<DateTime<Utc>> {
    time::from_micros(micros)
}
