//! Migrations that are compiled into the program, and those that a newer version has applied.
//!
//! When a release is rolled back, its migrations stay. Each migration keeps the schema compatible
//! with the version before it, so that version starts on the newer schema and logs a warning.

use sqlx::SqlStr;
use sqlx::migrate::{Migrate, MigrateError, Migration, MigrationType, Migrator};

/// Table of the applied migrations.
pub(super) const TABLE: &str = "_sqlx_migrations";

/// State of a database's schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// Every migration of this program is applied.
    Complete,
    Pending,
}

/// A file of `migrations/`, whose name has its version and its description. The files are listed here, since the
/// macros of sqlx would have sqlx, SQLite and rustls built a second time, for the compiler.
#[derive(Debug)]
pub(super) struct MigrationFile {
    version: i64,
    description: &'static str,
    sql: &'static str,
}

pub(super) const POSTGRES: [MigrationFile; 4] = [
    MigrationFile {
        version: 1,
        description: "users",
        sql: include_str!("../../../migrations/postgres/0001_users.sql"),
    },
    MigrationFile {
        version: 2,
        description: "disabled accounts",
        sql: include_str!("../../../migrations/postgres/0002_disabled_accounts.sql"),
    },
    MigrationFile {
        version: 3,
        description: "sessions valid after",
        sql: include_str!("../../../migrations/postgres/0003_sessions_valid_after.sql"),
    },
    MigrationFile {
        version: 4,
        description: "oauth clients",
        sql: include_str!("../../../migrations/postgres/0004_oauth_clients.sql"),
    },
];

pub(super) const SQLITE: [MigrationFile; 4] = [
    MigrationFile {
        version: 1,
        description: "users and sessions",
        sql: include_str!("../../../migrations/sqlite/0001_users_and_sessions.sql"),
    },
    MigrationFile {
        version: 2,
        description: "refresh and failures",
        sql: include_str!("../../../migrations/sqlite/0002_refresh_and_failures.sql"),
    },
    MigrationFile {
        version: 3,
        description: "sessions valid after",
        sql: include_str!("../../../migrations/sqlite/0003_sessions_valid_after.sql"),
    },
    MigrationFile {
        version: 4,
        description: "oauth clients",
        sql: include_str!("../../../migrations/sqlite/0004_oauth_clients.sql"),
    },
];

/// Returns a migrator that ignores applied migrations which are not among `files`.
pub(super) fn migrator(files: &[MigrationFile]) -> Migrator {
    let migration = |file: &MigrationFile| {
        let sql = SqlStr::from_static(file.sql);
        let description = file.description.into();
        Migration::new(file.version, description, MigrationType::Simple, sql, false)
    };
    let mut migrator = Migrator::with_migrations(files.iter().map(migration).collect());
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[tokio::test]
    async fn every_file_is_compiled_in() {
        for (folder, files) in [
            ("postgres", POSTGRES.as_slice()),
            ("sqlite", SQLITE.as_slice()),
        ] {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("../migrations")
                .join(folder);
            let expected = Migrator::new(folder).await.unwrap();
            let properties = |migrator: &Migrator| -> Vec<_> {
                let migrations = migrator.iter().cloned();
                migrations
                    .map(|one| (one.version, one.description, one.checksum, one.no_tx))
                    .collect()
            };
            assert_eq!(properties(&migrator(files)), properties(&expected));
        }
    }
}
