//! The gateway's own answers: JSON, and nothing about the inside.

use std::borrow::Cow;

use bytes::Bytes;
use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, STRICT_TRANSPORT_SECURITY,
};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use pingora::Result;
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;

use crate::config::Refusal;
use crate::fields;
use crate::head::Refused;
use crate::path::Ambiguous;
use crate::request::Request;

pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// Two years, as browsers' preload list asks for (RFC 6797).
pub(crate) const HSTS: HeaderValue = HeaderValue::from_static("max-age=63072000");
/// A request's body is read to its end, so that its connection can go on, if it is this small.
const SMALL_BODY: u64 = 64 * 1024;

/// What the gateway says in place of a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    message: Cow<'static, str>,
    /// Seconds.
    retry_after: Option<u64>,
    then: Then,
}

/// What becomes of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    GoOn,
    /// What comes next on it cannot be trusted.
    Close,
}

impl Answer {
    pub(crate) const fn new(status: StatusCode, message: &'static str) -> Self {
        Self {
            status,
            message: Cow::Borrowed(message),
            retry_after: None,
            then: Then::GoOn,
        }
    }

    pub(crate) const NOT_FOUND: Self = Self::new(StatusCode::NOT_FOUND, "Not found");
    pub(crate) const MISDIRECTED: Self = Self::new(
        StatusCode::MISDIRECTED_REQUEST,
        "This host is not served on this connection",
    );
    pub(crate) const BAD_GATEWAY: Self = Self::new(StatusCode::BAD_GATEWAY, "Bad gateway");
    pub(crate) const GATEWAY_TIMEOUT: Self =
        Self::new(StatusCode::GATEWAY_TIMEOUT, "Gateway timeout");
    pub(crate) const INTERNAL: Self =
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "Internal server error");

    pub(crate) fn bad_request(reason: Ambiguous) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "").saying(reason.to_string())
    }

    pub(crate) fn malformed(reason: Refused) -> Self {
        Self {
            then: Then::Close,
            ..Self::new(reason.status(), "").saying(reason.to_string())
        }
    }

    pub(crate) fn body_too_large() -> Self {
        Self {
            then: Then::Close,
            ..Self::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "The request body is too large",
            )
        }
    }

    pub(crate) fn body_too_slow() -> Self {
        Self {
            then: Then::Close,
            ..Self::new(
                StatusCode::REQUEST_TIMEOUT,
                "The request took too long to arrive",
            )
        }
    }

    pub(crate) fn refusal(refusal: &Refusal) -> Self {
        Self::new(refusal.status, "").saying(refusal.message.clone())
    }

    pub(crate) fn unavailable(retry_after: u64) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "Service unavailable").after(retry_after)
    }

    /// With `Retry-After`, in seconds, 1 at least.
    pub(crate) fn after(self, seconds: u64) -> Self {
        Self {
            retry_after: Some(seconds.max(1)),
            ..self
        }
    }

    fn saying(self, message: String) -> Self {
        Self {
            message: message.into(),
            ..self
        }
    }

    pub(crate) fn body(&self) -> Bytes {
        serde_json::json!({"error": self.message})
            .to_string()
            .into()
    }

    pub(crate) fn header(&self) -> Result<ResponseHeader> {
        let mut header = ResponseHeader::build(self.status, Some(10))?;
        header.insert_header(CONTENT_TYPE, "application/json")?;
        header.insert_header(CONTENT_LENGTH, self.body().len())?;
        header.insert_header(CACHE_CONTROL, "no-store")?;
        if let Some(seconds) = self.retry_after {
            header.insert_header(RETRY_AFTER, seconds)?;
        }
        if self.status == StatusCode::METHOD_NOT_ALLOWED {
            header.insert_header(ALLOW, "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")?;
        }
        Ok(header)
    }

    /// Sends it, unless an answer has begun already.
    ///
    /// # Errors
    /// When the client is gone.
    pub(crate) async fn send(&self, session: &mut ServerSession, request: &Request) -> Result<()> {
        if session.response_written().is_some() {
            return Ok(());
        }
        let mut header = self.header()?;
        mark(&mut header, request);
        match self.then {
            Then::Close => session.set_keepalive(None),
            // Pingora closes a connection whose request is not read to its end.
            Then::GoOn if has_small_body(session) => {
                if session.drain_request_body().await.is_err() {
                    session.set_keepalive(None);
                }
            }
            Then::GoOn => {}
        }
        let is_head = session.req_header().method == Method::HEAD;
        session.write_response_header(Box::new(header)).await?;
        if !is_head {
            session.write_response_body(self.body(), true).await?;
        }
        Ok(())
    }
}

fn has_small_body(session: &ServerSession) -> bool {
    let length = session
        .get_header(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    let waits = session.get_header(http::header::EXPECT).is_some();
    !waits && length.is_some_and(|length| length <= SMALL_BODY)
}

/// Puts on an answer what every answer of the edge carries.
pub(crate) fn mark(header: &mut ResponseHeader, request: &Request) {
    fields::of_answer(header, |fields| {
        fields.insert(REQUEST_ID, request.id.header());
        fields.insert(STRICT_TRANSPORT_SECURITY, HSTS);
        if let (Some(quota), Some(standing)) = (&request.route().quota, request.standing) {
            fields.insert(RATE_LIMIT_POLICY, quota.policy().clone());
            fields.insert(RATE_LIMIT, standing.header());
        }
    });
}
