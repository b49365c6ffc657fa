//! Error responses of the gateway itself: JSON that discloses nothing about the upstream.

use std::borrow::Cow;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};

use crate::config::ErrorResponseSettings;
use crate::http::downstream::Downstream;
use crate::http::message::{Framing, RequestError, ResponseHeaders};
use crate::identity::IdentityError;
use crate::path::PathError;
use crate::proxy::client_limits::ClientLimitExceeded;
use crate::proxy::common_headers::CommonHeaders;
use crate::proxy::context::RequestContext;
use crate::runtime::clock::whole_seconds;

pub(crate) const JSON: HeaderValue = HeaderValue::from_static("application/json");
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");
/// Value of `Retry-After`, in seconds, if no access token can be verified.
const NO_VERIFICATION_RETRY_AFTER: u64 = 1;
const ALLOWED_METHODS: HeaderValue =
    HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");

/// Response that the gateway sends instead of one from upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ErrorResponse {
    status: StatusCode,
    message: Cow<'static, str>,
    /// Value of `Retry-After`, in seconds.
    retry_after: Option<u64>,
    /// Value of `WWW-Authenticate` (RFC 6750, section 3).
    challenge: Option<HeaderValue>,
    connection: ConnectionAfter,
}

/// Use of an HTTP/1.1 connection after an error response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ConnectionAfter {
    KeepOpen,
    /// The rest of the request cannot be parsed or is too long to read, so the next request cannot
    /// be read either.
    Close,
}

impl ErrorResponse {
    pub(crate) const NOT_FOUND: Self = Self::new(StatusCode::NOT_FOUND, "Not found");
    pub(crate) const FOREIGN_ORIGIN: Self = Self::new(
        StatusCode::FORBIDDEN,
        "Pages of this origin may not send this request",
    );
    pub(crate) const MISDIRECTED_REQUEST: Self = Self::new(
        StatusCode::MISDIRECTED_REQUEST,
        "This host is not served on this connection",
    );
    pub(crate) const BODY_TOO_LARGE: Self = Self::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        "The request body is too large",
    )
    .with_connection_close();
    pub(crate) const BODY_TOO_SLOW: Self = Self::new(
        StatusCode::REQUEST_TIMEOUT,
        "The request took too long to arrive",
    )
    .with_connection_close();
    pub(crate) const INTERNAL_ERROR: Self =
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "Internal server error")
            .with_connection_close();
    pub(crate) const BAD_GATEWAY: Self = Self::new(StatusCode::BAD_GATEWAY, "Bad gateway");
    const GATEWAY_TIMEOUT: Self = Self::new(StatusCode::GATEWAY_TIMEOUT, "Gateway timeout");

    const fn new(status: StatusCode, message: &'static str) -> Self {
        Self {
            status,
            message: Cow::Borrowed(message),
            retry_after: None,
            challenge: None,
            connection: ConnectionAfter::KeepOpen,
        }
    }

    pub(crate) fn invalid_path(error: PathError) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "").with_message(error.to_string())
    }

    pub(crate) fn malformed_request(error: RequestError) -> Self {
        Self::new(error.status(), "")
            .with_message(error.to_string())
            .with_connection_close()
    }

    /// Creates a response with a status and a message from the configuration.
    pub(crate) fn configured(settings: &ErrorResponseSettings) -> Self {
        Self::new(settings.status, "").with_message(settings.message.clone())
    }

    /// Creates the response to a request whose deadline has passed.
    pub(crate) fn deadline_exceeded(context: &RequestContext) -> Self {
        match &context.route().features.timeout {
            Some(timeout) => Self::configured(&timeout.error_response),
            None => Self::GATEWAY_TIMEOUT,
        }
    }

    /// Creates the response to a request that no endpoint can take for `retry_after` seconds.
    pub(crate) fn service_unavailable(retry_after: u64) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "Service unavailable")
            .with_retry_after(retry_after)
    }

    /// Creates the response to a client that asks too much of the endpoints.
    pub(super) fn client_limit_exceeded(exceeded: ClientLimitExceeded) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "")
            .with_message(exceeded.to_string())
            .with_retry_after(whole_seconds(exceeded.retry_after()))
    }

    /// Creates the response to a request that has no token and needs one.
    pub(super) fn unauthenticated() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Not authenticated").with_challenge("Bearer")
    }

    /// Creates the response to a request whose credentials give it no identity.
    pub(super) fn of_identity_error(error: IdentityError) -> Self {
        match error {
            IdentityError::Ambiguous => Self::new(StatusCode::BAD_REQUEST, "")
                .with_message(error.to_string())
                .with_challenge(r#"Bearer error="invalid_request""#),
            IdentityError::Invalid(_) => Self::new(StatusCode::UNAUTHORIZED, "")
                .with_message(error.to_string())
                .with_challenge(r#"Bearer error="invalid_token""#),
            IdentityError::TooManyFailures { retry_after } => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "")
                    .with_message(error.to_string())
                    .with_retry_after(whole_seconds(retry_after))
            }
            IdentityError::Unavailable => Self::service_unavailable(NO_VERIFICATION_RETRY_AFTER),
        }
    }

    /// Sets `Retry-After` to so many seconds, at least 1.
    pub(crate) fn with_retry_after(self, seconds: u64) -> Self {
        Self {
            retry_after: Some(seconds.max(1)),
            ..self
        }
    }

    fn with_message(self, message: String) -> Self {
        Self {
            message: message.into(),
            ..self
        }
    }

    fn with_challenge(self, challenge: &'static str) -> Self {
        Self {
            challenge: Some(HeaderValue::from_static(challenge)),
            ..self
        }
    }

    const fn with_connection_close(mut self) -> Self {
        self.connection = ConnectionAfter::Close;
        self
    }

    /// Sends the response to a client to which no part of a response has been sent yet.
    pub(crate) fn send(
        &self,
        method: &Method,
        downstream: &mut impl Downstream,
        common_headers: CommonHeaders<'_>,
    ) {
        let body = Bytes::from(serde_json::json!({"error": self.message}).to_string());
        let mut headers = HeaderMap::with_capacity(12);
        headers.insert(CONTENT_TYPE, JSON);
        headers.insert(CACHE_CONTROL, NO_STORE);
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, seconds.into());
        }
        if let Some(challenge) = &self.challenge {
            headers.insert(WWW_AUTHENTICATE, challenge.clone());
        }
        if self.status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(ALLOW, ALLOWED_METHODS);
        }
        common_headers.insert_into(&mut headers);
        if self.connection == ConnectionAfter::Close {
            downstream.close_after_response();
        }
        let is_head = *method == Method::HEAD;
        downstream.send_headers(ResponseHeaders {
            status: self.status,
            reason: None,
            headers,
            framing: Framing::Length(body.len() as u64),
        });
        if !is_head {
            downstream.send_data(body);
        }
        downstream.finish();
    }
}
