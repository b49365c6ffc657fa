//! Upstream attempts of a request.
//!
//! Invariant: each attempt is counted under one outcome, and a circuit breaker learns of a success only
//! when the response is complete. A response that breaks off is a failure, whatever its status.

use std::net::SocketAddr;
use std::time::Duration;

use http::StatusCode;

use crate::features::circuit_breaker::{self, Permit};
use crate::http::message::ResponseHeaders;
use crate::runtime::clock::Instant;
use crate::upstream::{Endpoint, HealthStatus, InFlight};

/// Attempts of one request, one after another.
#[derive(Debug, Default)]
pub(crate) struct UpstreamAttempts {
    /// Attempts begun.
    pub(crate) count: u32,
    /// Attempt whose response headers are awaited.
    pub(crate) current: Option<UpstreamAttempt>,
    /// Attempt whose response is being forwarded.
    responding: Option<RespondingAttempt>,
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
    /// Health of the endpoint when it was chosen.
    pub(crate) health: HealthStatus,
    /// `None` if the route has no circuit breaker.
    pub(crate) permit: Option<Permit>,
}

/// Attempt whose endpoint has sent response headers. It is counted under its status when it is dropped,
/// unless the response breaks off.
#[derive(Debug)]
pub(crate) struct RespondingAttempt {
    in_flight: InFlight,
    /// `None` if the route has no circuit breaker, or the circuit breaker knows the outcome.
    permit: Option<Permit>,
    status: StatusCode,
    completeness: Completeness,
}

/// Completeness of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Completeness {
    /// In progress, or given up by the client.
    Incomplete,
    Complete,
    Truncated,
}

impl UpstreamAttempts {
    pub(crate) fn begin(&mut self, attempt: UpstreamAttempt) {
        self.count += 1;
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
    pub(crate) fn set_responding(&mut self, attempt: RespondingAttempt) {
        self.responding = Some(attempt);
    }

    pub(crate) fn responding_endpoint(&self) -> Option<&Endpoint> {
        let attempt = self.responding.as_ref();
        attempt.map(|attempt| attempt.in_flight.endpoint())
    }

    /// Records that the endpoint has sent its whole response.
    pub(crate) fn record_complete_response(&mut self) {
        let Some(attempt) = &mut self.responding else {
            return;
        };
        attempt.completeness = Completeness::Complete;
        if let Some(permit) = attempt.permit.take() {
            permit.record_success();
        }
    }

    /// Returns whether an endpoint works on the request or on its response.
    pub(crate) fn is_under_way(&self) -> bool {
        let is_responding =
            |attempt: &RespondingAttempt| attempt.completeness == Completeness::Incomplete;
        self.current.is_some() || self.responding.as_ref().is_some_and(is_responding)
    }

    /// Records that the endpoint broke off its response. `blame` says whether the circuit breaker counts it.
    pub(crate) fn record_truncated_response(&mut self, blame: Blame, now: Instant) {
        let Some(attempt) = &mut self.responding else {
            return;
        };
        attempt.completeness = Completeness::Truncated;
        if let (Some(permit), Blame::Endpoint) = (attempt.permit.take(), blame) {
            permit.record_failure(now);
        }
    }
}

/// Side that caused a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blame {
    Endpoint,
    /// The endpoint may have waited for a body that the client holds back.
    Client,
}

impl UpstreamAttempt {
    /// Records the response headers.
    pub(crate) fn begin_response(
        mut self,
        response: &ResponseHeaders,
        now: Instant,
    ) -> RespondingAttempt {
        let metrics = &self.in_flight.endpoint().metrics;
        metrics.duration.observe(now.since(self.started));
        let permit = match self.permit.take() {
            // Neither a failure nor a success.
            Some(_) if response.is_load_shedding() => None,
            Some(permit) if circuit_breaker::is_failure(response.status) => {
                permit.record_failure(now);
                None
            }
            // The end of a tunnel says nothing about the endpoint.
            Some(permit) if response.status == StatusCode::SWITCHING_PROTOCOLS => {
                permit.record_success();
                None
            }
            Some(permit) => {
                permit.record_response_begin();
                Some(permit)
            }
            None => None,
        };
        RespondingAttempt {
            in_flight: self.in_flight,
            permit,
            status: response.status,
            completeness: Completeness::Incomplete,
        }
    }

    /// Records that the endpoint failed.
    pub(crate) fn record_failure(&mut self, now: Instant) {
        if let Some(permit) = self.permit.take() {
            permit.record_failure(now);
        }
    }
}

impl Drop for RespondingAttempt {
    fn drop(&mut self) {
        let metrics = &self.in_flight.endpoint().metrics;
        match self.completeness {
            Completeness::Incomplete | Completeness::Complete => {
                metrics.count_response(self.status);
            }
            Completeness::Truncated => metrics.truncated.inc(),
        }
    }
}
