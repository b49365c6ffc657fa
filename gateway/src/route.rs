//! From a path to what holds for it: the table that a reload swaps.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use regex_automata::meta::Regex;
use regex_automata::{Anchored, Input, MatchKind};

use crate::config::{self, Config, Features, PathRule};
use crate::features::circuit_breaker::Breakers;
use crate::features::rate_limit::{Quota, QuotaStore};
use crate::features::retry::Budget;
use crate::metrics::{Metrics, RouteMetrics};

/// What metrics and logs call the paths that no pattern matches.
const DEFAULT: &str = "default";
/// Bytes that the matcher may take for the states it has met, of each thread.
const MATCHER_MEMORY: usize = 8 << 20;

/// A pattern and what holds under it.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) pattern: String,
    pub(crate) quota: Option<Quota>,
    pub(crate) monitoring: Option<config::Monitoring>,
    pub(crate) timeout: Option<config::Timeout>,
    pub(crate) retry: Option<config::Retry>,
    pub(crate) retry_budget: Budget,
    pub(crate) breakers: Option<Arc<Breakers>>,
    pub(crate) metrics: Arc<RouteMetrics>,
}

/// Every route, found in one look and one pass over the path, however many there are.
#[derive(Debug)]
pub(crate) struct Routes {
    all: Vec<Route>,
    exact: HashMap<String, usize>,
    /// All patterns in one automaton. It prefers the earlier one as an alternation does, so the
    /// one it finds is the first that matches.
    patterns: Option<Regex>,
    /// From the automaton's numbers to ours.
    numbers: Vec<usize>,
}

impl Routes {
    /// Compiles a configuration's paths. Breakers of rules that `before` had are kept.
    ///
    /// # Errors
    /// When the patterns together take more memory than a matcher may.
    pub(crate) fn new(
        config: &Config,
        store: &QuotaStore,
        metrics: &Arc<Metrics>,
        before: Option<&Self>,
    ) -> Result<Self> {
        let kept = before.map_or_else(HashMap::new, Self::breakers);
        let route = |pattern: String, features: &Features| {
            let breakers = features.circuit_breaker.map(|settings| {
                let kept = kept.get(&*pattern).filter(|kept| kept.are_by(settings));
                kept.map_or_else(
                    || Arc::new(Breakers::new(&pattern, settings, metrics)),
                    |kept| Arc::clone(kept),
                )
            });
            Route {
                quota: features
                    .rate_limit
                    .as_ref()
                    .map(|rule| Quota::new(&pattern, rule, store)),
                monitoring: features.monitoring,
                timeout: features.timeout.clone(),
                retry: features.retry.clone(),
                retry_budget: Budget::default(),
                breakers,
                metrics: metrics.route(&pattern),
                pattern,
            }
        };
        let mut all: Vec<_> = config
            .paths
            .iter()
            .map(|PathRule { pattern, features }| route(pattern.to_string(), features))
            .collect();
        // The last one is for the paths that no pattern matches.
        all.push(route(DEFAULT.to_owned(), &config.default_features));

        let (mut exact, mut regexes, mut numbers) = (HashMap::new(), Vec::new(), Vec::new());
        for (number, rule) in config.paths.iter().enumerate() {
            match rule.pattern.matcher() {
                config::Matcher::Exact(path) => {
                    exact.entry(path.clone()).or_insert(number);
                }
                config::Matcher::Regex(regex) => {
                    regexes.push(regex.as_str());
                    numbers.push(number);
                }
            }
        }
        let patterns = if regexes.is_empty() {
            None
        } else {
            let configuration = Regex::config()
                .match_kind(MatchKind::LeftmostFirst)
                .utf8_empty(false)
                .nfa_size_limit(Some(256 << 20))
                .hybrid_cache_capacity(MATCHER_MEMORY);
            let patterns = Regex::builder()
                .configure(configuration)
                .syntax(config::pattern_syntax())
                .build_many(&regexes)
                .context("the path patterns together")?;
            Some(patterns)
        };
        Ok(Self {
            all,
            exact,
            patterns,
            numbers,
        })
    }

    /// The number of the route that a normalised path falls under.
    pub(crate) fn find(&self, path: &str) -> usize {
        let exact = self.exact.get(path).copied();
        let pattern = self.patterns.as_ref().and_then(|patterns| {
            let input = Input::new(path).anchored(Anchored::Yes);
            let found = patterns.search_half(&input)?;
            Some(self.numbers[found.pattern().as_usize()])
        });
        match (exact, pattern) {
            (Some(exact), Some(pattern)) => exact.min(pattern),
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) => self.all.len() - 1,
        }
    }

    pub(crate) fn get(&self, number: usize) -> &Route {
        &self.all[number]
    }

    /// For requests that were answered before a path could be read.
    pub(crate) fn default_number(&self) -> usize {
        self.all.len() - 1
    }

    pub(crate) fn all(&self) -> &[Route] {
        &self.all
    }

    pub(crate) fn patterns(&self) -> impl Iterator<Item = &str> {
        self.all.iter().map(|route| route.pattern.as_str())
    }

    /// By their patterns; of two that are the same the first one is the one that matches.
    fn breakers(&self) -> HashMap<&str, &Arc<Breakers>> {
        self.all
            .iter()
            .rev()
            .filter_map(|route| Some((route.pattern.as_str(), route.breakers.as_ref()?)))
            .collect()
    }

    /// Forgets the breakers of replicas that are gone.
    pub(crate) fn keep_breakers(&self, stays: impl Fn(SocketAddr) -> bool) {
        for (_, breakers) in self.breakers() {
            breakers.keep(&stays);
        }
    }

    /// Forgets the breakers that routes which take the place of these have no more.
    pub(crate) fn forget_breakers_but_of(&self, next: &Self) {
        let kept = next.breakers();
        for (pattern, breakers) in self.breakers() {
            let stays = kept.get(pattern);
            if !stays.is_some_and(|kept| Arc::ptr_eq(kept, breakers)) {
                breakers.keep(|_| false);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use proptest::prelude::*;

    use super::*;
    use crate::config::Environment;

    fn routes(patterns: &[impl AsRef<str>]) -> Routes {
        let mut yaml = String::from("premier:\n  paths:\n");
        for pattern in patterns {
            writeln!(yaml, "    - pattern: '{}'", pattern.as_ref()).unwrap();
        }
        let config =
            Config::parse("gateway.yml".as_ref(), &yaml, &Environment::for_tests()).unwrap();
        let metrics = Arc::new(Metrics::new("test"));
        Routes::new(&config, &QuotaStore::new(), &metrics, None).unwrap()
    }

    fn found<'r>(routes: &'r Routes, path: &str) -> &'r str {
        &routes.get(routes.find(path)).pattern
    }

    #[test]
    fn the_first_pattern_that_matches_wins() {
        let routes = routes(&[
            "/api/login",
            "/api/*",
            "/api/profile",
            "^/api/x",
            "/v?/*",
            "*",
        ]);
        assert_eq!(found(&routes, "/api/login"), "/api/login");
        assert_eq!(found(&routes, "/api/profile"), "/api/*");
        assert_eq!(found(&routes, "/api/xyz"), "/api/*");
        assert_eq!(found(&routes, "/v1/abc"), "/v?/*");
        assert_eq!(found(&routes, "/"), "*");
    }

    #[test]
    fn what_nothing_matches_is_the_default() {
        assert_eq!(found(&routes(&["/api/*"]), "/health"), DEFAULT);
        assert_eq!(found(&routes(&[""; 0]), "/health"), DEFAULT);
    }

    #[test]
    fn a_thousand_patterns_are_one_automaton() {
        let patterns: Vec<_> = (0..1000)
            .map(|number| format!("/api/v{number}/*"))
            .collect();
        let routes = routes(&patterns);
        for number in [0, 1, 10, 500, 999] {
            assert_eq!(
                found(&routes, &format!("/api/v{number}/x")),
                patterns[number]
            );
        }
    }

    proptest! {
        #[test]
        fn one_automaton_finds_what_a_loop_would(
            patterns in proptest::collection::vec("/[ab*?]{1,5}|\\^/[ab]{1,3}", 1..8),
            path in "/[ab/]{0,6}",
        ) {
            let routes = routes(&patterns);
            let one_by_one = patterns.iter().find(|pattern| {
                let alone = self::routes(std::slice::from_ref(pattern));
                found(&alone, &path) != DEFAULT
            });
            prop_assert_eq!(found(&routes, &path), one_by_one.map_or(DEFAULT, |one| one.as_str()));
        }
    }
}
