//! What benchmarks and tests of the hot path need: the decisions about a request, without the
//! request.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method, StatusCode};

use crate::client::ClientKey;
use crate::config::{Config, Environment};
use crate::features::monitoring;
use crate::features::rate_limit::{QuotaStore, Verdict};
use crate::metrics::Metrics;
use crate::moment::Moment;
use crate::path;
use crate::route::Routes;

/// Everything that is decided about requests of so many clients under so many patterns.
#[derive(Debug)]
pub struct Decisions {
    routes: Routes,
    store: QuotaStore,
    paths: Vec<String>,
    clients: u32,
    headers: HeaderMap,
    number: u32,
}

impl Decisions {
    /// # Panics
    /// When there are no patterns, or too many for a matcher.
    #[must_use]
    pub fn new(patterns: usize, clients: u32) -> Self {
        let mut yaml = String::from("premier:\n  paths:\n");
        for number in 0..patterns {
            let rule = "rate_limit: {quota: 1000000, duration: 60}, monitoring: {log_threshold: 5}";
            writeln!(
                yaml,
                "    - {{pattern: /api/v{number}/*, features: {{{rule}}}}}"
            )
            .expect("a String takes everything");
        }
        let config = Config::parse("gateway.yml".as_ref(), &yaml, &Environment::for_tests())
            .expect("it was written here");
        let (store, metrics) = (QuotaStore::new(), Arc::new(Metrics::new("bench")));
        let routes = Routes::new(&config, &store, &metrics, None).expect("the patterns are small");
        let paths = (0..patterns).map(|number| format!("/api/v{number}/profile"));
        Self {
            routes,
            store,
            paths: paths.collect(),
            clients,
            headers: HeaderMap::new(),
            number: 0,
        }
    }

    /// Decides about the next request: path, route, quota, metrics, and whether it was slow. Whether
    /// it may pass.
    pub fn decide(&mut self) -> bool {
        self.next();
        let client = Ipv4Addr::from(self.number % self.clients);
        let path = &self.paths[self.number as usize % self.paths.len()];
        let now = Moment::now();
        let Ok(path) = path::normalise(path.as_bytes()) else {
            return false;
        };
        let route = self.routes.get(self.routes.find(&path));
        let Some(quota) = &route.quota else {
            return false;
        };
        let key = ClientKey::from(IpAddr::V4(client));
        let verdict = quota.take(&self.store, key, &path, &self.headers, now);
        route.metrics.quota_passed.inc();
        route.metrics.answered(&Method::GET, Some(StatusCode::OK));
        let took = Duration::from_micros(300);
        route.metrics.duration.observe(took.as_secs_f64());
        let is_slow = monitoring::is_slow(route.monitoring, took);
        matches!(verdict, Verdict::Passed(_)) && !is_slow
    }

    /// Finds the route of the next request and nothing else.
    pub fn find(&mut self) -> usize {
        self.next();
        let path = &self.paths[self.number as usize % self.paths.len()];
        self.routes.find(path)
    }

    /// A number that follows no pattern which a cache could learn (Numerical Recipes, section 7.1).
    fn next(&mut self) {
        self.number = self
            .number
            .wrapping_mul(1_664_525)
            .wrapping_add(1_013_904_223);
    }
}
