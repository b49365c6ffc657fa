//! Admission of a request: every check that needs no endpoint.

use std::time::Duration;

use crate::features::rate_limit::QuotaDecision;
use crate::http::message::{Framing, RequestHeaders};
use crate::path::strip_segments;
use crate::proxy::context::RequestContext;
use crate::proxy::error_response::ErrorResponse;
use crate::proxy::state::GatewayState;
use crate::tls::handshake::Peer;

/// Paths of an endpoint that are for operators only.
const INTERNAL_PATHS: [&str; 4] = ["/ready", "/ready/", "/metrics", "/metrics/"];

/// Normalises the path, finds the route, and returns the delay before the request is forwarded.
///
/// # Errors
/// Returns the error response if the request is rejected.
pub(super) fn admit(
    gateway: &GatewayState,
    peer: &Peer,
    request: &mut RequestHeaders,
    context: &mut RequestContext,
) -> Result<Duration, ErrorResponse> {
    request
        .target
        .normalise()
        .map_err(ErrorResponse::invalid_path)?;
    let route = context
        .active
        .routes
        .find(request.host(), request.target.path());
    context.set_route(route);
    check_host(peer, request)?;
    let delay = take_quota(gateway, request, context)?;
    check_path(request, context)?;
    check_body_size(request, context)?;
    context.route().retry_budget.deposit();
    Ok(delay)
}

/// Rejects a host for which the connection's certificate was not selected (RFC 9110, section 7.4).
fn check_host(peer: &Peer, request: &RequestHeaders) -> Result<(), ErrorResponse> {
    if peer.may_request(request.host()) {
        Ok(())
    } else {
        Err(ErrorResponse::MISDIRECTED_REQUEST)
    }
}

fn take_quota(
    gateway: &GatewayState,
    request: &RequestHeaders,
    context: &mut RequestContext,
) -> Result<Duration, ErrorResponse> {
    let route = context.route();
    let Some(quota) = &route.quota else {
        return Ok(Duration::ZERO);
    };
    let decision = quota.take(
        &gateway.quotas,
        context.client.key(),
        request.target.path(),
        &request.headers,
        context.started,
    );
    let (status, result) = match decision {
        QuotaDecision::Passed(status) => {
            route.metrics.quota_passed.inc();
            (status, Ok(Duration::ZERO))
        }
        QuotaDecision::Delayed(status, delay) => {
            route.metrics.quota_delayed.inc();
            (status, Ok(delay))
        }
        QuotaDecision::Rejected(status, retry_after) => {
            route.metrics.quota_rejected.inc();
            let response =
                ErrorResponse::configured(quota.error_response()).with_retry_after(retry_after);
            (status, Err(response))
        }
    };
    context.quota_status = Some(status);
    result
}

/// Rejects the paths that are for operators only, as the client sends them and as the endpoint receives them.
fn check_path(request: &RequestHeaders, context: &RequestContext) -> Result<(), ErrorResponse> {
    let path = request.target.path();
    let prefix = context.route().strip_prefix.as_ref();
    let stripped = prefix.and_then(|prefix| strip_segments(path, prefix.as_str()));
    if INTERNAL_PATHS.contains(&path)
        || stripped.is_some_and(|stripped| INTERNAL_PATHS.contains(&stripped))
    {
        Err(ErrorResponse::NOT_FOUND)
    } else {
        Ok(())
    }
}

/// Rejects a body whose announced length exceeds the limit. Chunked bodies are counted as they arrive.
fn check_body_size(
    request: &RequestHeaders,
    context: &RequestContext,
) -> Result<(), ErrorResponse> {
    match request.framing {
        Framing::Length(length) if length > context.limits().max_body_bytes => {
            Err(ErrorResponse::BODY_TOO_LARGE)
        }
        _ => Ok(()),
    }
}
