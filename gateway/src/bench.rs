//! Support for benchmarks and allocation tests of the hot path: the decisions about a request, without
//! network I/O.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method, StatusCode};

use crate::client::ClientKey;
use crate::config::{Config, Environment};
use crate::features::monitoring;
use crate::features::rate_limit::{QuotaDecision, QuotaStore};
use crate::path;
use crate::proxy::route::Routes;
use crate::runtime::clock::Instant;
use crate::telemetry::metrics::Metrics;
use crate::upstream::Upstreams;

/// Decisions about synthetic requests of several clients, to paths that several patterns match.
#[derive(Debug)]
pub struct DecisionBench {
    routes: Routes,
    quotas: QuotaStore,
    paths: Vec<String>,
    clients: u32,
    headers: HeaderMap,
    /// Pseudo-random number that selects client and path of the next request.
    number: u32,
}

impl DecisionBench {
    /// Creates requests of `clients` clients, each to one of `patterns` patterns.
    ///
    /// # Panics
    /// Panics if there are no patterns, or too many for the path matcher.
    #[must_use]
    pub fn new(patterns: usize, clients: u32) -> Self {
        let mut yaml = String::from("premier:\n  paths:\n");
        for number in 0..patterns {
            let rule = "rate_limit: {quota: 1000000, duration: 60}, monitoring: {log_threshold: 5}";
            writeln!(
                yaml,
                "    - {{pattern: /api/v{number}/*, features: {{{rule}}}}}"
            )
            .expect("writing to a String cannot fail");
        }
        let config = Config::parse("gateway.yml".as_ref(), &yaml, &Environment::for_tests())
            .expect("the configuration is valid");
        let (quotas, metrics) = (QuotaStore::new(), Arc::new(Metrics::new("bench")));
        let upstreams = Upstreams::new(&config, &metrics, None).expect("no server needs TLS");
        let routes = Routes::new(&config, &upstreams, &quotas, &metrics, None)
            .expect("the patterns are small");
        let paths = (0..patterns).map(|number| format!("/api/v{number}/profile"));
        Self {
            routes,
            quotas,
            paths: paths.collect(),
            clients,
            headers: HeaderMap::new(),
            number: 0,
        }
    }

    /// Decides about the next request: normalises its path, finds its route, takes from its quota,
    /// updates the metrics and checks whether it was slow. Returns true if it passes and is not slow.
    pub fn decide(&mut self) -> bool {
        self.advance();
        let client = Ipv4Addr::from(self.number % self.clients);
        let path = &self.paths[self.number as usize % self.paths.len()];
        let now = Instant::now();
        let Ok(path) = path::normalise(path.as_bytes()) else {
            return false;
        };
        let route = self.routes.get(self.routes.find(None, &path));
        let Some(quota) = &route.quota else {
            return false;
        };
        let key = ClientKey::from(IpAddr::V4(client));
        let decision = quota.take(&self.quotas, key, &path, &self.headers, now);
        route.metrics.quota_passed.inc();
        route
            .metrics
            .count_request(&Method::GET, Some(StatusCode::OK));
        let duration = Duration::from_micros(300);
        route.metrics.duration.observe(duration.as_secs_f64());
        let is_slow = monitoring::is_slow(route.monitoring, duration);
        matches!(decision, QuotaDecision::Passed(_)) && !is_slow
    }

    /// Finds the route of the next request. Returns its index.
    pub fn find(&mut self) -> usize {
        self.advance();
        let path = &self.paths[self.number as usize % self.paths.len()];
        self.routes.find(None, path)
    }

    /// Selects the next request by a linear congruential generator (Numerical Recipes, section 7.1), so
    /// that neither caches nor branch predictors can learn the sequence.
    fn advance(&mut self) {
        self.number = self
            .number
            .wrapping_mul(1_664_525)
            .wrapping_add(1_013_904_223);
    }
}
