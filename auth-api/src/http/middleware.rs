//! Middleware of the public router: access log, metrics, and headers that all responses have in common.

use std::pin::{Pin, pin};
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::HeaderValue;
use axum::http::header::{CACHE_CONTROL, CONNECTION, X_CONTENT_TYPE_OPTIONS};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use logging::ACCESS_LOG_TARGET;
use supervision::{Panicked, catch_unwind};

use super::cache_policy::CachePolicy;
use super::error::ApiError;
use crate::state::AppState;
use crate::telemetry::request_info::{client_address, request_id};

/// Health checks, which arrive every other second and are logged at DEBUG.
const HEALTH_CHECK_PATHS: [&str; 2] = ["/ready", "/health"];
/// Value of the label `route` for a path without an endpoint.
const UNMATCHED_ROUTE: &str = "unmatched";

/// Passes a request on and records it in the access log and in the metrics.
pub(crate) async fn record(
    State(state): State<AppState>,
    request: Request,
    next: Next,
) -> Response {
    let start = Instant::now();
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let request_id = request_id(request.headers()).into_owned();
    let client = client_address(request.headers()).into_owned();
    let route = request.extensions().get::<MatchedPath>().cloned();

    let mut response = respond(pin!(next.run(request))).await;

    let duration = start.elapsed();
    let status = response.status().as_u16();
    let route = route.as_ref().map_or(UNMATCHED_ROUTE, MatchedPath::as_str);
    let method_label = match method.as_str() {
        known @ ("GET" | "POST" | "DELETE" | "HEAD" | "PUT" | "PATCH" | "OPTIONS") => known,
        _ => "other",
    };
    state
        .metrics
        .record_request(route, method_label, status, duration);
    let seconds = duration.as_secs_f64();
    if HEALTH_CHECK_PATHS.contains(&path.as_str()) {
        tracing::debug!(
            target: ACCESS_LOG_TARGET,
            request_id, client, %method, path, status, seconds, "request"
        );
    } else {
        tracing::info!(
            target: ACCESS_LOG_TARGET,
            request_id, client, %method, path, status, seconds, "request"
        );
        state.lifecycle.count_request();
    }

    let headers = response.headers_mut();
    if state.lifecycle.is_shutting_down() {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if CachePolicy::of_path(&path) == CachePolicy::NoStore {
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    response
}

/// Rejects requests that change something while the audit log is required and cannot be written.
pub(crate) async fn require_audit_log(
    State(state): State<AppState>,
    request: Request,
    next: Next,
) -> Response {
    if !request.method().is_safe() && state.audit.is_refusing() {
        return ApiError::Unavailable.into_response();
    }
    next.run(request).await
}

/// Returns the response of a handler, or an error response if it panics: its connection stays open, and
/// the request is recorded like any other.
async fn respond(handler: Pin<&mut impl Future<Output = Response>>) -> Response {
    let response = catch_unwind(handler).await;
    response.unwrap_or_else(|Panicked| ApiError::Internal.into_response())
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;

    use super::*;

    #[tokio::test]
    async fn a_handler_that_panics_is_an_internal_server_error() {
        let response = respond(pin!(async { panic!("in a handler") })).await;
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let response = respond(pin!(async { StatusCode::OK.into_response() })).await;
        assert_eq!(response.status(), StatusCode::OK);
    }
}
