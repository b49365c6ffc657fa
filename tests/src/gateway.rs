//! A gateway process in front of given upstream servers.

use std::io::PipeWriter;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::address::{random_loopback, unused_loopback};
use crate::certificate::Certificate;
use crate::client::{Client, HOST, Protocol, Response};
use crate::command::{bound_command, program_path};
use crate::process::Process;
use crate::settings::Settings;
use crate::wait;

/// Options of a [`Gateway`] that is to be started.
#[derive(Debug)]
pub struct GatewayBuilder {
    upstream: Vec<SocketAddr>,
    config: String,
    settings: Settings,
    stdout: Option<PipeWriter>,
}

impl GatewayBuilder {
    /// Sets the addresses of the upstream servers.
    #[must_use]
    pub(crate) fn upstream(mut self, addresses: &[SocketAddr]) -> Self {
        self.upstream = addresses.to_vec();
        self
    }

    /// Sets the content of `gateway.yml`. The harness sets listen addresses, certificate and
    /// upstream servers by environment variables, which apply where the file sets nothing.
    #[must_use]
    pub fn config(mut self, yaml: &str) -> Self {
        yaml.clone_into(&mut self.config);
        self
    }

    /// Sets a further environment variable.
    #[must_use]
    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sends standard output to a pipe instead of the log file.
    #[must_use]
    pub fn stdout(mut self, pipe: PipeWriter) -> Self {
        self.stdout = Some(pipe);
        self
    }

    /// Starts the gateway and waits until it accepts connections.
    ///
    /// # Errors
    /// Returns an error with the gateway's log if it does not start.
    pub async fn start(self) -> Result<Gateway> {
        let folder = tempfile::Builder::new().prefix("gateway-").tempdir()?;
        let certificate = Certificate::generate(folder.path(), "cert", &[HOST, "127.0.0.1"])?;
        std::fs::write(folder.path().join("gateway.yml"), &self.config)?;
        let (address, admin_address) = (unused_loopback(), unused_loopback());
        let upstream_urls: Vec<_> = self
            .upstream
            .iter()
            .map(|address| format!("http://{address}"))
            .collect();
        let mut command = bound_command(program_path("gateway"));
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("LOG_LEVEL", "DEBUG")
            .env("LOG_FORMAT", "json")
            .env("GATEWAY_HTTPS", address.to_string())
            .env("GATEWAY_ADMIN", admin_address.to_string())
            .env("GATEWAY_SERVERS", upstream_urls.join(","))
            .env("GATEWAY_UPGRADE_SOCKET", folder.path().join("upgrade.sock"))
            .env("SSL_CERTFILE", &certificate.cert_file)
            .env("SSL_KEYFILE", &certificate.key_file)
            .envs(self.settings)
            .current_dir(folder.path());
        let log_file = folder.path().join("gateway.log");
        let process = match self.stdout {
            None => Process::start("gateway", &mut command, &log_file)?,
            Some(pipe) => {
                Process::start_with_stdout("gateway", &mut command, pipe.into(), &log_file)?
            }
        };
        let mut gateway = Gateway {
            process,
            address,
            admin_address,
            certificate,
            command,
            folder,
        };
        let admin_client = gateway.admin_client()?;
        admin_client
            .wait_until_ok("/health", || gateway.process.ensure_running())
            .await?;
        wait::until("the HTTPS listener", async || {
            TcpStream::connect(address).await.is_ok()
        })
        .await?;
        Ok(gateway)
    }
}

/// A running gateway.
#[derive(Debug)]
pub struct Gateway {
    // Fields drop in this order: the process exits before its folder is removed.
    pub process: Process,
    /// Address of the HTTPS listener.
    pub address: SocketAddr,
    /// Address of the admin listener.
    pub admin_address: SocketAddr,
    pub certificate: Certificate,
    command: Command,
    folder: TempDir,
}

impl Gateway {
    /// Returns a builder of a gateway in front of the servers at the addresses `upstream`.
    #[must_use]
    pub fn builder(upstream: &[SocketAddr]) -> GatewayBuilder {
        GatewayBuilder {
            upstream: upstream.to_vec(),
            config: "premier: {}".to_owned(),
            settings: Settings::new(),
            stdout: None,
        }
    }

    /// Starts a gateway with the configuration `yaml` in front of the server at `upstream`.
    ///
    /// # Errors
    /// Returns an error with the gateway's log if it does not start.
    pub async fn start(upstream: SocketAddr, yaml: &str) -> Result<Self> {
        Self::builder(&[upstream]).config(yaml).start().await
    }

    /// Returns a client with a new source address.
    ///
    /// # Errors
    /// Returns an error if the client cannot be built.
    pub fn client(&self) -> Result<Client> {
        self.client_with_protocol(Protocol::Negotiated)
    }

    /// Returns a client with a new source address that uses `protocol`.
    ///
    /// # Errors
    /// Returns an error if the client cannot be built.
    pub fn client_with_protocol(&self, protocol: Protocol) -> Result<Client> {
        Client::new(self.address, &self.certificate, random_loopback(), protocol)
    }

    /// Returns a client of the admin listener.
    ///
    /// # Errors
    /// Returns an error if the client cannot be built.
    pub fn admin_client(&self) -> Result<Client> {
        Client::cleartext(self.admin_address)
    }

    /// Returns the path of the configuration file, which a test may change.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.folder.path().join("gateway.yml")
    }

    /// Starts a second gateway process with the same settings and further arguments.
    ///
    /// # Errors
    /// Returns an error if the process cannot be started.
    pub fn start_second(&mut self, arguments: &[&str]) -> Result<Process> {
        let log_file = self.folder.path().join("second.log");
        // A copy, so that the next process does not get these arguments too.
        let mut command = Command::new(self.command.get_program());
        let environment = self.command.get_envs();
        command
            .args(self.command.get_args())
            .args(arguments)
            .env_clear()
            .envs(environment.filter_map(|(name, value)| Some((name, value?))))
            .current_dir(self.folder.path());
        Process::start("gateway", &mut command, &log_file)
    }

    /// Returns a metric, see [`Client::metric`].
    ///
    /// # Errors
    /// Returns an error if the admin listener does not respond.
    pub async fn metric(&self, name: &str, labels: &[&str]) -> Result<Option<f64>> {
        self.admin_client()?.metric(name, labels).await
    }

    /// Waits until a metric has the value `expected`, see [`Client::metric`].
    ///
    /// # Errors
    /// Returns an error after [`wait::TIMEOUT`].
    pub async fn wait_for_metric(&self, name: &str, labels: &[&str], expected: f64) -> Result<()> {
        wait::until(&format!("{name} to be {expected}"), async || {
            let value = self.metric(name, labels).await;
            value.is_ok_and(|value| value == Some(expected))
        })
        .await
    }

    /// Waits until no request is in flight.
    ///
    /// # Errors
    /// Returns an error after [`wait::TIMEOUT`].
    pub async fn wait_until_idle(&self) -> Result<()> {
        self.wait_for_metric("gateway_requests_in_flight", &[], 0.0)
            .await
    }

    /// Waits until no client is connected.
    ///
    /// # Errors
    /// Returns an error after [`wait::TIMEOUT`].
    pub async fn wait_until_disconnected(&self) -> Result<()> {
        self.wait_for_metric("gateway_connections", &[], 0.0).await
    }

    /// Waits until the response to a GET of `path` satisfies `condition`, with a new client and
    /// connection for each attempt.
    ///
    /// # Errors
    /// Returns an error after [`wait::TIMEOUT`].
    pub async fn wait_for_response(
        &self,
        path: &str,
        condition: impl Fn(&Response) -> bool,
    ) -> Result<()> {
        wait::until(
            &format!("the expected response to GET {path}"),
            async || {
                let Ok(client) = self.client() else {
                    return false;
                };
                let response = client.get(path).await;
                response.is_ok_and(|response| condition(&response))
            },
        )
        .await
    }
}
