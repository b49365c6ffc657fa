//! Middleware: access log, metrics, and headers that all responses of the public router have in common;
//! check of the host on the internal one.

use std::pin::{Pin, pin};
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::HeaderValue;
use axum::http::header::{CACHE_CONTROL, CONNECTION, HOST, X_CONTENT_TYPE_OPTIONS};
use axum::http::uri::Authority;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use logging::ACCESS_LOG_TARGET;
use supervision::{Panicked, catch_unwind, is_internal_name};

use super::cache_policy::CachePolicy;
use super::error::{self, ApiError};
use crate::state::AppState;
use crate::telemetry::access_log::AccessLogEntry;
use crate::telemetry::request_info::{client_address, request_id};

/// Health checks, which arrive every other second and are logged at DEBUG.
const HEALTH_CHECK_PATHS: [&str; 2] = ["/ready", "/health"];
/// Endpoints that change nothing, although they accept methods that may.
const READING_PATHS: [&str; 2] = ["/api/verify", "/oauth/introspect"];
/// Value of the label `route` for a path without an endpoint.
const UNMATCHED_ROUTE: &str = "unmatched";

/// Passes a request on, unless the audit log prevents it, and records it in the access log and in the metrics.
pub(crate) async fn record(
    State(state): State<AppState>,
    request: Request,
    next: Next,
) -> Response {
    let start = Instant::now();
    let method = request.method().clone();
    let uri = request.uri().clone();
    let path = uri.path();
    let request_id = request_id(request.headers()).into_owned();
    let client = client_address(request.headers()).into_owned();
    let route = request.extensions().get::<MatchedPath>().cloned();

    let mut response = match check_audit_log(&state, &request) {
        Ok(()) => respond(pin!(next.run(request))).await,
        Err(error) => error.into_response(),
    };

    let duration = start.elapsed();
    let status = response.status();
    let route = route.as_ref().map_or(UNMATCHED_ROUTE, MatchedPath::as_str);
    let method_label = match method.as_str() {
        known @ ("GET" | "POST" | "DELETE" | "HEAD" | "PUT" | "PATCH" | "OPTIONS") => known,
        _ => "other",
    };
    state
        .metrics
        .record_request(route, method_label, status.as_u16(), duration);
    if HEALTH_CHECK_PATHS.contains(&path) {
        let (status, seconds) = (status.as_u16(), duration.as_secs_f64());
        tracing::debug!(
            target: ACCESS_LOG_TARGET,
            request_id, client, %method, path, status, seconds, "request"
        );
    } else {
        state.access_log.record(&AccessLogEntry {
            request_id: &request_id,
            client: &client,
            method: &method,
            path,
            status,
            duration,
        });
        state.lifecycle.count_request();
    }

    let headers = response.headers_mut();
    if state.lifecycle.is_shutting_down() {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if CachePolicy::of_path(path) == CachePolicy::NoStore {
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    response
}

/// Rejects requests that change something while the audit log is required and cannot be written.
fn check_audit_log(state: &AppState, request: &Request) -> Result<(), ApiError> {
    let path = request.uri().path();
    let changes_something = !request.method().is_safe()
        && !READING_PATHS
            .iter()
            .any(|reading| path.starts_with(*reading));
    if changes_something && state.audit.is_refusing() {
        return Err(ApiError::Unavailable);
    }
    Ok(())
}

/// Rejects requests to a public name, which a web page can send through the browser of an operator.
pub(crate) async fn require_internal_host(request: Request, next: Next) -> Response {
    let mut hosts = request.headers().get_all(HOST).iter();
    if hosts.all(is_internal_host) {
        next.run(request).await
    } else {
        ApiError::PublicHost.into_response()
    }
}

fn is_internal_host(host: &HeaderValue) -> bool {
    let Ok(authority) = Authority::try_from(host.as_bytes()) else {
        return false;
    };
    let host = authority.host();
    // The library accepts user information, and text after an IPv6 address.
    let is_followed_by_port = |rest: &str| rest.is_empty() || rest.starts_with(':');
    if !authority
        .as_str()
        .strip_prefix(host)
        .is_some_and(is_followed_by_port)
    {
        return false;
    }
    let address = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    is_internal_name(address.unwrap_or(host.strip_suffix('.').unwrap_or(host)))
}

/// Returns the response of a handler, whose error is JSON, or an error response if it panics: its connection stays
/// open, and the request is recorded like any other.
async fn respond(handler: Pin<&mut impl Future<Output = Response>>) -> Response {
    match catch_unwind(handler).await {
        Ok(response) => error::in_json(response),
        Err(Panicked) => ApiError::Internal.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;

    use super::*;

    #[test]
    fn the_port_and_the_form_of_an_address_do_not_matter() {
        for host in [
            "127.0.0.1:9902",
            "[::1]:9902",
            "auth-api",
            "auth-api.auth.svc.cluster.local.:9902",
        ] {
            assert!(is_internal_host(&HeaderValue::from_static(host)), "{host}");
        }
        for host in [
            "evil.example.:9902",
            "evil.example",
            "a@127.0.0.1",
            "[::1].evil.example",
            "",
            "a b",
        ] {
            assert!(!is_internal_host(&HeaderValue::from_static(host)), "{host}");
        }
    }

    #[tokio::test]
    async fn a_handler_that_panics_is_an_internal_server_error() {
        let response = respond(pin!(async { panic!("in a handler") })).await;
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let response = respond(pin!(async { StatusCode::OK.into_response() })).await;
        assert_eq!(response.status(), StatusCode::OK);
    }
}
