//! Tables of a version of the program that is newer than this one.
//!
//! A release that turns out badly is rolled back while its migrations stay. Each fits the version
//! before, so that one starts on them, and says so.

use sqlx::migrate::{Migrate, MigrateError, Migrator};

const TABLE: &str = "_sqlx_migrations";

/// Lets a migrator pass over migrations that it does not know.
pub(crate) fn tolerant(mut migrator: Migrator) -> Migrator {
    migrator.set_ignore_missing(true);
    migrator
}

/// Says when there are such.
pub(crate) async fn tell_of_newer(
    migrator: &Migrator,
    connection: &mut impl Migrate,
) -> Result<(), MigrateError> {
    let applied = connection.list_applied_migrations(TABLE).await?;
    let versions = applied.iter().map(|migration| migration.version);
    if let Some(newest) = versions.max().filter(|it| !migrator.version_exists(*it)) {
        tracing::warn!(
            newest,
            "the tables are of a newer version of this program, which they go on to fit"
        );
    }
    Ok(())
}
