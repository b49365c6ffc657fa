//! Extractors of a request's bearer token (RFC 6750).
//!
//! [`BearerToken`] proves that this service signed the token and that it has not expired,
//! [`Authenticated`] in addition that its session is active. What decides is the row of the account: the
//! store of sessions may have lost that a session has ended.

use axum::extract::FromRequestParts;
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;

use super::error::ApiError;
use crate::domain::access_token::InvalidAccessToken;
use crate::domain::principal::Principal;
use crate::domain::user::AccountSummary;
use crate::state::AppState;
use crate::store::unavailable::Unavailable;

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
        Ok(Self(state.access_tokens.verify(token(&parts.headers)?)?))
    }
}

impl FromRequestParts<AppState> for Authenticated {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        let BearerToken(principal) = BearerToken::from_request_parts(parts, state).await?;
        Ok(Self::find(principal, state).await??)
    }
}

impl Authenticated {
    /// Returns the account of `principal`, whose token was verified.
    ///
    /// # Errors
    /// The inner error says that the session is not active, the outer one that it is not known whether it is.
    pub(crate) async fn find(
        principal: Principal,
        state: &AppState,
    ) -> Result<Result<Self, SessionInactive>, Unavailable> {
        let auth_time = || state.sessions.auth_time(principal, state.session_policy);
        let Some(before) = auth_time().await? else {
            return Ok(Err(SessionInactive::Ended));
        };
        let Some(account) = state.users.summary(principal.user).await? else {
            state.sessions.refuse(principal, before).await?;
            return Ok(Err(SessionInactive::UserNotFound));
        };
        let is_permitted = account.standing.permits(before)
            // A change of password in this session, between the two reads, has renewed the time of the session on all
            // replicas before it ended the others by the account.
            || auth_time()
                .await?
                .is_some_and(|after| account.standing.permits(after));
        if is_permitted {
            Ok(Ok(Self { principal, account }))
        } else {
            state.sessions.refuse(principal, before).await?;
            Ok(Err(SessionInactive::Ended))
        }
    }
}

/// Reason a session may not act for its account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SessionInactive {
    Ended,
    UserNotFound,
}

impl From<SessionInactive> for ApiError {
    fn from(reason: SessionInactive) -> Self {
        match reason {
            SessionInactive::Ended => InvalidAccessToken::SessionNotFound.into(),
            SessionInactive::UserNotFound => Self::UserNotFound,
        }
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

/// Returns the access token in `headers`.
///
/// # Errors
/// Returns an error unless exactly one `Authorization` has a bearer token: servers differ on which of several counts.
fn token(headers: &HeaderMap) -> Result<&str, ApiError> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
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

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    /// Returns the token, or the name of the error.
    fn token_of(lines: &[&[u8]]) -> Result<String, String> {
        let lines = lines
            .iter()
            .map(|line| (AUTHORIZATION, HeaderValue::from_bytes(line).unwrap()));
        match token(&lines.collect()) {
            Ok(token) => Ok(token.to_owned()),
            Err(error) => Err(format!("{error:?}")),
        }
    }

    #[test]
    fn a_token_is_taken_from_a_single_authorization_header() {
        for (line, token) in [
            ("Bearer a.b.c", "a.b.c"),
            ("bEARER   a", "a"),
            ("Bearer ", ""),
        ] {
            assert_eq!(token_of(&[line.as_bytes()]), Ok(token.to_owned()));
        }
        for (lines, error) in [
            (&[][..], "NotAuthenticated"),
            (&[&b""[..]], "NotAuthenticated"),
            (&[b"Bearer"], "NotAuthenticated"),
            (&[b"Basic YTpi"], "UnsupportedAuthScheme"),
            (&[b"Bearer \xff"], "InvalidAccessToken(Malformed)"),
            (&[b"Bearer a", b"Bearer a"], "MultipleAuthorizationHeaders"),
            (
                &[b"Bearer a", b"Basic YTpi"],
                "MultipleAuthorizationHeaders",
            ),
        ] {
            assert_eq!(token_of(lines), Err(error.to_owned()), "{lines:?}");
        }
    }
}
