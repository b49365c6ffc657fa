//! Endpoints of an upstream group: kept up to date by name resolution, chosen from for each attempt.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::config::{LoadBalancingSettings, Server};
use crate::features::circuit_breaker::Permission;
use crate::runtime::clock::Instant;
use crate::telemetry::metrics::Metrics;
use crate::upstream::balance::{self, NoEndpoint};
use crate::upstream::endpoint::{ChosenEndpoint, Endpoint, InFlight};
use crate::upstream::resolver::{Resolver, Urgency};

/// Endpoints of the group with one name. A reload that keeps the name keeps the endpoints, with their
/// pools and their health.
#[derive(Debug)]
pub(crate) struct EndpointSet {
    /// Name of the group.
    name: String,
    endpoints: ArcSwap<Vec<Arc<Endpoint>>>,
    /// Number of round-robin draws so far.
    round_robin: AtomicUsize,
    /// True once the names of the servers have been looked up.
    is_resolved: watch::Sender<bool>,
    metrics: Arc<Metrics>,
}

impl EndpointSet {
    pub(super) fn new(name: &str, metrics: &Arc<Metrics>) -> Self {
        Self {
            name: name.to_owned(),
            endpoints: ArcSwap::default(),
            round_robin: AtomicUsize::new(0),
            is_resolved: watch::Sender::new(false),
            metrics: Arc::clone(metrics),
        }
    }

    pub(super) fn all(&self) -> Arc<Vec<Arc<Endpoint>>> {
        self.endpoints.load_full()
    }

    /// Chooses the endpoint for an attempt: one that is healthy, if any is, that has the circuit breaker's
    /// `permission`, and preferably not `previous`, the endpoint of the previous attempt.
    ///
    /// # Errors
    /// Returns an error if there is none.
    pub(super) fn choose(
        &self,
        load_balancing: LoadBalancingSettings,
        previous: Option<SocketAddr>,
        permission: impl Fn(&Endpoint) -> Permission,
    ) -> Result<ChosenEndpoint, NoEndpoint> {
        let endpoints = self.endpoints.load();
        let choice = balance::choose(
            &endpoints,
            previous,
            load_balancing,
            &self.round_robin,
            permission,
        )?;
        Ok(ChosenEndpoint {
            in_flight: InFlight::new(choice.endpoint),
            health: choice.health,
        })
    }

    /// Resolves the names of the servers, adds endpoints for new addresses, and removes the others. A
    /// name that cannot be resolved, or whose lookup is in progress, keeps its endpoints.
    pub(super) async fn resolve(&self, servers: &[Server], resolver: &mut Resolver) {
        let current = self.all();
        let urgency = if current.is_empty() {
            Urgency::NoEndpoint
        } else {
            Urgency::EndpointsKnown
        };
        self.metrics.set_endpoint_count(&self.name, current.len());
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
        self.replace(&current, endpoints);
        self.is_resolved.send_replace(true);
    }

    /// Returns whether the names of the servers have been looked up.
    pub(super) fn is_resolved(&self) -> bool {
        *self.is_resolved.borrow()
    }

    /// Waits until the names of the servers have been looked up.
    pub(super) async fn resolution(&self) {
        let mut is_resolved = self.is_resolved.subscribe();
        // The sender is a part of `self`.
        let _ = is_resolved.wait_for(|is_resolved| *is_resolved).await;
    }

    fn new_endpoint(&self, address: SocketAddr, server: &Server) -> Arc<Endpoint> {
        tracing::info!(upstream = self.name, endpoint = %address, %server, "endpoint added");
        let metrics = self.metrics.endpoint(&self.name, &address.to_string());
        Arc::new(Endpoint::new(&self.name, address, server, metrics))
    }

    fn replace(&self, current: &[Arc<Endpoint>], endpoints: Vec<Arc<Endpoint>>) {
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
            self.on_removal(removed);
        }
        self.metrics.set_endpoint_count(&self.name, endpoints.len());
        self.endpoints.store(Arc::new(endpoints));
    }

    fn on_removal(&self, removed: &Endpoint) {
        tracing::info!(upstream = self.name, endpoint = %removed.address, "endpoint removed");
        self.metrics
            .remove_endpoint(&self.name, &removed.address.to_string());
    }

    /// Ends the metrics of the endpoints, after the group was removed from the configuration. The endpoints
    /// stay, for requests that began before.
    pub(crate) fn retire(&self) {
        for endpoint in self.all().iter() {
            self.on_removal(endpoint);
        }
        self.metrics.remove_upstream(&self.name);
    }

    /// Closes idle connections that have expired or that the endpoints have closed.
    pub(super) fn close_expired_connections(&self, now: Instant) {
        for endpoint in self.all().iter() {
            endpoint.pool.close_expired(now);
        }
    }

    /// Closes all idle connections, to free their file descriptors.
    pub(super) fn close_idle_connections(&self) {
        for endpoint in self.all().iter() {
            endpoint.pool.clear();
        }
    }
}

fn has_address(endpoints: &[Arc<Endpoint>], address: SocketAddr) -> bool {
    endpoints.iter().any(|endpoint| endpoint.address == address)
}
