//! Replicas of auth-api on a store of their own, as an operator starts them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Executor};
use tempfile::TempDir;

use crate::client::Client;
use crate::process::{Process, bound, program};
use crate::{address, postgres, redis, wait};

/// Where users and sessions live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    /// PostgreSQL and Redis, the database on the server that the run shares.
    PostgresRedis,
    /// One SQLite file.
    Embedded,
}

/// Environment variables.
pub type Environment = Vec<(String, String)>;

/// A replica of auth-api.
#[derive(Debug)]
pub struct Replica {
    pub process: Process,
    /// Where the gateway reaches it.
    pub address: SocketAddr,
    /// Where its metrics are.
    pub internal: SocketAddr,
}

/// Running replicas with their stores.
#[derive(Debug)]
pub struct Replicas {
    // Dropped in this order: the replicas end before what they need.
    pub all: Vec<Replica>,
    pub redis: Option<redis::Server>,
    /// The database, where the store is PostgreSQL.
    pub database: Option<postgres::Database>,
    environment: Environment,
    folder: TempDir,
}

impl Replicas {
    /// Starts `count` replicas on a new `store` and waits until they are ready.
    ///
    /// # Errors
    /// When one does not come up; the error has what it printed.
    pub async fn start(store: Store, count: usize) -> Result<Self> {
        Self::start_with(store, count, Environment::new()).await
    }

    /// [`Replicas::start`] with further settings.
    ///
    /// # Errors
    /// When one does not come up; the error has what it printed.
    pub async fn start_with(store: Store, count: usize, settings: Environment) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("edge-").tempdir()?;
        let mut environment = defaults(folder.path());
        let (redis, database) = match store {
            Store::Embedded => (None, None),
            Store::PostgresRedis => {
                let redis = redis::Server::start()?;
                let database = postgres::Database::shared().await?;
                if !names(&settings, "DATABASE_URL") {
                    environment.extend(self::database(database.server, &database.name));
                }
                environment.extend(self::redis(redis.address));
                (Some(redis), Some(database))
            }
        };
        environment.extend(settings);
        let mut replicas = Self {
            all: Vec::new(),
            redis,
            database,
            environment,
            folder,
        };
        for _ in 0..count {
            replicas.add()?;
        }
        for number in 0..count {
            replicas.ready(number).await?;
        }
        Ok(replicas)
    }

    /// Starts a further replica. It may not be ready yet.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn add(&mut self) -> Result<&mut Replica> {
        let (address, internal) = (address::free(), address::free());
        let mut command = self.command("auth-api");
        command
            .env("AUTH_API_LISTEN", address.to_string())
            .env("AUTH_API_INTERNAL_LISTEN", internal.to_string());
        let name = format!("auth-api-{}", self.all.len() + 1);
        let log = self.folder.path().join(format!("{name}.log"));
        let process = Process::start(&name, &mut command, &log)?;
        self.all.push(Replica {
            process,
            address,
            internal,
        });
        self.all.last_mut().context("it was just added")
    }

    /// A setting of the replicas that are added from now on.
    pub fn set(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Waits until a replica is ready.
    ///
    /// # Errors
    /// When it ends, or does not answer in time.
    pub async fn ready(&mut self, number: usize) -> Result<()> {
        let client = self.client(number)?;
        let replica = &mut self.all[number].process;
        answers(&client, "/ready", || replica.must_run()).await
    }

    /// A client of one replica itself, past the gateway.
    ///
    /// # Errors
    /// When the client library cannot start.
    pub fn client(&self, number: usize) -> Result<Client> {
        Client::plain(self.all[number].address)
    }

    /// A number from a replica's metrics: the first line of `name` that has all `labels` in it.
    ///
    /// # Errors
    /// When the replica does not tell.
    pub async fn metric(&self, number: usize, name: &str, labels: &[&str]) -> Result<Option<f64>> {
        let operator = Client::plain(self.all[number].internal)?;
        let text = operator.get("/metrics").await?.text;
        let is_it = |line: &&str| {
            let metric = line.split(['{', ' ']).next();
            metric == Some(name) && labels.iter().all(|label| line.contains(label))
        };
        let line = text.lines().find(is_it);
        Ok(line.and_then(|line| line.rsplit(' ').next()?.parse().ok()))
    }

    /// Runs a statement on the store of accounts.
    ///
    /// # Errors
    /// When it fails.
    pub async fn execute(&self, statement: &'static str) -> Result<()> {
        if let Some(database) = &self.database {
            database.connect().await?.execute(statement).await?;
        } else {
            let options = SqliteConnectOptions::new().filename(self.embedded());
            options.connect().await?.execute(statement).await?;
        }
        Ok(())
    }

    /// The file of the embedded store.
    #[must_use]
    pub fn embedded(&self) -> PathBuf {
        self.folder.path().join("data/auth.db")
    }

    /// The folder of everything that belongs to these replicas.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// One of the project's programs with the settings of these replicas. Nothing of the
    /// developer's own environment or `.env` file reaches it.
    #[must_use]
    pub fn command(&self, name: &str) -> std::process::Command {
        let mut command = bound(program(name));
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(self.folder.path());
        command
    }

    /// Everything that the replicas have printed.
    #[must_use]
    pub fn logs(&self) -> String {
        self.all
            .iter()
            .map(|replica| replica.process.log())
            .collect()
    }
}

/// Waits until GET `path` is answered 200, for as long as `alive` finds no fault.
///
/// # Errors
/// That fault, or the last answer when the wait is over.
pub(crate) async fn answers(
    client: &Client,
    path: &str,
    mut alive: impl FnMut() -> Result<()>,
) -> Result<()> {
    let start = std::time::Instant::now();
    loop {
        let last = client.get(path).await;
        if last.as_ref().is_ok_and(|answer| answer.status == 200) {
            return Ok(());
        }
        alive()?;
        if start.elapsed() > wait::PATIENCE {
            bail!("{path} is not answered 200: {last:?}");
        }
        tokio::time::sleep(wait::PAUSE).await;
    }
}

/// Settings by their names.
#[must_use]
pub fn settings<const N: usize>(settings: [(&str, String); N]) -> Environment {
    settings
        .map(|(name, value)| (name.to_owned(), value))
        .into()
}

fn names(settings: &Environment, name: &str) -> bool {
    settings.iter().any(|(setting, _)| setting == name)
}

/// The settings that name a database of a PostgreSQL server of ours.
#[must_use]
pub fn database(server: SocketAddr, name: &str) -> Environment {
    settings([
        ("DB_HOST", server.ip().to_string()),
        ("DB_PORT", server.port().to_string()),
        ("DB_USER", postgres::USER.to_owned()),
        ("DB_PASSWORD", postgres::PASSWORD.to_owned()),
        ("DB_TABLE", name.to_owned()),
    ])
}

/// The settings that name a Redis server.
#[must_use]
pub fn redis(server: SocketAddr) -> Environment {
    settings([
        ("REDIS_HOST", server.ip().to_string()),
        ("REDIS_PORT", server.port().to_string()),
    ])
}

fn defaults(folder: &Path) -> Environment {
    settings([
        (
            "SECRET_KEY",
            "a key for tests alone, of more than 32 bytes".to_owned(),
        ),
        ("DATA_DIR", folder.join("data").display().to_string()),
        // Hashes at the cost that production asks for would take most of a test's time.
        ("BCRYPT_COST", "4".to_owned()),
        ("LOG_LEVEL", "DEBUG".to_owned()),
        ("LOG_FORMAT", "json".to_owned()),
    ])
}
