//! Errors of the API, and the one place that converts them to responses.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::http::header::{
    ALLOW, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE,
};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::MethodRouter;
use serde_json::{Value, json};

use super::body::BodyError;
use super::oauth_error::OAuthError;
use crate::authentication::AuthenticationError;
use crate::domain::access_token::InvalidAccessToken;
use crate::domain::problem::Problem;
use crate::hashing::QueueFull;
use crate::store::unavailable::Unavailable;
use crate::telemetry::audit::AuditUnavailable;
use crate::throttle::LockedOut;

/// Reason a request failed.
#[derive(Debug)]
pub(crate) enum ApiError {
    /// The body does not have the form or the values that the endpoint requires.
    InvalidBody(Vec<Problem>),
    Body(BodyError),
    LoginTaken,
    InvalidCredentials,
    /// No `Authorization` header.
    NotAuthenticated,
    /// An `Authorization` header with another scheme than Bearer.
    UnsupportedAuthScheme,
    /// More than one `Authorization` header.
    MultipleAuthorizationHeaders,
    InvalidAccessToken(InvalidAccessToken),
    /// Logout from a session that had already ended.
    AlreadyLoggedOut,
    UserNotFound,
    InvalidRefreshToken,
    SessionNotFound,
    /// The login is locked after too many failures.
    LockedOut(LockedOut),
    QueueFull(QueueFull),
    Unavailable,
    /// The handler panicked.
    Internal,
    NotFound,
    MethodNotAllowed(&'static str),
    /// `Host` of a request to the internal port is a public name.
    PublicHost,
    /// Error of an endpoint of OAuth, which has the form of RFC 6749.
    OAuth(OAuthError),
}

/// `Retry-After` while a store is unavailable.
const STORE_RETRY_AFTER: Duration = Duration::from_secs(1);

/// Error as it is sent to the client.
#[derive(Debug)]
pub(crate) struct ErrorResponse {
    pub(crate) status: StatusCode,
    pub(crate) body: Value,
    pub(crate) header: Option<(HeaderName, HeaderValue)>,
}

impl From<ApiError> for ErrorResponse {
    fn from(error: ApiError) -> Self {
        use StatusCode as Status;
        match error {
            ApiError::InvalidBody(problems) => Self {
                status: Status::UNPROCESSABLE_ENTITY,
                body: json!({"detail": problems}),
                header: None,
            },
            ApiError::Body(error) => of_body_error(error, detail),
            ApiError::OAuth(error) => error.into(),
            ApiError::LoginTaken => detail(Status::CONFLICT, "Login already taken"),
            ApiError::InvalidCredentials => Self {
                status: Status::UNAUTHORIZED,
                body: json!({"message": "Invalid credentials"}),
                header: Some((WWW_AUTHENTICATE, NO_TOKEN)),
            },
            ApiError::NotAuthenticated => unauthorized("Not authenticated", NO_TOKEN),
            ApiError::UnsupportedAuthScheme => {
                unauthorized("Invalid authentication credentials", NO_TOKEN)
            }
            ApiError::MultipleAuthorizationHeaders => {
                detail(Status::BAD_REQUEST, "More than one Authorization header")
            }
            ApiError::InvalidAccessToken(reason) => {
                unauthorized(&reason.to_string(), INVALID_TOKEN)
            }
            ApiError::AlreadyLoggedOut => detail(Status::BAD_REQUEST, "Failed to logout token"),
            ApiError::UserNotFound => detail(Status::NOT_FOUND, "User not found"),
            ApiError::InvalidRefreshToken => unauthorized("Invalid refresh token", INVALID_TOKEN),
            ApiError::SessionNotFound => detail(Status::NOT_FOUND, "Session not found"),
            ApiError::LockedOut(LockedOut { retry_after }) => retry_later(
                Status::TOO_MANY_REQUESTS,
                retry_after,
                "Too many failed logins",
            ),
            ApiError::QueueFull(QueueFull { retry_after }) => retry_later(
                Status::SERVICE_UNAVAILABLE,
                retry_after,
                "Too many logins at once",
            ),
            ApiError::Unavailable => retry_later(
                Status::SERVICE_UNAVAILABLE,
                STORE_RETRY_AFTER,
                "Service unavailable",
            ),
            ApiError::Internal => detail(Status::INTERNAL_SERVER_ERROR, "Internal Server Error"),
            ApiError::NotFound => detail(Status::NOT_FOUND, "Not Found"),
            ApiError::MethodNotAllowed(allowed) => Self {
                header: Some((ALLOW, HeaderValue::from_static(allowed))),
                ..detail(Status::METHOD_NOT_ALLOWED, "Method Not Allowed")
            },
            ApiError::PublicHost => detail(
                Status::MISDIRECTED_REQUEST,
                "Use the address of this listener or a name without a public domain",
            ),
        }
    }
}

/// Type of every error response.
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Challenges for requests without a token and with an invalid one (RFC 6750, section 3). Every 401
/// response has a challenge (RFC 9110, section 15.5.2).
const NO_TOKEN: HeaderValue = HeaderValue::from_static("Bearer");
const INVALID_TOKEN: HeaderValue = HeaderValue::from_static("Bearer error=\"invalid_token\"");

fn detail(status: StatusCode, text: &str) -> ErrorResponse {
    ErrorResponse {
        status,
        body: json!({"detail": text}),
        header: None,
    }
}

fn unauthorized(text: &str, challenge: HeaderValue) -> ErrorResponse {
    ErrorResponse {
        header: Some((WWW_AUTHENTICATE, challenge)),
        ..detail(StatusCode::UNAUTHORIZED, text)
    }
}

fn retry_later(status: StatusCode, retry_after: Duration, text: &str) -> ErrorResponse {
    with_retry_after(retry_after, detail(status, text))
}

fn with_retry_after(retry_after: Duration, response: ErrorResponse) -> ErrorResponse {
    let seconds = retry_after.as_secs_f64().ceil().max(1.0);
    let seconds =
        HeaderValue::from_str(&format!("{seconds:.0}")).expect("digits are a valid header value");
    ErrorResponse {
        header: Some((RETRY_AFTER, seconds)),
        ..response
    }
}

/// Error codes of RFC 6749, sections 5.2 and 4.1.2.1.
const INVALID_REQUEST: &str = "invalid_request";
const INVALID_CLIENT: &str = "invalid_client";
const TEMPORARILY_UNAVAILABLE: &str = "temporarily_unavailable";

/// Challenge for clients (RFC 7617).
const CLIENT_CHALLENGE: HeaderValue =
    HeaderValue::from_static("Basic realm=\"auth-api clients\", charset=\"UTF-8\"");

fn oauth_error(status: StatusCode, code: &str, text: &str) -> ErrorResponse {
    ErrorResponse {
        status,
        body: json!({"error": code, "error_description": text}),
        header: None,
    }
}

/// Converts an error in the form that `with_text` gives a status and a text.
fn of_body_error(
    error: BodyError,
    with_text: impl FnOnce(StatusCode, &str) -> ErrorResponse,
) -> ErrorResponse {
    match error {
        BodyError::TooLarge => with_text(StatusCode::PAYLOAD_TOO_LARGE, "Request body too large"),
        BodyError::Incomplete => with_text(StatusCode::BAD_REQUEST, "Request body incomplete"),
        BodyError::Timeout => ErrorResponse {
            // The rest of the body must not be parsed as the next request.
            header: Some((CONNECTION, HeaderValue::from_static("close"))),
            ..with_text(StatusCode::REQUEST_TIMEOUT, "Request body not sent in time")
        },
    }
}

/// Restricts an endpoint to one method. Requests with another one get a 405 response.
pub(crate) fn only<S: Clone + Send + Sync + 'static>(
    method: &'static str,
    endpoint: MethodRouter<S>,
) -> MethodRouter<S> {
    endpoint.fallback(async move || ApiError::MethodNotAllowed(method))
}

/// Gives an error response of the framework (plain text, or empty) the form of all others.
pub(crate) fn in_json(response: Response) -> Response {
    let status = response.status();
    let is_error = status.is_client_error() || status.is_server_error();
    if !is_error || response.headers().get(CONTENT_TYPE) == Some(&JSON) {
        return response;
    }
    let body = detail(status, status.canonical_reason().unwrap_or("Error")).body;
    let mut response = response.map(|_| Body::from(body.to_string()));
    response.headers_mut().remove(CONTENT_LENGTH);
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response
}

impl ApiError {
    /// Returns a rejection by the hashing queue, for the OpenAPI document.
    pub(crate) fn queue_full_example() -> Self {
        let retry_after = Duration::from_secs(3);
        Self::QueueFull(QueueFull { retry_after })
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let ErrorResponse {
            status,
            body,
            header,
        } = self.into();
        let mut response = (status, Json(body)).into_response();
        response.headers_mut().extend(header);
        response
    }
}

impl From<OAuthError> for ErrorResponse {
    /// Returns the form of RFC 6749, section 5.2.
    fn from(error: OAuthError) -> Self {
        use StatusCode as Status;
        match error {
            OAuthError::InvalidRequest(reason) => {
                oauth_error(Status::BAD_REQUEST, INVALID_REQUEST, &reason.to_string())
            }
            OAuthError::Body(error) => of_body_error(error, |status, text| {
                oauth_error(status, INVALID_REQUEST, text)
            }),
            OAuthError::InvalidClient => Self {
                header: Some((WWW_AUTHENTICATE, CLIENT_CHALLENGE)),
                ..oauth_error(
                    Status::UNAUTHORIZED,
                    INVALID_CLIENT,
                    "Client authentication failed",
                )
            },
            OAuthError::LockedOut(LockedOut { retry_after }) => with_retry_after(
                retry_after,
                oauth_error(
                    Status::TOO_MANY_REQUESTS,
                    TEMPORARILY_UNAVAILABLE,
                    "Too many failed authentications",
                ),
            ),
            OAuthError::Unavailable => with_retry_after(
                STORE_RETRY_AFTER,
                oauth_error(
                    Status::SERVICE_UNAVAILABLE,
                    TEMPORARILY_UNAVAILABLE,
                    "Service unavailable",
                ),
            ),
        }
    }
}

impl IntoResponse for OAuthError {
    fn into_response(self) -> Response {
        ApiError::OAuth(self).into_response()
    }
}

impl From<OAuthError> for ApiError {
    fn from(error: OAuthError) -> Self {
        Self::OAuth(error)
    }
}

impl From<BodyError> for ApiError {
    fn from(error: BodyError) -> Self {
        Self::Body(error)
    }
}

impl From<InvalidAccessToken> for ApiError {
    fn from(reason: InvalidAccessToken) -> Self {
        Self::InvalidAccessToken(reason)
    }
}

impl From<QueueFull> for ApiError {
    fn from(queue_full: QueueFull) -> Self {
        Self::QueueFull(queue_full)
    }
}

impl From<Unavailable> for ApiError {
    fn from(_: Unavailable) -> Self {
        Self::Unavailable
    }
}

impl From<AuditUnavailable> for ApiError {
    fn from(_: AuditUnavailable) -> Self {
        Self::Unavailable
    }
}

impl From<AuthenticationError> for ApiError {
    fn from(error: AuthenticationError) -> Self {
        match error {
            AuthenticationError::InvalidCredentials => Self::InvalidCredentials,
            AuthenticationError::LockedOut(locked_out) => Self::LockedOut(locked_out),
            AuthenticationError::QueueFull(queue_full) => Self::QueueFull(queue_full),
            AuthenticationError::Unavailable(_) | AuthenticationError::AuditUnavailable(_) => {
                Self::Unavailable
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;

    use super::*;

    #[tokio::test]
    async fn an_error_of_the_framework_gets_the_form_of_all_others() {
        let text = (StatusCode::BAD_REQUEST, [(ALLOW, "GET")], "plain text");
        let response = in_json(text.into_response());
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
        assert_eq!(response.headers()[ALLOW], "GET");
        assert_eq!(response.headers()[CONTENT_TYPE], JSON);
        let body = to_bytes(response.into_body(), 1000).await.unwrap();
        assert_eq!(body, r#"{"detail":"Bad Request"}"#);
    }

    #[tokio::test]
    async fn other_responses_are_kept() {
        let not_found = in_json(ApiError::SessionNotFound.into_response());
        let body = to_bytes(not_found.into_body(), 1000).await.unwrap();
        assert_eq!(body, r#"{"detail":"Session not found"}"#);
        let text = in_json("text".into_response());
        assert_eq!(to_bytes(text.into_body(), 1000).await.unwrap(), "text");
    }
}
