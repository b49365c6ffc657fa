//! Admission of a request: every check that needs no endpoint.

use std::time::Duration;

use crate::config::{OnStoreFailure, RateLimitMode};
use crate::features::cors::{self, RequestOrigin};
use crate::features::rate_limit::shared::SharedQuotas;
use crate::features::rate_limit::sharing::QuotaRequest;
use crate::features::rate_limit::{Quota, QuotaDecision};
use crate::http::downstream::Downstream;
use crate::http::message::{Framing, RequestHeaders, Upgrade};
use crate::path::{segments_without_parameters, strip_segments};
use crate::proxy::context::RequestContext;
use crate::proxy::error_response::ErrorResponse;
use crate::proxy::identification::identify;
use crate::proxy::outcome::RequestOutcome;
use crate::proxy::state::GatewayState;
use crate::runtime::clock::Instant;
use crate::telemetry::access_log::QuotaEffect;
use crate::tls::handshake::Peer;

/// Paths of an endpoint that are for operators only, each a single segment.
const INTERNAL_PATHS: [&str; 2] = ["ready", "metrics"];
/// Time after which a client that was refused because there is no quota store should try again: the store is
/// used again within a second of its return.
const STORE_RETRY_AFTER_SECONDS: u64 = 1;

/// Normalises the path, finds the route, identifies the user, and returns the delay before the request is
/// forwarded.
///
/// The identity comes last, so that a flood of forged tokens is limited by the quota of its client. It comes
/// before a quota that is counted for each user; requests without a valid token are then counted
/// for their client.
///
/// A preflight gets its response before both: browsers send it without credentials (Fetch standard, section 4.8).
///
/// # Errors
/// Returns the outcome of the request if it is rejected, or if it is a preflight.
pub(super) async fn admit(
    gateway: &GatewayState,
    peer: &Peer,
    request: &mut RequestHeaders,
    context: &mut RequestContext,
    downstream: &mut impl Downstream,
) -> Result<Duration, RequestOutcome> {
    let found = find_route(peer, request, context);
    // Before any error, whose response a page has to be able to read too.
    if let Some(cors) = &context.route().features.cors {
        context.origin = cors.origin_of(&request.headers);
    }
    found?;
    check_origin(request, context)?;
    let counts_users = context.route().counts_users();
    if counts_users {
        match identify(gateway, request, context, downstream).await {
            Ok(identity) => context.identity = identity,
            Err(outcome) => {
                take_quota(gateway, request, context).await?;
                return Err(outcome);
            }
        }
    }
    let delay = take_quota(gateway, request, context).await?;
    check_path(request, context)?;
    check_body_size(request, context)?;
    if !counts_users {
        context.identity = identify(gateway, request, context, downstream).await?;
    }
    context.route().retry_budget.deposit();
    Ok(delay)
}

fn find_route(
    peer: &Peer,
    request: &mut RequestHeaders,
    context: &mut RequestContext,
) -> Result<(), ErrorResponse> {
    request
        .target
        .normalise()
        .map_err(ErrorResponse::invalid_path)?;
    let route = context
        .active
        .routes
        .find(request.host(), request.target.path());
    context.set_route(route);
    check_host(peer, request)
}

/// Rejects a host for which the connection's certificate was not selected (RFC 9110, section 7.4).
fn check_host(peer: &Peer, request: &RequestHeaders) -> Result<(), ErrorResponse> {
    if peer.may_request(request.host()) {
        Ok(())
    } else {
        Err(ErrorResponse::MISDIRECTED_REQUEST)
    }
}

/// Ends a preflight, and rejects a WebSocket of a foreign page on a path with `cors`.
///
/// A browser lets the pages of all origins open `WebSockets`, with cookies, and leaves the check to the server (RFC 6455,
/// section 10.2). Other requests of foreign pages are forwarded: their responses cannot be read.
fn check_origin(request: &RequestHeaders, context: &RequestContext) -> Result<(), RequestOutcome> {
    let is_preflight = || cors::is_preflight(&request.method, &request.headers);
    let is_foreign_websocket = || {
        let is_same_origin = |host| cors::is_same_origin(&request.headers, host);
        request.upgrade == Upgrade::WebSocket && !request.host().is_some_and(is_same_origin)
    };
    match &context.origin {
        RequestOrigin::Permitted(_) if is_preflight() => Err(RequestOutcome::Preflight),
        RequestOrigin::Foreign if is_preflight() || is_foreign_websocket() => {
            Err(ErrorResponse::FOREIGN_ORIGIN.into())
        }
        _ => Ok(()),
    }
}

async fn take_quota(
    gateway: &GatewayState,
    request: &RequestHeaders,
    context: &mut RequestContext,
) -> Result<Duration, ErrorResponse> {
    let route = context.route();
    let Some(quota) = &route.quota else {
        return Ok(Duration::ZERO);
    };
    let parts = QuotaRequest {
        sender: context.quota_sender(),
        path: request.target.path(),
        headers: &request.headers,
    };
    let decision = match &gateway.shared_quotas {
        None => Some(decide_alone(gateway, quota, parts, context.started).await),
        Some(shared) => decide_shared(gateway, shared, quota, parts, context).await,
    };
    let metrics = &route.metrics;
    let (status, effect, result) = match (decision, quota.mode()) {
        (Some(QuotaDecision::Passed(status)), _)
        | (Some(QuotaDecision::Delayed(status, _)), RateLimitMode::Observe) => {
            metrics.quota_passed.inc();
            (Some(status), QuotaEffect::None, Ok(Duration::ZERO))
        }
        (Some(QuotaDecision::Delayed(status, delay)), RateLimitMode::Enforce) => {
            metrics.quota_delayed.inc();
            (Some(status), QuotaEffect::None, Ok(delay))
        }
        (Some(QuotaDecision::Rejected(status, _)), RateLimitMode::Observe) => {
            metrics.quota_would_refuse.inc();
            (Some(status), QuotaEffect::WouldRefuse, Ok(Duration::ZERO))
        }
        (Some(QuotaDecision::Rejected(status, retry_after)), RateLimitMode::Enforce) => {
            metrics.quota_refused.inc();
            let response =
                ErrorResponse::configured(quota.error_response()).with_retry_after(retry_after);
            (Some(status), QuotaEffect::None, Err(response))
        }
        (None, RateLimitMode::Observe) => {
            metrics.quota_unavailable.inc();
            (None, QuotaEffect::None, Ok(Duration::ZERO))
        }
        (None, RateLimitMode::Enforce) => {
            metrics.quota_unavailable.inc();
            let response = ErrorResponse::service_unavailable(STORE_RETRY_AFTER_SECONDS);
            (None, QuotaEffect::None, Err(response))
        }
    };
    context.quota_status = status;
    context.quota_effect = effect;
    result
}

/// Decides by the counters of this gateway, which are those of its new process after an upgrade.
async fn decide_alone(
    gateway: &GatewayState,
    quota: &Quota,
    request: QuotaRequest<'_>,
    now: Instant,
) -> QuotaDecision {
    quota
        .take_where_counted(&gateway.quotas, &gateway.remote_counters, request, now)
        .await
}

/// Decides by the counts of all gateways. Returns `None` if these are unknown and the request is to be refused for it.
async fn decide_shared(
    gateway: &GatewayState,
    shared: &SharedQuotas,
    quota: &Quota,
    request: QuotaRequest<'_>,
    context: &RequestContext,
) -> Option<QuotaDecision> {
    let settings = &context.active.config.quotas;
    let decision = quota
        .take_shared(&gateway.quotas, shared, request, settings.timeout)
        .await;
    match (decision, settings.on_store_failure) {
        (Some(decision), _) => Some(decision),
        (None, OnStoreFailure::Refuse) => None,
        (None, OnStoreFailure::CountLocally) => {
            shared.metrics.local_decisions.inc();
            // The request may have waited for the store.
            Some(decide_alone(gateway, quota, request, Instant::now()).await)
        }
    }
}

/// Rejects the paths that are for operators only, as the client sends them and as the endpoint receives them.
fn check_path(request: &RequestHeaders, context: &RequestContext) -> Result<(), ErrorResponse> {
    let path = request.target.path();
    let prefix = context.route().strip_prefix.as_ref();
    let stripped = prefix.and_then(|prefix| strip_segments(path, prefix.as_str()));
    if is_internal(path) || stripped.is_some_and(is_internal) {
        Err(ErrorResponse::NOT_FOUND)
    } else {
        Ok(())
    }
}

/// Returns whether any endpoint would take a path for an internal one: some ignore letter case and parameters of
/// segments.
fn is_internal(path: &str) -> bool {
    let mut segments = segments_without_parameters(path);
    let first = segments.next().is_some_and(|first| {
        let mut internal = INTERNAL_PATHS.iter();
        internal.any(|path| path.eq_ignore_ascii_case(first))
    });
    first && segments.next().is_none()
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
