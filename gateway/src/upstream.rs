//! Upstream: the endpoints of the configured servers, their health, and load balancing among them.

mod balance;
mod connection;
mod connection_slots;
mod endpoint;
mod health;
mod pool;
mod probe;
mod resolver;
mod response_headers;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use arc_swap::ArcSwap;
use pingora::connectors::TransportConnector;
use pingora::connectors::http::Connector;

use crate::config::{HealthCheckMethod, HealthCheckSettings, LoadBalancingSettings, Server};
use crate::features::circuit_breaker::Permission;
use crate::runtime::clock::Instant;
use crate::telemetry::metrics::Metrics;
use balance::{Candidates, NoEndpoint};
pub(crate) use connection::{Connection, UpstreamError, UpstreamEvent};
pub(crate) use connection_slots::Overflow;
pub(crate) use endpoint::{ConnectError, ConnectionReuse, Endpoint, InFlight};
pub(crate) use health::HealthStatus;
pub(crate) use resolver::Resolver;
use resolver::Urgency;

/// Endpoints that a round of health checks probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProbeScope {
    AllEndpoints,
    NotHealthy,
}

/// Endpoint of an attempt.
#[derive(Debug)]
pub(crate) struct ChosenEndpoint {
    pub(crate) in_flight: InFlight,
    /// Health of the endpoint when it was chosen.
    pub(crate) health: HealthStatus,
}

/// All endpoints of the configured servers.
pub(crate) struct UpstreamGroup {
    endpoints: ArcSwap<Vec<Arc<Endpoint>>>,
    /// Number of round-robin choices so far.
    round_robin: AtomicUsize,
    connector: TransportConnector,
    metrics: Arc<Metrics>,
}

impl UpstreamGroup {
    pub(crate) fn new(metrics: &Arc<Metrics>) -> Self {
        Self {
            endpoints: ArcSwap::default(),
            round_robin: AtomicUsize::new(0),
            connector: TransportConnector::new(None),
            metrics: Arc::clone(metrics),
        }
    }

    pub(crate) fn endpoints(&self) -> Arc<Vec<Arc<Endpoint>>> {
        self.endpoints.load_full()
    }

    /// Returns a connection to an endpoint. If the gateway has no socket left, closes all idle
    /// connections and makes a second attempt.
    ///
    /// # Errors
    /// Returns an error if no connection is established within `timeout`.
    pub(crate) async fn connect(
        &self,
        endpoint: &Endpoint,
        reuse: ConnectionReuse,
        timeout: Duration,
    ) -> Result<Connection, ConnectError> {
        let result = endpoint.connect(&self.connector, reuse, timeout).await;
        if let Err(ConnectError::NoSocket) = result {
            for other in self.endpoints().iter() {
                other.pool.clear();
            }
            return endpoint
                .connect(&self.connector, ConnectionReuse::Forbidden, timeout)
                .await;
        }
        result
    }

    /// Chooses the endpoint for an attempt: one that is healthy, if any is, that has the circuit breaker's
    /// `permission`, and preferably not `previous`, the endpoint of the previous attempt.
    ///
    /// # Errors
    /// Returns an error if there is none.
    pub(crate) fn choose(
        &self,
        load_balancing: LoadBalancingSettings,
        previous: Option<SocketAddr>,
        permission: impl Fn(&Endpoint) -> Permission,
    ) -> Result<ChosenEndpoint, NoEndpoint> {
        let endpoints = self.endpoints.load();
        let candidates = Candidates::select(&endpoints, previous, permission)?;
        let endpoint = candidates.choose(load_balancing, &self.round_robin);
        Ok(ChosenEndpoint {
            in_flight: InFlight::new(endpoint),
            health: candidates.health(),
        })
    }

    /// Resolves the names of the servers, adds endpoints for new addresses, and removes the others. A
    /// name that cannot be resolved, or whose lookup is in progress, keeps its endpoints.
    pub(crate) async fn resolve(&self, servers: &[Server], resolver: &mut Resolver) {
        let current = self.endpoints();
        let urgency = if current.is_empty() {
            Urgency::NoEndpoint
        } else {
            Urgency::EndpointsKnown
        };
        let results = resolver.resolve(servers, urgency).await;
        let mut endpoints: Vec<Arc<Endpoint>> = Vec::new();
        for (server, addresses) in servers.iter().zip(results) {
            let addresses = addresses.unwrap_or_else(|| {
                let known = current.iter().filter(|endpoint| endpoint.server == *server);
                known.map(|endpoint| endpoint.address).collect()
            });
            for address in addresses {
                if has_address(&endpoints, address) {
                    continue;
                }
                let known = current
                    .iter()
                    .find(|endpoint| endpoint.address == address && endpoint.server == *server);
                endpoints
                    .push(known.map_or_else(|| self.new_endpoint(address, server), Arc::clone));
            }
        }
        self.replace_endpoints(&current, endpoints);
    }

    fn new_endpoint(&self, address: SocketAddr, server: &Server) -> Arc<Endpoint> {
        tracing::info!(endpoint = %address, %server, "endpoint added");
        let metrics = self.metrics.endpoint(&address.to_string());
        Arc::new(Endpoint::new(address, server, metrics))
    }

    fn replace_endpoints(&self, current: &[Arc<Endpoint>], endpoints: Vec<Arc<Endpoint>>) {
        let is_unchanged = current.len() == endpoints.len()
            && current
                .iter()
                .zip(&endpoints)
                .all(|(before, after)| Arc::ptr_eq(before, after));
        if is_unchanged {
            return;
        }
        for removed in current
            .iter()
            .filter(|endpoint| !has_address(&endpoints, endpoint.address))
        {
            tracing::info!(endpoint = %removed.address, "endpoint removed");
            self.metrics.remove_endpoint(&removed.address.to_string());
        }
        self.endpoints.store(Arc::new(endpoints));
    }

    /// Probes the endpoints of `scope` concurrently, and returns those that have recovered. Without a method of
    /// health checks, endpoints that could not be connected return in the rounds for all.
    pub(crate) async fn probe(
        &self,
        scope: ProbeScope,
        connector: &Connector,
        settings: &HealthCheckSettings,
    ) -> Vec<SocketAddr> {
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
                let recovered = endpoint.probe(connector, settings).await;
                recovered.then_some(endpoint.address)
            });
        let recovered = futures::future::join_all(probes).await;
        recovered.into_iter().flatten().collect()
    }

    /// Closes idle connections that have expired or that the endpoints have closed.
    pub(crate) fn close_expired_connections(&self, now: Instant) {
        for endpoint in self.endpoints().iter() {
            endpoint.pool.close_expired(now);
        }
    }
}

fn has_address(endpoints: &[Arc<Endpoint>], address: SocketAddr) -> bool {
    endpoints.iter().any(|endpoint| endpoint.address == address)
}

impl fmt::Debug for UpstreamGroup {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("UpstreamGroup")
            .field("endpoints", &self.endpoints)
            .finish_non_exhaustive()
    }
}
