//! Context of one request.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;

use crate::client::{ClientIdentity, PeerTrust};
use crate::config::Limits;
use crate::features::cors::RequestOrigin;
use crate::features::rate_limit::{QuotaSender, QuotaStatus};
use crate::features::retry::{self, AttemptFailure};
use crate::features::timeout::Deadline;
use crate::http::message::{RequestHeaders, Upgrade};
use crate::identity::SharedIdentity;
use crate::proxy::attempts::UpstreamAttempts;
use crate::proxy::response_budget::ResponseBuffer;
use crate::proxy::route::Route;
use crate::proxy::state::{ActiveConfig, GatewayState};
use crate::proxy::upload::Upload;
use crate::runtime::clock::Instant;
use crate::telemetry::access_log::QuotaEffect;
use crate::telemetry::gauge_guard::GaugeGuard;
use crate::telemetry::request_id::{REQUEST_ID, RequestId};
use crate::tls::handshake::Peer;

/// Attempts, if the route has no `retry`, of a request for which no connection can be established.
const DEFAULT_CONNECT_ATTEMPTS: u32 = 3;
/// Attempts, if the route has no `retry`, of a request that an endpoint may have processed.
const DEFAULT_ATTEMPTS: u32 = 1;

/// State of a request from its headers to the end of its response.
#[derive(Debug)]
pub(crate) struct RequestContext {
    /// Configuration that was active when the request began: a reload does not affect it.
    pub(crate) active: Arc<ActiveConfig>,
    pub(crate) started: Instant,
    pub(crate) id: RequestId,
    pub(crate) client: ClientIdentity,
    route_index: usize,
    /// Origin of the page that sent it, as the `cors` of its path sees it.
    pub(crate) origin: RequestOrigin,
    /// `None` for an anonymous request, and on a path without `auth`.
    pub(crate) identity: Option<SharedIdentity>,
    pub(crate) quota_status: Option<QuotaStatus>,
    pub(crate) quota_effect: QuotaEffect,
    pub(crate) deadline: Deadline,
    pub(crate) attempts: UpstreamAttempts,
    /// Response bytes that wait for the client to read them.
    pub(crate) response_buffer: ResponseBuffer,
    /// Time of the response headers of a response that lasts as long as its client wants.
    pub(crate) open_ended_since: Option<Instant>,
    _in_flight: GaugeGuard,
}

/// Returns the id that a trusted proxy gave the request, or a new one.
fn request_id(headers: &HeaderMap, client: &ClientIdentity) -> RequestId {
    let id = RequestId::generate();
    match client.trust {
        PeerTrust::Untrusted => id,
        PeerTrust::TrustedProxy => {
            let mut received = headers.get_all(REQUEST_ID).iter();
            match (received.next(), received.next()) {
                (Some(value), None) => id.or_received(value),
                _ => id,
            }
        }
    }
}

impl RequestContext {
    pub(crate) fn new(gateway: &GatewayState, peer: &Peer, headers: &HeaderMap) -> Self {
        let active = gateway.snapshot();
        let trusted_proxies = &active.config.trusted_proxies;
        let client = ClientIdentity::of_request(peer.address, headers, trusted_proxies);
        Self {
            route_index: active.routes.default_index(),
            active,
            started: Instant::now(),
            id: request_id(headers, &client),
            client,
            origin: RequestOrigin::Absent,
            identity: None,
            quota_status: None,
            quota_effect: QuotaEffect::None,
            deadline: Deadline::NONE,
            attempts: UpstreamAttempts::default(),
            response_buffer: ResponseBuffer::new(&gateway.response_budget, client.key()),
            open_ended_since: None,
            _in_flight: GaugeGuard::increment(&gateway.metrics.in_flight),
        }
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.active.config.limits
    }

    /// Returns the route of the request: the default route until [`Self::set_route`] is called.
    pub(crate) fn route(&self) -> &Route {
        self.active.routes.get(self.route_index)
    }

    pub(crate) fn set_route(&mut self, index: usize) {
        self.route_index = index;
    }

    /// Returns the sender of the request as quotas count it.
    pub(crate) fn quota_sender(&self) -> QuotaSender {
        QuotaSender {
            client: self.client.key(),
            user: self.identity.as_ref().map(|identity| identity.owner.user),
        }
    }

    /// Returns the delay before the next attempt. It ends no later than the deadline.
    pub(crate) fn retry_delay(&self, now: Instant) -> Duration {
        let delay = retry::delay_after(self.route().features.retry.as_ref(), self.attempts.count);
        match self.deadline.remaining(now) {
            Some(remaining) => delay.min(remaining),
            None => delay,
        }
    }

    /// Returns the time without progress after which the current attempt fails because another one can be made. `None` if
    /// only the deadline ends it.
    pub(crate) fn attempt_timeout(
        &self,
        request: &RequestHeaders,
        upload: &Upload,
    ) -> Option<Duration> {
        let retry = self.route().features.retry.as_ref()?;
        let timeout = retry.attempt_timeout?;
        let can_retry = self.attempts.count < retry.max_attempts.get()
            && retry::is_safe(AttemptFailure::MaybeProcessed, &request.method)
            && request.upgrade == Upgrade::None
            && upload.can_replay();
        can_retry.then_some(timeout)
    }

    /// Decides whether a failed attempt is followed by another one, and withdraws from the retry budget
    /// if so. No part of a response may have been sent to the client.
    pub(crate) fn may_retry(
        &self,
        failure: AttemptFailure,
        request: &RequestHeaders,
        upload: &Upload,
    ) -> bool {
        let configured = self
            .route()
            .features
            .retry
            .as_ref()
            .map(|retry| retry.max_attempts.get());
        let max_attempts = configured.unwrap_or(match failure {
            AttemptFailure::NotSent => DEFAULT_CONNECT_ATTEMPTS,
            AttemptFailure::MaybeProcessed => DEFAULT_ATTEMPTS,
        });
        self.attempts.count < max_attempts
            && retry::is_safe(failure, &request.method)
            && upload.can_replay()
            && !self.deadline.has_passed(Instant::now())
            && (failure == AttemptFailure::NotSent
                || request.upgrade == Upgrade::None && self.route().retry_budget.try_withdraw())
    }

    /// Returns whether an endpoint works in vain if the client is gone. A response that lasts as long as its client
    /// wants ends in no other way.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.open_ended_since.is_none() && self.attempts.is_under_way()
    }

    /// Logs that the last attempt failed because of its endpoint.
    pub(crate) fn log_endpoint_failure(&self, reason: impl fmt::Display) {
        let endpoint = self.attempts.last_endpoint.map(tracing::field::display);
        tracing::warn!(request_id = %self.id, endpoint, %reason, "upstream attempt failed");
    }
}
