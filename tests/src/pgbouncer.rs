//! A private PgBouncer in front of a PostgreSQL database.

use std::fs;
use std::net::SocketAddr;

use anyhow::Result;
use tempfile::TempDir;

use crate::address;
use crate::command::{chown_to_unprivileged, unprivileged_command};
use crate::postgres::{Database, PASSWORD, USER};
use crate::process::Process;
use crate::settings::{Settings, postgres_settings, settings};

/// A connection pooler in transaction mode: a client has a server connection for one transaction.
#[derive(Debug)]
pub struct PgBouncer {
    // Fields drop in this order: the process exits before its folder is removed.
    _process: Process,
    _folder: TempDir,
    pub address: SocketAddr,
    database: String,
}

impl PgBouncer {
    /// Starts a pooler with at most two connections to `database`.
    ///
    /// # Errors
    /// Returns an error if PgBouncer is not installed or does not start.
    pub fn start(database: &Database) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("pgbouncer-").tempdir()?;
        let address = address::unused_loopback();
        let (users_file, config_file) = (folder.path().join("users"), folder.path().join("config"));
        fs::write(&users_file, format!("\"{USER}\" \"{PASSWORD}\"\n"))?;
        let config = format!(
            "[databases]\n* = host={} port={}\n[pgbouncer]\nlisten_addr = {}\nlisten_port = {}\n\
             unix_socket_dir =\nauth_type = scram-sha-256\nauth_file = {}\npool_mode = transaction\n\
             default_pool_size = 2\nmax_client_conn = 200\n",
            database.server.ip(),
            database.server.port(),
            address.ip(),
            address.port(),
            users_file.display(),
        );
        fs::write(&config_file, config)?;
        chown_to_unprivileged(folder.path())?;
        let mut command = unprivileged_command("/usr/sbin/pgbouncer");
        command.arg(&config_file);
        let log_file = folder.path().join("log");
        let mut process = Process::start("pgbouncer", &mut command, &log_file)?;
        process.wait_until_listening(address)?;
        Ok(Self {
            _process: process,
            _folder: folder,
            address,
            database: database.name.clone(),
        })
    }

    /// Returns auth-api's settings for the database behind this pooler.
    #[must_use]
    pub fn settings(&self) -> Settings {
        let mut all = postgres_settings(self.address, &self.database);
        all.extend(settings([("DB_POOL_MODE", "transaction".to_owned())]));
        all
    }
}
