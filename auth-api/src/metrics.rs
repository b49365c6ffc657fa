//! What Prometheus scrapes. Labels are bounded: routes, methods, status classes, outcomes; never a login or an address.

use std::time::{Duration, Instant};

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

/// Every metric of the program. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    durations: HistogramVec,
    pub(crate) logins: IntCounterVec,
    pub(crate) sessions_created: IntCounter,
    pub(crate) sessions_ended: IntCounter,
    pub(crate) refreshes: IntCounter,
    store_durations: HistogramVec,
    store_failures: IntCounterVec,
    pool: IntGaugeVec,
    pub(crate) hashing: HashingMetrics,
}

/// What the hashing threads tell.
#[derive(Debug, Clone)]
pub(crate) struct HashingMetrics {
    pub(crate) depth: IntGauge,
    pub(crate) wait: Histogram,
    pub(crate) refused: IntCounter,
}

/// Connections of a pool.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PoolUse {
    busy: i64,
    idle: i64,
}

impl PoolUse {
    pub(crate) fn of<D: sqlx::Database>(pool: &sqlx::Pool<D>) -> Self {
        let idle = i64::try_from(pool.num_idle()).unwrap_or(i64::MAX);
        Self {
            busy: (i64::from(pool.size()) - idle).max(0),
            idle,
        }
    }
}

impl std::ops::Add for PoolUse {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            busy: self.busy + other.busy,
            idle: self.idle + other.idle,
        }
    }
}

/// What is counted of one store.
#[derive(Debug, Clone)]
pub(crate) struct StoreMetrics {
    duration: Histogram,
    failures: IntCounter,
}

/// A request to a store that is under way.
#[derive(Debug)]
pub(crate) struct StoreTimer<'m> {
    metrics: &'m StoreMetrics,
    start: Instant,
}

impl StoreMetrics {
    pub(crate) fn start(&self) -> StoreTimer<'_> {
        StoreTimer {
            metrics: self,
            start: Instant::now(),
        }
    }
}

impl StoreTimer<'_> {
    /// It is over.
    pub(crate) fn end<T, E>(self, outcome: &Result<T, E>) {
        self.metrics
            .duration
            .observe(self.start.elapsed().as_secs_f64());
        if outcome.is_err() {
            self.metrics.failures.inc();
        }
    }
}

const NAMES_ARE_FIXED: &str = "names and labels are fixed and each is registered once";
const SECONDS: &[f64] = &[
    0.000_5, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
];

impl Metrics {
    pub(crate) fn new() -> Self {
        let registry = Registry::new();
        let metrics = Self {
            requests: counters(
                "auth_api_http_requests_total",
                "Requests answered.",
                &["route", "method", "status"],
            ),
            durations: HistogramVec::new(
                histogram(
                    "auth_api_http_request_duration_seconds",
                    "Time from a request's head to its answer's.",
                ),
                &["route", "method"],
            )
            .expect(NAMES_ARE_FIXED),
            logins: counters("auth_api_logins_total", "Logins by outcome.", &["outcome"]),
            sessions_created: counter(
                "auth_api_sessions_created_total",
                "Sessions begun by a login.",
            ),
            sessions_ended: counter(
                "auth_api_sessions_ended_total",
                "Sessions ended before they expired.",
            ),
            refreshes: counter(
                "auth_api_refreshes_total",
                "Refresh tokens exchanged for new ones.",
            ),
            store_durations: HistogramVec::new(
                histogram(
                    "auth_api_store_duration_seconds",
                    "Time that a store took for a request of ours.",
                ),
                &["store"],
            )
            .expect(NAMES_ARE_FIXED),
            store_failures: counters(
                "auth_api_store_failures_total",
                "Requests of ours that a store failed.",
                &["store"],
            ),
            pool: IntGaugeVec::new(
                Opts::new(
                    "auth_api_pool_connections",
                    "Connections to a store, by what they do: busy or idle.",
                ),
                &["store", "state"],
            )
            .expect(NAMES_ARE_FIXED),
            hashing: HashingMetrics {
                depth: IntGauge::new(
                    "auth_api_hashing_queue_depth",
                    "Passwords that wait to be hashed.",
                )
                .expect(NAMES_ARE_FIXED),
                wait: Histogram::with_opts(histogram(
                    "auth_api_hashing_wait_seconds",
                    "Time that a password waited to be hashed.",
                ))
                .expect(NAMES_ARE_FIXED),
                refused: counter(
                    "auth_api_hashing_refused_total",
                    "Passwords refused since the queue was full.",
                ),
            },
            registry,
        };
        metrics.register();
        metrics
    }

    fn register(&self) {
        let all: [Box<dyn prometheus::core::Collector>; 12] = [
            Box::new(self.requests.clone()),
            Box::new(self.durations.clone()),
            Box::new(self.logins.clone()),
            Box::new(self.sessions_created.clone()),
            Box::new(self.sessions_ended.clone()),
            Box::new(self.refreshes.clone()),
            Box::new(self.store_durations.clone()),
            Box::new(self.store_failures.clone()),
            Box::new(self.pool.clone()),
            Box::new(self.hashing.depth.clone()),
            Box::new(self.hashing.wait.clone()),
            Box::new(self.hashing.refused.clone()),
        ];
        for collector in all {
            self.registry.register(collector).expect(NAMES_ARE_FIXED);
        }
    }

    /// What is counted of one store.
    pub(crate) fn store(&self, store: &str) -> StoreMetrics {
        StoreMetrics {
            duration: self.store_durations.with_label_values(&[store]),
            failures: self.store_failures.with_label_values(&[store]),
        }
    }

    /// Notes how the connections to a store are used.
    pub(crate) fn pool(&self, store: &str, pool: PoolUse) {
        for (state, count) in [("busy", pool.busy), ("idle", pool.idle)] {
            self.pool.with_label_values(&[store, state]).set(count);
        }
    }

    /// Counts one answered request. `route` is a route's pattern, never a path.
    pub(crate) fn answered(&self, route: &str, method: &str, status: u16, took: Duration) {
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
        self.durations
            .with_label_values(&[route, method])
            .observe(took.as_secs_f64());
    }

    /// The text format of Prometheus.
    pub(crate) fn text(&self) -> String {
        TextEncoder::new()
            .encode_to_string(&self.registry.gather())
            .expect("every metric was registered with a name and a type")
    }
}

fn counter(name: &str, help: &str) -> IntCounter {
    IntCounter::new(name, help).expect(NAMES_ARE_FIXED)
}

fn counters(name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    IntCounterVec::new(Opts::new(name, help), labels).expect(NAMES_ARE_FIXED)
}

fn histogram(name: &str, help: &str) -> HistogramOpts {
    HistogramOpts::new(name, help).buckets(SECONDS.to_vec())
}
