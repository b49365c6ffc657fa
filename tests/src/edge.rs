//! The whole thing: the gateway in front of replicas of auth-api, as an operator starts it.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Result;

use crate::address;
use crate::certificate::Certificate;
use crate::client::{Client, HOST, Protocol, new_address};
use crate::process::Process;
use crate::replica::{Environment, Replicas, Store, answers};

/// The configuration that a test gets unless it brings its own.
const PATHS: &str = r#"
premier:
  paths:
    - pattern: "/api/*"
      features:
        monitoring: {log_threshold: 5.0}
"#;

/// How an [`Edge`] is to be started.
#[derive(Debug)]
pub struct Setup {
    store: Store,
    replicas: usize,
    config: String,
    settings: Environment,
}

impl Setup {
    /// So many replicas of auth-api instead of two.
    #[must_use]
    pub fn replicas(mut self, count: usize) -> Self {
        self.replicas = count;
        self
    }

    /// A gateway.yml of the test's own. What it leaves out comes from the environment, which the
    /// harness sets: addresses, certificate and servers.
    #[must_use]
    pub fn config(mut self, yaml: &str) -> Self {
        yaml.clone_into(&mut self.config);
        self
    }

    /// A further setting of both programs.
    #[must_use]
    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts everything and waits until it answers.
    ///
    /// # Errors
    /// When a part does not come up; the error has what it printed.
    pub async fn start(self) -> Result<Edge> {
        let replicas = Replicas::start_with(self.store, self.replicas, self.settings).await?;
        Edge::start(replicas, &self.config).await
    }
}

/// A running gateway with its replicas and their stores.
#[derive(Debug)]
pub struct Edge {
    // Dropped in this order: the gateway ends before what it needs.
    pub gateway: Process,
    pub replicas: Replicas,
    /// Where clients reach it.
    pub address: SocketAddr,
    /// The gateway's admin listener.
    pub admin: SocketAddr,
    pub certificate: Certificate,
}

impl Edge {
    /// An edge with two replicas on `store`, to be refined and started.
    #[must_use]
    pub fn on(store: Store) -> Setup {
        Setup {
            store,
            replicas: 2,
            config: PATHS.to_owned(),
            settings: Environment::new(),
        }
    }

    async fn start(replicas: Replicas, config: &str) -> Result<Self> {
        let certificate = Certificate::make(replicas.folder(), "cert", &[HOST, "127.0.0.1"])?;
        std::fs::write(replicas.folder().join("gateway.yml"), config)?;
        let (address, admin) = (address::free(), address::free());
        let servers: Vec<_> = replicas
            .all
            .iter()
            .map(|replica| format!("http://{}", replica.address))
            .collect();
        let mut command = replicas.command("gateway");
        command
            .env("GATEWAY_HTTPS", address.to_string())
            .env("GATEWAY_ADMIN", admin.to_string())
            .env("GATEWAY_SERVERS", servers.join(","))
            .env("SSL_CERTFILE", &certificate.cert)
            .env("SSL_KEYFILE", &certificate.key);
        let log = replicas.folder().join("gateway.log");
        let mut edge = Self {
            gateway: Process::start("gateway", &mut command, &log)?,
            replicas,
            address,
            admin,
            certificate,
        };
        let client = edge.client()?;
        answers(&client, "/health", || edge.gateway.must_run()).await?;
        Ok(edge)
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

    /// A client of the gateway's admin listener.
    ///
    /// # Errors
    /// When the client library cannot start.
    pub fn operator(&self) -> Result<Client> {
        Client::plain(self.admin)
    }

    /// The gateway's configuration file, to be edited by a test.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.replicas.folder().join("gateway.yml")
    }

    /// Everything that the gateway and the replicas have printed.
    #[must_use]
    pub fn logs(&self) -> String {
        self.gateway.log() + &self.replicas.logs()
    }
}
