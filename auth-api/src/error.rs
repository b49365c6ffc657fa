//! Everything that can go wrong with a request, and the one place that turns it into an answer.

use std::time::Duration;

use axum::Json;
use axum::http::header::{ALLOW, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::body::Problem;
use crate::domain::token::InvalidToken;
use crate::hashing::QueueFull;
use crate::throttle::LockedOut;
use crate::unavailable::Unavailable;

/// A request that did not end well.
#[derive(Debug)]
pub(crate) enum Error {
    /// The body does not say what the endpoint needs: every problem with it.
    Invalid(Vec<Problem>),
    BodyTooLarge,
    /// The body did not come, or not in time.
    BodyIncomplete,
    LoginTaken,
    InvalidCredentials,
    /// No `Authorization` header.
    NotAuthenticated,
    /// An `Authorization` header of another scheme than Bearer.
    OtherScheme,
    /// More than one `Authorization` header.
    Ambiguous,
    Token(InvalidToken),
    /// A logout for a session that has ended already.
    NotLoggedOut,
    UserNotFound,
    InvalidRefreshToken,
    SessionNotFound,
    /// Too many failures for this login.
    LockedOut(LockedOut),
    QueueFull(QueueFull),
    Unavailable,
    NotFound,
    MethodNotAllowed(&'static str),
}

/// When a store is away it is asked for again soon.
const STORE_RETRY: Duration = Duration::from_secs(1);

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let detail = |text: &str| json!({"detail": text});
        match self {
            Self::Invalid(problems) => answer(
                StatusCode::UNPROCESSABLE_ENTITY,
                json!({"detail": problems}),
            ),
            Self::BodyTooLarge => answer(
                StatusCode::PAYLOAD_TOO_LARGE,
                detail("Request body too large"),
            ),
            Self::BodyIncomplete => {
                answer(StatusCode::BAD_REQUEST, detail("Request body incomplete"))
            }
            Self::LoginTaken => answer(StatusCode::CONFLICT, detail("Login already taken")),
            Self::InvalidCredentials => answer(
                StatusCode::UNAUTHORIZED,
                json!({"message": "Invalid credentials"}),
            ),
            Self::NotAuthenticated => unauthorized("Not authenticated", "Bearer"),
            Self::OtherScheme => unauthorized("Invalid authentication credentials", "Bearer"),
            Self::Ambiguous => answer(
                StatusCode::BAD_REQUEST,
                detail("More than one Authorization header"),
            ),
            Self::Token(why) => unauthorized(&why.to_string(), "Bearer error=\"invalid_token\""),
            Self::NotLoggedOut => answer(StatusCode::BAD_REQUEST, detail("Failed to logout token")),
            Self::UserNotFound => answer(StatusCode::NOT_FOUND, detail("User not found")),
            Self::InvalidRefreshToken => {
                unauthorized("Invalid refresh token", "Bearer error=\"invalid_token\"")
            }
            Self::SessionNotFound => answer(StatusCode::NOT_FOUND, detail("Session not found")),
            Self::LockedOut(locked) => later(
                StatusCode::TOO_MANY_REQUESTS,
                locked.retry_after,
                "Too many failed logins",
            ),
            Self::QueueFull(full) => later(
                StatusCode::SERVICE_UNAVAILABLE,
                full.retry_after,
                "Too many logins at once",
            ),
            Self::Unavailable => later(
                StatusCode::SERVICE_UNAVAILABLE,
                STORE_RETRY,
                "Service unavailable",
            ),
            Self::NotFound => answer(StatusCode::NOT_FOUND, detail("Not Found")),
            Self::MethodNotAllowed(allowed) => with_header(
                answer(StatusCode::METHOD_NOT_ALLOWED, detail("Method Not Allowed")),
                ALLOW,
                HeaderValue::from_static(allowed),
            ),
        }
    }
}

fn answer(status: StatusCode, body: Value) -> Response {
    (status, Json(body)).into_response()
}

/// 401 with the challenge that RFC 6750, section 3, asks for.
fn unauthorized(detail: &str, challenge: &'static str) -> Response {
    let body = json!({"detail": detail});
    let challenge = HeaderValue::from_static(challenge);
    with_header(
        answer(StatusCode::UNAUTHORIZED, body),
        WWW_AUTHENTICATE,
        challenge,
    )
}

fn later(status: StatusCode, retry_after: Duration, detail: &str) -> Response {
    let seconds = retry_after.as_secs_f64().ceil().max(1.0);
    let seconds =
        HeaderValue::from_str(&format!("{seconds:.0}")).expect("digits are a header value");
    let body = json!({"detail": detail});
    with_header(answer(status, body), RETRY_AFTER, seconds)
}

fn with_header(mut response: Response, name: HeaderName, value: HeaderValue) -> Response {
    response.headers_mut().insert(name, value);
    response
}

impl From<InvalidToken> for Error {
    fn from(why: InvalidToken) -> Self {
        Self::Token(why)
    }
}

impl From<QueueFull> for Error {
    fn from(full: QueueFull) -> Self {
        Self::QueueFull(full)
    }
}

impl From<Unavailable> for Error {
    fn from(_: Unavailable) -> Self {
        Self::Unavailable
    }
}
