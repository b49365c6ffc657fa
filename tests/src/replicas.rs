//! Replicas of auth-api on stores of their own.

use std::ffi::OsString;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Executor};
use tempfile::TempDir;

use crate::client::Client;
use crate::command::{bound_command, program_path};
use crate::postgres::Database;
use crate::process::Process;
use crate::redis::RedisServer;
use crate::settings::{Settings, is_set, postgres_settings, redis_settings, replica_defaults};
use crate::{address, wait};

/// Stores of users and sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    /// A new database on the PostgreSQL server that the test run shares, and a new Redis server.
    PostgresRedis,
    /// One SQLite file.
    Embedded,
}

/// A running replica of auth-api.
#[derive(Debug)]
pub struct Replica {
    pub process: Process,
    /// Address of the listener for the gateway.
    pub address: SocketAddr,
    /// Address of the internal listener, which serves the metrics.
    pub internal_address: SocketAddr,
}

/// Running replicas with their stores.
#[derive(Debug)]
pub struct Replicas {
    // Fields drop in this order: the replicas exit before their stores.
    pub instances: Vec<Replica>,
    /// The Redis server of [`Store::PostgresRedis`].
    pub redis: Option<RedisServer>,
    /// The database of [`Store::PostgresRedis`].
    pub database: Option<Database>,
    settings: Settings,
    /// Limit of open files of replicas that are started from now on.
    max_open_files: Option<u32>,
    folder: TempDir,
}

impl Replicas {
    /// Starts `count` replicas on a new `store` and waits until they are ready.
    ///
    /// # Errors
    /// Returns an error with the replica's log if one does not become ready.
    pub async fn start(store: Store, count: usize) -> Result<Self> {
        Self::start_with(store, count, Settings::new()).await
    }

    /// Like [`Replicas::start`], with further settings, which override those of the store.
    ///
    /// # Errors
    /// Returns an error with the replica's log if one does not become ready.
    pub async fn start_with(store: Store, count: usize, settings: Settings) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("edge-").tempdir()?;
        let mut all_settings = replica_defaults(folder.path());
        let (redis, database) = match store {
            Store::Embedded => (None, None),
            Store::PostgresRedis => {
                let redis = RedisServer::start()?;
                let database = Database::create_on_shared_server().await?;
                if !is_set(&settings, "DATABASE_URL") {
                    all_settings.extend(postgres_settings(database.server, &database.name));
                }
                if !is_set(&settings, "REDIS_URL") {
                    all_settings.extend(redis_settings(redis.address));
                }
                (Some(redis), Some(database))
            }
        };
        all_settings.extend(settings);
        let mut replicas = Self {
            instances: Vec::new(),
            redis,
            database,
            settings: all_settings,
            max_open_files: None,
            folder,
        };
        for _ in 0..count {
            replicas.start_another()?;
        }
        for index in 0..count {
            replicas.wait_until_ready(index).await?;
        }
        Ok(replicas)
    }

    /// Starts a further replica without waiting until it is ready.
    ///
    /// # Errors
    /// Returns an error if the process cannot be started.
    pub fn start_another(&mut self) -> Result<&mut Replica> {
        self.start_another_with(None)
    }

    /// Like [`Replicas::start_another`], with standard output going to `stdout` instead of the log file.
    ///
    /// # Errors
    /// Returns an error if the process cannot be started.
    pub fn start_another_with_stdout(&mut self, stdout: Stdio) -> Result<&mut Replica> {
        self.start_another_with(Some(stdout))
    }

    fn start_another_with(&mut self, stdout: Option<Stdio>) -> Result<&mut Replica> {
        let (address, internal_address) = (address::unused_loopback(), address::unused_loopback());
        let mut command = self.command("auth-api");
        command
            .env("AUTH_API_LISTEN", address.to_string())
            .env("AUTH_API_INTERNAL_LISTEN", internal_address.to_string());
        let name = format!("auth-api-{}", self.instances.len() + 1);
        let log_file = self.folder.path().join(format!("{name}.log"));
        let process = match stdout {
            Some(stdout) => Process::start_with_stdout(&name, &mut command, stdout, &log_file)?,
            None => Process::start(&name, &mut command, &log_file)?,
        };
        self.instances.push(Replica {
            process,
            address,
            internal_address,
        });
        self.instances
            .last_mut()
            .context("a replica was just added")
    }

    /// Limits the open files of programs that are started from now on.
    pub fn limit_open_files(&mut self, limit: u32) {
        self.max_open_files = Some(limit);
    }

    /// Sets a setting of replicas that are started from now on.
    pub fn set(&mut self, name: &str, value: &str) {
        self.settings.push((name.to_owned(), value.to_owned()));
    }

    /// Removes a setting of replicas that are started from now on.
    pub fn unset(&mut self, name: &str) {
        self.settings.retain(|(setting, _)| setting != name);
    }

    /// Waits until the replica at `index` is ready.
    ///
    /// # Errors
    /// Returns an error if the replica exits or is not ready in time.
    pub async fn wait_until_ready(&mut self, index: usize) -> Result<()> {
        let client = self.client(index)?;
        let process = &mut self.instances[index].process;
        client
            .wait_until_ok("/ready", || process.ensure_running())
            .await
    }

    /// Returns a client of the replica at `index`, bypassing the gateway.
    ///
    /// # Errors
    /// Returns an error if the client cannot be built.
    pub fn client(&self, index: usize) -> Result<Client> {
        Client::cleartext(self.instances[index].address)
    }

    /// Returns a metric of the replica at `index`, see [`Client::metric`].
    ///
    /// # Errors
    /// Returns an error if the replica does not respond.
    pub async fn metric(&self, index: usize, name: &str, labels: &[&str]) -> Result<Option<f64>> {
        let internal_client = Client::cleartext(self.instances[index].internal_address)?;
        internal_client.metric(name, labels).await
    }

    /// Executes a statement in the database of users, PostgreSQL or SQLite.
    ///
    /// # Errors
    /// Returns an error if the statement fails.
    pub async fn execute(&self, statement: impl Into<String>) -> Result<()> {
        let statement = sqlx::AssertSqlSafe(statement.into());
        if let Some(database) = &self.database {
            database.connect().await?.execute(statement).await?;
        } else {
            let options = SqliteConnectOptions::new().filename(self.sqlite_file());
            options.connect().await?.execute(statement).await?;
        }
        Ok(())
    }

    /// Takes the store of sessions away: Redis, or the table of the SQLite file.
    ///
    /// # Errors
    /// Returns an error if the table cannot be renamed.
    pub async fn take_sessions_away(&mut self) -> Result<()> {
        if let Some(redis) = &mut self.redis {
            redis.kill();
            return Ok(());
        }
        self.execute("ALTER TABLE sessions RENAME TO away").await
    }

    /// Brings the store of sessions back with its data.
    ///
    /// # Errors
    /// Returns an error if Redis does not start, or the table cannot be renamed.
    pub async fn bring_sessions_back(&mut self) -> Result<()> {
        if let Some(redis) = &mut self.redis {
            return redis.start_again();
        }
        self.execute("ALTER TABLE away RENAME TO sessions").await
    }

    /// Returns the path of the file of [`Store::Embedded`].
    #[must_use]
    pub fn sqlite_file(&self) -> PathBuf {
        self.folder.path().join("data/auth.db")
    }

    /// Returns a command for one of the project's programs with the settings of these replicas.
    /// The developer's own environment and `.env` file do not reach it.
    #[must_use]
    pub fn command(&self, name: &str) -> Command {
        let command = match self.max_open_files {
            None => bound_command(program_path(name)),
            Some(limit) => {
                let mut command = bound_command("prlimit");
                command
                    .arg(format!("--nofile={limit}"))
                    .arg(program_path(name));
                command
            }
        };
        self.with_settings(command, std::env::var_os("PATH").unwrap_or_default())
    }

    /// Like [`Replicas::command`], for a program whose writes beyond a size of a file, in bytes, fail as on a full disk.
    #[must_use]
    pub fn command_with_max_file_size(&self, name: &str, limit: Option<u64>) -> Command {
        let Some(limit) = limit else {
            return self.command(name);
        };
        let mut command = bound_command("prlimit");
        command
            .arg(format!("--fsize={limit}:"))
            .arg(program_path(name));
        self.with_settings(command, std::env::var_os("PATH").unwrap_or_default())
    }

    /// Returns a command that runs `script` by the shell with the settings of the replicas, and `auth-api` in its `PATH`.
    ///
    /// # Panics
    /// Panics if auth-api is not built.
    #[must_use]
    pub fn shell(&self, script: &str) -> Command {
        let mut command = bound_command("sh");
        command.arg("-c").arg(script);
        let mut path = program_path("auth-api");
        path.pop();
        let mut path = path.into_os_string();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        self.with_settings(command, path)
    }

    fn with_settings(&self, mut command: Command, path: OsString) -> Command {
        command
            .env_clear()
            .env("PATH", path)
            .envs(self.settings.iter().map(|(name, value)| (name, value)))
            .current_dir(self.folder.path());
        command
    }

    /// Runs `auth-api client` with `arguments` and waits until it exits.
    ///
    /// # Errors
    /// Returns an error if the program cannot be started.
    pub fn client_command(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = self.command("auth-api");
        Ok(command.arg("client").args(arguments).output()?)
    }

    /// Runs `auth-api user` with `arguments` and a line of `input`, and waits until it exits.
    ///
    /// # Errors
    /// Returns an error if the program cannot be started.
    pub fn user_command(&self, arguments: &[&str], input: &str) -> Result<Output> {
        let mut child = self
            .command("auth-api")
            .arg("user")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut stdin = child.stdin.take().context("standard input is piped")?;
        // A command that reads no input may already have exited.
        let _ = writeln!(stdin, "{input}");
        drop(stdin);
        Ok(child.wait_with_output()?)
    }

    /// Waits until the log of a replica contains `text`.
    ///
    /// # Errors
    /// Returns an error after [`wait::TIMEOUT`].
    pub async fn wait_for_log(&self, text: &str) -> Result<()> {
        wait::until(&format!("{text:?} in a log"), async || {
            self.logs().contains(text)
        })
        .await
    }

    /// Returns the logs of all replicas so far.
    #[must_use]
    pub fn logs(&self) -> String {
        self.instances
            .iter()
            .map(|replica| replica.process.log())
            .collect()
    }
}
