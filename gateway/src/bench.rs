//! Support for benchmarks and allocation tests of the hot path: the decisions about a request, without
//! network I/O.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use http::{HeaderMap, Method, StatusCode};

use crate::client::ClientKey;
use crate::config::{Config, Environment};
use crate::features::monitoring;
use crate::features::rate_limit::shared::{
    HashKey, LeaseIdentity, ScriptArguments, ScriptReply, SharedQuotas, StoreCommand,
};
use crate::features::rate_limit::sharing::QuotaRequest;
use crate::features::rate_limit::{Quota, QuotaDecision, QuotaStore};
use crate::path;
use crate::proxy::route::Routes;
use crate::runtime::clock::Instant;
use crate::telemetry::metrics::Metrics;
use crate::upstream::Upstreams;

/// Longest time that a decision may wait for a lease. All leases are taken in advance.
const LEASE_TIMEOUT: Duration = Duration::from_secs(1);
/// Validity of these leases in microseconds: longer than any benchmark.
const LEASE_MICROSECONDS: i64 = 86_400_000_000;

/// Counters that a quota is decided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuotaCounters {
    /// Those of this process.
    Local,
    /// Those of a store that gateways share: each request finds a lease.
    Leased,
}

/// Decisions about synthetic requests of several clients, to paths that several patterns match.
#[derive(Debug)]
pub struct DecisionBench {
    routes: Routes,
    quotas: QuotaStore,
    /// None if this process decides alone.
    shared_quotas: Option<SharedQuotas>,
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
    pub fn new(patterns: usize, clients: u32, counters: QuotaCounters) -> Self {
        let mut yaml = String::from("premier:\n  paths:\n");
        for number in 0..patterns {
            let rule =
                "rate_limit: {quota: 4000000000, duration: 60}, monitoring: {log_threshold: 5}";
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
        let routes =
            Routes::new(&config, &upstreams, &metrics, None).expect("the patterns are small");
        let paths = (0..patterns).map(|number| format!("/api/v{number}/profile"));
        let mut bench = Self {
            routes,
            quotas,
            shared_quotas: None,
            paths: paths.collect(),
            clients,
            headers: HeaderMap::new(),
            number: 0,
        };
        if counters == QuotaCounters::Leased {
            let shared = SharedQuotas::new(metrics.quota_store());
            shared.record_heartbeat(HashKey::generate(), 1);
            bench.take_leases(&shared);
            bench.shared_quotas = Some(shared);
        }
        bench
    }

    /// Takes a lease of every client for every path, which no benchmark uses up.
    fn take_leases(&self, shared: &SharedQuotas) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("the system has a clock");
        runtime.block_on(async {
            let mut queue = shared.queue().await;
            for (path, client) in self.paths.iter().flat_map(|path| {
                let clients = (0..self.clients).map(Ipv4Addr::from);
                clients.map(move |client| (path, client))
            }) {
                let quota = self.quota_of(path).expect("every route has a quota");
                let request = self.quota_request(path, client);
                let taken = quota.take_shared(&self.quotas, shared, request, LEASE_TIMEOUT);
                let granted = async {
                    let command = queue.recv().await.expect("the sender is in `shared`");
                    grant_everything(shared, &command);
                };
                tokio::join!(taken, granted);
            }
        });
    }

    fn quota_of(&self, path: &str) -> Option<&Quota> {
        self.routes.get(self.routes.find(None, path)).quota.as_ref()
    }

    fn quota_request<'r>(&'r self, path: &'r str, client: Ipv4Addr) -> QuotaRequest<'r> {
        QuotaRequest {
            sender: ClientKey::from(IpAddr::V4(client)).into(),
            path,
            headers: &self.headers,
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
        let request = self.quota_request(&path, client);
        let decision = match &self.shared_quotas {
            None => {
                let QuotaRequest { sender, path, .. } = request;
                Some(quota.take(&self.quotas, sender, path, &self.headers, now))
            }
            Some(shared) => quota
                .take_shared(&self.quotas, shared, request, LEASE_TIMEOUT)
                .now_or_never()
                .flatten(),
        };
        route.metrics.quota_passed.inc();
        route
            .metrics
            .count_request(&Method::GET, Some(StatusCode::OK));
        let duration = Duration::from_micros(300);
        route.metrics.duration.observe(duration);
        let is_slow = monitoring::is_slow(route.features.monitoring, duration);
        matches!(decision, Some(QuotaDecision::Passed(_))) && !is_slow
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

/// Grants the largest lease, as a store would whose quota is far from used up.
fn grant_everything(shared: &SharedQuotas, command: &StoreCommand) {
    let now = Instant::now();
    let reply = ScriptReply {
        now: 0,
        granted: u32::MAX.into(),
        remaining: u32::MAX.into(),
        valid: LEASE_MICROSECONDS,
        retry_after: LEASE_MICROSECONDS,
        reset: LEASE_MICROSECONDS,
        identity: LeaseIdentity::default(),
        first_departure_ns: 0,
        kept: 0,
    };
    let arguments = ScriptArguments::new(command, 1);
    shared.apply(command, &reply.to_grant(&arguments, now, now));
}
