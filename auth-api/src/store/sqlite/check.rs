//! Check whether the file can do what requests need of it.

use std::time::{Duration, Instant};

use super::{Sqlite, failed, migrator};
use crate::store::check::CheckError;
use crate::store::migrations::{self, Progress};
use crate::store::unavailable::Unavailable;

/// Interval of write checks while operations succeed. Each one costs an fsync.
const WRITE_CHECK_INTERVAL: Duration = Duration::from_secs(10);

impl Sqlite {
    /// Checks that the file has the schema, and at intervals and after an operation that failed also
    /// that it can be written: a full disk and a read-only file system still serve reads.
    pub(crate) async fn check(&self) -> Result<(), CheckError> {
        if self.timed(self.progress()).await? == Progress::Pending {
            return Err(CheckError::SchemaMissing);
        }
        let last = *self.last_write_check.lock();
        let is_due = last.is_none_or(|last| {
            last.elapsed() >= WRITE_CHECK_INTERVAL || self.stale.were_marked_since(last)
        });
        if is_due {
            let start = Instant::now();
            self.timed(self.write()).await?;
            *self.last_write_check.lock() = Some(start);
        }
        Ok(())
    }

    async fn progress(&self) -> Result<Progress, Unavailable> {
        let mut connection = self.readers.acquire().await.map_err(failed)?;
        migrations::progress(&migrator(), &mut *connection)
            .await
            .map_err(|error| Unavailable::because(super::STORE, &error))
    }

    /// Commits a change of a field of the file's header that SQLite leaves to applications.
    async fn write(&self) -> Result<(), Unavailable> {
        sqlx::query("PRAGMA user_version = 0")
            .execute(&self.writer)
            .await
            .map_err(failed)
            .map(drop)
    }
}
