//! The gateway's own answers: JSON, and nothing about the inside.

use std::borrow::Cow;

use bytes::Bytes;
use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_TYPE, DATE, RETRY_AFTER, STRICT_TRANSPORT_SECURITY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use pingora::protocols::http::date::get_cached_date;

use crate::config::Refusal;
use crate::downstream::{Downstream, ResponseHead};
use crate::framing::Framing;
use crate::head::Refused;
use crate::path::Ambiguous;
use crate::request::{Request, RequestId};

pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
pub(crate) const JSON: HeaderValue = HeaderValue::from_static("application/json");
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");
const METHODS: HeaderValue =
    HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");

/// Two years, as browsers' preload list asks for (RFC 6797).
const HSTS: HeaderValue = HeaderValue::from_static("max-age=63072000");

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

    /// Says it to a client, to whom nothing has been said yet.
    pub(crate) fn say(&self, method: &Method, client: &mut impl Downstream, marks: Marks<'_>) {
        let body = Bytes::from(serde_json::json!({"error": self.message}).to_string());
        let mut fields = HeaderMap::with_capacity(12);
        fields.insert(CONTENT_TYPE, JSON);
        fields.insert(CACHE_CONTROL, NO_STORE);
        if let Some(seconds) = self.retry_after {
            fields.insert(RETRY_AFTER, seconds.into());
        }
        if self.status == StatusCode::METHOD_NOT_ALLOWED {
            fields.insert(ALLOW, METHODS);
        }
        fields.insert(DATE, get_cached_date());
        marks.put(&mut fields);
        if self.then == Then::Close {
            client.close_after();
        }
        let is_head = *method == Method::HEAD;
        client.begin(ResponseHead {
            status: self.status,
            reason: None,
            fields,
            framing: Framing::Length(body.len() as u64),
        });
        if !is_head {
            client.send(body);
        }
        client.finish();
    }
}

/// What every answer carries.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Marks<'r> {
    /// Of a request that was understood.
    Of(&'r Request),
    /// Of one that was not.
    Unread(RequestId),
    /// Of one that came without TLS, and has no name.
    Plain,
}

impl Marks<'_> {
    /// Puts them on an answer.
    pub(crate) fn put(self, fields: &mut HeaderMap) {
        let request = match self {
            Self::Of(request) => request,
            Self::Unread(id) => {
                fields.insert(STRICT_TRANSPORT_SECURITY, HSTS);
                fields.insert(REQUEST_ID, id.header());
                return;
            }
            Self::Plain => return,
        };
        fields.insert(STRICT_TRANSPORT_SECURITY, HSTS);
        fields.insert(REQUEST_ID, once(request.id.header()));
        if let (Some(quota), Some(standing)) = (&request.route().quota, request.standing) {
            fields.insert(RATE_LIMIT_POLICY, quota.policy().clone());
            fields.insert(RATE_LIMIT, once(standing.header()));
        }
    }
}

/// A value that will hardly come again: HTTP/2 need not remember it to say it shorter the next time
/// (RFC 7541, section 6.2.3).
fn once(mut value: HeaderValue) -> HeaderValue {
    value.set_sensitive(true);
    value
}
