//! Metrics of the endpoints.

use std::collections::HashMap;
use std::sync::Arc;

use http::StatusCode;
use parking_lot::Mutex;
use prometheus::IntGauge;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;

use super::duration_histogram::DurationHistogram;
use super::family::{Counter, Family, Gauge, Samples};
use super::response_class::{NO_RESPONSE, RESPONSE_CLASSES, TRUNCATED, status_class};

/// Metrics of one endpoint, in one block of memory. A request changes two of its cache lines: of the duration, and of the
/// requests in flight and their outcome.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct EndpointMetrics {
    pub(crate) duration: DurationHistogram,
    pub(crate) in_flight: Gauge,
    responses: [Counter; NO_RESPONSE],
    pub(crate) truncated: Counter,
    pub(crate) connect_failures: Counter,
    pub(crate) timeouts: Counter,
    /// Connections that broke before the response headers.
    pub(crate) broken: Counter,
    /// Pooled connections that were closed before their request, which was sent once more.
    pub(crate) stale: Counter,
    /// Requests for which no connection was free.
    pub(crate) overflow: Counter,
    pub(crate) pending: IntGauge,
    pub(crate) up: IntGauge,
}

impl EndpointMetrics {
    fn new(pending: IntGauge, up: IntGauge) -> Self {
        Self {
            duration: DurationHistogram::default(),
            in_flight: Gauge::default(),
            responses: Default::default(),
            truncated: Counter::default(),
            connect_failures: Counter::default(),
            timeouts: Counter::default(),
            broken: Counter::default(),
            stale: Counter::default(),
            overflow: Counter::default(),
            pending,
            up,
        }
    }

    /// Counts the response to an upstream attempt.
    pub(crate) fn count_response(&self, status: StatusCode) {
        self.responses[status_class(status)].inc();
    }
}

/// Names of the metrics, whose labels begin with upstream group and endpoint.
#[derive(Debug)]
pub(super) struct EndpointFamilies {
    /// Its last label is the outcome.
    pub(super) attempts: Family,
    pub(super) durations: Family,
    pub(super) in_flight: Family,
}

/// Upstream group and address of an endpoint.
type EndpointName = (String, String);

/// Metrics of all endpoints.
#[derive(Debug, Clone)]
pub(super) struct EndpointCollector {
    families: Arc<EndpointFamilies>,
    by_name: Arc<Mutex<HashMap<EndpointName, Arc<EndpointMetrics>>>>,
}

impl EndpointCollector {
    pub(super) fn new(families: EndpointFamilies) -> Self {
        Self {
            families: Arc::new(families),
            by_name: Arc::default(),
        }
    }

    /// Returns the metrics of an endpoint: the same ones until they are removed. `pending` and `up` are the library's, since
    /// hardly any request changes them.
    pub(super) fn get(
        &self,
        upstream: &str,
        address: &str,
        [pending, up]: [IntGauge; 2],
    ) -> Arc<EndpointMetrics> {
        let name = (upstream.to_owned(), address.to_owned());
        let mut by_name = self.by_name.lock();
        let endpoint = by_name.entry(name);
        let endpoint = endpoint.or_insert_with(|| Arc::new(EndpointMetrics::new(pending, up)));
        Arc::clone(endpoint)
    }

    /// Removes the metrics of an endpoint.
    pub(super) fn remove(&self, upstream: &str, address: &str) {
        let name = (upstream.to_owned(), address.to_owned());
        self.by_name.lock().remove(&name);
    }
}

impl Collector for EndpointCollector {
    fn desc(&self) -> Vec<&Desc> {
        let families = &self.families;
        [&families.attempts, &families.durations, &families.in_flight]
            .map(Family::desc)
            .into()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut attempts = self.families.attempts.samples();
        let mut durations = self.families.durations.samples();
        let mut in_flight = self.families.in_flight.samples();
        for ((upstream, address), endpoint) in self.by_name.lock().iter() {
            let responses = RESPONSE_CLASSES.into_iter().zip(&endpoint.responses);
            for (outcome, count) in responses.chain([
                (RESPONSE_CLASSES[TRUNCATED], &endpoint.truncated),
                ("connect_failure", &endpoint.connect_failures),
                ("timeout", &endpoint.timeouts),
                ("broken", &endpoint.broken),
                ("stale", &endpoint.stale),
                ("overflow", &endpoint.overflow),
            ]) {
                attempts.add_counter(&[upstream, address, outcome], count);
            }
            durations.add_histogram(&[upstream, address], &endpoint.duration);
            in_flight.add_gauge(&[upstream, address], &endpoint.in_flight);
        }
        [attempts, durations, in_flight]
            .map(Samples::into_proto)
            .into()
    }
}
