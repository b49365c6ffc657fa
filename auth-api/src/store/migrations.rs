//! Migrations that a newer version of the program has applied.
//!
//! When a release is rolled back, its migrations stay. Each migration keeps the schema compatible
//! with the version before it, so that version starts on the newer schema and logs a warning.

use sqlx::migrate::{Migrate, MigrateError, Migrator};

const MIGRATIONS_TABLE: &str = "_sqlx_migrations";

/// Makes `migrator` ignore applied migrations that it does not know.
pub(super) fn ignoring_unknown(mut migrator: Migrator) -> Migrator {
    migrator.set_ignore_missing(true);
    migrator
}

/// Logs a warning if the newest applied migration is unknown to `migrator`.
pub(super) async fn warn_if_newer(
    migrator: &Migrator,
    connection: &mut impl Migrate,
) -> Result<(), MigrateError> {
    let applied = connection.list_applied_migrations(MIGRATIONS_TABLE).await?;
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
