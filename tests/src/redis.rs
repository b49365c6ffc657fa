//! A private Redis server: it starts in milliseconds, so each test has its own.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use fred::interfaces::ClientLike;
use fred::types::Builder;
use fred::types::config::{Config, ServerConfig};
use tempfile::TempDir;

use crate::process::{Process, bound};
use crate::{address, wait};

/// A Redis server in a folder of its own, on a free port of loopback.
#[derive(Debug)]
pub struct Server {
    process: Option<Process>,
    folder: TempDir,
    pub address: SocketAddr,
}

impl Server {
    /// Starts one, empty.
    ///
    /// # Errors
    /// When Redis is not installed or does not start.
    pub fn start() -> Result<Self> {
        let mut server = Self {
            process: None,
            folder: tempfile::Builder::new().prefix("redis-").tempdir()?,
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
        let mut command = bound("redis-server");
        command
            .arg("--dir")
            .arg(self.folder.path())
            .args(["--bind", &self.address.ip().to_string()])
            .args(["--port", &self.address.port().to_string()])
            .args([
                "--save",
                "",
                "--appendonly",
                "yes",
                "--appendfsync",
                "always",
            ]);
        let log = self.folder.path().join("log");
        let mut process = Process::start("redis-server", &mut command, &log)?;
        let address = self.address;
        while process.is_running() && std::net::TcpStream::connect(address).is_err() {
            std::thread::sleep(wait::PAUSE);
        }
        process.must_run()?;
        self.process = Some(process);
        Ok(())
    }

    /// Kills it, as a crash would.
    pub fn stop(&mut self) {
        self.process = None;
    }

    /// The process, for signals such as a pause.
    #[must_use]
    pub fn process(&self) -> Option<&Process> {
        self.process.as_ref()
    }

    /// A connection of the test's own, to look at what a program stored.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn connect(&self) -> Result<fred::clients::Client> {
        let config = Config {
            server: ServerConfig::new_centralized(
                self.address.ip().to_string(),
                self.address.port(),
            ),
            ..Config::default()
        };
        let client = Builder::from_config(config).build()?;
        client.init().await.context("connecting to Redis")?;
        Ok(client)
    }
}
