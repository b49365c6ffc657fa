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

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::{BTreeMap, BTreeSet};
    use std::io;

    use futures::FutureExt;
    use futures::future::BoxFuture;
    use proptest::collection::{btree_set, vec};
    use proptest::prelude::*;
    use proptest::sample::{select, subsequence};

    use super::*;
    use crate::config::{BalancingStrategy, EndpointLimits};
    use crate::upstream::health::HealthStatus;
    use crate::upstream::resolver::Addresses;

    const NAMES: [&str; 3] = ["a", "b", "c"];
    const LOAD_BALANCING: LoadBalancingSettings = LoadBalancingSettings {
        strategy: BalancingStrategy::LeastRequests,
        endpoint_limits: EndpointLimits {
            max_connections: 10,
            max_pending_requests: 10,
        },
    };

    thread_local! {
        /// Last bytes of the addresses that each name has; a name that is not in it cannot be resolved.
        static NAME_SERVER: RefCell<BTreeMap<String, BTreeSet<u8>>> = RefCell::default();
    }

    #[expect(
        clippy::needless_pass_by_value,
        reason = "the signature of a lookup, which takes the server into its future"
    )]
    fn look_up(server: Server) -> BoxFuture<'static, Addresses> {
        let found = NAME_SERVER.with_borrow(|names| names.get(&server.host).cloned());
        let addresses = found.map(|found| found.into_iter().map(address).collect());
        let addresses = addresses.ok_or_else(|| io::Error::other("the name server is down"));
        async { addresses }.boxed()
    }

    fn address(last_byte: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last_byte], 80))
    }

    /// Step of a run. A number selects one of the endpoints or of the requests.
    #[derive(Debug, Clone)]
    enum Step {
        /// A name gets other addresses.
        SetAddresses(&'static str, BTreeSet<u8>),
        /// A name can be resolved no more.
        Fail(&'static str),
        /// A round of the discovery, after a reload with these servers.
        Resolve(Vec<&'static str>),
        SetHealth(usize, HealthStatus),
        BeginRequest,
        EndRequest(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let health = select(vec![HealthStatus::Healthy, HealthStatus::Unhealthy]);
        prop_oneof![
            3 => (select(NAMES.to_vec()), btree_set(1..6_u8, 1..4))
                .prop_map(|(name, addresses)| Step::SetAddresses(name, addresses)),
            1 => select(NAMES.to_vec()).prop_map(Step::Fail),
            4 => subsequence(NAMES.to_vec(), 1..=3).prop_map(Step::Resolve),
            3 => (0..8_usize, health).prop_map(|(number, health)| Step::SetHealth(number, health)),
            3 => Just(Step::BeginRequest),
            2 => (0..8_usize).prop_map(Step::EndRequest),
        ]
    }

    /// Endpoint as the model has it, which is an endpoint of the set as long as its server has its address.
    struct ModelEndpoint {
        endpoint: Arc<Endpoint>,
        server: &'static str,
        health: HealthStatus,
    }

    fn requests_at(requests: &[InFlight], endpoint: &Arc<Endpoint>) -> usize {
        let is_at = |request: &&InFlight| std::ptr::eq(request.endpoint(), &raw const **endpoint);
        requests.iter().filter(is_at).count()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        /// An endpoint keeps its state as long as its server has its address, or cannot be resolved. It is chosen no more
        /// after that, and an endpoint with its address that comes later begins anew.
        #[test]
        fn endpoints_keep_their_state_over_reloads_and_removed_ones_are_not_chosen(
            steps in vec(step(), 0..50),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .unwrap();
            NAME_SERVER.with_borrow_mut(BTreeMap::clear);
            let set = EndpointSet::new("default", &Arc::new(Metrics::new("test")));
            let mut resolver = Resolver::with_lookup(look_up);
            let mut model: Vec<ModelEndpoint> = Vec::new();
            let mut requests: Vec<InFlight> = Vec::new();
            for step in steps {
                match step.clone() {
                    Step::SetAddresses(name, addresses) => {
                        NAME_SERVER.with_borrow_mut(|names| names.insert(name.to_owned(), addresses));
                    }
                    Step::Fail(name) => {
                        NAME_SERVER.with_borrow_mut(|names| names.remove(name));
                    }
                    Step::Resolve(names) => {
                        let servers: Vec<Server> =
                            names.iter().map(|name| format!("http://{name}").parse().unwrap()).collect();
                        runtime.block_on(set.resolve(&servers, &mut resolver));
                        let all = set.all();
                        let mut next: Vec<ModelEndpoint> = Vec::new();
                        for name in names {
                            let found = NAME_SERVER.with_borrow(|names| names.get(name).cloned());
                            let addresses: Vec<_> = match found {
                                Some(found) => found.into_iter().map(address).collect(),
                                None => model
                                    .iter()
                                    .filter(|known| known.server == name)
                                    .map(|known| known.endpoint.address)
                                    .collect(),
                            };
                            for address in addresses {
                                if next.iter().any(|one| one.endpoint.address == address) {
                                    continue;
                                }
                                let known = model
                                    .iter()
                                    .find(|one| one.endpoint.address == address && one.server == name);
                                let Some(endpoint) = all.get(next.len()) else {
                                    return Err(TestCaseError::fail(format!("{address} is missing")));
                                };
                                prop_assert_eq!(endpoint.address, address);
                                if let Some(known) = known {
                                    prop_assert!(Arc::ptr_eq(endpoint, &known.endpoint));
                                } else {
                                    let is_old = |one: &ModelEndpoint| Arc::ptr_eq(endpoint, &one.endpoint);
                                    prop_assert!(!model.iter().any(is_old));
                                }
                                next.push(ModelEndpoint {
                                    endpoint: Arc::clone(endpoint),
                                    server: name,
                                    health: known.map_or(HealthStatus::Unknown, |known| known.health),
                                });
                            }
                        }
                        prop_assert_eq!(all.len(), next.len());
                        model = next;
                    }
                    Step::SetHealth(number, health) => {
                        let Some(index) = number.checked_rem(model.len()) else { continue };
                        model[index].endpoint.set_health(health, "test");
                        model[index].health = health;
                    }
                    Step::BeginRequest => {
                        let chosen = set.choose(LOAD_BALANCING, None, |_| Permission::Granted);
                        prop_assert_eq!(chosen.is_ok(), !model.is_empty());
                        let Ok(chosen) = chosen else { continue };
                        let is_it = |one: &&ModelEndpoint| {
                            std::ptr::eq(chosen.in_flight.endpoint(), &raw const *one.endpoint)
                        };
                        let Some(known) = model.iter().find(is_it) else {
                            return Err(TestCaseError::fail("a removed endpoint was chosen"));
                        };
                        prop_assert_eq!(chosen.health, known.health);
                        let has_healthy = model.iter().any(|one| one.health == HealthStatus::Healthy);
                        prop_assert!(known.health == HealthStatus::Healthy || !has_healthy);
                        requests.push(chosen.in_flight);
                    }
                    Step::EndRequest(number) => {
                        let Some(index) = number.checked_rem(requests.len()) else { continue };
                        requests.swap_remove(index);
                    }
                }
                for one in &model {
                    prop_assert_eq!(one.endpoint.health(), one.health);
                    let in_flight = one.endpoint.in_flight();
                    prop_assert_eq!(in_flight, requests_at(&requests, &one.endpoint), "after {:?}", step);
                }
            }
        }
    }
}
