//! Load balancing: choice of the endpoint for a request.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::config::{BalancingStrategy, LoadBalancingSettings};
use crate::features::circuit_breaker::Permission;
use crate::upstream::endpoint::Endpoint;
use crate::upstream::health::HealthStatus;

/// No endpoint can take a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NoEndpoint {
    /// Time after which another attempt may succeed.
    pub(crate) retry_after: Duration,
}

/// Endpoints that a request may be forwarded to. They are counted and not collected, which saves an
/// allocation for each request.
pub(super) struct Candidates<'e, P> {
    endpoints: &'e [Arc<Endpoint>],
    health: HealthStatus,
    excluded: Option<SocketAddr>,
    permission: P,
    count: usize,
}

impl<'e, P: Fn(&Endpoint) -> Permission> Candidates<'e, P> {
    /// Selects the endpoints of the first of these classes that is not empty: healthy, health unknown,
    /// the same with `previous`, the endpoint of the previous attempt, and then the unhealthy ones in
    /// the same order. The circuit breaker's `permission` is needed in any case.
    ///
    /// With every endpoint unhealthy, the health checks are more likely wrong than all endpoints are useless:
    /// requests are tried all the same (panic mode, as Envoy's).
    ///
    /// # Errors
    /// Returns an error if all classes are empty.
    pub(super) fn select(
        endpoints: &'e [Arc<Endpoint>],
        previous: Option<SocketAddr>,
        permission: P,
    ) -> Result<Self, NoEndpoint> {
        let mut candidates = Self {
            endpoints,
            health: HealthStatus::Healthy,
            excluded: previous,
            permission,
            count: 0,
        };
        for (health, excluded) in [
            (HealthStatus::Healthy, previous),
            (HealthStatus::Unknown, previous),
            (HealthStatus::Healthy, None),
            (HealthStatus::Unknown, None),
            (HealthStatus::Unhealthy, previous),
            (HealthStatus::Unhealthy, None),
        ] {
            candidates.health = health;
            candidates.excluded = excluded;
            candidates.count = candidates.iter().count();
            if candidates.count > 0 {
                return Ok(candidates);
            }
        }
        Err(NoEndpoint {
            retry_after: candidates.retry_after(),
        })
    }

    /// Returns the health that all candidates have.
    pub(super) fn health(&self) -> HealthStatus {
        self.health
    }

    /// Returns the endpoint that the strategy chooses, or the least loaded one if that has no connection free.
    /// `round_robin` is the number of earlier choices.
    pub(super) fn choose(
        &self,
        load_balancing: LoadBalancingSettings,
        round_robin: &AtomicUsize,
    ) -> &'e Arc<Endpoint> {
        let chosen = self.choose_by(load_balancing.strategy, round_robin);
        if chosen.connections_in_use() < load_balancing.endpoint_limits.max_connections {
            return chosen;
        }
        let least_loaded = self.iter().min_by_key(|endpoint| endpoint.in_flight());
        least_loaded.unwrap_or(chosen)
    }

    fn choose_by(
        &self,
        strategy: BalancingStrategy,
        round_robin: &AtomicUsize,
    ) -> &'e Arc<Endpoint> {
        match strategy {
            BalancingStrategy::RoundRobin => {
                self.nth(round_robin.fetch_add(1, Ordering::Relaxed) % self.count)
            }
            BalancingStrategy::Random => self.random(),
            BalancingStrategy::LeastRequests => self.less_loaded_of_two(),
        }
    }

    /// Returns the endpoint with fewer requests in flight of two random ones: power of two choices
    /// (Mitzenmacher 2001). The least loaded of all would attract the requests of several gateways at
    /// once.
    fn less_loaded_of_two(&self) -> &'e Arc<Endpoint> {
        let (first, second) = (self.random(), self.random());
        if second.in_flight() < first.in_flight() {
            second
        } else {
            first
        }
    }

    fn random(&self) -> &'e Arc<Endpoint> {
        self.nth(fastrand::usize(..self.count))
    }

    fn iter(&self) -> impl Iterator<Item = &'e Arc<Endpoint>> {
        self.endpoints.iter().filter(|endpoint| {
            endpoint.health() == self.health
                && Some(endpoint.address) != self.excluded
                && (self.permission)(endpoint) == Permission::Granted
        })
    }

    /// Returns the candidate with the given number.
    fn nth(&self, number: usize) -> &'e Arc<Endpoint> {
        // An endpoint may have become unhealthy since they were counted.
        self.iter()
            .nth(number)
            .or_else(|| self.iter().next())
            .unwrap_or(&self.endpoints[0])
    }

    /// Returns the time until a circuit breaker lets a probe through, or an estimate if there is no
    /// endpoint.
    fn retry_after(&self) -> Duration {
        const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(1);
        self.endpoints
            .iter()
            .filter_map(|endpoint| match (self.permission)(endpoint) {
                Permission::Denied { retry_after } => Some(retry_after),
                Permission::Granted => None,
            })
            .min()
            .unwrap_or(DEFAULT_RETRY_AFTER)
    }
}
