//! What Prometheus scrapes. Every label has a bounded number of values: patterns and replicas of
//! the configuration, methods and status classes of a list; never a path, login or address of a
//! client.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use http::{Method, StatusCode};
use parking_lot::Mutex;
use prometheus::core::Collector;
use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

/// Seconds, from what a warm back end needs to what a client still waits for.
const DURATIONS: [f64; 14] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

const METHODS: [&str; 8] = [
    "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "other",
];
/// Of answers, and of what ended without one.
const CLASSES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "none"];

/// All that is counted.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    durations: HistogramVec,
    quota_decisions: IntCounterVec,
    slow: IntCounterVec,
    retries: IntCounterVec,
    breaker_state: IntGaugeVec,
    attempts: IntCounterVec,
    upstream_durations: HistogramVec,
    upstream_in_flight: IntGaugeVec,
    replica_up: IntGaugeVec,
    certificate_expiry: IntGaugeVec,
    reloads: IntCounterVec,
    reload_success: IntGauge,
    reload_time: IntGauge,
    handshakes: IntCounterVec,
    refused_connections: IntCounterVec,
    pub(crate) in_flight: IntGauge,
    pub(crate) connections: IntGauge,
    pub(crate) accepted_connections: IntCounter,
    routes: Mutex<HashMap<String, Arc<RouteMetrics>>>,
}

/// What is counted for each path pattern, its labels resolved beforehand.
#[derive(Debug)]
pub(crate) struct RouteMetrics {
    pattern: String,
    all_requests: IntCounterVec,
    /// Made when first needed: most methods and classes never are.
    requests: [[OnceLock<IntCounter>; CLASSES.len()]; METHODS.len()],
    pub(crate) duration: Histogram,
    pub(crate) quota_passed: IntCounter,
    pub(crate) quota_delayed: IntCounter,
    pub(crate) quota_refused: IntCounter,
    pub(crate) slow: IntCounter,
    pub(crate) retries: IntCounter,
}

/// What is counted for each replica.
#[derive(Debug)]
pub(crate) struct ReplicaMetrics {
    pub(crate) answers: [IntCounter; CLASSES.len()],
    pub(crate) connect_failures: IntCounter,
    pub(crate) timeouts: IntCounter,
    pub(crate) broken: IntCounter,
    pub(crate) duration: Histogram,
    pub(crate) in_flight: IntGauge,
    pub(crate) up: IntGauge,
}

/// How a TLS handshake ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Handshake {
    Done,
    Failed,
    TimedOut,
}

/// Why a connection was closed before it was served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TooMany {
    InTotal,
    OfOneClient,
}

/// Makes metrics and registers them; both fail only for names that are none.
struct Family<'r>(&'r Registry);

impl Family<'_> {
    fn register<M: Collector + Clone + 'static>(&self, metric: prometheus::Result<M>) -> M {
        let metric = metric.expect("a metric's name and labels are constants of this file");
        let registered = self.0.register(Box::new(metric.clone()));
        registered.expect("each metric is registered once");
        metric
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.register(IntCounter::new(name, help))
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.register(IntGauge::new(name, help))
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.register(IntCounterVec::new(Opts::new(name, help), labels))
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.register(IntGaugeVec::new(Opts::new(name, help), labels))
    }

    fn histograms(&self, name: &str, help: &str, labels: &[&str]) -> HistogramVec {
        let options = HistogramOpts::new(name, help).buckets(DURATIONS.into());
        self.register(HistogramVec::new(options, labels))
    }
}

impl Metrics {
    /// `keyspace` labels every metric.
    pub(crate) fn new(keyspace: &str) -> Self {
        let labels = HashMap::from([("keyspace".to_owned(), keyspace.to_owned())]);
        let registry = Registry::new_custom(Some("gateway".to_owned()), Some(labels))
            .expect("the prefix is a constant");
        let family = Family(&registry);
        family
            .gauges("build_info", "The version that runs.", &["version"])
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(1);
        Self {
            requests: family.counters(
                "requests_total",
                "Requests answered, by path pattern, method and class of the status.",
                &["pattern", "method", "status"],
            ),
            durations: family.histograms(
                "request_duration_seconds",
                "From a request's header to the end of its answer.",
                &["pattern"],
            ),
            quota_decisions: family.counters(
                "quota_decisions_total",
                "What quotas decided: passed, delayed or refused.",
                &["pattern", "decision"],
            ),
            slow: family.counters(
                "slow_requests_total",
                "Requests that took longer than their log_threshold.",
                &["pattern"],
            ),
            retries: family.counters("retries_total", "Requests tried again.", &["pattern"]),
            breaker_state: family.gauges(
                "circuit_breaker_state",
                "0 closed, 1 half-open, 2 open.",
                &["pattern", "replica"],
            ),
            attempts: family.counters(
                "upstream_attempts_total",
                "Tries to have a request answered, by what came of them.",
                &["replica", "outcome"],
            ),
            upstream_durations: family.histograms(
                "upstream_duration_seconds",
                "From the choice of a replica to the header of its answer.",
                &["replica"],
            ),
            upstream_in_flight: family.gauges(
                "upstream_requests_in_flight",
                "Requests that a replica has not answered yet.",
                &["replica"],
            ),
            replica_up: family.gauges(
                "replica_up",
                "1 where a replica takes requests.",
                &["replica"],
            ),
            certificate_expiry: family.gauges(
                "certificate_expiry_timestamp_seconds",
                "When a certificate ends, in Unix time.",
                &["certificate"],
            ),
            reloads: family.counters(
                "reloads_total",
                "Configurations that were read again.",
                &["outcome"],
            ),
            reload_success: family.gauge(
                "last_reload_success",
                "1 where the configuration on disk is the one that runs.",
            ),
            reload_time: family.gauge(
                "last_reload_success_timestamp_seconds",
                "When the configuration that runs was read, in Unix time.",
            ),
            handshakes: family.counters("tls_handshakes_total", "TLS handshakes.", &["outcome"]),
            refused_connections: family.counters(
                "connections_refused_total",
                "Connections closed because there were too many.",
                &["reason"],
            ),
            in_flight: family.gauge("requests_in_flight", "Requests being served."),
            connections: family.gauge("connections", "Connections of clients."),
            accepted_connections: family.counter(
                "connections_accepted_total",
                "Connections of clients so far.",
            ),
            routes: Mutex::default(),
            registry,
        }
    }

    /// Tells of what is counted elsewhere too.
    pub(crate) fn tell_of(&self, counter: &IntCounter) {
        Family(&self.registry).register(Ok(counter.clone()));
    }

    /// The counters of a path pattern: the same ones each time.
    pub(crate) fn route(&self, pattern: &str) -> Arc<RouteMetrics> {
        let mut routes = self.routes.lock();
        if let Some(route) = routes.get(pattern) {
            return Arc::clone(route);
        }
        let decided = |decision| self.quota_decisions.with_label_values(&[pattern, decision]);
        let route = Arc::new(RouteMetrics {
            pattern: pattern.to_owned(),
            all_requests: self.requests.clone(),
            requests: Default::default(),
            duration: self.durations.with_label_values(&[pattern]),
            quota_passed: decided("passed"),
            quota_delayed: decided("delayed"),
            quota_refused: decided("refused"),
            slow: self.slow.with_label_values(&[pattern]),
            retries: self.retries.with_label_values(&[pattern]),
        });
        routes.insert(pattern.to_owned(), Arc::clone(&route));
        route
    }

    /// Forgets the patterns that no configuration has any more.
    pub(crate) fn keep_routes(&self, stays: impl Fn(&str) -> bool) {
        self.routes.lock().retain(|pattern, _| {
            let stay = stays(pattern);
            if !stay {
                for method in METHODS {
                    for class in CLASSES {
                        let _ = self.requests.remove_label_values(&[pattern, method, class]);
                    }
                }
                for decision in ["passed", "delayed", "refused"] {
                    let _ = self
                        .quota_decisions
                        .remove_label_values(&[pattern, decision]);
                }
                let _ = self.durations.remove_label_values(&[pattern]);
                let _ = self.slow.remove_label_values(&[pattern]);
                let _ = self.retries.remove_label_values(&[pattern]);
            }
            stay
        });
    }

    /// The counters of a replica.
    pub(crate) fn replica(&self, replica: &str) -> ReplicaMetrics {
        let attempt = |outcome| self.attempts.with_label_values(&[replica, outcome]);
        ReplicaMetrics {
            answers: CLASSES.map(attempt),
            connect_failures: attempt("connect_failure"),
            timeouts: attempt("timeout"),
            broken: attempt("broken"),
            duration: self.upstream_durations.with_label_values(&[replica]),
            in_flight: self.upstream_in_flight.with_label_values(&[replica]),
            up: self.replica_up.with_label_values(&[replica]),
        }
    }

    /// Forgets a replica that is gone for good.
    pub(crate) fn forget_replica(&self, replica: &str) {
        for outcome in CLASSES
            .into_iter()
            .chain(["connect_failure", "timeout", "broken"])
        {
            let _ = self.attempts.remove_label_values(&[replica, outcome]);
        }
        let _ = self.upstream_durations.remove_label_values(&[replica]);
        let _ = self.upstream_in_flight.remove_label_values(&[replica]);
        let _ = self.replica_up.remove_label_values(&[replica]);
    }

    /// The state of one circuit breaker.
    pub(crate) fn breaker(&self, pattern: &str, replica: &str) -> IntGauge {
        self.breaker_state.with_label_values(&[pattern, replica])
    }

    pub(crate) fn forget_breaker(&self, pattern: &str, replica: &str) {
        let _ = self.breaker_state.remove_label_values(&[pattern, replica]);
    }

    /// The certificates that are in use, each with its end in Unix time.
    pub(crate) fn certificates(&self, all: impl IntoIterator<Item = (String, i64)>) {
        self.certificate_expiry.reset();
        for (name, expiry) in all {
            self.certificate_expiry
                .with_label_values(&[&name])
                .set(expiry);
        }
    }

    /// The configuration on disk is in effect since then.
    pub(crate) fn in_effect(&self, unix_seconds: i64) {
        self.reload_success.set(1);
        self.reload_time.set(unix_seconds);
    }

    pub(crate) fn reloaded(&self) {
        self.reloads.with_label_values(&["success"]).inc();
    }

    pub(crate) fn reload_failed(&self) {
        self.reloads.with_label_values(&["failure"]).inc();
        self.reload_success.set(0);
    }

    pub(crate) fn handshake(&self, outcome: Handshake) {
        let outcome = match outcome {
            Handshake::Done => "done",
            Handshake::Failed => "failed",
            Handshake::TimedOut => "timed_out",
        };
        self.handshakes.with_label_values(&[outcome]).inc();
    }

    pub(crate) fn refused_connection(&self, reason: TooMany) {
        let reason = match reason {
            TooMany::InTotal => "total",
            TooMany::OfOneClient => "client",
        };
        self.refused_connections.with_label_values(&[reason]).inc();
    }

    /// Everything in Prometheus's text format, and its content type.
    pub(crate) fn text(&self) -> (Vec<u8>, &'static str) {
        let mut text = Vec::new();
        TextEncoder::new()
            .encode(&self.registry.gather(), &mut text)
            .expect("a Vec takes everything");
        (text, prometheus::TEXT_FORMAT)
    }
}

impl RouteMetrics {
    /// Counts a request; without a status it ended unanswered.
    pub(crate) fn answered(&self, method: &Method, status: Option<StatusCode>) {
        let (method, class) = (method_index(method), class_index(status));
        self.requests[method][class]
            .get_or_init(|| {
                let labels = [self.pattern.as_str(), METHODS[method], CLASSES[class]];
                self.all_requests.with_label_values(&labels)
            })
            .inc();
    }
}

impl ReplicaMetrics {
    pub(crate) fn answered(&self, status: StatusCode) {
        self.answers[class_index(Some(status))].inc();
    }
}

fn method_index(method: &Method) -> usize {
    METHODS
        .iter()
        .position(|known| *known == method.as_str())
        .unwrap_or(METHODS.len() - 1)
}

fn class_index(status: Option<StatusCode>) -> usize {
    status
        .map(|status| usize::from(status.as_u16() / 100) - 1)
        .filter(|class| *class < CLASSES.len() - 1)
        .unwrap_or(CLASSES.len() - 1)
}

impl RouteMetrics {
    /// The duration, in seconds, that a share of the requests did not exceed: the upper bound of
    /// the histogram's bucket. `None` where there is none, or it is beyond all buckets.
    pub(crate) fn quantile(&self, share: f64) -> Option<f64> {
        use prometheus::core::Metric;
        let metric = self.duration.metric();
        let histogram = metric.get_histogram();
        #[expect(clippy::cast_precision_loss, reason = "a quantile is an estimate")]
        let wanted = histogram.get_sample_count() as f64 * share;
        #[expect(clippy::cast_precision_loss, reason = "a quantile is an estimate")]
        let bucket = histogram
            .get_bucket()
            .iter()
            .find(|bucket| bucket.cumulative_count() as f64 >= wanted)?;
        Some(bucket.upper_bound())
    }
}
