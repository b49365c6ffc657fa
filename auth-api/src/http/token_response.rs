//! Response with an access token and a refresh token.

use axum::Json;
use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::Serialize;

use crate::domain::login::Login;
use crate::domain::refresh_token::RefreshToken;
use crate::state::AppState;

/// Access token, and the refresh token to renew it with.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Tokens")]
pub(crate) struct TokenResponse {
    access_token: String,
    token_type: &'static str,
    /// Seconds.
    expires_in: u64,
    refresh_token: String,
}

impl TokenResponse {
    /// Returns the example for the OpenAPI document.
    pub(crate) fn example() -> Self {
        Self {
            access_token: "eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiJ9.…".to_owned(),
            token_type: "bearer",
            expires_in: 86400,
            refresh_token: "AAAAAAAAAN4BjDN6…".to_owned(),
        }
    }

    /// Issues an access token that is valid from `now` on, together with `refresh_token`.
    pub(crate) fn issue(
        state: &AppState,
        login: &Login,
        refresh_token: &RefreshToken,
        now: DateTime<Utc>,
    ) -> Json<Self> {
        let principal = refresh_token.principal;
        Json(Self {
            access_token: state.access_tokens.sign(login, principal, now),
            token_type: "bearer",
            expires_in: state.access_tokens.lifetime().as_secs(),
            refresh_token: state.refresh_tokens.encode(refresh_token),
        })
    }
}
