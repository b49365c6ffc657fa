//! Forwarding of an admitted request: attempts, one after another, until an endpoint has responded or
//! no further attempt may be made.

use std::ops::ControlFlow;
use std::time::Duration;

use crate::features::circuit_breaker::Permission;
use crate::features::retry::AttemptFailure;
use crate::features::timeout::{ConnectTimeout, Deadline};
use crate::http::downstream::Downstream;
use crate::http::message::RequestHeaders;
use crate::proxy::attempts::UpstreamAttempt;
use crate::proxy::context::RequestContext;
use crate::proxy::disconnect::{delay_unless_disconnected, unless_disconnected};
use crate::proxy::error_response::ErrorResponse;
use crate::proxy::exchange::{Exchange, ExchangeOutcome};
use crate::proxy::outcome::RequestOutcome;
use crate::proxy::state::GatewayState;
use crate::proxy::upload::Upload;
use crate::proxy::upstream_request;
use crate::runtime::clock::{Instant, whole_seconds};
use crate::runtime::idle_timer::IdleTimer;
use crate::upstream::{ChosenEndpoint, ConnectError, ConnectionReuse, HealthStatus, Overflow};

/// Value of `Retry-After`, in seconds, if the gateway itself has no file descriptor or port left.
const NO_SOCKET_RETRY_AFTER: u64 = 1;
/// Value of `Retry-After`, in seconds, if no endpoint is healthy and none can be connected to.
const NO_HEALTHY_ENDPOINT_RETRY_AFTER: u64 = 1;
/// Value of `Retry-After`, in seconds, if all connections to an endpoint are in use.
const NO_CONNECTION_RETRY_AFTER: u64 = 1;

/// Forwards a request after a delay, and the response of an endpoint.
pub(super) async fn forward_after(
    delay: Duration,
    gateway: &GatewayState,
    request: &RequestHeaders,
    context: &mut RequestContext,
    downstream: &mut impl Downstream,
    timer: &mut IdleTimer,
) -> RequestOutcome {
    if delay_unless_disconnected(delay, downstream).await.is_none() {
        return RequestOutcome::ClientDisconnected;
    }
    let mut now = Instant::now();
    let (client, limits) = (context.client, &gateway.client_limits);
    let permit = match limits.acquire(client.key(), context.limits(), now) {
        Ok(permit) => permit,
        Err(exceeded) => {
            limits.record_rejection(client.address, exceeded, now);
            return RequestOutcome::Failed(ErrorResponse::client_limit_exceeded(exceeded));
        }
    };
    context.deadline = Deadline::starting_at(now, context.route().features.timeout.as_ref());
    let mut upload = Upload::default();
    let mut reuse = ConnectionReuse::Allowed;
    let outcome = loop {
        if context.attempts.count > 0 {
            let delay = context.retry_delay(now);
            if delay_unless_disconnected(delay, downstream).await.is_none() {
                break RequestOutcome::ClientDisconnected;
            }
            now = Instant::now();
        }
        let mut begun = begin_attempt(context, now);
        if begun.is_err() && !context.route().upstream.is_resolved() {
            if wait_for_resolution(context, downstream).await.is_none() {
                break RequestOutcome::ClientDisconnected;
            }
            now = Instant::now();
            begun = begin_attempt(context, now);
        }
        if let Err(response) = begun {
            break RequestOutcome::Failed(response);
        }
        let attempt = run_attempt(request, context, downstream, &mut upload, &mut reuse, timer);
        match attempt.await {
            ControlFlow::Break(outcome) => break outcome,
            ControlFlow::Continue(()) => now = Instant::now(),
        }
    };
    if matches!(outcome, RequestOutcome::ClientDisconnected) && context.is_abandoned() {
        permit.record_abandonment(context.limits(), Instant::now());
    }
    outcome
}

/// Chooses an endpoint that is healthy, if any is, and whose circuit breaker admits the request.
fn begin_attempt(context: &mut RequestContext, now: Instant) -> Result<(), ErrorResponse> {
    if context.deadline.has_passed(now) {
        return Err(ErrorResponse::deadline_exceeded(context));
    }
    let route = context.route();
    let breakers = route.breakers.as_ref();
    let ChosenEndpoint { in_flight, health } = route
        .upstream
        .choose(context.attempts.last_endpoint, |endpoint| {
            breakers.map_or(Permission::Granted, |breakers| {
                breakers.permission(endpoint.address, now)
            })
        })
        .map_err(|error| ErrorResponse::service_unavailable(whole_seconds(error.retry_after)))?;
    let endpoint = in_flight.endpoint().address;
    // Another request may have become the probe since the endpoint was chosen.
    let permit = breakers
        .map(|breakers| breakers.acquire(endpoint, now))
        .transpose()
        .map_err(|retry_after| ErrorResponse::service_unavailable(whole_seconds(retry_after)))?;
    context.attempts.begin(UpstreamAttempt {
        started: now,
        in_flight,
        health,
        permit,
    });
    if context.attempts.count > 1 {
        context.route().metrics.retries.inc();
    }
    Ok(())
}

/// Waits until the names of an upstream group that a reload has just added are resolved, no longer than connecting may
/// take. Returns `None` if the client disconnects.
async fn wait_for_resolution(
    context: &RequestContext,
    downstream: &mut impl Downstream,
) -> Option<()> {
    let timeout = context.deadline.connect_timeout(Instant::now()).duration();
    let resolution = context.route().upstream.resolution();
    // Boxed because it is rare: inline, the timer would enlarge the future of every request.
    let resolution = Box::pin(tokio::time::timeout(timeout, resolution));
    unless_disconnected(downstream, resolution).await.map(drop)
}

/// Connects to the endpoint of the current attempt and runs the exchange. Continues if another attempt
/// may be made. A request that has met a stale connection is sent on new ones only, its later attempts included: it is
/// repeated once for that reason.
async fn run_attempt(
    request: &RequestHeaders,
    context: &mut RequestContext,
    downstream: &mut impl Downstream,
    upload: &mut Upload,
    reuse: &mut ConnectionReuse,
    timer: &mut IdleTimer,
) -> ControlFlow<RequestOutcome> {
    let connecting_since = match acquire_connection_slot(context, downstream).await {
        Ok(since) => since,
        Err(outcome) => return ControlFlow::Break(outcome),
    };
    loop {
        let attempt = context.attempts.current.as_ref();
        let attempt =
            attempt.expect("the attempt has begun, and a stale connection does not end it");
        let (endpoint, timeout) = (
            attempt.in_flight.endpoint(),
            context.deadline.connect_timeout(connecting_since),
        );
        let upstreams = &context.active.upstreams;
        let group = &context.route().upstream;
        let connecting = upstreams.connect(group, endpoint, *reuse, timeout.duration());
        let mut upstream = match unless_disconnected(downstream, connecting).await {
            Some(Ok(connection)) => connection,
            Some(Err(ConnectError::TimedOut)) if timeout != ConnectTimeout::Full => {
                return ControlFlow::Break(on_deadline_while_connecting(context));
            }
            Some(Err(error)) => return on_connect_error(&error, request, context, upload),
            None => return ControlFlow::Break(RequestOutcome::ClientDisconnected),
        };
        let output = upstream.begin_request(&request.method, request.framing, request.upgrade);
        upstream_request::put_request_headers(output, request, context);
        let exchange = Exchange::new(request, context, downstream, upstream, upload, timer);
        match exchange.run().await {
            ExchangeOutcome::StaleConnection => *reuse = ConnectionReuse::Forbidden,
            ExchangeOutcome::Retry => return ControlFlow::Continue(()),
            ExchangeOutcome::Finished(outcome) => return ControlFlow::Break(outcome),
        }
    }
}

/// Waits until a connection to the endpoint of the current attempt is free, no longer than connecting may take.
/// Returns the time since which the request connects.
///
/// Overflow is neither retried nor a failure of the endpoint: the circuit breaker does not count it.
///
/// # Errors
/// Returns the outcome of the request if it gets no connection.
async fn acquire_connection_slot(
    context: &mut RequestContext,
    downstream: &mut impl Downstream,
) -> Result<Instant, RequestOutcome> {
    let limits = context
        .route()
        .upstream
        .settings
        .load_balancing
        .endpoint_limits;
    let attempt = context.attempts.current.as_mut();
    let attempt = attempt.expect("the attempt has begun");
    if attempt.in_flight.try_acquire_slot(limits) {
        return Ok(attempt.started);
    }
    let timeout = context.deadline.connect_timeout(attempt.started).duration();
    // Boxed because it is rare: inline, the timer would enlarge the future of every request.
    let slot = Box::pin(attempt.in_flight.acquire_slot(limits, timeout));
    let acquired = unless_disconnected(downstream, slot).await;
    let now = Instant::now();
    match acquired {
        Some(Ok(())) => Ok(now),
        Some(Err(Overflow)) => {
            context.attempts.end_current(now);
            let response = ErrorResponse::service_unavailable(NO_CONNECTION_RETRY_AFTER);
            Err(RequestOutcome::Failed(response))
        }
        None => {
            // No endpoint has seen it: the client has abandoned nothing.
            context.attempts.end_current(now);
            Err(RequestOutcome::ClientDisconnected)
        }
    }
}

/// Ends a request whose deadline has left less time to connect than an endpoint may take. That is a failure
/// for the circuit breaker of the pattern, which has the timeout, and not for the endpoint.
fn on_deadline_while_connecting(context: &mut RequestContext) -> RequestOutcome {
    let now = Instant::now();
    context.log_endpoint_failure("the request timed out before the connection was established");
    if let Some(mut attempt) = context.attempts.end_current(now) {
        attempt.in_flight.endpoint().metrics.timeouts.inc();
        attempt.record_failure(now);
    }
    RequestOutcome::Failed(ErrorResponse::deadline_exceeded(context))
}

fn on_connect_error(
    error: &ConnectError,
    request: &RequestHeaders,
    context: &mut RequestContext,
    upload: &Upload,
) -> ControlFlow<RequestOutcome> {
    let now = Instant::now();
    let attempt = context.attempts.end_current(now);
    if *error == ConnectError::NoSocket {
        tracing::error!(
            request_id = %context.id,
            "no socket for an upstream connection: raise the limit of open files (LimitNOFILE, ulimit -n)"
        );
        let response = ErrorResponse::service_unavailable(NO_SOCKET_RETRY_AFTER);
        return ControlFlow::Break(RequestOutcome::Failed(response));
    }
    context.log_endpoint_failure(error);
    let mut health = HealthStatus::Healthy;
    if let Some(mut attempt) = attempt {
        health = attempt.health;
        attempt.record_failure(now);
        attempt.in_flight.endpoint().record_connect_failure(error);
    }
    if context.may_retry(AttemptFailure::NotSent, request, upload) {
        return ControlFlow::Continue(());
    }
    ControlFlow::Break(RequestOutcome::Failed(match error {
        // A certificate that is not valid is no temporary condition.
        ConnectError::Tls(_) => ErrorResponse::BAD_GATEWAY,
        _ if health == HealthStatus::Unhealthy => {
            ErrorResponse::service_unavailable(NO_HEALTHY_ENDPOINT_RETRY_AFTER)
        }
        ConnectError::TimedOut => ErrorResponse::deadline_exceeded(context),
        ConnectError::Failed | ConnectError::NoSocket => ErrorResponse::BAD_GATEWAY,
    }))
}
