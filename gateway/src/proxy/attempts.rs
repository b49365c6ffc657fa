//! Upstream attempts of a request.

use std::net::SocketAddr;
use std::time::Duration;

use http::StatusCode;

use crate::features::circuit_breaker::Permit;
use crate::runtime::clock::Instant;
use crate::upstream::{Endpoint, InFlight};

/// Attempts of one request, one after another.
#[derive(Debug, Default)]
pub(crate) struct UpstreamAttempts {
    /// Attempts begun.
    pub(crate) count: u32,
    /// Attempt whose response headers are awaited.
    pub(crate) current: Option<UpstreamAttempt>,
    /// Endpoint whose response is being forwarded.
    responding: Option<InFlight>,
    /// Endpoint of the last attempt.
    pub(crate) last_endpoint: Option<SocketAddr>,
    /// Time from the choice of an endpoint to its response headers or its failure, of all attempts.
    pub(crate) duration: Duration,
}

/// One attempt, until the endpoint has sent response headers or failed.
#[derive(Debug)]
pub(crate) struct UpstreamAttempt {
    pub(crate) started: Instant,
    pub(crate) in_flight: InFlight,
    /// `None` if the route has no circuit breaker.
    pub(crate) permit: Option<Permit>,
}

impl UpstreamAttempts {
    pub(crate) fn begin(&mut self, attempt: UpstreamAttempt) {
        self.last_endpoint = Some(attempt.in_flight.endpoint().address);
        self.current = Some(attempt);
    }

    /// Ends the current attempt. Returns `None` if it has ended already.
    pub(crate) fn end_current(&mut self, now: Instant) -> Option<UpstreamAttempt> {
        let attempt = self.current.take()?;
        self.duration += now.since(attempt.started);
        Some(attempt)
    }

    /// Keeps the endpoint's count of requests in flight until its response is forwarded.
    pub(crate) fn set_responding(&mut self, attempt: UpstreamAttempt) {
        self.responding = Some(attempt.in_flight);
    }

    pub(crate) fn responding_endpoint(&self) -> Option<&Endpoint> {
        self.responding.as_ref().map(InFlight::endpoint)
    }
}

impl UpstreamAttempt {
    /// Records the response headers. A server error is a failure for the circuit breaker.
    pub(crate) fn record_response(&mut self, status: StatusCode, now: Instant) {
        let metrics = &self.in_flight.endpoint().metrics;
        metrics.count_response(status);
        metrics
            .duration
            .observe(now.since(self.started).as_secs_f64());
        match self.permit.take() {
            Some(permit) if status.is_server_error() => permit.record_failure(now),
            Some(permit) => permit.record_success(),
            None => {}
        }
    }

    /// Records that the endpoint failed.
    pub(crate) fn record_failure(&mut self, now: Instant) {
        if let Some(permit) = self.permit.take() {
            permit.record_failure(now);
        }
    }
}
