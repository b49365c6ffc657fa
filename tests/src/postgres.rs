//! A private PostgreSQL server, and a database of its own for each test.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use sqlx::Connection;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use tempfile::TempDir;

use crate::address;
use crate::certificate::Certificate;
use crate::command::{chown_to_unprivileged, unprivileged_command};
use crate::process::Process;
use crate::random::random_bytes;
use crate::settings::{Settings, settings};

/// Superuser of the server, which tests connect as. The password is no secret: the server listens
/// on loopback only.
pub const USER: &str = "auth_user";
pub const PASSWORD: &str = "a test's password";

/// Environment variable with the address (`host:port`) of the server that a test run shares.
const SHARED_SERVER_VARIABLE: &str = "TEST_POSTGRES";

/// A PostgreSQL server in a folder of its own, on an unused loopback address.
#[derive(Debug)]
pub struct PostgresServer {
    process: Option<Process>,
    folder: TempDir,
    pub address: SocketAddr,
}

impl PostgresServer {
    /// Creates a database cluster and starts a server on it.
    ///
    /// # Errors
    /// Returns an error if PostgreSQL is not installed or does not start.
    pub fn start() -> Result<Self> {
        let mut server = Self::without_data()?;
        let folder = &server.folder;
        let password_file = folder.path().join("password");
        fs::write(&password_file, PASSWORD)?;
        let status = unprivileged_command(program("initdb")?)
            .args([
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C",
                "--no-sync",
            ])
            .arg(format!("--username={USER}"))
            .arg(format!("--pwfile={}", password_file.display()))
            .arg(format!("--pgdata={}", server.data_folder().display()))
            .stdout(Stdio::null())
            .status()
            .context("running initdb")?;
        ensure!(status.success(), "initdb failed: {status}");
        server.start_again()?;
        Ok(server)
    }

    /// Returns a server that is not running and has no database cluster yet, to be filled by a restore or as a standby.
    ///
    /// # Errors
    /// Returns an error if its folder cannot be created.
    pub fn without_data() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("postgres-").tempdir()?;
        chown_to_unprivileged(folder.path())?;
        Ok(Self {
            process: None,
            folder,
            address: address::unused_loopback(),
        })
    }

    /// Returns the data folder (PGDATA), whose owner is the user of [`unprivileged_command`].
    #[must_use]
    pub fn data_folder(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Returns the environment variables by which PostgreSQL's programs find this server, and a `PATH` with these
    /// programs.
    ///
    /// # Errors
    /// Returns an error if PostgreSQL is not installed.
    pub fn environment(&self) -> Result<Settings> {
        let programs = program("psql")?;
        let programs = programs.parent().context("it is in a folder")?;
        let path = std::env::var("PATH").unwrap_or_default();
        Ok(settings([
            ("PATH", format!("{}:{path}", programs.display())),
            ("PGHOST", self.address.ip().to_string()),
            ("PGPORT", self.address.port().to_string()),
            ("PGUSER", USER.to_owned()),
            ("PGPASSWORD", PASSWORD.to_owned()),
            ("PGDATA", self.data_folder().display().to_string()),
        ]))
    }

    /// Starts the server on its data folder and address, for example again after [`PostgresServer::stop_immediately`].
    ///
    /// # Errors
    /// Returns an error if PostgreSQL does not start.
    pub fn start_again(&mut self) -> Result<()> {
        let (host, port) = (
            self.address.ip().to_string(),
            self.address.port().to_string(),
        );
        let mut command = unprivileged_command(program("postgres")?);
        command
            .arg("-D")
            .arg(self.data_folder())
            .arg("-k")
            .arg(self.folder.path())
            .args(["-h", &host, "-p", &port])
            .args(["-c", "max_connections=400", "-c", "shared_buffers=64MB"]);
        let log_file = self.folder.path().join("log");
        let mut process = Process::start("postgres", &mut command, &log_file)?;
        let pg_isready = program("pg_isready")?;
        process.wait_until_ready(|| {
            Command::new(&pg_isready)
                .args(["-q", "-h", &host, "-p", &port])
                .status()
                .is_ok_and(|status| status.success())
        })?;
        self.process = Some(process);
        Ok(())
    }

    /// Restarts the server with a certificate. It then rejects connections without TLS.
    ///
    /// # Errors
    /// Returns an error if PostgreSQL does not start.
    pub fn require_tls(&mut self, certificate: &Certificate) -> Result<()> {
        self.stop_immediately()?;
        let data = self.data_folder();
        fs::copy(&certificate.cert_file, data.join("server.crt"))?;
        fs::copy(&certificate.key_file, data.join("server.key"))?;
        let host_based_authentication = "hostssl all all 0.0.0.0/0 scram-sha-256\n";
        fs::write(data.join("pg_hba.conf"), host_based_authentication)?;
        let mut config = fs::read_to_string(data.join("postgresql.conf"))?;
        config.push_str("\nssl = on\n");
        fs::write(data.join("postgresql.conf"), config)?;
        chown_to_unprivileged(&data)?;
        self.start_again()
    }

    /// Stops the server by immediate shutdown, which simulates a crash: it aborts connections and
    /// writes no checkpoint.
    ///
    /// # Errors
    /// Returns an error if the server does not exit.
    pub fn stop_immediately(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            process.signal(Signal::QUIT)?;
            process.wait_for_exit()?;
        }
        Ok(())
    }

    /// Returns the running process, for signals such as SIGSTOP.
    #[must_use]
    pub fn process(&self) -> Option<&Process> {
        self.process.as_ref()
    }

    /// Returns the name and value of the environment variable by which a test run shares this
    /// server, see [`Database::create_on_shared_server`].
    #[must_use]
    pub fn shared_server_variable(&self) -> (&'static str, String) {
        (SHARED_SERVER_VARIABLE, self.address.to_string())
    }

    /// Creates an empty database on this server.
    ///
    /// # Errors
    /// Returns an error if the server rejects the statement.
    pub async fn create_database(&self) -> Result<Database> {
        Database::create(self.address).await
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        let _ = self.stop_immediately();
    }
}

/// A database on a PostgreSQL server.
#[derive(Debug, Clone)]
pub struct Database {
    /// Address of the server.
    pub server: SocketAddr,
    pub name: String,
}

impl Database {
    /// Creates an empty database on the server that the test run shares.
    ///
    /// # Errors
    /// Returns an error outside of `scripts/test`, which starts that server.
    pub async fn create_on_shared_server() -> Result<Self> {
        let Ok(address) = std::env::var(SHARED_SERVER_VARIABLE) else {
            bail!(
                "{SHARED_SERVER_VARIABLE} is not set: run the tests by `make test` or scripts/test"
            );
        };
        Self::create(address.parse()?).await
    }

    /// Creates an empty database with a character encoding on the server that the test run shares.
    ///
    /// # Errors
    /// Returns an error outside of `scripts/test`, or if there is no such encoding.
    pub async fn create_with_encoding(encoding: &str) -> Result<Self> {
        let template = Self::create_on_shared_server().await?;
        let name = format!("{}_encoded", template.name);
        let statement = format!("CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0");
        template.execute(statement).await?;
        Ok(Self { name, ..template })
    }

    /// Executes statements in the database.
    ///
    /// # Errors
    /// Returns an error if a statement fails.
    pub async fn execute(&self, statements: impl Into<String>) -> Result<()> {
        let mut connection = self.connect().await?;
        sqlx::raw_sql(sqlx::AssertSqlSafe(statements.into()))
            .execute(&mut connection)
            .await?;
        connection.close().await?;
        Ok(())
    }

    async fn create(server: SocketAddr) -> Result<Self> {
        let name = format!("test_{:016x}", u64::from_le_bytes(random_bytes()));
        let mut connection =
            PgConnection::connect_with(&connect_options(server, "postgres")).await?;
        let statement = sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"));
        sqlx::raw_sql(statement).execute(&mut connection).await?;
        connection.close().await?;
        Ok(Self { server, name })
    }

    /// Connects to the database, so that a test can inspect or change what a program stored.
    ///
    /// # Errors
    /// Returns an error if the connection fails.
    pub async fn connect(&self) -> Result<PgConnection> {
        Ok(PgConnection::connect_with(&connect_options(self.server, &self.name)).await?)
    }

    /// Returns the number of statements in this database that wait for a lock.
    ///
    /// # Errors
    /// Returns an error if the query fails.
    pub async fn lock_wait_count(&self, observer: &mut PgConnection) -> Result<i64> {
        let count =
            "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND wait_event_type = 'Lock'";
        Ok(sqlx::query_scalar(count)
            .bind(&self.name)
            .fetch_one(observer)
            .await?)
    }

    /// Waits until a statement in this database waits for a lock. Polls without a pause, since a
    /// program waits only briefly.
    ///
    /// # Errors
    /// Returns an error if a query fails.
    pub async fn wait_for_lock_wait(&self, observer: &mut PgConnection) -> Result<()> {
        while self.lock_wait_count(observer).await? == 0 {
            tokio::task::yield_now().await;
        }
        Ok(())
    }
}

/// Locks the row of a user until the returned transaction ends.
///
/// # Errors
/// Returns an error if the statement fails.
pub async fn lock_user_row<'c>(
    connection: &'c mut PgConnection,
    login: &str,
) -> Result<sqlx::Transaction<'c, sqlx::Postgres>> {
    let mut transaction = connection.begin().await?;
    sqlx::query("SELECT 1 FROM users WHERE login = $1 FOR UPDATE")
        .bind(login)
        .execute(&mut *transaction)
        .await?;
    Ok(transaction)
}

fn connect_options(server: SocketAddr, database: &str) -> PgConnectOptions {
    PgConnectOptions::new_without_pgpass()
        .host(&server.ip().to_string())
        .port(server.port())
        .username(USER)
        .password(PASSWORD)
        .database(database)
}

/// Returns a command for one of PostgreSQL's programs that runs as a user without privileges.
///
/// # Errors
/// Returns an error if PostgreSQL is not installed.
pub fn unprivileged(name: &str) -> Result<Command> {
    Ok(unprivileged_command(program(name)?))
}

/// Returns the path of one of PostgreSQL's programs, of the newest version that is installed.
///
/// # Errors
/// Returns an error if PostgreSQL is not installed.
pub fn program(name: &str) -> Result<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().join("bin").join(name)))
        .filter(|path| path.is_file())
        .collect();
    paths.sort();
    paths.pop().with_context(|| {
        format!("PostgreSQL's {name} is not installed: install the package postgresql, as `make test` does")
    })
}
