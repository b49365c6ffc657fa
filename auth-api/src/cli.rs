//! What the program can be told to do.

use std::fs::DirBuilder;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::unix::fs::DirBuilderExt;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};

use crate::accounts::{Accounts, Task};
use crate::app::{self, Parts};
use crate::config::{self, Config, Environment, Store};
use crate::domain::refresh_token::RefreshTokens;
use crate::domain::token::AccessTokens;
use crate::hashing::Hasher;
use crate::lifecycle::Lifecycle;
use crate::metrics::Metrics;
use crate::redis::Redis;
use crate::sessions::{RedisSessions, Sessions, SqliteSessions};
use crate::sqlite::Sqlite;
use crate::telemetry::Logs;
use crate::throttle::{RedisThrottle, SqliteThrottle, Throttle};
use crate::users::{PostgresUsers, SqliteUsers, Users};
use crate::{server, telemetry};

const HEALTHCHECK_TIMEOUT: Duration = Duration::from_secs(3);

/// Register, login, logout, profile and account deletion. Settings come from the environment.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Clone, Subcommand)]
enum Command {
    /// Answer requests (the default)
    Serve,
    /// Bring the database's tables up to date and end
    Migrate,
    /// Look at and change accounts
    #[command(subcommand)]
    User(Task),
    /// Print the OpenAPI document of the endpoints
    Openapi,
    /// Ask the running program whether it is alive; for containers without a shell
    Healthcheck,
}

/// Does what the arguments say. A failure is one line on standard error.
pub(crate) fn run() -> ExitCode {
    let arguments = Arguments::parse();
    match act(arguments.command.unwrap_or(Command::Serve)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "auth-api: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn act(command: Command) -> Result<()> {
    let environment = Environment::read()?;
    match command {
        Command::Openapi => openapi(),
        Command::Healthcheck => healthcheck(config::listen(&environment)?),
        Command::Migrate => runtime()?.block_on(migrate(&environment)),
        Command::User(task) => runtime()?.block_on(user(&environment, task)),
        Command::Serve => runtime()?.block_on(serve(&environment)),
    }
}

/// Threads for half of the cores: hashing and the stores have the rest, and two threads that wake each
/// other for every request do less than one that stays awake (`make bench WHAT=auth-api`).
fn runtime() -> Result<tokio::runtime::Runtime> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads((cores / 2).max(1))
        .enable_all()
        .build()
        .context("starting the threads that answer requests")
}

async fn migrate(environment: &Environment) -> Result<()> {
    let _flush = telemetry::start(&config::logs(environment)?);
    match config::store(environment)? {
        Store::Servers { postgres, .. } => {
            PostgresUsers::new(*postgres, Metrics::new().store("postgres"))
                .migrate()
                .await
                .context("bringing the tables up to date")
        }
        Store::File(file) => open(&file, &Metrics::new()).await.map(drop),
    }
}

async fn user(environment: &Environment, task: Task) -> Result<()> {
    telemetry::start_beside_output(&Logs {
        level: tracing::Level::WARN,
        ..config::logs(environment)?
    });
    let metrics = Metrics::new();
    let (users, sessions, _) = stores(
        &config::store(environment)?,
        config::Migrate::ByCommand,
        &metrics,
    )
    .await?;
    let accounts = Accounts {
        users,
        sessions,
        hasher: Hasher::start(config::hashing(environment)?, metrics.hashing.clone())
            .context("starting the hashing threads")?,
    };
    accounts.run(task).await
}

async fn serve(environment: &Environment) -> Result<()> {
    let config = Config::read(environment)?;
    let _flush = telemetry::start(&config.logs);
    if config.hashing.cost < config::LEAST_SAFE_COST {
        tracing::warn!(
            cost = config.hashing.cost,
            "BCRYPT_COST is too low for production"
        );
    }
    let metrics = Metrics::new();
    let (users, sessions, throttle) = stores(&config.store, config.migrate, &metrics).await?;
    let app = Parts {
        users,
        sessions,
        throttle,
        hasher: Hasher::start(config.hashing, metrics.hashing.clone())
            .context("starting the hashing threads")?,
        tokens: Arc::new(AccessTokens::new(
            &config.secret_key,
            config.previous_secret_key.as_ref(),
            config.access_token_lifetime,
        )),
        refresh_tokens: Arc::new(RefreshTokens::new(
            &config.secret_key,
            config.previous_secret_key.as_ref(),
        )),
        session_lifetime: config.session_lifetime,
        metrics,
        lifecycle: Lifecycle::default(),
    };
    server::run(config.listen, config.internal_listen, app.into()).await
}

async fn stores(
    store: &Store,
    migrate: config::Migrate,
    metrics: &Metrics,
) -> Result<(Users, Sessions, Throttle)> {
    match store {
        Store::File(file) => {
            let sqlite = open(file, metrics).await?;
            tracing::info!(file = %file.display(), "users and sessions are in one SQLite file");
            Ok((
                Users::Sqlite(SqliteUsers(sqlite.clone())),
                Sessions::Sqlite(SqliteSessions(sqlite.clone())),
                Throttle::Sqlite(SqliteThrottle(sqlite)),
            ))
        }
        Store::Servers { postgres, redis } => {
            let users = PostgresUsers::new((**postgres).clone(), metrics.store("postgres"));
            if migrate == config::Migrate::AtStart {
                users
                    .migrate()
                    .await
                    .context("bringing the tables up to date")?;
            }
            let redis = Redis::start((**redis).clone(), metrics.store("redis"))?;
            Ok((
                Users::Postgres(users),
                Sessions::Redis(RedisSessions::start(redis.clone())?),
                Throttle::Redis(RedisThrottle(redis)),
            ))
        }
    }
}

async fn open(file: &std::path::Path, metrics: &Metrics) -> Result<Sqlite> {
    if let Some(folder) = file.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .with_context(|| format!("DATA_DIR: making the folder {}", folder.display()))?;
    }
    Sqlite::open(file, metrics.store("sqlite"))
        .await
        .with_context(|| format!("opening {}", file.display()))
}

fn openapi() -> Result<()> {
    let document = serde_json::to_string_pretty(&app::document())?;
    writeln!(std::io::stdout(), "{document}").context("printing the document")
}

/// Asks `/health` on this machine.
fn healthcheck(listen: SocketAddr) -> Result<()> {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    let address = SocketAddr::new(ip, listen.port());
    let mut stream = TcpStream::connect_timeout(&address, HEALTHCHECK_TIMEOUT)
        .with_context(|| format!("connecting to {address}"))?;
    stream.set_read_timeout(Some(HEALTHCHECK_TIMEOUT))?;
    write!(
        stream,
        "GET /health HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.take(4096).read_to_string(&mut answer)?;
    if !answer.starts_with("HTTP/1.1 200 ") {
        bail!(
            "{address} answered: {}",
            answer.lines().next().unwrap_or("nothing")
        );
    }
    Ok(())
}
