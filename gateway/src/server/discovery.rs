//! Service discovery and active health checks: the names of the servers are resolved periodically, so
//! that scaling needs no reload, and the endpoints are probed.
//!
//! Invariant: each upstream group has rounds of its own, so that a group whose probes or lookups take long
//! delays no other, and one task at a time that changes its endpoints.

use std::collections::HashSet;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use pingora::server::ShutdownWatch;
use pingora::services::ServiceReadyNotifier;
use pingora::services::background::BackgroundService;
use supervision::Supervisor;
use tokio::sync::watch;

use crate::proxy::state::{ActiveConfig, GatewayState};
use crate::runtime::clock::Instant;
use crate::upstream::{EndpointSet, ProbeScope, Resolver, UpstreamGroup};

/// Factor by which endpoints that are not healthy are probed more often, so that they return soon.
const UNHEALTHY_PROBE_FACTOR: u32 = 4;
/// Longest time that the first round of a group may delay the start.
const START_TIMEOUT: Duration = Duration::from_secs(1);

/// Name of the task in the metrics.
const TASK: &str = "discovery";

/// Background task that keeps the endpoints of all groups and their health up to date.
#[derive(Debug)]
pub(crate) struct Discovery {
    pub(crate) gateway: Arc<GatewayState>,
    pub(crate) supervisor: Supervisor,
}

/// Signal that starts the listener once every copy of it is dropped.
type Ready = Option<Arc<ServiceReadyNotifier>>;

#[async_trait]
impl BackgroundService for Discovery {
    // The endpoints stay up to date after a shutdown has begun, while requests in flight are drained.
    async fn start_with_ready_notifier(&self, _: ShutdownWatch, ready: ServiceReadyNotifier) {
        let mut ready = Some(Arc::new(ready));
        self.supervisor.run(TASK, || self.run(ready.take())).await;
    }
}

impl Discovery {
    /// Runs the rounds of all groups without end. After the first round of each, or if one panics, `ready` is
    /// dropped, which starts the listener: the first request finds the endpoints.
    async fn run(&self, mut ready: Ready) {
        let mut changes = self.gateway.config_changed.subscribe();
        let mut running = HashSet::new();
        let mut groups = FuturesUnordered::new();
        loop {
            changes.borrow_and_update();
            for group in self.gateway.snapshot().upstreams.all() {
                if running.insert(group.name().to_owned()) {
                    let task = GroupDiscovery::new(&self.gateway, group);
                    groups.push(task.run(ready.clone(), changes.clone()));
                }
            }
            ready = None;
            tokio::select! {
                // The sender is a part of the state and is not dropped.
                _ = changes.changed() => {}
                Some(removed) = groups.next() => {
                    running.remove(&removed);
                }
            }
        }
    }
}

/// Rounds of one upstream group.
struct GroupDiscovery<'g> {
    gateway: &'g GatewayState,
    /// Name of the group.
    name: String,
    endpoints: Arc<EndpointSet>,
    resolver: Resolver,
}

impl<'g> GroupDiscovery<'g> {
    fn new(gateway: &'g GatewayState, group: &UpstreamGroup) -> Self {
        Self {
            gateway,
            name: group.name().to_owned(),
            endpoints: Arc::clone(group.endpoint_set()),
            resolver: Resolver::new(),
        }
    }

    /// Runs rounds until a reload has removed the group. Returns its name.
    async fn run(mut self, ready: Ready, mut changes: watch::Receiver<()>) -> String {
        {
            let mut first = pin!(self.round(ProbeScope::AllEndpoints));
            let is_complete = tokio::time::timeout(START_TIMEOUT, &mut first)
                .await
                .is_ok();
            drop(ready);
            if !is_complete {
                first.await;
            }
        }
        for round in 1_u32.. {
            let Some(interval) = self.interval() else {
                break;
            };
            let is_full_round =
                round.is_multiple_of(UNHEALTHY_PROBE_FACTOR) || self.has_no_endpoint();
            let mut scope = if is_full_round {
                ProbeScope::AllEndpoints
            } else {
                ProbeScope::NotHealthy
            };
            tokio::select! {
                () = tokio::time::sleep(interval) => {}
                // The new configuration may name other servers.
                _ = changes.changed() => scope = ProbeScope::AllEndpoints,
            }
            self.round(scope).await;
        }
        self.endpoints.retire();
        self.name
    }

    async fn round(&mut self, scope: ProbeScope) {
        let active = self.gateway.snapshot();
        let Some(group) = active.upstreams.by_name(&self.name) else {
            return;
        };
        self.follow(group);
        if scope == ProbeScope::AllEndpoints {
            group.resolve(&mut self.resolver).await;
            retain_breakers(&active, group);
        }
        let recovered = group.probe(scope).await;
        let now = Instant::now();
        for address in recovered {
            // The configuration may have been replaced during the probes.
            let active = self.gateway.current();
            active.routes.probe_breakers(&self.name, address, now);
        }
        group.close_expired_connections(Instant::now());
    }

    /// Ends the metrics of the endpoints of a group of the same name that two reloads have removed and added
    /// again.
    fn follow(&mut self, group: &UpstreamGroup) {
        if !Arc::ptr_eq(&self.endpoints, group.endpoint_set()) {
            self.endpoints.retire();
            self.endpoints = Arc::clone(group.endpoint_set());
        }
    }

    fn has_no_endpoint(&self) -> bool {
        let active = self.gateway.current();
        let group = active.upstreams.by_name(&self.name);
        group.is_none_or(|group| group.endpoints().is_empty())
    }

    /// Returns the time until the next round, `None` if the group is no longer configured.
    fn interval(&self) -> Option<Duration> {
        let active = self.gateway.current();
        let group = active.upstreams.by_name(&self.name)?;
        Some(group.settings.health_check.interval / UNHEALTHY_PROBE_FACTOR)
    }
}

/// Removes the circuit breakers of endpoints that a group no longer has.
fn retain_breakers(active: &ActiveConfig, group: &UpstreamGroup) {
    let all = group.endpoints();
    active.routes.retain_breakers(group.name(), |address| {
        all.iter().any(|endpoint| endpoint.address == address)
    });
}
