//! Upstream group: servers with their load balancing, health checks and TLS settings.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;

use crate::config::{HealthCheckMethod, Scheme, UpstreamSettings};
use crate::features::circuit_breaker::Permission;
use crate::runtime::clock::Instant;
use crate::telemetry::metrics::Metrics;
use crate::upstream::balance::NoEndpoint;
use crate::upstream::connect_error::ConnectError;
use crate::upstream::connection::Connection;
use crate::upstream::connector::{Connector, SharedConnector};
use crate::upstream::endpoint::{ChosenEndpoint, ConnectionReuse, Endpoint};
use crate::upstream::endpoint_set::EndpointSet;
use crate::upstream::health::HealthStatus;
use crate::upstream::resolver::Resolver;
use crate::upstream::tls::TlsClient;

/// Endpoints that a round of health checks probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProbeScope {
    AllEndpoints,
    NotHealthy,
}

/// Group of servers as one configuration has it. Its endpoints outlive the configuration.
pub(crate) struct UpstreamGroup {
    pub(crate) settings: UpstreamSettings,
    endpoints: Arc<EndpointSet>,
    connector: SharedConnector,
    /// `None` if no server has `https`.
    tls: Option<Arc<TlsClient>>,
}

impl UpstreamGroup {
    /// Creates a group. It shares the endpoints of `previous`, the group of the same name, and its TLS client if the
    /// settings of that are the same.
    ///
    /// # Errors
    /// Returns an error if the authorities that the system trusts are needed and cannot be read.
    pub(super) fn new(
        settings: UpstreamSettings,
        previous: Option<&Self>,
        metrics: &Arc<Metrics>,
        connector: &SharedConnector,
    ) -> Result<Self> {
        let endpoints = match previous {
            Some(previous) => Arc::clone(&previous.endpoints),
            None => Arc::new(EndpointSet::new(&settings.name, metrics)),
        };
        let needs_tls = settings
            .servers
            .iter()
            .any(|server| server.scheme == Scheme::Https);
        let known_tls = previous
            .filter(|previous| previous.settings.tls == settings.tls)
            .and_then(|previous| previous.tls.as_ref());
        let tls = match known_tls {
            _ if !needs_tls => None,
            Some(tls) => Some(Arc::clone(tls)),
            None => Some(Arc::new(TlsClient::new(&settings.tls)?)),
        };
        Ok(Self {
            settings,
            endpoints,
            connector: Arc::clone(connector),
            tls,
        })
    }

    fn connector(&self) -> Connector<'_> {
        Connector {
            stream: &*self.connector,
            tls: self.tls.as_ref(),
        }
    }

    /// Returns a connection to an endpoint.
    ///
    /// # Errors
    /// Returns an error if a new connection is needed and cannot be established within `timeout`.
    pub(super) async fn connect(
        &self,
        endpoint: &Endpoint,
        reuse: ConnectionReuse,
        timeout: Duration,
    ) -> Result<Connection, ConnectError> {
        endpoint.connect(self.connector(), reuse, timeout).await
    }

    pub(crate) fn name(&self) -> &str {
        &self.settings.name
    }

    pub(crate) fn endpoints(&self) -> Arc<Vec<Arc<Endpoint>>> {
        self.endpoints.all()
    }

    /// Returns the set of endpoints, which outlives a reload that keeps the name of the group.
    pub(crate) fn endpoint_set(&self) -> &Arc<EndpointSet> {
        &self.endpoints
    }

    /// Returns the number of healthy endpoints.
    pub(crate) fn healthy_endpoints(&self) -> usize {
        let endpoints = self.endpoints();
        endpoints
            .iter()
            .filter(|endpoint| endpoint.health() == HealthStatus::Healthy)
            .count()
    }

    /// Chooses the endpoint for an attempt: one that is healthy, if any is, that has the circuit breaker's
    /// `permission`, and preferably not `previous`, the endpoint of the previous attempt.
    ///
    /// # Errors
    /// Returns an error if there is none.
    pub(crate) fn choose(
        &self,
        previous: Option<SocketAddr>,
        permission: impl Fn(&Endpoint) -> Permission,
    ) -> Result<ChosenEndpoint, NoEndpoint> {
        self.endpoints
            .choose(self.settings.load_balancing, previous, permission)
    }

    /// Returns whether the names of the servers have been looked up: not yet if a reload has just added the group.
    pub(crate) fn is_resolved(&self) -> bool {
        self.endpoints.is_resolved()
    }

    /// Waits until the names of the servers have been looked up.
    pub(crate) async fn resolution(&self) {
        self.endpoints.resolution().await;
    }

    /// Resolves the names of the servers and updates the endpoints.
    pub(crate) async fn resolve(&self, resolver: &mut Resolver) {
        self.endpoints
            .resolve(&self.settings.servers, resolver)
            .await;
    }

    /// Probes the endpoints of `scope` concurrently, and returns those that have recovered. Without a method of
    /// health checks, endpoints that could not be connected return in the rounds for all.
    pub(crate) async fn probe(&self, scope: ProbeScope) -> Vec<SocketAddr> {
        let settings = &self.settings.health_check;
        if settings.method == HealthCheckMethod::None && scope == ProbeScope::NotHealthy {
            return Vec::new();
        }
        let endpoints = self.endpoints();
        let probes = endpoints
            .iter()
            .filter(|endpoint| {
                scope == ProbeScope::AllEndpoints || endpoint.health() != HealthStatus::Healthy
            })
            .map(async |endpoint| {
                let recovered = endpoint.probe(self.connector(), settings).await;
                recovered.then_some(endpoint.address)
            });
        let recovered = futures::future::join_all(probes).await;
        recovered.into_iter().flatten().collect()
    }

    /// Closes idle connections that have expired or that the endpoints have closed.
    pub(crate) fn close_expired_connections(&self, now: Instant) {
        self.endpoints.close_expired_connections(now);
    }

    /// Closes all idle connections, to free their file descriptors.
    pub(super) fn close_idle_connections(&self) {
        self.endpoints.close_idle_connections();
    }
}

impl fmt::Debug for UpstreamGroup {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("UpstreamGroup")
            .field("settings", &self.settings)
            .field("endpoints", &self.endpoints)
            .finish_non_exhaustive()
    }
}
