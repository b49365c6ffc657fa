//! Who is asking: the bearer token of a request (RFC 6750).
//!
//! Two proofs, one after the other: that we signed the token and it has not expired
//! ([`Bearer`]), and that its session still lives ([`Authenticated`]).

use axum::extract::FromRequestParts;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;

use crate::app::App;
use crate::domain::token::{InvalidToken, Principal};
use crate::error::Error;

/// A request with a token that is ours and has not expired. Its session may have ended.
#[derive(Debug)]
pub(crate) struct Bearer(pub(crate) Principal);

/// A request of a live session.
#[derive(Debug)]
pub(crate) struct Authenticated(pub(crate) Principal);

impl FromRequestParts<App> for Bearer {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Error> {
        Ok(Self(app.tokens.verify(token(parts)?)?))
    }
}

impl FromRequestParts<App> for Authenticated {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Error> {
        let Bearer(principal) = Bearer::from_request_parts(parts, app).await?;
        if !app.sessions.is_live(principal).await? {
            return Err(InvalidToken::NoSession.into());
        }
        Ok(Self(principal))
    }
}

/// How a request may be refused for what it presents.
pub(crate) fn refusals() -> [Error; 8] {
    [
        Error::NotAuthenticated,
        Error::OtherScheme,
        Error::Ambiguous,
        Error::Token(InvalidToken::Malformed),
        Error::Token(InvalidToken::Expired),
        Error::Token(InvalidToken::Payload),
        Error::Token(InvalidToken::NoSession),
        Error::Unavailable,
    ]
}

fn token(parts: &Parts) -> Result<&str, Error> {
    let mut values = parts.headers.get_all(AUTHORIZATION).iter();
    let value = values.next().ok_or(Error::NotAuthenticated)?;
    if values.next().is_some() {
        return Err(Error::Ambiguous);
    }
    let value = value.to_str().map_err(|_| InvalidToken::Malformed)?;
    let (scheme, token) = value.split_once(' ').ok_or(Error::NotAuthenticated)?;
    if scheme.eq_ignore_ascii_case("Bearer") {
        Ok(token.trim_start())
    } else {
        Err(Error::OtherScheme)
    }
}
