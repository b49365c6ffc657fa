//! The pair of tokens that a client gets: what login and refresh answer.

use axum::Json;
use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::Serialize;

use crate::app::App;
use crate::domain::login::Login;
use crate::domain::refresh_token::RefreshToken;

/// An access token and what renews it.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Tokens")]
pub(crate) struct Response {
    access_token: String,
    token_type: &'static str,
    /// Seconds.
    expires_in: u64,
    refresh_token: String,
}

impl Response {
    /// For the document.
    pub(crate) fn example() -> Self {
        Self {
            access_token: "eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiJ9.…".to_owned(),
            token_type: "bearer",
            expires_in: 86400,
            refresh_token: "AAAAAAAAAN4BjDN6…".to_owned(),
        }
    }
}

/// The tokens of a session, from `now` on.
pub(crate) fn issue(
    app: &App,
    login: &Login,
    refresh: &RefreshToken,
    now: DateTime<Utc>,
) -> Json<Response> {
    Json(Response {
        access_token: app.tokens.sign(login, refresh.principal, now),
        token_type: "bearer",
        expires_in: app.tokens.lifetime().as_secs(),
        refresh_token: app.refresh_tokens.encode(refresh),
    })
}
