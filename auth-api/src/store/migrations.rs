//! Migrations that a newer version of the program has applied.
//!
//! When a release is rolled back, its migrations stay. Each migration keeps the schema compatible
//! with the version before it, so that version starts on the newer schema and logs a warning.

use sqlx::migrate::{Migrate, MigrateError, Migrator};

/// Table of the applied migrations.
pub(super) const TABLE: &str = "_sqlx_migrations";

/// State of a database's schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// Every migration of this program is applied.
    Complete,
    Pending,
}

/// Makes `migrator` ignore applied migrations that it does not know.
pub(super) fn ignoring_unknown(mut migrator: Migrator) -> Migrator {
    migrator.set_ignore_missing(true);
    migrator
}

/// Compares the applied migrations with those of `migrator`, and logs a warning if the newest is
/// unknown to it. The table has to exist.
pub(super) async fn progress(
    migrator: &Migrator,
    connection: &mut impl Migrate,
) -> Result<Progress, MigrateError> {
    let applied = connection.list_applied_migrations(TABLE).await?;
    let is_applied = |version: i64, checksum: &[u8]| {
        applied
            .iter()
            .any(|one| one.version == version && *one.checksum == *checksum)
    };
    let is_dirty = connection.dirty_version(TABLE).await?.is_some();
    let is_complete = migrator
        .iter()
        .all(|migration| is_applied(migration.version, &migration.checksum));
    if is_dirty || !is_complete {
        return Ok(Progress::Pending);
    }
    warn_if_newer(migrator, connection).await?;
    Ok(Progress::Complete)
}

/// Logs a warning if the newest applied migration is unknown to `migrator`.
pub(super) async fn warn_if_newer(
    migrator: &Migrator,
    connection: &mut impl Migrate,
) -> Result<(), MigrateError> {
    let applied = connection.list_applied_migrations(TABLE).await?;
    let versions = applied.iter().map(|migration| migration.version);
    if let Some(newest) = versions
        .max()
        .filter(|version| !migrator.version_exists(*version))
    {
        tracing::warn!(
            newest,
            "database schema is newer than this program, which remains compatible with it"
        );
    }
    Ok(())
}
