//! Upstream group: servers with their load balancing and health checks.

use std::net::SocketAddr;
use std::sync::Arc;

use pingora::connectors::http::Connector;

use crate::config::{HealthCheckMethod, UpstreamSettings};
use crate::features::circuit_breaker::Permission;
use crate::runtime::clock::Instant;
use crate::upstream::balance::NoEndpoint;
use crate::upstream::endpoint::{ChosenEndpoint, Endpoint};
use crate::upstream::endpoint_set::EndpointSet;
use crate::upstream::health::HealthStatus;
use crate::upstream::resolver::Resolver;

/// Endpoints that a round of health checks probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProbeScope {
    AllEndpoints,
    NotHealthy,
}

/// Group of servers as one configuration has it. Its endpoints outlive the configuration.
#[derive(Debug)]
pub(crate) struct UpstreamGroup {
    pub(crate) settings: UpstreamSettings,
    endpoints: Arc<EndpointSet>,
}

impl UpstreamGroup {
    pub(super) fn new(settings: UpstreamSettings, endpoints: Arc<EndpointSet>) -> Self {
        Self {
            settings,
            endpoints,
        }
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
    pub(crate) async fn probe(&self, scope: ProbeScope, connector: &Connector) -> Vec<SocketAddr> {
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
                let recovered = endpoint.probe(connector, settings).await;
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
