//! The router: every endpoint on one screen.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::get;
use serde_json::Value;

use crate::docs;
use crate::domain::refresh_token::RefreshTokens;
use crate::domain::token::AccessTokens;
use crate::error::{Error, only};
use crate::hashing::Hasher;
use crate::lifecycle::Lifecycle;
use crate::metrics::Metrics;
use crate::openapi::Api;
use crate::routes::{
    delete, health, login, logout, logout_all, metrics, password, profile, ready, refresh,
    register, sessions,
};
use crate::sessions::Sessions;
use crate::throttle::Throttle;
use crate::users::Users;
use crate::visit;

/// What the endpoints work with, shared: the router clones it several times for each request.
#[derive(Clone)]
pub(crate) struct App(Arc<Parts>);

/// One of each.
pub(crate) struct Parts {
    pub(crate) users: Users,
    pub(crate) sessions: Sessions,
    pub(crate) throttle: Throttle,
    pub(crate) hasher: Hasher,
    pub(crate) tokens: Arc<AccessTokens>,
    pub(crate) refresh_tokens: Arc<RefreshTokens>,
    pub(crate) session_lifetime: Duration,
    pub(crate) metrics: Metrics,
    pub(crate) lifecycle: Lifecycle,
}

/// What clients reach through the gateway.
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
        .get("/api/sessions", sessions::list, sessions::list_operation())
        .delete(
            "/api/sessions/{id}",
            sessions::end,
            sessions::end_operation(),
        )
        .post("/api/password", password::handle, password::operation())
        .get("/api/profile", profile::handle, profile::operation())
        .post("/api/delete", delete::handle, delete::operation())
        .get("/health", health::handle, health::operation())
}

/// The OpenAPI document about it.
pub(crate) fn document() -> Value {
    let (_, document) = api().finish();
    document
}

impl From<Parts> for App {
    fn from(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }
}

impl Deref for App {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

impl App {
    /// What clients reach, pages about it, and `/ready`, which the gateway asks and does not pass on.
    pub(crate) fn public(self) -> Router {
        let (endpoints, document) = api().finish();
        endpoints
            .merge(docs::router(&document))
            .route("/ready", only("GET", get(ready::handle)))
            .fallback(async || Error::NotFound)
            .layer(from_fn_with_state(self.clone(), visit::record))
            .with_state(self)
    }

    /// What operators reach, on a port of its own.
    pub(crate) fn internal(self) -> Router {
        Router::new()
            .route("/metrics", only("GET", get(metrics::handle)))
            .route("/health", only("GET", get(health::handle)))
            .route("/ready", only("GET", get(ready::handle)))
            .fallback(async || Error::NotFound)
            .with_state(self)
    }
}
