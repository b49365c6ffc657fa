//! The embedded store: one SQLite file that replicas on one machine may share.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

use crate::metrics::{PoolUse, StoreMetrics};
use crate::migrations;
use crate::unavailable::Unavailable;

pub(crate) const STORE: &str = "SQLite";
/// How long a writer waits for another's turn; also the longest that a statement may take.
const BUSY: Duration = Duration::from_millis(2500);
const READERS: u32 = 4;

/// One connection that writes and some that read: SQLite has one writer at a time, and waiting for
/// a turn here is cheaper than in its lock.
#[derive(Debug, Clone)]
pub(crate) struct Sqlite {
    pub(crate) writer: SqlitePool,
    pub(crate) readers: SqlitePool,
    metrics: StoreMetrics,
}

impl Sqlite {
    /// Opens or makes the file and brings its tables up to date. Of several replicas that start at
    /// once, one after the other does: changing the journal's mode and migrating take locks that
    /// SQLite does not wait for.
    pub(crate) async fn open(file: &Path, metrics: StoreMetrics) -> Result<Self, sqlx::Error> {
        let turn = private(&file.with_extension("lock"))?;
        turn.lock()?;
        // What SQLite puts beside it has the same permissions.
        private(file)?;
        let options = SqliteConnectOptions::new()
            .filename(file)
            .journal_mode(SqliteJournalMode::Wal)
            // What was acknowledged is on the disk, whatever crashes.
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY);
        let pool = |connections| {
            SqlitePoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(BUSY)
        };
        let writer = pool(1).connect_with(options.clone()).await?;
        let migrator = migrations::tolerant(sqlx::migrate!("../migrations/sqlite"));
        migrator.run(&writer).await?;
        migrations::tell_of_newer(&migrator, &mut *writer.acquire().await?).await?;
        Ok(Self {
            writer,
            readers: pool(READERS).connect_lazy_with(options.optimize_on_close(true, None)),
            metrics,
        })
    }

    /// Counts what becomes of `work`.
    pub(crate) async fn timed<T>(
        &self,
        work: impl Future<Output = Result<T, Unavailable>>,
    ) -> Result<T, Unavailable> {
        let timer = self.metrics.start();
        let outcome = work.await;
        timer.end(&outcome);
        outcome
    }

    pub(crate) fn pool_use(&self) -> PoolUse {
        PoolUse::of(&self.writer) + PoolUse::of(&self.readers)
    }
}

/// A file that nobody else on the machine may read, since hashes are in it. One that is there already
/// stays as its owner has it.
fn private(file: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(file)
}

/// A failed statement as an outage.
#[expect(clippy::needless_pass_by_value, reason = "it stands in map_err")]
pub(crate) fn failed(error: sqlx::Error) -> Unavailable {
    Unavailable::because(STORE, &error)
}

/// A stored time.
pub(crate) fn time(micros: i64) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp_micros(micros)
}
