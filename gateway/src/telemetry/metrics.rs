//! Prometheus metrics. Every label has a bounded number of values: patterns, upstream groups and endpoints of the
//! configuration, methods and status classes of a fixed list; never a path, a login or the address
//! of a client.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use http::{Method, StatusCode};
use parking_lot::Mutex;
use prometheus::core::Collector;
use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

/// Upper bounds of the duration histograms' buckets, in seconds.
const DURATION_BUCKETS: [f64; 14] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

const METHODS: [&str; 8] = [
    "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "other",
];
/// Classes of responses: by status; `none` is for requests that ended without a response, `truncated` for
/// responses that the endpoint broke off, whatever their status.
const RESPONSE_CLASSES: [&str; 7] = ["1xx", "2xx", "3xx", "4xx", "5xx", "none", "truncated"];
const NONE: usize = 5;
const TRUNCATED: usize = 6;

/// All metrics of the process.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    process_registry: Registry,
    requests: IntCounterVec,
    durations: HistogramVec,
    quota_decisions: IntCounterVec,
    slow: IntCounterVec,
    retries: IntCounterVec,
    breaker_state: IntGaugeVec,
    attempts: IntCounterVec,
    upstream_durations: HistogramVec,
    upstream_in_flight: IntGaugeVec,
    upstream_pending: IntGaugeVec,
    upstream_endpoints: IntGaugeVec,
    replica_up: IntGaugeVec,
    certificate_expiry: IntGaugeVec,
    reloads: IntCounterVec,
    reload_success: IntGauge,
    last_reload_timestamp: IntGauge,
    handshakes: IntCounterVec,
    rejected_connections: IntCounterVec,
    pub(crate) client_limits: ClientLimitMetrics,
    pub(crate) identity: IdentityMetrics,
    pub(crate) in_flight: IntGauge,
    pub(crate) connections: IntGauge,
    pub(crate) buffered_response_bytes: IntGauge,
    pub(crate) accepted_connections: IntCounter,
    routes: Mutex<HashMap<String, Arc<RouteMetrics>>>,
}

/// Metrics of one path pattern, with their labels resolved beforehand.
#[derive(Debug)]
pub(crate) struct RouteMetrics {
    pattern: String,
    all_requests: IntCounterVec,
    /// Created on first use: most combinations never occur.
    requests: [[OnceLock<IntCounter>; RESPONSE_CLASSES.len()]; METHODS.len()],
    pub(crate) duration: Histogram,
    pub(crate) quota_passed: IntCounter,
    pub(crate) quota_delayed: IntCounter,
    pub(crate) quota_rejected: IntCounter,
    /// Requests over a quota that is only observed.
    pub(crate) quota_would_reject: IntCounter,
    /// Requests that got 503 because the store of quotas could not be used.
    pub(crate) quota_unavailable: IntCounter,
    pub(crate) slow: IntCounter,
    pub(crate) retries: IntCounter,
}

/// Metrics of the limits of clients.
#[derive(Debug, Clone)]
pub(crate) struct ClientLimitMetrics {
    pub(crate) abandoned: IntCounter,
    pub(crate) refused_abandoned: IntCounter,
    pub(crate) refused_concurrent: IntCounter,
}

/// Metrics of the identity of requests.
#[derive(Debug, Clone)]
pub(crate) struct IdentityMetrics {
    pub(crate) remembered: IntCounter,
    pub(crate) verified: IntCounter,
    pub(crate) anonymous: IntCounter,
    pub(crate) missing: IntCounter,
    pub(crate) invalid: IntCounter,
    pub(crate) expired: IntCounter,
    pub(crate) rejected: IntCounter,
    pub(crate) limited: IntCounter,
    pub(crate) unavailable: IntCounter,
    pub(crate) remembered_tokens: IntGauge,
    pub(crate) key_fetches_success: IntCounter,
    pub(crate) key_fetches_failure: IntCounter,
    pub(crate) keys_fetched_timestamp: IntGauge,
}

/// Metrics of the store that gateways share their quotas through.
#[derive(Debug, Clone)]
pub(crate) struct QuotaStoreMetrics {
    pub(crate) up: IntGauge,
    pub(crate) leases: IntGauge,
    pub(crate) commands: IntCounter,
    pub(crate) failed_commands: IntCounter,
    pub(crate) leased_units: IntCounter,
    pub(crate) returned_units: IntCounter,
    /// Decisions of this gateway alone, because the store could not be used.
    pub(crate) local_decisions: IntCounter,
}

/// Metrics of one endpoint.
#[derive(Debug)]
pub(crate) struct EndpointMetrics {
    responses: [IntCounter; NONE],
    pub(crate) connect_failures: IntCounter,
    pub(crate) timeouts: IntCounter,
    /// Connections that broke before the response headers.
    pub(crate) broken: IntCounter,
    /// Pooled connections that were closed before their request, which was sent once more.
    pub(crate) stale: IntCounter,
    pub(crate) truncated: IntCounter,
    /// Requests for which no connection was free.
    pub(crate) overflow: IntCounter,
    pub(crate) duration: Histogram,
    pub(crate) in_flight: IntGauge,
    pub(crate) pending: IntGauge,
    pub(crate) up: IntGauge,
}

/// Outcome of a TLS handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HandshakeOutcome {
    Completed,
    Failed,
    TimedOut,
}

/// Connection limit that a refused connection would have exceeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExceededLimit {
    Total,
    PerClient,
}

/// Creates metrics and registers them. Both fail only for invalid names.
struct Registrar<'r>(&'r Registry);

impl Registrar<'_> {
    fn register<M: Collector + Clone + 'static>(&self, metric: prometheus::Result<M>) -> M {
        let metric = metric.expect("names and labels of metrics are valid constants");
        let registered = self.0.register(Box::new(metric.clone()));
        registered.expect("each metric is registered once");
        metric
    }

    fn upstream_pending(&self) -> IntGaugeVec {
        self.gauges(
            "upstream_requests_pending",
            "Requests in flight to an endpoint that wait for a connection.",
            &["upstream", "replica"],
        )
    }

    fn upstream_endpoints(&self) -> IntGaugeVec {
        self.gauges(
            "upstream_endpoints",
            "Endpoints of an upstream group, healthy or not.",
            &["upstream"],
        )
    }

    fn client_limits(&self) -> ClientLimitMetrics {
        let refused = self.counters(
            "upstream_requests_refused_total",
            "Requests refused with 429 because of what their client does to endpoints: abandoned or concurrent requests.",
            &["reason"],
        );
        ClientLimitMetrics {
            abandoned: self.counter(
                "abandoned_requests_total",
                "Upstream requests whose client reset them or disconnected before the response was complete.",
            ),
            refused_abandoned: refused.with_label_values(&["abandoned"]),
            refused_concurrent: refused.with_label_values(&["concurrent"]),
        }
    }

    fn identity(&self) -> IdentityMetrics {
        let checks = self.counters(
            "identity_checks_total",
            "Requests on paths with `auth` by outcome: remembered or verified, anonymous, missing (no token), invalid, expired, rejected (by auth-api: the session has ended), limited (too many invalid tokens of the client), unavailable.",
            &["outcome"],
        );
        let fetches = self.counters(
            "identity_key_fetches_total",
            "Attempts to fetch the key set by outcome.",
            &["outcome"],
        );
        let check = |outcome| checks.with_label_values(&[outcome]);
        IdentityMetrics {
            remembered: check("remembered"),
            verified: check("verified"),
            anonymous: check("anonymous"),
            missing: check("missing"),
            invalid: check("invalid"),
            expired: check("expired"),
            rejected: check("rejected"),
            limited: check("limited"),
            unavailable: check("unavailable"),
            remembered_tokens: self.gauge(
                "identity_remembered_tokens",
                "Verified tokens that are remembered.",
            ),
            key_fetches_success: fetches.with_label_values(&["success"]),
            key_fetches_failure: fetches.with_label_values(&["failure"]),
            keys_fetched_timestamp: self.gauge(
                "identity_keys_fetched_timestamp_seconds",
                "Time when the key set was last fetched, in Unix time; 0 if it never was.",
            ),
        }
    }

    fn quota_store(&self) -> QuotaStoreMetrics {
        let commands = self.counters(
            "quota_store_commands_total",
            "Commands sent to the quota store, by outcome; a heartbeat is none.",
            &["outcome"],
        );
        let units = self.counters(
            "quota_leased_units_total",
            "Units of quotas that were leased from the quota store, and returned to it.",
            &["direction"],
        );
        QuotaStoreMetrics {
            up: self.gauge(
                "quota_store_up",
                "1 if quotas are shared through the quota store; 0 while each gateway counts alone.",
            ),
            leases: self.gauge("quota_leases", "Keys of quotas that this gateway has a lease or a refusal of."),
            commands: commands.with_label_values(&["ok"]),
            failed_commands: commands.with_label_values(&["failed"]),
            leased_units: units.with_label_values(&["leased"]),
            returned_units: units.with_label_values(&["returned"]),
            local_decisions: self.counter(
                "quota_local_decisions_total",
                "Quota decisions of this gateway alone because the quota store could not be used.",
            ),
        }
    }

    fn set_build_info(&self) {
        self.gauges(
            "build_info",
            "Version of the running gateway.",
            &["version"],
        )
        .with_label_values(&[env!("CARGO_PKG_VERSION")])
        .set(1);
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
        let options = HistogramOpts::new(name, help).buckets(DURATION_BUCKETS.into());
        self.register(HistogramVec::new(options, labels))
    }
}

impl Metrics {
    /// Creates the metrics, each with the label `keyspace`.
    pub(crate) fn new(keyspace: &str) -> Self {
        let labels = HashMap::from([("keyspace".to_owned(), keyspace.to_owned())]);
        let registry = Registry::new_custom(Some("gateway".to_owned()), Some(labels))
            .expect("the prefix is a constant");
        let registrar = Registrar(&registry);
        registrar.set_build_info();
        Self {
            requests: registrar.counters(
                "requests_total",
                "Requests by path pattern, method and class of the response status; truncated: the endpoint broke its response off.",
                &["pattern", "method", "status"],
            ),
            durations: registrar.histograms(
                "request_duration_seconds",
                "Time from the request headers to the end of the response.",
                &["pattern"],
            ),
            quota_decisions: registrar.counters(
                "quota_decisions_total",
                "Quota decisions: passed, delayed, refused, would_refuse (over a quota that is only observed) or unavailable (no quota store: 503, unless the quota is only observed).",
                &["pattern", "decision"],
            ),
            slow: registrar.counters(
                "slow_requests_total",
                "Requests that took longer than their log_threshold.",
                &["pattern"],
            ),
            retries: registrar.counters(
                "retries_total",
                "Upstream attempts after the first one of a request.",
                &["pattern"],
            ),
            breaker_state: registrar.gauges(
                "circuit_breaker_state",
                "State of a circuit breaker: 0 closed, 1 half-open, 2 open.",
                &["pattern", "upstream", "replica"],
            ),
            attempts: registrar.counters(
                "upstream_attempts_total",
                "Upstream attempts by outcome.",
                &["upstream", "replica", "outcome"],
            ),
            upstream_durations: registrar.histograms(
                "upstream_duration_seconds",
                "Time from the choice of an endpoint to its response headers.",
                &["upstream", "replica"],
            ),
            upstream_in_flight: registrar.gauges(
                "upstream_requests_in_flight",
                "Requests in flight to an endpoint.",
                &["upstream", "replica"],
            ),
            upstream_pending: registrar.upstream_pending(),
            upstream_endpoints: registrar.upstream_endpoints(),
            replica_up: registrar.gauges(
                "replica_up",
                "1 if the endpoint is healthy.",
                &["upstream", "replica"],
            ),
            certificate_expiry: registrar.gauges(
                "certificate_expiry_timestamp_seconds",
                "End of a certificate's validity, in Unix time.",
                &["certificate"],
            ),
            reloads: registrar.counters(
                "reloads_total",
                "Configuration reloads by outcome.",
                &["outcome"],
            ),
            reload_success: registrar.gauge(
                "last_reload_success",
                "1 if the configuration on disk is the active one.",
            ),
            last_reload_timestamp: registrar.gauge(
                "last_reload_success_timestamp_seconds",
                "Time when the active configuration was loaded, in Unix time.",
            ),
            handshakes: registrar.counters(
                "tls_handshakes_total",
                "TLS handshakes by outcome.",
                &["outcome"],
            ),
            rejected_connections: registrar.counters(
                "connections_refused_total",
                "Connections closed because of a connection limit.",
                &["reason"],
            ),
            client_limits: registrar.client_limits(),
            identity: registrar.identity(),
            in_flight: registrar.gauge("requests_in_flight", "Requests in flight."),
            connections: registrar.gauge("connections", "Open client connections."),
            buffered_response_bytes: registrar.gauge(
                "buffered_response_bytes",
                "Response bytes that clients have not read.",
            ),
            accepted_connections: registrar
                .counter("connections_accepted_total", "Accepted client connections."),
            routes: Mutex::default(),
            process_registry: supervision::process_registry(),
            registry,
        }
    }

    /// Creates the metrics of the quota store. A gateway without one does not expose them.
    pub(crate) fn quota_store(&self) -> QuotaStoreMetrics {
        Registrar(&self.registry).quota_store()
    }

    /// Exposes a metric that another part owns.
    pub(crate) fn register(&self, metric: Box<dyn Collector>) {
        let registered = self.registry.register(metric);
        registered.expect("each metric is registered once");
    }

    /// Returns the metrics of a path pattern: always the same ones for a pattern.
    pub(crate) fn route(&self, pattern: &str) -> Arc<RouteMetrics> {
        let mut routes = self.routes.lock();
        if let Some(route) = routes.get(pattern) {
            return Arc::clone(route);
        }
        let quota_decision =
            |decision| self.quota_decisions.with_label_values(&[pattern, decision]);
        let route = Arc::new(RouteMetrics {
            pattern: pattern.to_owned(),
            all_requests: self.requests.clone(),
            requests: Default::default(),
            duration: self.durations.with_label_values(&[pattern]),
            quota_passed: quota_decision("passed"),
            quota_delayed: quota_decision("delayed"),
            quota_rejected: quota_decision("refused"),
            quota_would_reject: quota_decision("would_refuse"),
            quota_unavailable: quota_decision("unavailable"),
            slow: self.slow.with_label_values(&[pattern]),
            retries: self.retries.with_label_values(&[pattern]),
        });
        routes.insert(pattern.to_owned(), Arc::clone(&route));
        route
    }

    /// Removes the metrics of patterns for which `is_current` is false.
    pub(crate) fn retain_routes(&self, is_current: impl Fn(&str) -> bool) {
        self.routes.lock().retain(|pattern, _| {
            let keep = is_current(pattern);
            if !keep {
                for method in METHODS {
                    for class in RESPONSE_CLASSES {
                        let _ = self.requests.remove_label_values(&[pattern, method, class]);
                    }
                }
                for decision in [
                    "passed",
                    "delayed",
                    "refused",
                    "would_refuse",
                    "unavailable",
                ] {
                    let _ = self
                        .quota_decisions
                        .remove_label_values(&[pattern, decision]);
                }
                let _ = self.durations.remove_label_values(&[pattern]);
                let _ = self.slow.remove_label_values(&[pattern]);
                let _ = self.retries.remove_label_values(&[pattern]);
            }
            keep
        });
    }

    /// Sets the number of endpoints of an upstream group.
    pub(crate) fn set_endpoint_count(&self, upstream: &str, count: usize) {
        self.upstream_endpoints
            .with_label_values(&[upstream])
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Removes the number of endpoints of an upstream group.
    pub(crate) fn remove_upstream(&self, upstream: &str) {
        let _ = self.upstream_endpoints.remove_label_values(&[upstream]);
    }

    /// Returns the metrics of an endpoint, whose address is the label `replica`.
    pub(crate) fn endpoint(&self, upstream: &str, address: &str) -> EndpointMetrics {
        let attempt = |outcome| {
            self.attempts
                .with_label_values(&[upstream, address, outcome])
        };
        let labels = [upstream, address];
        EndpointMetrics {
            responses: std::array::from_fn(|class| attempt(RESPONSE_CLASSES[class])),
            connect_failures: attempt("connect_failure"),
            timeouts: attempt("timeout"),
            broken: attempt("broken"),
            stale: attempt("stale"),
            truncated: attempt(RESPONSE_CLASSES[TRUNCATED]),
            overflow: attempt("overflow"),
            duration: self.upstream_durations.with_label_values(&labels),
            in_flight: self.upstream_in_flight.with_label_values(&labels),
            pending: self.upstream_pending.with_label_values(&labels),
            up: self.replica_up.with_label_values(&labels),
        }
    }

    /// Removes the metrics of an endpoint.
    pub(crate) fn remove_endpoint(&self, upstream: &str, address: &str) {
        let labels = [upstream, address];
        for outcome in RESPONSE_CLASSES.into_iter().chain([
            "connect_failure",
            "timeout",
            "broken",
            "stale",
            "overflow",
        ]) {
            let _ = self
                .attempts
                .remove_label_values(&[upstream, address, outcome]);
        }
        let _ = self.upstream_durations.remove_label_values(&labels);
        let _ = self.upstream_in_flight.remove_label_values(&labels);
        let _ = self.upstream_pending.remove_label_values(&labels);
        let _ = self.replica_up.remove_label_values(&labels);
    }

    /// Returns the state gauge of the circuit breaker of a pattern and an endpoint of an upstream group.
    pub(crate) fn breaker(&self, pattern: &str, upstream: &str, endpoint: &str) -> IntGauge {
        self.breaker_state
            .with_label_values(&[pattern, upstream, endpoint])
    }

    /// Removes the state gauge of a circuit breaker.
    pub(crate) fn remove_breaker(&self, pattern: &str, upstream: &str, endpoint: &str) {
        let _ = self
            .breaker_state
            .remove_label_values(&[pattern, upstream, endpoint]);
    }

    /// Replaces the certificates by `all`, each with the end of its validity in Unix time.
    pub(crate) fn set_certificates(&self, all: impl IntoIterator<Item = (String, i64)>) {
        self.certificate_expiry.reset();
        for (name, expiry) in all {
            self.certificate_expiry
                .with_label_values(&[&name])
                .set(expiry);
        }
    }

    /// Records that the configuration on disk is active since `unix_seconds`.
    pub(crate) fn set_active_since(&self, unix_seconds: i64) {
        self.reload_success.set(1);
        self.last_reload_timestamp.set(unix_seconds);
    }

    pub(crate) fn record_reload_success(&self) {
        self.reloads.with_label_values(&["success"]).inc();
    }

    pub(crate) fn record_reload_failure(&self) {
        self.reloads.with_label_values(&["failure"]).inc();
        self.reload_success.set(0);
    }

    pub(crate) fn count_handshake(&self, outcome: HandshakeOutcome) {
        let outcome = match outcome {
            HandshakeOutcome::Completed => "done",
            HandshakeOutcome::Failed => "failed",
            HandshakeOutcome::TimedOut => "timed_out",
        };
        self.handshakes.with_label_values(&[outcome]).inc();
    }

    pub(crate) fn count_rejected_connection(&self, limit: ExceededLimit) {
        let reason = match limit {
            ExceededLimit::Total => "total",
            ExceededLimit::PerClient => "client",
        };
        self.rejected_connections.with_label_values(&[reason]).inc();
    }

    /// Returns all metrics in Prometheus's text format, and its content type.
    pub(crate) fn encode(&self) -> (Vec<u8>, &'static str) {
        let mut families = self.registry.gather();
        families.extend(self.process_registry.gather());
        let mut text = Vec::new();
        TextEncoder::new()
            .encode(&families, &mut text)
            .expect("writing to a Vec cannot fail");
        (text, prometheus::TEXT_FORMAT)
    }
}

impl RouteMetrics {
    /// Counts a request. `status` is `None` if it ended without a response.
    pub(crate) fn count_request(&self, method: &Method, status: Option<StatusCode>) {
        let class = status.map_or(NONE, status_class);
        self.count(method, class);
    }

    /// Counts a request whose response broke off.
    pub(crate) fn count_truncated_response(&self, method: &Method) {
        self.count(method, TRUNCATED);
    }

    fn count(&self, method: &Method, class: usize) {
        let method = method_index(method);
        self.requests[method][class]
            .get_or_init(|| {
                let labels = [
                    self.pattern.as_str(),
                    METHODS[method],
                    RESPONSE_CLASSES[class],
                ];
                self.all_requests.with_label_values(&labels)
            })
            .inc();
    }
}

impl EndpointMetrics {
    /// Counts the response to an upstream attempt.
    pub(crate) fn count_response(&self, status: StatusCode) {
        self.responses[status_class(status)].inc();
    }
}

fn method_index(method: &Method) -> usize {
    METHODS
        .iter()
        .position(|known| *known == method.as_str())
        .unwrap_or(METHODS.len() - 1)
}

/// Returns the class of a status; an invalid one counts as 5xx (RFC 9110, section 15).
fn status_class(status: StatusCode) -> usize {
    (usize::from(status.as_u16() / 100) - 1).min(NONE - 1)
}

impl RouteMetrics {
    /// Returns the `quantile` (0 to 1) of the request durations in seconds: the upper bound of the
    /// histogram's bucket. `None` if there were no requests or the duration exceeds all buckets.
    pub(crate) fn duration_quantile(&self, quantile: f64) -> Option<f64> {
        use prometheus::core::Metric;
        let metric = self.duration.metric();
        let histogram = metric.get_histogram();
        #[expect(clippy::cast_precision_loss, reason = "a quantile is an estimate")]
        let rank = histogram.get_sample_count() as f64 * quantile;
        #[expect(clippy::cast_precision_loss, reason = "a quantile is an estimate")]
        let bucket = histogram
            .get_bucket()
            .iter()
            .find(|bucket| bucket.cumulative_count() as f64 >= rank)?;
        Some(bucket.upper_bound())
    }
}
