//! Prometheus metrics. Labels have a bounded number of values: route patterns, methods, status
//! classes and outcomes, never a path, a login or an address.

use std::time::{Duration, Instant};

use prometheus::core::Collector;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};
use supervision::Supervisor;

/// Every metric of the program. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    registry: Registry,
    /// Metrics of the crates that both programs share, whose names begin with the program's name here.
    shared_registry: Registry,
    process_registry: Registry,
    pub(crate) supervisor: Supervisor,
    requests: IntCounterVec,
    request_durations: HistogramVec,
    pub(crate) logins: IntCounterVec,
    pub(crate) sessions_created: IntCounter,
    pub(crate) sessions_ended: IntCounter,
    pub(crate) refreshes: IntCounter,
    pub(crate) oauth: OAuthMetrics,
    store_durations: HistogramVec,
    store_failures: IntCounterVec,
    store_up: IntGaugeVec,
    pool_connections: IntGaugeVec,
    pub(crate) hashing: HashingMetrics,
    pub(crate) audit: AuditMetrics,
}

/// Metrics of introspection and revocation.
#[derive(Debug, Clone)]
pub(crate) struct OAuthMetrics {
    pub(crate) introspections: IntCounterVec,
    pub(crate) client_authentications: IntCounterVec,
}

impl OAuthMetrics {
    fn new() -> Self {
        Self {
            introspections: counters(
                "auth_api_introspections_total",
                "Introspections of tokens by result: active or inactive.",
                &["result"],
            ),
            client_authentications: counters(
                "auth_api_oauth_client_authentications_total",
                "Authentications of OAuth clients by outcome.",
                &["outcome"],
            ),
        }
    }
}

/// Metrics of the file of the audit log.
#[derive(Debug, Clone)]
pub(crate) struct AuditMetrics {
    pub(crate) up: IntGauge,
    pub(crate) failures: IntCounter,
}

/// Metrics of the hashing thread pool.
#[derive(Debug, Clone)]
pub(crate) struct HashingMetrics {
    pub(crate) queue_depth: IntGauge,
    pub(crate) queue_wait: Histogram,
    pub(crate) rejected: IntCounter,
}

/// Number of connections in a pool, by state.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PoolUsage {
    busy: i64,
    idle: i64,
}

impl PoolUsage {
    pub(crate) fn of<D: sqlx::Database>(pool: &sqlx::Pool<D>) -> Self {
        let idle = i64::try_from(pool.num_idle()).unwrap_or(i64::MAX);
        Self {
            busy: (i64::from(pool.size()) - idle).max(0),
            idle,
        }
    }
}

impl std::ops::Add for PoolUsage {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            busy: self.busy + other.busy,
            idle: self.idle + other.idle,
        }
    }
}

/// Metrics of one store.
#[derive(Debug, Clone)]
pub(crate) struct StoreMetrics {
    duration: Histogram,
    failures: IntCounter,
}

/// Timer of an operation of a store.
#[derive(Debug)]
pub(crate) struct StoreTimer<'m> {
    metrics: &'m StoreMetrics,
    start: Instant,
}

impl StoreMetrics {
    /// Starts to measure an operation.
    pub(crate) fn start(&self) -> StoreTimer<'_> {
        StoreTimer {
            metrics: self,
            start: Instant::now(),
        }
    }
}

impl StoreTimer<'_> {
    /// Records the duration of the operation, and a failure if `outcome` is an error.
    pub(crate) fn stop<T, E>(self, outcome: &Result<T, E>) {
        self.metrics
            .duration
            .observe(self.start.elapsed().as_secs_f64());
        if outcome.is_err() {
            self.metrics.failures.inc();
        }
    }
}

/// Prefix of the names of shared metrics.
const PREFIX: &str = "auth_api";
const VALID_METRIC: &str = "metric names and labels are valid and registered once";
/// Upper bounds of the histograms' buckets, in seconds.
const DURATION_BUCKETS: &[f64] = &[
    0.000_5, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
];

impl Metrics {
    pub(crate) fn new() -> Self {
        let registry = Registry::new();
        let metrics = Self {
            requests: counters(
                "auth_api_http_requests_total",
                "HTTP requests by route, method and status class.",
                &["route", "method", "status"],
            ),
            request_durations: HistogramVec::new(
                histogram(
                    "auth_api_http_request_duration_seconds",
                    "Time from the request headers to the response headers.",
                ),
                &["route", "method"],
            )
            .expect(VALID_METRIC),
            logins: counters("auth_api_logins_total", "Logins by outcome.", &["outcome"]),
            sessions_created: counter(
                "auth_api_sessions_created_total",
                "Sessions created by a login.",
            ),
            sessions_ended: counter(
                "auth_api_sessions_ended_total",
                "Sessions ended before their expiry.",
            ),
            refreshes: counter(
                "auth_api_refreshes_total",
                "Refresh tokens exchanged for new tokens.",
            ),
            oauth: OAuthMetrics::new(),
            store_durations: HistogramVec::new(
                histogram(
                    "auth_api_store_duration_seconds",
                    "Duration of operations of a store.",
                ),
                &["store"],
            )
            .expect(VALID_METRIC),
            store_failures: counters(
                "auth_api_store_failures_total",
                "Failed operations of a store.",
                &["store"],
            ),
            store_up: IntGaugeVec::new(
                Opts::new(
                    "auth_api_store_up",
                    "1 if the last check of a store, one each second, found that it can serve requests.",
                ),
                &["store"],
            )
            .expect(VALID_METRIC),
            pool_connections: IntGaugeVec::new(
                Opts::new(
                    "auth_api_pool_connections",
                    "Pooled connections to a store by state: busy or idle.",
                ),
                &["store", "state"],
            )
            .expect(VALID_METRIC),
            hashing: HashingMetrics {
                queue_depth: IntGauge::new(
                    "auth_api_hashing_queue_depth",
                    "Passwords in the hashing queue.",
                )
                .expect(VALID_METRIC),
                queue_wait: Histogram::with_opts(histogram(
                    "auth_api_hashing_wait_seconds",
                    "Time that a password spent in the hashing queue.",
                ))
                .expect(VALID_METRIC),
                rejected: counter(
                    "auth_api_hashing_refused_total",
                    "Passwords rejected because the hashing queue was full.",
                ),
            },
            audit: AuditMetrics {
                up: IntGauge::new(
                    "auth_api_audit_log_up",
                    "1 if the file of the audit log accepted the last records; 1 without such a file.",
                )
                .expect(VALID_METRIC),
                failures: counter(
                    "auth_api_audit_log_failures_total",
                    "Audit records that the file of the audit log did not accept at once.",
                ),
            },
            registry,
            process_registry: supervision::process_registry(),
            shared_registry: Registry::new_custom(Some(PREFIX.to_owned()), None)
                .expect(VALID_METRIC),
            supervisor: Supervisor::new(),
        };
        metrics.register();
        metrics.audit.up.set(1);
        for metric in metrics.supervisor.metrics() {
            metrics.register_shared(metric);
        }
        metrics
    }

    /// Exposes a metric of a shared crate.
    pub(crate) fn register_shared(&self, metric: Box<dyn Collector>) {
        self.shared_registry.register(metric).expect(VALID_METRIC);
    }

    fn register(&self) {
        let build_info = IntGaugeVec::new(
            Opts::new("auth_api_build_info", "Version of the running auth-api."),
            &["version"],
        )
        .expect(VALID_METRIC);
        build_info
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(1);
        let all: [Box<dyn Collector>; 18] = [
            Box::new(self.audit.up.clone()),
            Box::new(self.audit.failures.clone()),
            Box::new(build_info),
            Box::new(self.store_up.clone()),
            Box::new(self.requests.clone()),
            Box::new(self.request_durations.clone()),
            Box::new(self.logins.clone()),
            Box::new(self.sessions_created.clone()),
            Box::new(self.sessions_ended.clone()),
            Box::new(self.refreshes.clone()),
            Box::new(self.oauth.introspections.clone()),
            Box::new(self.oauth.client_authentications.clone()),
            Box::new(self.store_durations.clone()),
            Box::new(self.store_failures.clone()),
            Box::new(self.pool_connections.clone()),
            Box::new(self.hashing.queue_depth.clone()),
            Box::new(self.hashing.queue_wait.clone()),
            Box::new(self.hashing.rejected.clone()),
        ];
        for collector in all {
            self.registry.register(collector).expect(VALID_METRIC);
        }
    }

    /// Returns the metrics of one store.
    pub(crate) fn store(&self, store: &str) -> StoreMetrics {
        StoreMetrics {
            duration: self.store_durations.with_label_values(&[store]),
            failures: self.store_failures.with_label_values(&[store]),
        }
    }

    /// Returns the gauge of the checks of a store.
    pub(crate) fn store_up(&self, store: &str) -> IntGauge {
        self.store_up.with_label_values(&[store])
    }

    /// Sets the connection gauges of a store.
    pub(crate) fn set_pool_usage(&self, store: &str, usage: PoolUsage) {
        for (state, count) in [("busy", usage.busy), ("idle", usage.idle)] {
            self.pool_connections
                .with_label_values(&[store, state])
                .set(count);
        }
    }

    /// Records one request. `route` is the matched pattern, never a path.
    pub(crate) fn record_request(
        &self,
        route: &str,
        method: &str,
        status: u16,
        duration: Duration,
    ) {
        let class = match status / 100 {
            1 => "1xx",
            2 => "2xx",
            3 => "3xx",
            4 => "4xx",
            _ => "5xx",
        };
        self.requests
            .with_label_values(&[route, method, class])
            .inc();
        self.request_durations
            .with_label_values(&[route, method])
            .observe(duration.as_secs_f64());
    }

    /// Encodes all metrics in the Prometheus text format.
    pub(crate) fn encode(&self) -> String {
        let mut all = self.registry.gather();
        all.extend(self.shared_registry.gather());
        all.extend(self.process_registry.gather());
        TextEncoder::new()
            .encode_to_string(&all)
            .expect("every metric is registered with a name and a type")
    }
}

fn counter(name: &str, help: &str) -> IntCounter {
    IntCounter::new(name, help).expect(VALID_METRIC)
}

fn counters(name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    IntCounterVec::new(Opts::new(name, help), labels).expect(VALID_METRIC)
}

fn histogram(name: &str, help: &str) -> HistogramOpts {
    HistogramOpts::new(name, help).buckets(DURATION_BUCKETS.to_vec())
}
