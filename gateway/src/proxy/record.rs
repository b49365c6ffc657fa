//! Metrics and access log of finished requests.

use std::time::Duration;

use http::{Method, StatusCode, Version};

use crate::features::monitoring;
use crate::http::downstream::Downstream;
use crate::http::message::RequestHeaders;
use crate::proxy::context::RequestContext;
use crate::proxy::state::GatewayState;
use crate::runtime::clock::Instant;
use crate::telemetry::access_log::{AccessLogEntry, QuotaEffect, Termination};
use crate::telemetry::request_id::RequestId;
use crate::tls::handshake::Peer;

/// Path of a request that could not be parsed, in the access log.
const UNKNOWN_PATH: &str = "-";

/// Counts a request, logs it if it was slow, and writes its access log line.
pub(super) fn record(
    gateway: &GatewayState,
    request: &RequestHeaders,
    context: &RequestContext,
    termination: Termination,
    downstream: &impl Downstream,
) {
    let now = Instant::now();
    let duration = now.since(context.started);
    let latency = context
        .open_ended_since
        .unwrap_or(now)
        .since(context.started);
    let (status, path) = (downstream.status(), request.target.path());
    let route = context.route();
    match termination {
        Termination::Truncated => route.metrics.count_truncated_response(&request.method),
        _ => route.metrics.count_request(&request.method, status),
    }
    route.metrics.duration.observe(latency);
    if monitoring::is_slow(route.features.monitoring, latency) {
        route.metrics.slow.inc();
        let (method, seconds) = (request.method.as_str(), latency.as_secs_f64());
        tracing::warn!(
            request_id = %context.id,
            method,
            path,
            pattern = &*route.pattern,
            seconds,
            "slow request"
        );
    }
    gateway.access_log.record(&AccessLogEntry {
        id: context.id,
        client: Some(context.client.address),
        user: context
            .identity
            .as_ref()
            .map(|identity| identity.owner.user),
        version: request.version,
        method: &request.method,
        path,
        pattern: &route.pattern,
        status,
        bytes: downstream.sent_body_bytes(),
        termination,
        quota: context.quota_effect,
        duration,
        attempts: context.attempts.count,
        upstream: context.attempts.last_endpoint,
        upstream_duration: context.attempts.duration,
    });
}

/// Response to a request that could not be parsed.
#[derive(Debug, Clone, Copy)]
pub(super) struct UnparsedResponse {
    pub(super) status: Option<StatusCode>,
    /// Bytes of the body.
    pub(super) bytes: u64,
}

/// Counts a request that could not be parsed, and writes its access log line.
pub(super) fn record_unparsed(
    gateway: &GatewayState,
    peer: &Peer,
    id: RequestId,
    started: Instant,
    method: &Method,
    version: Version,
    UnparsedResponse { status, bytes }: UnparsedResponse,
) {
    let active = gateway.current();
    let route = active.routes.get(active.routes.default_index());
    route.metrics.count_request(method, status);
    gateway.access_log.record(&AccessLogEntry {
        id,
        client: Some(peer.address.to_canonical()),
        user: None,
        version,
        method,
        path: UNKNOWN_PATH,
        pattern: &route.pattern,
        status,
        bytes,
        termination: Termination::Complete,
        quota: QuotaEffect::None,
        duration: Instant::now().since(started),
        attempts: 0,
        upstream: None,
        upstream_duration: Duration::ZERO,
    });
}
