//! A private Redis server. It starts in milliseconds, so each test has one of its own.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use fred::interfaces::ClientLike;
use fred::types::config::{Config, ServerConfig};
use fred::types::{Builder, CustomCommand};
use tempfile::TempDir;

use crate::address;
use crate::certificate::Certificate;
use crate::clock::Clock;
use crate::command::bound_command;
use crate::process::Process;
use crate::settings::Settings;

/// A Redis server in a folder of its own, on an unused loopback address.
#[derive(Debug)]
pub struct RedisServer {
    process: Option<Process>,
    folder: TempDir,
    /// Certificate for TLS, without which connections are in cleartext.
    certificate: Option<Certificate>,
    /// Further environment variables.
    environment: Settings,
    /// Further arguments.
    arguments: Vec<String>,
    pub address: SocketAddr,
}

impl RedisServer {
    /// Starts an empty server.
    ///
    /// # Errors
    /// Returns an error if Redis is not installed or does not start.
    pub fn start() -> Result<Self> {
        Self::start_with(address::unused_loopback(), &[])
    }

    /// Like [`RedisServer::start`], at a given address and with further arguments.
    ///
    /// # Errors
    /// Returns an error if Redis is not installed or does not start.
    pub fn start_with(address: SocketAddr, arguments: &[&str]) -> Result<Self> {
        let mut server = Self {
            process: None,
            folder: tempfile::Builder::new().prefix("redis-").tempdir()?,
            certificate: None,
            environment: Settings::new(),
            arguments: arguments.iter().copied().map(str::to_owned).collect(),
            address,
        };
        server.start_again()?;
        Ok(server)
    }

    /// Restarts the server with `certificate`, so that it accepts connections only over TLS.
    ///
    /// # Errors
    /// Returns an error if Redis does not support TLS or does not start.
    pub fn require_tls(&mut self, certificate: &Certificate) -> Result<()> {
        self.kill();
        self.certificate = Some(certificate.clone());
        self.start_again()
    }

    /// Restarts the server with a clock of its own.
    ///
    /// # Errors
    /// Returns an error if libfaketime is not installed or Redis does not start.
    pub fn use_clock(&mut self, clock: &Clock) -> Result<()> {
        self.kill();
        self.environment = clock.environment()?;
        self.start_again()
    }

    /// Starts the server again after [`RedisServer::kill`], on the same data and address.
    ///
    /// # Errors
    /// Returns an error if Redis does not start.
    pub fn start_again(&mut self) -> Result<()> {
        let mut command = bound_command("redis-server");
        command
            .arg("--dir")
            .arg(self.folder.path())
            .args(["--bind", &self.address.ip().to_string()])
            .args(["--save", ""])
            .args(["--appendonly", "yes", "--appendfsync", "always"])
            .args(&self.arguments)
            .envs(self.environment.iter().cloned());
        let port = self.address.port().to_string();
        match &self.certificate {
            None => command.args(["--port", &port]),
            Some(certificate) => command
                .args(["--port", "0", "--tls-port", &port])
                .arg("--tls-cert-file")
                .arg(&certificate.cert_file)
                .arg("--tls-key-file")
                .arg(&certificate.key_file)
                .args(["--tls-auth-clients", "no"]),
        };
        let log_file = self.folder.path().join("log");
        let mut process = Process::start("redis-server", &mut command, &log_file)?;
        process.wait_until_listening(self.address)?;
        self.process = Some(process);
        Ok(())
    }

    /// Kills the server, which simulates a crash.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Kills the server and deletes its data, which simulates the loss of its disk.
    ///
    /// # Errors
    /// Returns an error if the data cannot be deleted.
    pub fn lose_data(&mut self) -> Result<()> {
        self.kill();
        std::fs::remove_dir_all(self.folder.path().join("appendonlydir"))
            .context("deleting Redis' files")
    }

    /// Returns the running process, for signals such as SIGSTOP.
    #[must_use]
    pub fn process(&self) -> Option<&Process> {
        self.process.as_ref()
    }

    /// Connects to the server, so that a test can inspect or change what a program stored.
    ///
    /// # Errors
    /// Returns an error if the connection fails.
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
    /// Changes a setting of the running server.
    ///
    /// # Errors
    /// Returns an error if the server rejects it.
    pub async fn set_config(&self, name: &str, value: &str) -> Result<()> {
        let config = CustomCommand::new_static("CONFIG", None, false);
        let client = self.connect().await?;
        let _: () = client.custom(config, vec!["SET", name, value]).await?;
        Ok(())
    }
}
