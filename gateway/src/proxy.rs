//! Lifecycle of a request, from its headers to its line in the access log.
//!
//! 1. [`context`]: client, request id, active configuration
//! 2. [`admission`]: path, route, host, origin on a path with `cors`, quota, size of the body, and the identity on a path
//!    with `auth`
//! 3. [`forward`]: limits of the client, endpoint, circuit breaker, connection, retries, and in each attempt the [`exchange`] of
//!    both bodies
//! 4. [`error_response`] or [`preflight`], unless a response from upstream was forwarded
//! 5. [`record`]: metrics and access log

mod admission;
mod attempts;
mod client_limits;
pub(crate) mod common_headers;
mod context;
mod disconnect;
pub(crate) mod error_response;
mod exchange;
mod forward;
mod identification;
mod outcome;
pub(crate) mod path_matcher;
mod preflight;
mod record;
mod response_budget;
pub(crate) mod route;
pub(crate) mod state;
mod upload;
mod upstream_request;
mod virtual_hosts;

use std::pin::pin;

use http::{Method, StatusCode, Version};
use supervision::{Panicked, catch_unwind};

use crate::http::downstream::{Downstream, wait_until_sent};
use crate::http::message::{RequestError, RequestHeaders};
use crate::http::syntax::unknown_method;
use crate::proxy::common_headers::CommonHeaders;
use crate::proxy::context::RequestContext;
use crate::proxy::error_response::ErrorResponse;
use crate::proxy::outcome::RequestOutcome;
use crate::proxy::record::UnparsedResponse;
use crate::proxy::state::GatewayState;
use crate::runtime::clock::Instant;
use crate::runtime::idle_timer::IdleTimer;
use crate::telemetry::request_id::RequestId;
use crate::tls::handshake::Peer;

/// Serves a request whose headers have been parsed.
pub(crate) async fn serve(
    gateway: &GatewayState,
    peer: &Peer,
    mut request: RequestHeaders,
    downstream: &mut impl Downstream,
    timer: &mut IdleTimer,
) {
    let mut context = RequestContext::new(gateway, peer, &request.headers);
    let outcome = {
        let exchange = pin!(async {
            let admitted =
                admission::admit(gateway, peer, &mut request, &mut context, downstream).await;
            match admitted {
                Ok(delay) => {
                    forward::forward_after(
                        delay,
                        gateway,
                        &request,
                        &mut context,
                        downstream,
                        timer,
                    )
                    .await
                }
                Err(outcome) => outcome,
            }
        });
        catch_unwind(exchange).await
    };
    // A request that panics ends alone: other streams of its connection go on, and it is recorded.
    let outcome = outcome.unwrap_or_else(|Panicked| RequestOutcome::after_panic(downstream));
    let termination = outcome.termination();
    finish(outcome, &request.method, &context, downstream, timer).await;
    record::record(gateway, &request, &context, termination, downstream);
}

/// Rejects a request whose headers could not be parsed.
pub(crate) fn reject(
    gateway: &GatewayState,
    peer: &Peer,
    error: RequestError,
    method: &Method,
    version: Version,
    downstream: &mut impl Downstream,
) {
    let (id, started) = (RequestId::generate(), Instant::now());
    let common_headers = CommonHeaders::UnparsedRequest(id);
    ErrorResponse::malformed_request(error).send(method, downstream, common_headers);
    let response = UnparsedResponse {
        status: downstream.status(),
        bytes: downstream.sent_body_bytes(),
    };
    record::record_unparsed(gateway, peer, id, started, method, version, response);
}

/// Records a request that was rejected as malformed and whose client got no response but a reset: a 400
/// response without its bytes.
pub(crate) fn record_malformed(gateway: &GatewayState, peer: &Peer, version: Version) {
    let (id, started) = (RequestId::generate(), Instant::now());
    let response = UnparsedResponse {
        status: Some(StatusCode::BAD_REQUEST),
        bytes: 0,
    };
    let method = unknown_method();
    record::record_unparsed(gateway, peer, id, started, &method, version, response);
}

/// Brings the response to its end: sends an error response, or truncates one that has begun.
async fn finish(
    outcome: RequestOutcome,
    method: &Method,
    context: &RequestContext,
    downstream: &mut impl Downstream,
    timer: &mut IdleTimer,
) {
    match outcome {
        RequestOutcome::Completed | RequestOutcome::ClientDisconnected => {}
        RequestOutcome::Truncated | RequestOutcome::Aborted => downstream.abort(),
        RequestOutcome::Failed(response) => {
            response.send(method, downstream, CommonHeaders::Request(context));
            wait_until_sent(downstream, timer, context.limits().idle_timeout).await;
        }
        RequestOutcome::Preflight => {
            preflight::send_response(context, downstream);
            wait_until_sent(downstream, timer, context.limits().idle_timeout).await;
        }
    }
}
