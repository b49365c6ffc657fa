//! Router: every endpoint on one screen.

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state, map_response};
use axum::routing::{any, get};
use serde_json::Value;

use crate::http::docs;
use crate::http::error::{self, ApiError, only};
use crate::http::middleware;
use crate::http::openapi::Api;
use crate::routes::{
    delete, end_session, health, introspect, jwk_set, list_sessions, login, logout, logout_all,
    metrics, password, profile, ready, refresh, register, revoke, verify,
};
use crate::state::AppState;

/// Returns the endpoints that clients reach through the gateway.
fn api() -> Api {
    Api::new()
        .post("/api/register", register::handle, register::operation())
        .post("/api/login", login::handle, login::operation())
        .post("/api/refresh", refresh::handle, refresh::operation())
        .post("/api/logout", logout::handle, logout::operation())
        .post(
            "/api/logout-all",
            logout_all::handle,
            logout_all::operation(),
        )
        .get(
            "/api/sessions",
            list_sessions::handle,
            list_sessions::operation(),
        )
        .delete(
            "/api/sessions/{id}",
            end_session::handle,
            end_session::operation(),
        )
        .post("/api/password", password::handle, password::operation())
        .get("/api/profile", profile::handle, profile::operation())
        .post("/api/delete", delete::handle, delete::operation())
        .any("/api/verify", verify::handle, verify::operation())
        .post(
            "/oauth/introspect",
            introspect::handle,
            introspect::operation(),
        )
        .post("/oauth/revoke", revoke::handle, revoke::operation())
        .get(
            "/.well-known/jwks.json",
            jwk_set::handle,
            jwk_set::operation(),
        )
        .get("/health", health::handle, health::operation())
}

/// Returns the OpenAPI document of those endpoints.
pub(crate) fn openapi_document() -> Value {
    let (_, document) = api().finish();
    document
}

/// Returns the router of the public port: the API, its documentation, and `/ready`, which the gateway
/// requests and does not forward.
pub(crate) fn public(state: AppState) -> Router {
    let (endpoints, document) = api().finish();
    endpoints
        .merge(docs::router(&document))
        .route("/api/verify/", any(verify::handle))
        .route("/api/verify/{*path}", any(verify::handle))
        .route("/ready", only("GET", get(ready::handle)))
        .fallback(async || ApiError::NotFound)
        .layer(from_fn_with_state(state.clone(), middleware::record))
        .with_state(state)
}

/// Returns the router of the internal port, for operators. The health checks of gateways use any name of this
/// replica, and learn what the public port tells them too.
pub(crate) fn internal(state: AppState) -> Router {
    let metrics =
        only("GET", get(metrics::handle)).layer(from_fn(middleware::require_internal_host));
    Router::new()
        .route("/metrics", metrics)
        .route("/health", only("GET", get(health::handle)))
        .route("/ready", only("GET", get(ready::handle)))
        .fallback(async || ApiError::NotFound)
        .layer(map_response(async |response| error::in_json(response)))
        .with_state(state)
}
