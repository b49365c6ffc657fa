//! Upstreams: groups of servers, the endpoints of each, their health, and load balancing among them.

mod balance;
mod connect_error;
mod connection;
mod connection_slots;
mod connector;
mod endpoint;
mod endpoint_set;
mod group;
mod health;
mod origin_client;
mod pool;
mod probe;
mod resolver;
mod response_headers;
mod tls;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;

use crate::config::{Config, UpstreamIndex, UpstreamSettings};
use crate::telemetry::metrics::Metrics;
pub(crate) use connect_error::ConnectError;
pub(crate) use connection::{Connection, UpstreamError, UpstreamEvent};
pub(crate) use connection_slots::Overflow;
#[cfg(test)]
pub(crate) use connector::StreamConnector;
pub(crate) use connector::{SharedConnector, TcpConnector};
pub(crate) use endpoint::{ChosenEndpoint, ConnectionReuse, Endpoint, InFlight};
pub(crate) use endpoint_set::EndpointSet;
pub(crate) use group::{ProbeScope, UpstreamGroup};
pub(crate) use health::HealthStatus;
pub(crate) use origin_client::{OriginClient, OriginResponse};
pub(crate) use resolver::Resolver;

/// All upstream groups of a configuration.
pub(crate) struct Upstreams {
    /// In the order of [`Config::upstream_groups`]: the first is the default group.
    groups: Vec<Arc<UpstreamGroup>>,
    connector: SharedConnector,
}

impl Upstreams {
    /// Creates the groups of a configuration. A group whose name `previous` has too keeps its endpoints.
    ///
    /// # Errors
    /// Returns an error if a group needs the authorities that the system trusts and they cannot be read.
    pub(crate) fn new(
        config: &Config,
        metrics: &Arc<Metrics>,
        previous: Option<&Self>,
    ) -> Result<Self> {
        let connector = match previous {
            Some(previous) => Arc::clone(&previous.connector),
            None => Arc::new(TcpConnector::new()),
        };
        Self::with_connector(config, metrics, connector, previous)
    }

    /// Creates the groups of a configuration, as [`Self::new`], whose endpoints are connected to by `connector`.
    ///
    /// # Errors
    /// Returns an error, as [`Self::new`].
    pub(crate) fn with_connector(
        config: &Config,
        metrics: &Arc<Metrics>,
        connector: SharedConnector,
        previous: Option<&Self>,
    ) -> Result<Self> {
        let group = |settings: UpstreamSettings| {
            let known = previous.and_then(|previous| previous.by_name(&settings.name));
            let group =
                UpstreamGroup::new(settings, known.map(|group| &**group), metrics, &connector)?;
            Ok(Arc::new(group))
        };
        Ok(Self {
            groups: config.upstream_groups().map(group).collect::<Result<_>>()?,
            connector,
        })
    }

    /// Returns the stream connector of the gateway, which outlives a reload.
    pub(crate) fn connector(&self) -> &SharedConnector {
        &self.connector
    }

    /// Returns all groups, the default one first.
    pub(crate) fn all(&self) -> &[Arc<UpstreamGroup>] {
        &self.groups
    }

    pub(crate) fn get(&self, index: UpstreamIndex) -> &Arc<UpstreamGroup> {
        &self.groups[index.0]
    }

    pub(crate) fn by_name(&self, name: &str) -> Option<&Arc<UpstreamGroup>> {
        self.groups.iter().find(|group| group.name() == name)
    }

    /// Returns a connection to an endpoint of a group. If the gateway has no socket left, closes all idle
    /// connections and makes a second attempt.
    ///
    /// # Errors
    /// Returns an error if no connection is established within `timeout`.
    pub(crate) async fn connect(
        &self,
        group: &UpstreamGroup,
        endpoint: &Endpoint,
        reuse: ConnectionReuse,
        timeout: Duration,
    ) -> Result<Connection, ConnectError> {
        let result = group.connect(endpoint, reuse, timeout).await;
        if let Err(ConnectError::NoSocket) = result {
            for group in &self.groups {
                group.close_idle_connections();
            }
            return group
                .connect(endpoint, ConnectionReuse::Forbidden, timeout)
                .await;
        }
        result
    }
}

impl fmt::Debug for Upstreams {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Upstreams")
            .field("groups", &self.groups)
            .finish_non_exhaustive()
    }
}
