//! Prometheus metrics. Every label has a bounded number of values: patterns, upstream groups and endpoints of the
//! configuration, methods and status classes of a fixed list; never a path, a login or the address
//! of a client.

mod duration_histogram;
mod endpoint_metrics;
mod family;
mod response_class;
mod route_metrics;

use std::collections::HashMap;
use std::sync::Arc;

use prometheus::core::Collector;
use prometheus::proto::MetricType;
use prometheus::{
    Encoder, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

pub(crate) use endpoint_metrics::EndpointMetrics;
use endpoint_metrics::{EndpointCollector, EndpointFamilies};
use family::Family;
pub(crate) use route_metrics::RouteMetrics;
use route_metrics::{RouteCollector, RouteFamilies};

/// All metrics of the process.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    process_registry: Registry,
    routes: RouteCollector,
    endpoints: EndpointCollector,
    breaker_state: IntGaugeVec,
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

    fn routes(&self) -> RouteCollector {
        self.register(Ok(RouteCollector::new(RouteFamilies {
            requests: family(
                "requests_total",
                "Requests by path pattern, method and class of the response status; truncated: the endpoint broke its response off.",
                &["pattern", "method", "status"],
                MetricType::COUNTER,
            ),
            durations: family(
                "request_duration_seconds",
                "Time from the request headers to the end of the response.",
                &["pattern"],
                MetricType::HISTOGRAM,
            ),
            quota_decisions: family(
                "quota_decisions_total",
                "Quota decisions: passed, delayed, refused, would_refuse (over a quota that is only observed) or unavailable (no quota store: 503, unless the quota is only observed).",
                &["pattern", "decision"],
                MetricType::COUNTER,
            ),
            slow: family(
                "slow_requests_total",
                "Requests that took longer than their log_threshold.",
                &["pattern"],
                MetricType::COUNTER,
            ),
            retries: family(
                "retries_total",
                "Upstream attempts after the first one of a request.",
                &["pattern"],
                MetricType::COUNTER,
            ),
        })))
    }

    fn endpoints(&self) -> EndpointCollector {
        self.register(Ok(EndpointCollector::new(EndpointFamilies {
            attempts: family(
                "upstream_attempts_total",
                "Upstream attempts by outcome.",
                &["upstream", "replica", "outcome"],
                MetricType::COUNTER,
            ),
            durations: family(
                "upstream_duration_seconds",
                "Time from the choice of an endpoint to its response headers.",
                &["upstream", "replica"],
                MetricType::HISTOGRAM,
            ),
            in_flight: family(
                "upstream_requests_in_flight",
                "Requests in flight to an endpoint.",
                &["upstream", "replica"],
                MetricType::GAUGE,
            ),
        })))
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
            routes: registrar.routes(),
            endpoints: registrar.endpoints(),
            breaker_state: registrar.gauges(
                "circuit_breaker_state",
                "State of a circuit breaker: 0 closed, 1 half-open, 2 open.",
                &["pattern", "upstream", "replica"],
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
        self.routes.get(pattern)
    }

    /// Removes the metrics of patterns for which `is_current` is false.
    pub(crate) fn retain_routes(&self, is_current: impl Fn(&str) -> bool) {
        self.routes.retain(is_current);
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
    pub(crate) fn endpoint(&self, upstream: &str, address: &str) -> Arc<EndpointMetrics> {
        let gauges = [&self.upstream_pending, &self.replica_up]
            .map(|gauges| gauges.with_label_values(&[upstream, address]));
        self.endpoints.get(upstream, address, gauges)
    }

    /// Removes the metrics of an endpoint.
    pub(crate) fn remove_endpoint(&self, upstream: &str, address: &str) {
        self.endpoints.remove(upstream, address);
        for gauges in [&self.upstream_pending, &self.replica_up] {
            let _ = gauges.remove_label_values(&[upstream, address]);
        }
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

/// Describes a metric that is not the library's. Fails only for invalid names.
fn family(name: &str, help: &str, labels: &[&str], kind: MetricType) -> Family {
    Family::new(name, help, labels, kind).expect("names and labels of metrics are valid constants")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::{Method, StatusCode};
    use prometheus::{HistogramOpts, HistogramVec};

    use super::*;

    const BOUNDS: [f64; 14] = [
        0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    ];

    /// Returns the lines of `metrics` that contain one of `names`.
    fn lines_of(metrics: &Registry, names: &[&str]) -> Vec<String> {
        let text = TextEncoder::new().encode_to_string(&metrics.gather());
        let text = text.unwrap();
        let lines = text.lines().map(str::to_owned);
        let is_of = |line: &str, name: &str| line.contains(&format!("gateway_{name}"));
        let is_of_names = |line: &String| names.iter().any(|name| is_of(line, name));
        lines.filter(is_of_names).collect()
    }

    /// Vectors of the library with the names and help texts of other metrics.
    struct Library {
        registry: Registry,
        described: Vec<prometheus::proto::MetricFamily>,
    }

    impl Library {
        fn new(metrics: &Metrics) -> Self {
            let labels = HashMap::from([("keyspace".to_owned(), "test".to_owned())]);
            Self {
                registry: Registry::new_custom(Some("gateway".to_owned()), Some(labels)).unwrap(),
                described: metrics.registry.gather(),
            }
        }

        fn help(&self, name: &str) -> &str {
            let name = format!("gateway_{name}");
            let mut families = self.described.iter();
            families
                .find(|family| family.name() == name)
                .unwrap()
                .help()
        }

        fn counters(&self, name: &str, labels: &[&str]) -> IntCounterVec {
            Registrar(&self.registry).counters(name, self.help(name), labels)
        }

        fn gauges(&self, name: &str, labels: &[&str]) -> IntGaugeVec {
            Registrar(&self.registry).gauges(name, self.help(name), labels)
        }

        fn histograms(&self, name: &str, labels: &[&str]) -> HistogramVec {
            let options = HistogramOpts::new(name, self.help(name)).buckets(BOUNDS.into());
            Registrar(&self.registry).register(HistogramVec::new(options, labels))
        }
    }

    #[test]
    fn the_text_about_patterns_is_that_of_the_library() {
        const NAMES: [&str; 5] = [
            "requests_total",
            "request_duration_seconds",
            "quota_decisions_total",
            "slow_requests_total",
            "retries_total",
        ];
        let metrics = Metrics::new("test");
        assert_eq!(lines_of(&metrics.registry, &NAMES), [""; 0]);
        for pattern in ["/b", "/a"] {
            let route = metrics.route(pattern);
            route.count_request(&Method::GET, Some(StatusCode::OK));
            route.count_request(&Method::GET, Some(StatusCode::OK));
            route.count_request(&Method::TRACE, None);
            route.count_truncated_response(&Method::PUT);
            route.duration.observe(Duration::from_millis(250));
            route.duration.observe(Duration::from_secs(16));
            route.quota_passed.inc();
            route.quota_unavailable.inc();
            route.slow.inc();
            route.retries.inc();
        }
        metrics.route("/removed").slow.inc();
        metrics.retain_routes(|pattern| pattern != "/removed");

        let library = Library::new(&metrics);
        let requests = library.counters("requests_total", &["pattern", "method", "status"]);
        let durations = library.histograms("request_duration_seconds", &["pattern"]);
        let decisions = library.counters("quota_decisions_total", &["pattern", "decision"]);
        let slow = library.counters("slow_requests_total", &["pattern"]);
        let retries = library.counters("retries_total", &["pattern"]);
        for pattern in ["/b", "/a"] {
            for (method, class, count) in [
                ("GET", "2xx", 2),
                ("other", "none", 1),
                ("PUT", "truncated", 1),
            ] {
                let requests = requests.with_label_values(&[pattern, method, class]);
                requests.inc_by(count);
            }
            let durations = durations.with_label_values(&[pattern]);
            durations.observe(0.25);
            durations.observe(16.0);
            for (decision, count) in [
                ("passed", 1),
                ("delayed", 0),
                ("refused", 0),
                ("would_refuse", 0),
                ("unavailable", 1),
            ] {
                let decisions = decisions.with_label_values(&[pattern, decision]);
                decisions.inc_by(count);
            }
            slow.with_label_values(&[pattern]).inc();
            retries.with_label_values(&[pattern]).inc();
        }
        assert_eq!(
            lines_of(&metrics.registry, &NAMES),
            lines_of(&library.registry, &NAMES)
        );
    }

    #[test]
    fn the_text_about_endpoints_is_that_of_the_library() {
        const NAMES: [&str; 3] = [
            "upstream_attempts_total",
            "upstream_duration_seconds",
            "upstream_requests_in_flight",
        ];
        let metrics = Metrics::new("test");
        assert_eq!(lines_of(&metrics.registry, &NAMES), [""; 0]);
        let endpoint = metrics.endpoint("default", "192.0.2.1:80");
        endpoint.count_response(StatusCode::OK);
        endpoint.stale.inc();
        endpoint.duration.observe(Duration::from_millis(500));
        endpoint.in_flight.inc();
        metrics.endpoint("default", "192.0.2.2:80");
        metrics.endpoint("default", "192.0.2.3:80");
        metrics.remove_endpoint("default", "192.0.2.3:80");

        let library = Library::new(&metrics);
        let labels = ["upstream", "replica"];
        let attempts = library.counters(
            "upstream_attempts_total",
            &["upstream", "replica", "outcome"],
        );
        let durations = library.histograms("upstream_duration_seconds", &labels);
        let in_flight = library.gauges("upstream_requests_in_flight", &labels);
        for (address, count) in [("192.0.2.1:80", 1), ("192.0.2.2:80", 0)] {
            for (outcome, count) in [
                ("1xx", 0),
                ("2xx", count),
                ("3xx", 0),
                ("4xx", 0),
                ("5xx", 0),
                ("truncated", 0),
                ("connect_failure", 0),
                ("timeout", 0),
                ("broken", 0),
                ("stale", count),
                ("overflow", 0),
            ] {
                let attempts = attempts.with_label_values(&["default", address, outcome]);
                attempts.inc_by(count);
            }
            let durations = durations.with_label_values(&["default", address]);
            for _ in 0..count {
                durations.observe(0.5);
            }
            let in_flight = in_flight.with_label_values(&["default", address]);
            in_flight.set(i64::from(count > 0));
        }
        assert_eq!(
            lines_of(&metrics.registry, &NAMES),
            lines_of(&library.registry, &NAMES)
        );
    }
}
