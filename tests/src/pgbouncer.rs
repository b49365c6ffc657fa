//! A private `PgBouncer` in front of a PostgreSQL server.

use std::net::SocketAddr;

use anyhow::Result;
use tempfile::TempDir;

use crate::postgres::{Database, PASSWORD, USER, hand_over};
use crate::process::{Process, bound_and_unprivileged};
use crate::{address, wait};

/// A pooler that lends a server's connection for one transaction.
#[derive(Debug)]
pub struct PgBouncer {
    // Ends before its folder goes.
    _process: Process,
    _folder: TempDir,
    pub address: SocketAddr,
}

impl PgBouncer {
    /// Starts one before `database`, with no more than two connections to it.
    ///
    /// # Errors
    /// When it is not installed or does not start.
    pub fn before(database: &Database) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("pgbouncer-").tempdir()?;
        let address = address::free();
        let (users, config) = (folder.path().join("users"), folder.path().join("config"));
        std::fs::write(&users, format!("\"{USER}\" \"{PASSWORD}\"\n"))?;
        let text = format!(
            "[databases]\n* = host={} port={}\n[pgbouncer]\nlisten_addr = {}\nlisten_port = {}\n\
             unix_socket_dir =\nauth_type = scram-sha-256\nauth_file = {}\npool_mode = transaction\n\
             default_pool_size = 2\nmax_client_conn = 200\n",
            database.server.ip(),
            database.server.port(),
            address.ip(),
            address.port(),
            users.display(),
        );
        std::fs::write(&config, text)?;
        hand_over(folder.path())?;
        let mut command = bound_and_unprivileged("/usr/sbin/pgbouncer");
        command.arg(&config);
        let log = folder.path().join("log");
        let mut process = Process::start("pgbouncer", &mut command, &log)?;
        while process.is_running() && std::net::TcpStream::connect(address).is_err() {
            std::thread::sleep(wait::PAUSE);
        }
        process.must_run()?;
        Ok(Self {
            _process: process,
            _folder: folder,
            address,
        })
    }
}
