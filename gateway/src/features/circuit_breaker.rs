//! Circuit breaker (Nygard, "Release It!", 2007), one for each path pattern and endpoint.
//!
//! Closed: requests pass, and failures in a row are counted. `failure_threshold` of them open the
//! breaker: requests are sent to other endpoints. After `recovery_timeout`, or once a health check finds the
//! endpoint healthy that was not, one request passes as the probe, and the breaker is half-open: success
//! closes it, failure opens it again.
//!
//! Invariant: in a breaker that is not closed only the outcome of the probe changes the state; those of
//! requests from before it opened are ignored. Each admitted request holds a [`Permit`]. If the probe's
//! permit is dropped without an outcome (the client disconnected, or the endpoint shed load), the next
//! request is the probe.
//!
//! Failures are connections that fail, timeouts, responses that break off, and the statuses of
//! [`is_failure`]. Load shedding is neither a failure nor a success: if it opened the breaker, one client
//! that exceeds the capacity of a path would take it away from all others.

mod breaker;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use parking_lot::RwLock;

use crate::config::CircuitBreakerSettings;
use crate::runtime::clock::Instant;
use crate::telemetry::metrics::Metrics;
pub(crate) use breaker::Permission;
use breaker::{Admission, CircuitBreaker};

/// Returns true for the statuses of a failing endpoint. Others of class 5xx say something about the request:
/// its method is not implemented (501), its version not supported (505).
pub(crate) fn is_failure(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::INTERNAL_SERVER_ERROR
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
    )
}

/// Permission for one request to one endpoint, held until the endpoint's response is complete or has failed.
#[derive(Debug)]
pub(crate) struct Permit {
    /// `None` once the outcome is recorded.
    breaker: Option<Arc<CircuitBreaker>>,
    admission: Admission,
}

impl Permit {
    /// Records that a successful response has begun.
    pub(crate) fn record_response_begin(&self) {
        if let (Some(breaker), Admission::Probe(_)) = (&self.breaker, self.admission) {
            breaker.record_probe_response(self.admission);
        }
    }

    pub(crate) fn record_success(mut self) {
        if let Some(breaker) = self.breaker.take() {
            breaker.record_success(self.admission);
        }
    }

    pub(crate) fn record_failure(mut self, now: Instant) {
        if let Some(breaker) = self.breaker.take() {
            breaker.record_failure(self.admission, now);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(breaker) = &self.breaker {
            breaker.release_probe(self.admission);
        }
    }
}

/// Circuit breakers of one path pattern, whose requests go to one upstream group. An endpoint's breaker is created by the
/// first request to it.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct CircuitBreakers {
    /// Sorted by address: a binary search is faster than hashing. In the first cache line, since every request needs it and
    /// nothing of the rest.
    by_endpoint: RwLock<Vec<(SocketAddr, Arc<CircuitBreaker>)>>,
    pattern: String,
    /// Name of the upstream group.
    upstream: String,
    settings: CircuitBreakerSettings,
    metrics: Arc<Metrics>,
}

impl CircuitBreakers {
    pub(crate) fn new(
        pattern: &str,
        upstream: &str,
        settings: CircuitBreakerSettings,
        metrics: &Arc<Metrics>,
    ) -> Self {
        Self {
            pattern: pattern.to_owned(),
            upstream: upstream.to_owned(),
            settings,
            metrics: Arc::clone(metrics),
            by_endpoint: RwLock::default(),
        }
    }

    /// Returns whether these are the breakers of an upstream group with `settings`.
    pub(crate) fn are_for(&self, upstream: &str, settings: CircuitBreakerSettings) -> bool {
        self.upstream == upstream && self.settings == settings
    }

    /// Returns the permission that a request to an endpoint would get now, without acquiring it.
    pub(crate) fn permission(&self, endpoint: SocketAddr, now: Instant) -> Permission {
        find(&self.by_endpoint.read(), endpoint)
            .map_or(Permission::Granted, |breaker| breaker.permission(now))
    }

    /// Acquires a permit for a request to an endpoint.
    ///
    /// # Errors
    /// Returns the time until the next probe if the breaker admits no request.
    pub(crate) fn acquire(&self, endpoint: SocketAddr, now: Instant) -> Result<Permit, Duration> {
        let breaker = self.breaker(endpoint);
        let admission = breaker.admit(now)?;
        Ok(Permit {
            breaker: Some(breaker),
            admission,
        })
    }

    fn breaker(&self, endpoint: SocketAddr) -> Arc<CircuitBreaker> {
        if let Some(breaker) = find(&self.by_endpoint.read(), endpoint) {
            return Arc::clone(breaker);
        }
        let mut by_endpoint = self.by_endpoint.write();
        let index = match position(&by_endpoint, endpoint) {
            // Another request has created it since the read lock was released.
            Ok(index) => return Arc::clone(&by_endpoint[index].1),
            Err(index) => index,
        };
        let gauge = self
            .metrics
            .breaker(&self.pattern, &self.upstream, &endpoint.to_string());
        let breaker = Arc::new(CircuitBreaker::new(self.settings, gauge));
        by_endpoint.insert(index, (endpoint, Arc::clone(&breaker)));
        breaker
    }

    /// Lets the breaker of an endpoint admit its probe now if it is open. For an endpoint that was unreachable and
    /// passes its health check again, `recovery_timeout` would only prolong the outage.
    pub(crate) fn probe_now(&self, endpoint: SocketAddr, now: Instant) {
        if let Some(breaker) = find(&self.by_endpoint.read(), endpoint) {
            breaker.probe_now(now);
        }
    }

    /// Removes the breakers of endpoints for which `is_current` is false.
    pub(crate) fn retain(&self, is_current: impl Fn(SocketAddr) -> bool) {
        self.by_endpoint.write().retain(|(endpoint, _)| {
            let keep = is_current(*endpoint);
            if !keep {
                self.metrics
                    .remove_breaker(&self.pattern, &self.upstream, &endpoint.to_string());
            }
            keep
        });
    }

    /// Returns the name of each endpoint's state, for the admin listener.
    pub(crate) fn states(&self) -> Vec<(SocketAddr, &'static str)> {
        let by_endpoint = self.by_endpoint.read();
        by_endpoint
            .iter()
            .map(|(endpoint, breaker)| (*endpoint, breaker.state_name()))
            .collect()
    }
}

fn find(
    breakers: &[(SocketAddr, Arc<CircuitBreaker>)],
    endpoint: SocketAddr,
) -> Option<&Arc<CircuitBreaker>> {
    let index = position(breakers, endpoint).ok()?;
    Some(&breakers[index].1)
}

/// Returns the index of an endpoint's breaker.
///
/// # Errors
/// Returns the index at which it is to be inserted if there is none.
fn position(
    breakers: &[(SocketAddr, Arc<CircuitBreaker>)],
    endpoint: SocketAddr,
) -> Result<usize, usize> {
    breakers.binary_search_by(|(address, _)| address.cmp(&endpoint))
}
