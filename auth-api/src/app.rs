//! The router: every endpoint on one screen.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};

use crate::domain::refresh_token::RefreshTokens;
use crate::domain::token::AccessTokens;
use crate::error::Error;
use crate::hashing::Hasher;
use crate::metrics::Metrics;
use crate::routes::{
    delete, health, login, logout, logout_all, metrics, password, profile, ready, refresh,
    register, sessions,
};
use crate::sessions::Sessions;
use crate::throttle::Throttle;
use crate::users::Users;
use crate::visit;

/// What the endpoints work with. Cheap to clone.
#[derive(Clone)]
pub(crate) struct App {
    pub(crate) users: Users,
    pub(crate) sessions: Sessions,
    pub(crate) throttle: Throttle,
    pub(crate) hasher: Hasher,
    pub(crate) tokens: Arc<AccessTokens>,
    pub(crate) refresh_tokens: Arc<RefreshTokens>,
    pub(crate) session_lifetime: Duration,
    pub(crate) metrics: Metrics,
}

impl App {
    /// What clients reach through the gateway. `/ready` is for the gateway alone, which does not pass it on.
    pub(crate) fn public(self) -> Router {
        Router::new()
            .route("/api/register", post(register::handle).fallback(allow_post))
            .route("/api/login", post(login::handle).fallback(allow_post))
            .route("/api/refresh", post(refresh::handle).fallback(allow_post))
            .route("/api/logout", post(logout::handle).fallback(allow_post))
            .route(
                "/api/logout-all",
                post(logout_all::handle).fallback(allow_post),
            )
            .route("/api/sessions", get(sessions::list).fallback(allow_get))
            .route(
                "/api/sessions/{id}",
                axum::routing::delete(sessions::end).fallback(allow_delete),
            )
            .route("/api/password", post(password::handle).fallback(allow_post))
            .route("/api/profile", get(profile::handle).fallback(allow_get))
            .route("/api/delete", post(delete::handle).fallback(allow_post))
            .route("/health", get(health::handle).fallback(allow_get))
            .route("/ready", get(ready::handle).fallback(allow_get))
            .fallback(async || Error::NotFound)
            .layer(from_fn_with_state(self.metrics.clone(), visit::record))
            .with_state(self)
    }

    /// What operators reach, on a port of its own.
    pub(crate) fn internal(self) -> Router {
        Router::new()
            .route("/metrics", get(metrics::handle).fallback(allow_get))
            .route("/health", get(health::handle).fallback(allow_get))
            .route("/ready", get(ready::handle).fallback(allow_get))
            .fallback(async || Error::NotFound)
            .with_state(self)
    }
}

async fn allow_get() -> Error {
    Error::MethodNotAllowed("GET")
}

async fn allow_post() -> Error {
    Error::MethodNotAllowed("POST")
}

async fn allow_delete() -> Error {
    Error::MethodNotAllowed("DELETE")
}
