//! Connecting to the stores that the configuration selects.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::config::{self, Environment, MigrateMode, StoreSettings};
use crate::oauth_clients::{OAuthClients, PostgresOAuthClients, SqliteOAuthClients};
use crate::sessions::{RedisSessions, Sessions, SqliteSessions};
use crate::store::postgres::Postgres;
use crate::store::redis::Redis;
use crate::store::sqlite::Sqlite;
use crate::telemetry::logging;
use crate::telemetry::metrics::Metrics;
use crate::throttle::{RedisThrottle, SqliteThrottle, Throttle};
use crate::users::{PostgresUsers, SqliteUsers, Users};

/// Runs `auth-api migrate`: applies the migrations.
pub(super) async fn migrate(environment: &Environment) -> Result<()> {
    let metrics = Metrics::new();
    let (_, _flush_guard) = logging::start(config::logging(environment)?, &metrics);
    match config::store(environment)? {
        StoreSettings::Servers { postgres, .. } => {
            apply_migrations(&Postgres::new(*postgres, metrics.store("postgres"))).await
        }
        StoreSettings::File(file) => open_sqlite(&file, &metrics).await.map(drop),
    }
}

/// Opened stores.
pub(super) struct Stores {
    pub(super) users: Users,
    pub(super) sessions: Sessions,
    pub(super) throttle: Throttle,
    pub(super) oauth_clients: OAuthClients,
}

/// Opens the stores.
pub(super) async fn open(
    settings: &StoreSettings,
    migrate: MigrateMode,
    metrics: &Metrics,
) -> Result<Stores> {
    match settings {
        StoreSettings::File(file) => {
            let sqlite = open_sqlite(file, metrics).await?;
            tracing::info!(file = %file.display(), "users and sessions are stored in one SQLite file");
            Ok(Stores {
                users: Users::Sqlite(SqliteUsers(sqlite.clone())),
                sessions: Sessions::Sqlite(SqliteSessions(sqlite.clone())),
                throttle: Throttle::Sqlite(SqliteThrottle(sqlite.clone())),
                oauth_clients: OAuthClients::Sqlite(SqliteOAuthClients(sqlite)),
            })
        }
        StoreSettings::Servers { postgres, redis } => {
            let postgres = Postgres::new((**postgres).clone(), metrics.store("postgres"));
            match migrate {
                MigrateMode::AtStart => apply_migrations(&postgres).await?,
                MigrateMode::ByCommand => require_connection(&postgres).await?,
            }
            let redis = Redis::start((**redis).clone(), metrics.store("redis"))?;
            Ok(Stores {
                users: Users::Postgres(PostgresUsers::new(postgres.clone(), &metrics.supervisor)),
                sessions: Sessions::Redis(RedisSessions::start(redis.clone(), &metrics.supervisor)),
                throttle: Throttle::Redis(RedisThrottle(redis)),
                oauth_clients: OAuthClients::Postgres(PostgresOAuthClients(postgres)),
            })
        }
    }
}

/// Opens the store of `OAuth` clients alone.
pub(super) async fn open_oauth_clients(
    settings: &StoreSettings,
    metrics: &Metrics,
) -> Result<OAuthClients> {
    match settings {
        StoreSettings::File(file) => {
            let sqlite = open_sqlite(file, metrics).await?;
            Ok(OAuthClients::Sqlite(SqliteOAuthClients(sqlite)))
        }
        StoreSettings::Servers { postgres, .. } => {
            let postgres = Postgres::new((**postgres).clone(), metrics.store("postgres"));
            require_connection(&postgres).await?;
            Ok(OAuthClients::Postgres(PostgresOAuthClients(postgres)))
        }
    }
}

/// Checks that the embedded store exists, for commands that would otherwise create an empty one where
/// an operator has named another folder than that of the service.
pub(super) fn require_existing(settings: &StoreSettings) -> Result<()> {
    match settings {
        StoreSettings::File(file) if !file.exists() => bail!(
            "{} does not exist: set DATA_DIR to the folder of the service's database, or DB_HOST and \
             REDIS_HOST to its servers",
            std::path::absolute(file).as_ref().unwrap_or(file).display()
        ),
        _ => Ok(()),
    }
}

/// Checks that PostgreSQL can be connected to: a request to it would fail without the reason.
async fn require_connection(postgres: &Postgres) -> Result<()> {
    match postgres.check().await {
        Err(problem) if problem.is_connection_missing() => bail!("PostgreSQL: {problem}"),
        _ => Ok(()),
    }
}

async fn apply_migrations(postgres: &Postgres) -> Result<()> {
    postgres
        .migrate()
        .await
        .context("applying the database migrations")
}

async fn open_sqlite(file: &Path, metrics: &Metrics) -> Result<Sqlite> {
    if let Some(directory) = file.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .with_context(|| format!("DATA_DIR: creating the directory {}", directory.display()))?;
    }
    Sqlite::open(file, metrics.store("sqlite"))
        .await
        .with_context(|| format!("opening {}", file.display()))
}
