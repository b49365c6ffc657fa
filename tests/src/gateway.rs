//! A running gateway, in front of whatever answers at the addresses that it is given.

use std::io::PipeWriter;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::certificate::Certificate;
use crate::client::{Client, HOST, Protocol, new_address};
use crate::process::{Process, bound, program};
use crate::replica::{Environment, answers};
use crate::{address, wait};

/// How a [`Gateway`] is to be started.
#[derive(Debug)]
pub struct Setup {
    servers: Vec<SocketAddr>,
    config: String,
    settings: Environment,
    output: Option<PipeWriter>,
}

impl Setup {
    /// A gateway.yml of the test's own. What it leaves out comes from the environment, which the
    /// harness sets: addresses, certificate and servers.
    #[must_use]
    pub fn config(mut self, yaml: &str) -> Self {
        yaml.clone_into(&mut self.config);
        self
    }

    /// A further environment variable.
    #[must_use]
    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Where its standard output goes, if not into its log.
    #[must_use]
    pub fn printing_to(mut self, output: PipeWriter) -> Self {
        self.output = Some(output);
        self
    }

    /// Starts it and waits until it serves.
    ///
    /// # Errors
    /// When it does not come up; the error has what it printed.
    pub async fn start(self) -> Result<Gateway> {
        let folder = tempfile::Builder::new().prefix("gateway-").tempdir()?;
        let certificate = Certificate::make(folder.path(), "cert", &[HOST, "127.0.0.1"])?;
        std::fs::write(folder.path().join("gateway.yml"), &self.config)?;
        let (address, admin) = (address::free(), address::free());
        let servers: Vec<_> = self
            .servers
            .iter()
            .map(|server| format!("http://{server}"))
            .collect();
        let mut command = bound(program("gateway"));
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("LOG_LEVEL", "DEBUG")
            .env("LOG_FORMAT", "json")
            .env("GATEWAY_HTTPS", address.to_string())
            .env("GATEWAY_ADMIN", admin.to_string())
            .env("GATEWAY_SERVERS", servers.join(","))
            .env("GATEWAY_UPGRADE_SOCKET", folder.path().join("upgrade.sock"))
            .env("SSL_CERTFILE", &certificate.cert)
            .env("SSL_KEYFILE", &certificate.key)
            .envs(self.settings)
            .current_dir(folder.path());
        let log = folder.path().join("gateway.log");
        let process = match self.output {
            None => Process::start("gateway", &mut command, &log)?,
            Some(output) => Process::start_printing("gateway", &mut command, output.into(), &log)?,
        };
        let mut gateway = Gateway {
            process,
            address,
            admin,
            certificate,
            command,
            folder,
        };
        let operator = gateway.operator()?;
        answers(&operator, "/health", || gateway.process.must_run()).await?;
        wait::until("the https listener", async || {
            TcpStream::connect(address).await.is_ok()
        })
        .await?;
        Ok(gateway)
    }
}

/// A running gateway.
#[derive(Debug)]
pub struct Gateway {
    // Dropped in this order: the process ends before its folder goes.
    pub process: Process,
    /// Where clients reach it.
    pub address: SocketAddr,
    /// Its admin listener.
    pub admin: SocketAddr,
    pub certificate: Certificate,
    command: Command,
    folder: TempDir,
}

impl Gateway {
    /// A gateway before these servers, to be refined and started.
    #[must_use]
    pub fn before(servers: &[SocketAddr]) -> Setup {
        Setup {
            servers: servers.to_vec(),
            config: "premier: {}".to_owned(),
            settings: Environment::new(),
            output: None,
        }
    }

    /// A client that nobody has seen before.
    ///
    /// # Errors
    /// When the client library cannot start.
    pub fn client(&self) -> Result<Client> {
        self.client_speaking(Protocol::Negotiated)
    }

    /// A client that nobody has seen before, that speaks `protocol`.
    ///
    /// # Errors
    /// When the client library cannot start.
    pub fn client_speaking(&self, protocol: Protocol) -> Result<Client> {
        Client::new(self.address, &self.certificate, new_address(), protocol)
    }

    /// A client of the admin listener.
    ///
    /// # Errors
    /// When the client library cannot start.
    pub fn operator(&self) -> Result<Client> {
        Client::plain(self.admin)
    }

    /// The configuration file, to be edited by a test.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.folder.path().join("gateway.yml")
    }

    /// Starts a second one with the same settings and these arguments.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn again(&mut self, arguments: &[&str]) -> Result<Process> {
        let log = self.folder.path().join("second.log");
        Process::start("gateway", self.command.args(arguments), &log)
    }

    /// A metric's value, by its name and labels as they are written.
    ///
    /// # Errors
    /// When the admin listener does not answer.
    pub async fn metric(&self, name: &str, labels: &[&str]) -> Result<Option<f64>> {
        let text = self.operator()?.get("/metrics").await?.text;
        let is_it = |line: &&str| {
            let metric = line.split(['{', ' ']).next();
            metric == Some(name) && labels.iter().all(|label| line.contains(label))
        };
        let line = text.lines().find(is_it);
        Ok(line.and_then(|line| line.rsplit(' ').next()?.parse().ok()))
    }

    /// Until no request is under way any more.
    ///
    /// # Errors
    /// When that does not come.
    pub async fn until_quiet(&self) -> Result<()> {
        wait::until("the requests in flight to end", async || {
            let in_flight = self.metric("gateway_requests_in_flight", &[]).await;
            in_flight.is_ok_and(|count| count == Some(0.0))
        })
        .await
    }

    /// Until no client is connected any more.
    ///
    /// # Errors
    /// When that does not come.
    pub async fn until_deserted(&self) -> Result<()> {
        wait::until("the connections to end", async || {
            let connections = self.metric("gateway_connections", &[]).await;
            connections.is_ok_and(|count| count == Some(0.0))
        })
        .await
    }
}
