//! Everything that can go wrong with a request, and the one place that turns it into an answer.

use std::time::Duration;

use axum::Json;
use axum::http::header::{ALLOW, CONNECTION, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::MethodRouter;
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
    /// The body broke off.
    BodyIncomplete,
    /// The body did not come in time.
    BodyTooSlow,
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

/// An error as the client reads it.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) body: Value,
    pub(crate) header: Option<(HeaderName, HeaderValue)>,
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        use StatusCode as Status;
        match error {
            Error::Invalid(problems) => Self {
                status: Status::UNPROCESSABLE_ENTITY,
                body: json!({"detail": problems}),
                header: None,
            },
            Error::BodyTooLarge => detail(Status::PAYLOAD_TOO_LARGE, "Request body too large"),
            Error::BodyIncomplete => detail(Status::BAD_REQUEST, "Request body incomplete"),
            Error::BodyTooSlow => Self {
                // What may still come of the body is no next request.
                header: Some((CONNECTION, HeaderValue::from_static("close"))),
                ..detail(Status::REQUEST_TIMEOUT, "Request body not sent in time")
            },
            Error::LoginTaken => detail(Status::CONFLICT, "Login already taken"),
            Error::InvalidCredentials => Self {
                status: Status::UNAUTHORIZED,
                body: json!({"message": "Invalid credentials"}),
                header: Some((WWW_AUTHENTICATE, NO_TOKEN)),
            },
            Error::NotAuthenticated => unauthorized("Not authenticated", NO_TOKEN),
            Error::OtherScheme => unauthorized("Invalid authentication credentials", NO_TOKEN),
            Error::Ambiguous => detail(Status::BAD_REQUEST, "More than one Authorization header"),
            Error::Token(why) => unauthorized(&why.to_string(), BAD_TOKEN),
            Error::NotLoggedOut => detail(Status::BAD_REQUEST, "Failed to logout token"),
            Error::UserNotFound => detail(Status::NOT_FOUND, "User not found"),
            Error::InvalidRefreshToken => unauthorized("Invalid refresh token", BAD_TOKEN),
            Error::SessionNotFound => detail(Status::NOT_FOUND, "Session not found"),
            Error::LockedOut(LockedOut { retry_after }) => later(
                Status::TOO_MANY_REQUESTS,
                retry_after,
                "Too many failed logins",
            ),
            Error::QueueFull(QueueFull { retry_after }) => later(
                Status::SERVICE_UNAVAILABLE,
                retry_after,
                "Too many logins at once",
            ),
            Error::Unavailable => later(
                Status::SERVICE_UNAVAILABLE,
                STORE_RETRY,
                "Service unavailable",
            ),
            Error::NotFound => detail(Status::NOT_FOUND, "Not Found"),
            Error::MethodNotAllowed(allowed) => Self {
                header: Some((ALLOW, HeaderValue::from_static(allowed))),
                ..detail(Status::METHOD_NOT_ALLOWED, "Method Not Allowed")
            },
        }
    }
}

/// The challenges of RFC 6750, section 3: to a request without a token, and with one that is no good.
/// A 401 has one, whatever it is for (RFC 9110, section 15.5.2).
const NO_TOKEN: HeaderValue = HeaderValue::from_static("Bearer");
const BAD_TOKEN: HeaderValue = HeaderValue::from_static("Bearer error=\"invalid_token\"");

fn detail(status: StatusCode, text: &str) -> Refusal {
    Refusal {
        status,
        body: json!({"detail": text}),
        header: None,
    }
}

fn unauthorized(text: &str, challenge: HeaderValue) -> Refusal {
    Refusal {
        header: Some((WWW_AUTHENTICATE, challenge)),
        ..detail(StatusCode::UNAUTHORIZED, text)
    }
}

fn later(status: StatusCode, retry_after: Duration, text: &str) -> Refusal {
    let seconds = retry_after.as_secs_f64().ceil().max(1.0);
    let seconds =
        HeaderValue::from_str(&format!("{seconds:.0}")).expect("digits are a header value");
    Refusal {
        header: Some((RETRY_AFTER, seconds)),
        ..detail(status, text)
    }
}

/// What an endpoint answers to every method but its own.
pub(crate) fn only<S: Clone + Send + Sync + 'static>(
    method: &'static str,
    endpoint: MethodRouter<S>,
) -> MethodRouter<S> {
    endpoint.fallback(async move || Error::MethodNotAllowed(method))
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let Refusal {
            status,
            body,
            header,
        } = self.into();
        let mut response = (status, Json(body)).into_response();
        response.headers_mut().extend(header);
        response
    }
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
