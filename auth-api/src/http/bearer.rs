//! Extractors of a request's bearer token (RFC 6750).
//!
//! [`BearerToken`] proves that this service signed the token and that it has not expired,
//! [`Authenticated`] in addition that its session is active. What decides is the row of the account: the
//! store of sessions may have lost that a session has ended.

use axum::extract::FromRequestParts;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;

use super::error::ApiError;
use crate::domain::access_token::InvalidAccessToken;
use crate::domain::principal::Principal;
use crate::domain::user::AccountSummary;
use crate::state::AppState;

/// Principal of a valid access token. Its session may have ended.
#[derive(Debug)]
pub(crate) struct BearerToken(pub(crate) Principal);

/// Principal of a valid access token whose session is active, and its account.
#[derive(Debug)]
pub(crate) struct Authenticated {
    pub(crate) principal: Principal,
    pub(crate) account: AccountSummary,
}

impl FromRequestParts<AppState> for BearerToken {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        Ok(Self(state.access_tokens.verify(token(parts)?)?))
    }
}

impl FromRequestParts<AppState> for Authenticated {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        let BearerToken(principal) = BearerToken::from_request_parts(parts, state).await?;
        let session = state.sessions.auth_time(principal, state.session_policy);
        let auth_time = session.await?.ok_or(InvalidAccessToken::SessionNotFound)?;
        let account = state.users.summary(principal.user).await?;
        let account = account.ok_or(ApiError::UserNotFound)?;
        if !account.standing.permits(auth_time) {
            return Err(InvalidAccessToken::SessionNotFound.into());
        }
        Ok(Self { principal, account })
    }
}

/// Returns the errors that the extractors can produce, for the OpenAPI document.
pub(crate) fn possible_errors() -> [ApiError; 9] {
    [
        ApiError::NotAuthenticated,
        ApiError::UnsupportedAuthScheme,
        ApiError::MultipleAuthorizationHeaders,
        ApiError::InvalidAccessToken(InvalidAccessToken::Malformed),
        ApiError::InvalidAccessToken(InvalidAccessToken::Expired),
        ApiError::InvalidAccessToken(InvalidAccessToken::InvalidPayload),
        ApiError::InvalidAccessToken(InvalidAccessToken::SessionNotFound),
        ApiError::UserNotFound,
        ApiError::Unavailable,
    ]
}

fn token(parts: &Parts) -> Result<&str, ApiError> {
    let mut values = parts.headers.get_all(AUTHORIZATION).iter();
    let value = values.next().ok_or(ApiError::NotAuthenticated)?;
    if values.next().is_some() {
        return Err(ApiError::MultipleAuthorizationHeaders);
    }
    let value = value.to_str().map_err(|_| InvalidAccessToken::Malformed)?;
    let (scheme, token) = value.split_once(' ').ok_or(ApiError::NotAuthenticated)?;
    if scheme.eq_ignore_ascii_case("Bearer") {
        Ok(token.trim_start())
    } else {
        Err(ApiError::UnsupportedAuthScheme)
    }
}
