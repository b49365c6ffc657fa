//! A private PostgreSQL server, and a database of its own for each test.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use sqlx::Connection;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use tempfile::TempDir;

use crate::certificate::Certificate;
use crate::process::{Process, UNPRIVILEGED, bound_and_unprivileged};
use crate::{address, wait};

/// The user that tests connect as; a random password would protect nothing on loopback.
pub const USER: &str = "auth_user";
pub const PASSWORD: &str = "a test's password";

/// Where the server that the whole run shares is, as `host:port`.
const SHARED: &str = "TEST_POSTGRES";

/// A PostgreSQL server in a folder of its own, on a free port of loopback.
#[derive(Debug)]
pub struct Server {
    process: Option<Process>,
    folder: TempDir,
    pub address: SocketAddr,
}

impl Server {
    /// Makes a cluster and starts it.
    ///
    /// # Errors
    /// When PostgreSQL is not installed or does not start.
    pub fn start() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("postgres-").tempdir()?;
        hand_over(folder.path())?;
        let password = folder.path().join("password");
        std::fs::write(&password, PASSWORD)?;
        let status = bound_and_unprivileged(binary("initdb")?)
            .args([
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C",
                "--no-sync",
            ])
            .arg(format!("--username={USER}"))
            .arg(format!("--pwfile={}", password.display()))
            .arg(format!("--pgdata={}", folder.path().join("data").display()))
            .stdout(Stdio::null())
            .status()
            .context("running initdb")?;
        ensure!(status.success(), "initdb failed: {status}");
        let mut server = Self {
            process: None,
            folder,
            address: address::free(),
        };
        server.resume()?;
        Ok(server)
    }

    /// Starts the server again after [`Server::stop`], on the same data and port.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn resume(&mut self) -> Result<()> {
        let mut command = bound_and_unprivileged(binary("postgres")?);
        command
            .arg("-D")
            .arg(self.folder.path().join("data"))
            .arg("-k")
            .arg(self.folder.path())
            .args(["-h", &self.address.ip().to_string()])
            .args(["-p", &self.address.port().to_string()])
            .args(["-c", "max_connections=400", "-c", "shared_buffers=64MB"]);
        let log = self.folder.path().join("log");
        let mut process = Process::start("postgres", &mut command, &log)?;
        let ready = binary("pg_isready")?;
        let (host, port) = (
            self.address.ip().to_string(),
            self.address.port().to_string(),
        );
        let answers = || {
            let mut asking = std::process::Command::new(&ready);
            let asked = asking.args(["-q", "-h", &host, "-p", &port]).status();
            asked.is_ok_and(|status| status.success())
        };
        while process.is_running() && !answers() {
            std::thread::sleep(wait::PAUSE);
        }
        process.must_run()?;
        self.process = Some(process);
        Ok(())
    }

    /// Starts it again with a certificate, refusing whoever speaks plainly.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn require_tls(&mut self, certificate: &Certificate) -> Result<()> {
        self.stop()?;
        let data = self.folder.path().join("data");
        std::fs::copy(&certificate.cert, data.join("server.crt"))?;
        std::fs::copy(&certificate.key, data.join("server.key"))?;
        let rules = "hostssl all all 0.0.0.0/0 scram-sha-256\n";
        std::fs::write(data.join("pg_hba.conf"), rules)?;
        let mut settings = std::fs::read_to_string(data.join("postgresql.conf"))?;
        settings.push_str("\nssl = on\n");
        std::fs::write(data.join("postgresql.conf"), settings)?;
        hand_over(&data)?;
        self.resume()
    }

    /// Stops it as a crash would: connections break, nothing is flushed.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            process.signal(Signal::QUIT)?;
            process.ended()?;
        }
        Ok(())
    }

    /// The process, for signals such as a pause.
    #[must_use]
    pub fn process(&self) -> Option<&Process> {
        self.process.as_ref()
    }

    /// `NAME=value` for the tests of a run that share this server.
    #[must_use]
    pub fn variable(&self) -> (&'static str, String) {
        (SHARED, self.address.to_string())
    }

    /// A new, empty database on this server.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn database(&self) -> Result<Database> {
        Database::create(self.address).await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}

/// An empty database.
#[derive(Debug, Clone)]
pub struct Database {
    pub server: SocketAddr,
    pub name: String,
}

impl Database {
    /// One on the server that the run shares.
    ///
    /// # Errors
    /// Outside of `scripts/test`, which starts that server.
    pub async fn shared() -> Result<Self> {
        let Ok(address) = std::env::var(SHARED) else {
            bail!("{SHARED} is not set: run the tests by `make test` or scripts/test");
        };
        Self::create(address.parse()?).await
    }

    async fn create(server: SocketAddr) -> Result<Self> {
        let name = format!("test_{:016x}", u64::from_le_bytes(address::random_bytes()));
        let mut admin = PgConnection::connect_with(&options(server, "postgres")).await?;
        let statement = sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"));
        sqlx::raw_sql(statement).execute(&mut admin).await?;
        admin.close().await?;
        Ok(Self { server, name })
    }

    /// A connection of the test's own, to look at what a program stored.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn connect(&self) -> Result<PgConnection> {
        Ok(PgConnection::connect_with(&options(self.server, &self.name)).await?)
    }
}

fn options(server: SocketAddr, database: &str) -> PgConnectOptions {
    PgConnectOptions::new_without_pgpass()
        .host(&server.ip().to_string())
        .port(server.port())
        .username(USER)
        .password(PASSWORD)
        .database(database)
}

/// One of PostgreSQL's programs, of the newest version that is installed.
///
/// # Errors
/// When there is none.
pub fn binary(name: &str) -> Result<PathBuf> {
    let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().join("bin").join(name)))
        .filter(|path| path.is_file())
        .collect();
    versions.sort();
    versions.pop().with_context(|| {
        format!("PostgreSQL's {name} is not installed: `make test` does that (package postgresql)")
    })
}

pub(crate) fn hand_over(folder: &Path) -> Result<()> {
    if rustix::process::geteuid().is_root() {
        let (user, group) = UNPRIVILEGED;
        let status = std::process::Command::new("chown")
            .arg("-R")
            .arg(format!("{user}:{group}"))
            .arg(folder)
            .status()?;
        ensure!(status.success(), "chown {}", folder.display());
    }
    Ok(())
}
