//! The whole thing: the gateway in front of replicas of auth-api, as an operator starts it.

use anyhow::Result;

use crate::client::{Client, Protocol};
use crate::gateway::Gateway;
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

    /// A gateway.yml of the test's own, as for [`Gateway::before`].
    #[must_use]
    pub fn config(mut self, yaml: &str) -> Self {
        yaml.clone_into(&mut self.config);
        self
    }

    /// A further setting of auth-api.
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
        let addresses: Vec<_> = replicas.all.iter().map(|one| one.address).collect();
        let gateway = Gateway::before(&addresses)
            .config(&self.config)
            .start()
            .await?;
        let mut edge = Edge { gateway, replicas };
        let client = edge.client()?;
        answers(&client, "/health", || edge.gateway.process.must_run()).await?;
        Ok(edge)
    }
}

/// A running gateway with its replicas and their stores.
#[derive(Debug)]
pub struct Edge {
    // Dropped in this order: the gateway ends before what it needs.
    pub gateway: Gateway,
    pub replicas: Replicas,
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

    /// A client that nobody has seen before.
    ///
    /// # Errors
    /// When the client library cannot start.
    pub fn client(&self) -> Result<Client> {
        self.gateway.client()
    }

    /// A client that nobody has seen before, that speaks `protocol`.
    ///
    /// # Errors
    /// When the client library cannot start.
    pub fn client_speaking(&self, protocol: Protocol) -> Result<Client> {
        self.gateway.client_speaking(protocol)
    }

    /// Everything that the gateway and the replicas have printed.
    #[must_use]
    pub fn logs(&self) -> String {
        self.gateway.process.log() + &self.replicas.logs()
    }
}
