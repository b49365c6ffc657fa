//! Routes: the features of each path pattern, in the table that a reload replaces.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;

use crate::config::{
    AuthRequirement, Config, Features, MonitoringSettings, PathPrefix, RetrySettings,
    TimeoutSettings, UpstreamIndex,
};
use crate::features::circuit_breaker::CircuitBreakers;
use crate::features::cors::Cors;
use crate::features::header_rules::{RequestChanges, ResponseChanges};
use crate::features::rate_limit::{Quota, QuotaRule};
use crate::features::retry::RetryBudget;
use crate::proxy::virtual_hosts::VirtualHosts;
use crate::runtime::clock::Instant;
use crate::telemetry::metrics::{Metrics, RouteMetrics};
use crate::upstream::{UpstreamGroup, Upstreams};

/// Name of the default route in metrics and logs.
const DEFAULT_ROUTE_NAME: &str = "default";

/// Path pattern, its features, and the upstream group that its requests go to. It has two cache lines, so that many
/// routes that are all in use need little of the processor's caches.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct Route {
    /// The pattern, after its hosts if it has any.
    pub(crate) pattern: Arc<str>,
    pub(crate) upstream: Arc<UpstreamGroup>,
    /// Prefix that is removed from the path before it is forwarded.
    pub(crate) strip_prefix: Option<PathPrefix>,
    pub(crate) features: Arc<RouteFeatures>,
    pub(crate) quota: Option<Quota>,
    pub(crate) retry_budget: RetryBudget,
    pub(crate) breakers: Option<Arc<CircuitBreakers>>,
    pub(crate) metrics: Arc<RouteMetrics>,
}

/// Features that have no state. Routes with the same ones share them.
#[derive(Debug)]
pub(crate) struct RouteFeatures {
    pub(crate) cors: Option<Cors>,
    pub(crate) request_headers: Option<RequestChanges>,
    pub(crate) response_headers: Option<ResponseChanges>,
    /// `None` if requests have no identity.
    pub(crate) auth: Option<AuthRequirement>,
    pub(crate) monitoring: Option<MonitoringSettings>,
    pub(crate) timeout: Option<TimeoutSettings>,
    pub(crate) retry: Option<RetrySettings>,
    quota_rule: Option<Arc<QuotaRule>>,
}

/// Compiled features, each with what it was compiled from.
#[derive(Default)]
struct KnownFeatures<'c>(Vec<(&'c Features, Arc<RouteFeatures>)>);

/// All routes, in the order of the configuration. The last one is the default route, for paths that no
/// pattern matches.
#[derive(Debug)]
pub(crate) struct Routes {
    all: Vec<Route>,
    hosts: VirtualHosts,
}

impl RouteFeatures {
    fn new(features: &Features) -> Self {
        let headers = features.headers.as_ref();
        let quota_rule = features.rate_limit.as_ref().map(QuotaRule::new);
        Self {
            cors: features.cors.as_ref().map(Cors::new),
            request_headers: headers.and_then(|rules| RequestChanges::new(&rules.request)),
            response_headers: headers.and_then(|rules| ResponseChanges::new(&rules.response)),
            auth: features.auth,
            monitoring: features.monitoring,
            timeout: features.timeout.clone(),
            retry: features.retry.clone(),
            quota_rule: quota_rule.map(Arc::new),
        }
    }
}

impl<'c> KnownFeatures<'c> {
    fn compile(&mut self, features: &'c Features) -> Arc<RouteFeatures> {
        // The last ones first: a configuration has few different ones, or each pattern has its own.
        let known = self.0.iter().rev().find(|(known, _)| *known == features);
        if let Some((_, compiled)) = known {
            return Arc::clone(compiled);
        }
        let compiled = Arc::new(RouteFeatures::new(features));
        self.0.push((features, Arc::clone(&compiled)));
        compiled
    }
}

impl Route {
    /// Returns whether the quota is counted for each user.
    pub(crate) fn counts_users(&self) -> bool {
        self.quota.as_ref().is_some_and(Quota::counts_users)
    }
}

impl Routes {
    /// Compiles the routes of a configuration to its `upstreams`. Circuit breakers and quota counters of
    /// `previous` with equal pattern and settings are kept.
    ///
    /// # Errors
    /// Returns an error if the patterns together exceed the size limit of the matcher.
    pub(crate) fn new(
        config: &Config,
        upstreams: &Upstreams,
        metrics: &Arc<Metrics>,
        previous: Option<&Self>,
    ) -> Result<Self> {
        let previous_breakers = previous.map_or_else(HashMap::new, Self::breakers_by_pattern);
        let previous_quotas = previous.map_or_else(HashMap::new, Self::quotas_by_pattern);
        let mut known_features = KnownFeatures::default();
        let mut route = |pattern: String, upstream: UpstreamIndex, strip_prefix, features| {
            let pattern = Arc::<str>::from(pattern);
            let upstream = Arc::clone(upstreams.get(upstream));
            let compiled = known_features.compile(features);
            Route {
                quota: compiled.quota_rule.as_ref().map(|rule| {
                    let previous = previous_quotas.get(&*pattern).copied();
                    Quota::with_rule(Arc::clone(&pattern), Arc::clone(rule)).replacing(previous)
                }),
                features: compiled,
                retry_budget: RetryBudget::default(),
                breakers: features.circuit_breaker.map(|settings| {
                    match previous_breakers.get(&*pattern) {
                        Some(breakers) if breakers.are_for(upstream.name(), settings) => {
                            Arc::clone(breakers)
                        }
                        _ => {
                            let upstream = upstream.name();
                            Arc::new(CircuitBreakers::new(&pattern, upstream, settings, metrics))
                        }
                    }
                }),
                metrics: metrics.route(&pattern),
                pattern,
                upstream,
                strip_prefix,
            }
        };
        let mut all: Vec<_> = config
            .paths
            .iter()
            .map(|rule| {
                let strip_prefix = rule.strip_prefix.clone();
                route(rule.name(), rule.upstream, strip_prefix, &rule.features)
            })
            .collect();
        all.push(route(
            DEFAULT_ROUTE_NAME.to_owned(),
            UpstreamIndex::DEFAULT,
            None,
            &config.default_features,
        ));
        Ok(Self {
            all,
            hosts: VirtualHosts::new(&config.paths)?,
        })
    }

    /// Returns the index of the route of a normalised path on a host, which is the value of `Host`.
    pub(crate) fn find(&self, host: Option<&str>, path: &str) -> usize {
        self.hosts
            .matcher(host)
            .find(path)
            .unwrap_or_else(|| self.default_index())
    }

    pub(crate) fn get(&self, index: usize) -> &Route {
        &self.all[index]
    }

    /// Returns the index of the default route, which also counts requests whose path is unknown.
    pub(crate) fn default_index(&self) -> usize {
        self.all.len() - 1
    }

    pub(crate) fn all(&self) -> &[Route] {
        &self.all
    }

    pub(crate) fn quotas(&self) -> impl Iterator<Item = &Quota> {
        self.all.iter().filter_map(|route| route.quota.as_ref())
    }

    pub(crate) fn patterns(&self) -> impl Iterator<Item = &str> {
        self.all.iter().map(|route| &*route.pattern)
    }

    /// Returns the circuit breakers by pattern. If a pattern is repeated, those of its first occurrence,
    /// which is the one that matches.
    fn breakers_by_pattern(&self) -> HashMap<&str, &Arc<CircuitBreakers>> {
        self.all
            .iter()
            .rev()
            .filter_map(|route| Some((&*route.pattern, route.breakers.as_ref()?)))
            .collect()
    }

    /// Returns the quotas by pattern, of each pattern the first one, as [`Self::breakers_by_pattern`].
    fn quotas_by_pattern(&self) -> HashMap<&str, &Quota> {
        self.all
            .iter()
            .rev()
            .filter_map(|route| Some((&*route.pattern, route.quota.as_ref()?)))
            .collect()
    }

    /// Returns the circuit breakers of the routes to an upstream group.
    fn breakers_of<'r>(&'r self, upstream: &'r str) -> impl Iterator<Item = &'r CircuitBreakers> {
        let routes = self.all.iter();
        routes
            .filter(move |route| route.upstream.name() == upstream)
            .filter_map(|route| route.breakers.as_deref())
    }

    /// Removes the circuit breakers of endpoints of an upstream group for which `is_current` is false.
    pub(crate) fn retain_breakers(&self, upstream: &str, is_current: impl Fn(SocketAddr) -> bool) {
        for breakers in self.breakers_of(upstream) {
            breakers.retain(&is_current);
        }
    }

    /// Lets the open circuit breakers of an endpoint that has recovered admit their probes now.
    pub(crate) fn probe_breakers(&self, upstream: &str, endpoint: SocketAddr, now: Instant) {
        for breakers in self.breakers_of(upstream) {
            breakers.probe_now(endpoint, now);
        }
    }

    /// Removes the circuit breakers that `next`, the routes that replace these, does not share.
    pub(crate) fn remove_breakers_not_in(&self, next: &Self) {
        let next_breakers = next.breakers_by_pattern();
        for (pattern, breakers) in self.breakers_by_pattern() {
            let is_shared = next_breakers
                .get(pattern)
                .is_some_and(|kept| Arc::ptr_eq(kept, breakers));
            if !is_shared {
                breakers.retain(|_| false);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::net::IpAddr;

    use http::HeaderMap;
    use proptest::prelude::*;

    use super::*;
    use crate::client::ClientKey;
    use crate::config::Environment;
    use crate::features::rate_limit::{QuotaDecision, QuotaStore};

    fn routes(patterns: &[impl AsRef<str>]) -> Routes {
        let mut yaml = String::from("premier:\n  paths:\n");
        for pattern in patterns {
            writeln!(yaml, "    - pattern: '{}'", pattern.as_ref()).unwrap();
        }
        compile(&yaml)
    }

    fn compile(yaml: &str) -> Routes {
        let config =
            Config::parse("gateway.yml".as_ref(), yaml, &Environment::for_tests()).unwrap();
        let metrics = Arc::new(Metrics::new("test"));
        let upstreams = Upstreams::new(&config, &metrics, None).unwrap();
        Routes::new(&config, &upstreams, &metrics, None).unwrap()
    }

    fn matched_pattern<'r>(routes: &'r Routes, path: &str) -> &'r str {
        &routes.get(routes.find(None, path)).pattern
    }

    #[test]
    fn a_route_has_two_cache_lines() {
        assert_eq!(size_of::<Route>(), 2 * 64);
    }

    #[test]
    fn routes_with_equal_features_share_them_and_have_quotas_of_their_own() {
        let yaml = "premier: {paths: [\
            {pattern: /a, features: {rate_limit: {quota: 1, duration: 60}}}, \
            {pattern: /b, features: {rate_limit: {quota: 2, duration: 60}}}, \
            {pattern: /c, features: {rate_limit: {quota: 1, duration: 60}}}]}";
        let routes = compile(yaml);
        let [first, second, third, ..] = routes.all() else {
            panic!("there are three routes and the default one");
        };
        assert!(Arc::ptr_eq(&first.features, &third.features));
        assert!(!Arc::ptr_eq(&first.features, &second.features));
        let store = QuotaStore::new();
        let client = ClientKey::from(IpAddr::from([192, 0, 2, 1]));
        let passes = |route: &Route| {
            let quota = route.quota.as_ref().unwrap();
            let decision = quota.take(&store, client, "/", &HeaderMap::new(), Instant(1));
            matches!(decision, QuotaDecision::Passed(_))
        };
        assert_eq!(
            [first, third, first, third].map(passes),
            [true, true, false, false]
        );
    }

    #[test]
    fn the_first_matching_pattern_applies() {
        let routes = routes(&[
            "/api/login",
            "/api/*",
            "/api/profile",
            "^/api/x",
            "/v?/*",
            "*",
        ]);
        assert_eq!(matched_pattern(&routes, "/api/login"), "/api/login");
        assert_eq!(matched_pattern(&routes, "/api/profile"), "/api/*");
        assert_eq!(matched_pattern(&routes, "/api/xyz"), "/api/*");
        assert_eq!(matched_pattern(&routes, "/v1/abc"), "/v?/*");
        assert_eq!(matched_pattern(&routes, "/"), "*");
    }

    #[test]
    fn a_path_that_no_pattern_matches_has_the_default_route() {
        assert_eq!(
            matched_pattern(&routes(&["/api/*"]), "/health"),
            DEFAULT_ROUTE_NAME
        );
        assert_eq!(
            matched_pattern(&routes(&[""; 0]), "/health"),
            DEFAULT_ROUTE_NAME
        );
    }

    #[test]
    fn a_thousand_patterns_compile_into_one_automaton() {
        let patterns: Vec<_> = (0..1000)
            .map(|number| format!("/api/v{number}/*"))
            .collect();
        let routes = routes(&patterns);
        for number in [0, 1, 10, 500, 999] {
            assert_eq!(
                matched_pattern(&routes, &format!("/api/v{number}/x")),
                patterns[number]
            );
        }
    }

    proptest! {
        #[test]
        fn the_automaton_finds_the_same_pattern_as_a_loop(
            patterns in proptest::collection::vec("/[ab*?]{1,5}|\\^/[ab]{1,3}", 1..8),
            path in "/[ab/]{0,6}",
        ) {
            let routes = routes(&patterns);
            let first_match = patterns.iter().find(|pattern| {
                let alone = self::routes(std::slice::from_ref(pattern));
                matched_pattern(&alone, &path) != DEFAULT_ROUTE_NAME
            });
            let expected = first_match.map_or(DEFAULT_ROUTE_NAME, |pattern| pattern.as_str());
            prop_assert_eq!(matched_pattern(&routes, &path), expected);
        }
    }
}
