//! Embedded store: one SQLite file, which replicas on one machine may share.

mod check;
mod file_identity;
mod stored_text;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use parking_lot::Mutex;
use sqlx::error::DatabaseError;
use sqlx::migrate::Migrator;
use sqlx::query::QueryScalar;
use sqlx::sqlite::{
    SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow,
    SqliteSynchronous,
};
use sqlx::{FromRow, SqlitePool};

use file_identity::FileIdentity;
pub(crate) use stored_text::StoredText;

use crate::domain::time;
use crate::store::check::CheckError;
use crate::store::migrations;
use crate::store::stale_connections::StaleConnections;
use crate::store::unavailable::Unavailable;
use crate::telemetry::metrics::{PoolUsage, StoreMetrics};

pub(crate) const STORE: &str = "SQLite";
/// Longest wait for the write lock, which also bounds the duration of a statement.
const BUSY_TIMEOUT: Duration = Duration::from_millis(2500);
const MAX_READERS: u32 = 4;
/// Permissions of users other than the owner and the group, to which one that makes backups may belong.
const OTHERS: u32 = 0o007;

/// One connection for writing and several for reading. SQLite has one writer at a time, and waiting
/// for a pooled connection is cheaper than waiting for its lock. Cheap to clone.
///
/// After an operation that failed (a full disk, an I/O error, a corrupt page) and when the path leads
/// to another file than before, the connections are closed and opened anew: SQLite rolls a transaction
/// back by itself after some errors, which sqlx does not notice, and an open connection would go on
/// with a file that was deleted or replaced, and lose what it acknowledges.
#[derive(Debug, Clone)]
pub(crate) struct Sqlite {
    pub(crate) writer: SqlitePool,
    pub(crate) readers: SqlitePool,
    stale: StaleConnections,
    /// Start of the last write check that succeeded.
    last_write_check: Arc<Mutex<Option<Instant>>>,
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
        // The file is closed before SQLite opens it, whose locks would end with it (sqlite.org/howtocorrupt.html, 2.2).
        let mode = open_private(file)?.metadata()?.permissions().mode();
        if mode & OTHERS != 0 {
            let file = file.display();
            tracing::warn!(%file, "the database, which has password hashes, has permissions for other users: chmod 600");
        }
        let options = SqliteConnectOptions::new()
            .filename(file)
            .journal_mode(SqliteJournalMode::Wal)
            // An acknowledged write survives a crash of the machine.
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT);
        let stale = StaleConnections::default();
        let identity = Arc::new(FileIdentity::of(file));
        let pool = |connections| {
            let (stale, identity) = (stale.clone(), Arc::clone(&identity));
            SqlitePoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(BUSY_TIMEOUT)
                // It checks whether the thread of the connection lives, which a statement does too.
                .test_before_acquire(false)
                .before_acquire(move |_, metadata| {
                    if identity.has_changed() {
                        tracing::error!(store = STORE, "the database file was deleted or replaced");
                        stale.mark();
                    }
                    let is_usable = !stale.includes(metadata.age);
                    Box::pin(async move { Ok(is_usable) })
                })
        };
        let writer = pool(1).connect_with(options.clone()).await?;
        let migrator = migrator();
        migrator.run(&writer).await?;
        migrations::warn_if_newer(&migrator, &mut *writer.acquire().await?).await?;
        Ok(Self {
            writer,
            readers: pool(MAX_READERS).connect_lazy_with(options.optimize_on_close(true, None)),
            stale,
            last_write_check: Arc::default(),
            metrics,
        })
    }

    /// Runs `operation` and records its duration and outcome. After a failure no connection that is
    /// open now is used again.
    pub(crate) async fn timed<T>(
        &self,
        operation: impl Future<Output = Result<T, Unavailable>>,
    ) -> Result<T, Unavailable> {
        let timer = self.metrics.start();
        let outcome = operation.await;
        timer.stop(&outcome);
        if outcome.is_err() {
            self.statement_failed();
        }
        outcome
    }

    /// Replaces the connections, since their state is unknown after a failed statement. [`Self::timed`]
    /// calls it, other callers only for a failure that the operation survives.
    pub(crate) fn statement_failed(&self) {
        self.stale.mark();
    }

    /// Runs a statement that writes and returns at most one row, by a `RETURNING` clause.
    ///
    /// SQLite commits such a statement when it is stepped past its last row. `fetch_optional` stops at
    /// the first row and loses the error of a commit that fails, as on a full disk.
    pub(crate) async fn write_returning<T>(
        &self,
        statement: QueryScalar<'_, sqlx::Sqlite, T, SqliteArguments>,
    ) -> Result<Option<T>, Unavailable>
    where
        T: Send + Unpin,
        (T,): for<'r> FromRow<'r, SqliteRow>,
    {
        let mut rows = statement.fetch_all(&self.writer).await.map_err(failed)?;
        Ok(rows.pop())
    }

    pub(crate) fn pool_usage(&self) -> PoolUsage {
        PoolUsage::of(&self.writer) + PoolUsage::of(&self.readers)
    }
}

fn migrator() -> Migrator {
    migrations::migrator(&migrations::SQLITE)
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
    Unavailable::with_problem(STORE, problem_of(&error), &error)
}

// Primary result codes (sqlite.org/rescode.html), which are the low byte of extended ones.
const BUSY: i32 = 5;
const LOCKED: i32 = 6;
const READ_ONLY: i32 = 8;
const IO_ERROR: i32 = 10;
const DISK_FULL: i32 = 13;

fn problem_of(error: &sqlx::Error) -> CheckError {
    let code = error.as_database_error().and_then(DatabaseError::code);
    let code = code.and_then(|code| code.parse::<i32>().ok());
    match code.map(|code| code & 0xff) {
        Some(BUSY | LOCKED) => CheckError::Locked,
        Some(READ_ONLY) => CheckError::ReadOnly,
        Some(IO_ERROR | DISK_FULL) => CheckError::NotPersistent,
        _ => CheckError::Unavailable,
    }
}

/// Converts a stored time, in microseconds since 1970. Returns `None` for one that clients cannot represent.
pub(crate) fn time_from_micros(micros: i64) -> Option<DateTime<Utc>> {
    time::from_micros(micros)
}
