//! Metrics of the path patterns.

use std::collections::HashMap;
use std::sync::Arc;

use http::{Method, StatusCode};
use parking_lot::Mutex;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;

use super::duration_histogram::DurationHistogram;
use super::family::{Counter, Family, Samples};
use super::response_class::{NO_RESPONSE, RESPONSE_CLASSES, TRUNCATED, status_class};

const METHODS: [&str; 8] = [
    "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "other",
];

/// Metrics of one path pattern, in one block of memory. A GET with a 2xx response changes two of its cache lines: of the
/// duration, and of the quota and itself. Other requests may change a third one.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct RouteMetrics {
    pub(crate) duration: DurationHistogram,
    pub(crate) quota_passed: Counter,
    pub(crate) quota_delayed: Counter,
    pub(crate) quota_refused: Counter,
    /// Requests over a quota that is only observed.
    pub(crate) quota_would_refuse: Counter,
    pub(crate) slow: Counter,
    pub(crate) retries: Counter,
    /// Requests by method and class of the response.
    requests: [[Counter; RESPONSE_CLASSES.len()]; METHODS.len()],
    /// Requests that got 503 because the store of quotas could not be used.
    pub(crate) quota_unavailable: Counter,
}

impl RouteMetrics {
    /// Counts a request. `status` is `None` if it ended without a response.
    pub(crate) fn count_request(&self, method: &Method, status: Option<StatusCode>) {
        let class = status.map_or(NO_RESPONSE, status_class);
        self.requests[method_index(method)][class].inc();
    }

    /// Counts a request whose response broke off.
    pub(crate) fn count_truncated_response(&self, method: &Method) {
        self.requests[method_index(method)][TRUNCATED].inc();
    }
}

fn method_index(method: &Method) -> usize {
    METHODS
        .iter()
        .position(|known| *known == method.as_str())
        .unwrap_or(METHODS.len() - 1)
}

/// Names of the metrics.
#[derive(Debug)]
pub(super) struct RouteFamilies {
    /// Its labels are pattern, method and status. It has the combinations that have occurred.
    pub(super) requests: Family,
    pub(super) durations: Family,
    /// Its labels are pattern and decision.
    pub(super) quota_decisions: Family,
    pub(super) slow: Family,
    pub(super) retries: Family,
}

/// Metrics of all patterns.
#[derive(Debug, Clone)]
pub(super) struct RouteCollector {
    families: Arc<RouteFamilies>,
    by_pattern: Arc<Mutex<HashMap<String, Arc<RouteMetrics>>>>,
}

impl RouteCollector {
    pub(super) fn new(families: RouteFamilies) -> Self {
        Self {
            families: Arc::new(families),
            by_pattern: Arc::default(),
        }
    }

    /// Returns the metrics of a pattern: always the same ones.
    pub(super) fn get(&self, pattern: &str) -> Arc<RouteMetrics> {
        let mut by_pattern = self.by_pattern.lock();
        if let Some(route) = by_pattern.get(pattern) {
            return Arc::clone(route);
        }
        let route = by_pattern.entry(pattern.to_owned()).or_default();
        Arc::clone(route)
    }

    /// Removes the metrics of patterns for which `is_current` is false.
    pub(super) fn retain(&self, is_current: impl Fn(&str) -> bool) {
        let mut by_pattern = self.by_pattern.lock();
        by_pattern.retain(|pattern, _| is_current(pattern));
    }
}

impl Collector for RouteCollector {
    fn desc(&self) -> Vec<&Desc> {
        let families = &self.families;
        [
            &families.requests,
            &families.durations,
            &families.quota_decisions,
            &families.slow,
            &families.retries,
        ]
        .map(Family::desc)
        .into()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut requests = self.families.requests.samples();
        let mut durations = self.families.durations.samples();
        let mut quota_decisions = self.families.quota_decisions.samples();
        let mut slow = self.families.slow.samples();
        let mut retries = self.families.retries.samples();
        for (pattern, route) in self.by_pattern.lock().iter() {
            add_requests(&mut requests, pattern, route);
            durations.add_histogram(&[pattern], &route.duration);
            for (decision, count) in [
                ("passed", &route.quota_passed),
                ("delayed", &route.quota_delayed),
                ("refused", &route.quota_refused),
                ("would_refuse", &route.quota_would_refuse),
                ("unavailable", &route.quota_unavailable),
            ] {
                quota_decisions.add_counter(&[pattern, decision], count);
            }
            slow.add_counter(&[pattern], &route.slow);
            retries.add_counter(&[pattern], &route.retries);
        }
        [requests, durations, quota_decisions, slow, retries]
            .map(Samples::into_proto)
            .into()
    }
}

fn add_requests(samples: &mut Samples<'_>, pattern: &str, route: &RouteMetrics) {
    for (method, classes) in METHODS.iter().zip(&route.requests) {
        for (class, count) in RESPONSE_CLASSES.iter().zip(classes) {
            // Most combinations never occur.
            if count.get() > 0 {
                samples.add_counter(&[pattern, method, class], count);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    #[test]
    fn a_quota_that_passes_and_a_successful_get_are_counted_in_one_cache_line() {
        let line = |offset: usize| offset / 64;
        let success = offset_of!(RouteMetrics, requests)
            + status_class(StatusCode::OK) * size_of::<Counter>();
        assert_eq!(METHODS[0], Method::GET.as_str());
        assert_eq!(line(success), line(offset_of!(RouteMetrics, quota_passed)));
    }
}
