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

/// Endpoint that a request is forwarded to.
pub(super) struct Choice<'e> {
    pub(super) endpoint: &'e Arc<Endpoint>,
    pub(super) health: HealthStatus,
}

/// Draws after which all endpoints are searched. Few draws fail unless most endpoints cannot be used.
const MAX_DRAWS: usize = 4;

/// Chooses the endpoint for a request: one that is healthy, if any is, that has the circuit breaker's `permission`, and
/// preferably not `previous`, the endpoint of the previous attempt. `round_robin` is the number of earlier draws.
///
/// # Errors
/// Returns an error if there is none.
pub(super) fn choose<'e>(
    endpoints: &'e [Arc<Endpoint>],
    previous: Option<SocketAddr>,
    load_balancing: LoadBalancingSettings,
    round_robin: &AtomicUsize,
    permission: impl Fn(&Endpoint) -> Permission,
) -> Result<Choice<'e>, NoEndpoint> {
    let mut candidates = Candidates {
        endpoints,
        health: HealthStatus::Healthy,
        excluded: previous,
        permission,
        count: 0,
    };
    let drawn = candidates
        .draw_by(load_balancing.strategy, round_robin)
        .filter(|endpoint| has_free_connection(endpoint, load_balancing));
    let endpoint = if let Some(endpoint) = drawn {
        endpoint
    } else {
        candidates.select_class()?;
        candidates.choose(load_balancing, round_robin)
    };
    Ok(Choice {
        endpoint,
        health: candidates.health,
    })
}

fn has_free_connection(endpoint: &Endpoint, load_balancing: LoadBalancingSettings) -> bool {
    endpoint.connections_in_use() < load_balancing.endpoint_limits.max_connections
}

/// Endpoints that a request may be forwarded to. They are counted and not collected, which saves an
/// allocation for each request.
struct Candidates<'e, P> {
    endpoints: &'e [Arc<Endpoint>],
    health: HealthStatus,
    excluded: Option<SocketAddr>,
    permission: P,
    count: usize,
}

impl<'e, P: Fn(&Endpoint) -> Permission> Candidates<'e, P> {
    /// Draws from all endpoints as the strategy does from the candidates. A candidate is as likely as if it was drawn
    /// from them, without searching them: the time does not depend on the number of endpoints. Returns `None` if the
    /// first draws were no candidates.
    fn draw_by(
        &self,
        strategy: BalancingStrategy,
        round_robin: &AtomicUsize,
    ) -> Option<&'e Arc<Endpoint>> {
        match strategy {
            BalancingStrategy::RoundRobin => {
                self.draw(|| round_robin.fetch_add(1, Ordering::Relaxed))
            }
            BalancingStrategy::Random => self.draw(|| fastrand::usize(..)),
            BalancingStrategy::LeastRequests => {
                let first = self.draw(|| fastrand::usize(..))?;
                let second = self.draw(|| fastrand::usize(..))?;
                Some(less_loaded(first, second))
            }
        }
    }

    fn draw(&self, mut number: impl FnMut() -> usize) -> Option<&'e Arc<Endpoint>> {
        (0..MAX_DRAWS)
            .filter_map(|_| {
                let index = number().checked_rem(self.endpoints.len())?;
                self.endpoints.get(index)
            })
            .find(|endpoint| self.contains(endpoint))
    }

    /// Selects the endpoints of the first of these classes that is not empty: healthy, health unknown,
    /// the same with the endpoint of the previous attempt, and then the unhealthy ones in
    /// the same order. The circuit breaker's permission is needed in any case.
    ///
    /// With every endpoint unhealthy, the health checks are more likely wrong than all endpoints are useless:
    /// requests are tried all the same (panic mode, as Envoy's).
    ///
    /// # Errors
    /// Returns an error if all classes are empty.
    fn select_class(&mut self) -> Result<(), NoEndpoint> {
        let previous = self.excluded;
        for (health, excluded) in [
            (HealthStatus::Healthy, previous),
            (HealthStatus::Unknown, previous),
            (HealthStatus::Healthy, None),
            (HealthStatus::Unknown, None),
            (HealthStatus::Unhealthy, previous),
            (HealthStatus::Unhealthy, None),
        ] {
            self.health = health;
            self.excluded = excluded;
            self.count = self.iter().count();
            if self.count > 0 {
                return Ok(());
            }
        }
        Err(NoEndpoint {
            retry_after: self.retry_after(),
        })
    }

    /// Returns the endpoint that the strategy chooses, or the least loaded one if that has no connection free.
    fn choose(
        &self,
        load_balancing: LoadBalancingSettings,
        round_robin: &AtomicUsize,
    ) -> &'e Arc<Endpoint> {
        let chosen = self.choose_by(load_balancing.strategy, round_robin);
        if has_free_connection(chosen, load_balancing) {
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
            BalancingStrategy::LeastRequests => less_loaded(self.random(), self.random()),
        }
    }

    fn random(&self) -> &'e Arc<Endpoint> {
        self.nth(fastrand::usize(..self.count))
    }

    fn iter(&self) -> impl Iterator<Item = &'e Arc<Endpoint>> {
        self.endpoints
            .iter()
            .filter(|endpoint| self.contains(endpoint))
    }

    fn contains(&self, endpoint: &Endpoint) -> bool {
        endpoint.health() == self.health
            && Some(endpoint.address) != self.excluded
            && (self.permission)(endpoint) == Permission::Granted
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

/// Returns the endpoint with fewer requests in flight of two random ones: power of two choices
/// (Mitzenmacher 2001). The least loaded of all would attract the requests of several gateways at
/// once.
fn less_loaded<'e>(first: &'e Arc<Endpoint>, second: &'e Arc<Endpoint>) -> &'e Arc<Endpoint> {
    if second.in_flight() < first.in_flight() {
        second
    } else {
        first
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::net::Ipv4Addr;

    use super::*;
    use crate::config::{EndpointLimits, Scheme, Server};
    use crate::telemetry::metrics::Metrics;

    const STRATEGIES: [BalancingStrategy; 3] = [
        BalancingStrategy::LeastRequests,
        BalancingStrategy::Random,
        BalancingStrategy::RoundRobin,
    ];
    const CHOICES: usize = 12_000;

    /// Returns one endpoint for each health, with the index as the last byte of its address.
    fn endpoints(health: &[HealthStatus]) -> Vec<Arc<Endpoint>> {
        let metrics = Metrics::new("test");
        let server = Server {
            scheme: Scheme::Http,
            host: "localhost".to_owned(),
            port: 80,
        };
        (0..)
            .zip(health)
            .map(|(index, health)| {
                let address = SocketAddr::from((Ipv4Addr::new(10, 0, 0, index), 80));
                let metrics = metrics.endpoint("default", &address.to_string());
                let endpoint = Endpoint::new("default", address, &server, metrics);
                endpoint.set_health(*health, "test");
                Arc::new(endpoint)
            })
            .collect()
    }

    /// Returns how often each endpoint is chosen.
    fn choices(
        endpoints: &[Arc<Endpoint>],
        previous: Option<SocketAddr>,
        strategy: BalancingStrategy,
        permission: impl Fn(&Endpoint) -> Permission + Copy,
    ) -> HashMap<SocketAddr, usize> {
        let load_balancing = LoadBalancingSettings {
            strategy,
            endpoint_limits: EndpointLimits {
                max_connections: 1,
                max_pending_requests: 1,
            },
        };
        let round_robin = AtomicUsize::new(0);
        let mut counts = HashMap::new();
        for _ in 0..CHOICES {
            let choice = choose(
                endpoints,
                previous,
                load_balancing,
                &round_robin,
                permission,
            );
            let choice = choice.unwrap_or_else(|error| panic!("{strategy:?}: {error:?}"));
            assert_eq!(choice.health, choice.endpoint.health());
            *counts.entry(choice.endpoint.address).or_default() += 1;
        }
        counts
    }

    #[test]
    fn all_candidates_are_equally_likely() {
        use HealthStatus::{Healthy, Unhealthy, Unknown};
        let endpoints = endpoints(&[Unknown, Healthy, Unhealthy, Healthy, Healthy, Healthy]);
        let (previous, denied) = (endpoints[3].address, endpoints[4].address);
        let permission = |endpoint: &Endpoint| {
            if endpoint.address == denied {
                let retry_after = Duration::from_secs(1);
                Permission::Denied { retry_after }
            } else {
                Permission::Granted
            }
        };
        for strategy in STRATEGIES {
            let counts = choices(&endpoints, Some(previous), strategy, permission);
            assert_eq!(counts.len(), 2, "{strategy:?}: {counts:?}");
            for index in [1, 5] {
                let count = counts[&endpoints[index].address];
                let expected = CHOICES * 45 / 100..CHOICES * 55 / 100;
                assert!(expected.contains(&count), "{strategy:?}: {counts:?}");
            }
        }
    }

    #[test]
    fn the_only_healthy_one_of_many_is_always_chosen() {
        let mut health = [HealthStatus::Unhealthy; 100];
        health[17] = HealthStatus::Healthy;
        let endpoints = endpoints(&health);
        for strategy in STRATEGIES {
            let counts = choices(&endpoints, None, strategy, |_| Permission::Granted);
            let expected = HashMap::from([(endpoints[17].address, CHOICES)]);
            assert_eq!(counts, expected, "{strategy:?}");
        }
    }
}
