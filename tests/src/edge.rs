//! The whole product: the gateway in front of replicas of auth-api.

use anyhow::Result;

use crate::client::{Client, Protocol};
use crate::gateway::{Gateway, GatewayBuilder};
use crate::replicas::{Replicas, Store};
use crate::settings::Settings;

/// Default content of `gateway.yml`.
const DEFAULT_CONFIG: &str = r#"
premier:
  paths:
    - pattern: "/api/*"
      features:
        monitoring: {log_threshold: 5.0}
"#;
const REPLICAS: usize = 2;

/// Options of an [`Edge`] that is to be started.
#[derive(Debug)]
pub struct EdgeBuilder {
    store: Store,
    settings: Settings,
    gateway: GatewayBuilder,
}

impl EdgeBuilder {
    /// Sets the content of `gateway.yml`, see [`GatewayBuilder::config`].
    #[must_use]
    pub fn config(mut self, yaml: &str) -> Self {
        self.gateway = self.gateway.config(yaml);
        self
    }

    /// Sets a further environment variable of auth-api.
    #[must_use]
    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets a further environment variable of the gateway.
    #[must_use]
    pub fn set_gateway(mut self, name: &str, value: &str) -> Self {
        self.gateway = self.gateway.set(name, value);
        self
    }

    /// Starts all programs and waits until the gateway returns responses of auth-api.
    ///
    /// # Errors
    /// Returns an error with the program's log if one does not start.
    pub async fn start(self) -> Result<Edge> {
        let replicas = Replicas::start_with(self.store, REPLICAS, self.settings).await?;
        let addresses: Vec<_> = replicas
            .instances
            .iter()
            .map(|replica| replica.address)
            .collect();
        let gateway = self.gateway.upstream(&addresses).start().await?;
        let mut edge = Edge { gateway, replicas };
        let client = edge.client()?;
        client
            .wait_until_ok("/health", || edge.gateway.process.ensure_running())
            .await?;
        Ok(edge)
    }
}

/// A running gateway with its replicas of auth-api and their stores.
#[derive(Debug)]
pub struct Edge {
    // Fields drop in this order: the gateway exits before its replicas.
    pub gateway: Gateway,
    pub replicas: Replicas,
}

impl Edge {
    /// Returns a builder of an edge with two replicas on a new `store`.
    #[must_use]
    pub fn builder(store: Store) -> EdgeBuilder {
        EdgeBuilder {
            store,
            settings: Settings::new(),
            gateway: Gateway::builder(&[]).config(DEFAULT_CONFIG),
        }
    }

    /// Returns a client with a new source address.
    ///
    /// # Errors
    /// Returns an error if the client cannot be built.
    pub fn client(&self) -> Result<Client> {
        self.gateway.client()
    }

    /// Returns a client with a new source address that uses `protocol`.
    ///
    /// # Errors
    /// Returns an error if the client cannot be built.
    pub fn client_with_protocol(&self, protocol: Protocol) -> Result<Client> {
        self.gateway.client_with_protocol(protocol)
    }

    /// Returns the logs of the gateway and of all replicas so far.
    #[must_use]
    pub fn logs(&self) -> String {
        self.gateway.process.log() + &self.replicas.logs()
    }
}
