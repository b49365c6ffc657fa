//! HTTP messages, independent of the version that carried them.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, RETRY_AFTER};
use http::{HeaderMap, Method, StatusCode, Version};
use thiserror::Error;

use crate::path::RequestTarget;

/// Media type of server-sent events (WHATWG HTML, section 9.2).
const EVENT_STREAM: &[u8] = b"text/event-stream";

/// Request line (or pseudo-headers) and headers of a request, without hop-by-hop headers and without
/// the headers that frame its body.
#[derive(Debug)]
pub(crate) struct RequestHeaders {
    pub(crate) version: Version,
    pub(crate) method: Method,
    pub(crate) target: RequestTarget,
    pub(crate) headers: HeaderMap,
    pub(crate) framing: Framing,
    /// Protocol that the client asks to switch to.
    pub(crate) upgrade: Upgrade,
}

impl RequestHeaders {
    /// Returns the value of `Host`: the host, with its port if the client named one.
    pub(crate) fn host(&self) -> Option<&str> {
        self.headers.get(HOST)?.to_str().ok()
    }
}

/// Status line and headers of a response, without hop-by-hop headers and without the headers that
/// frame its body.
#[derive(Debug)]
pub(crate) struct ResponseHeaders {
    pub(crate) status: StatusCode,
    /// Reason phrase, `None` for the canonical one of the status.
    pub(crate) reason: Option<Bytes>,
    pub(crate) headers: HeaderMap,
    pub(crate) framing: Framing,
}

impl ResponseHeaders {
    /// Returns whether the response lasts as long as its client wants: an upgraded connection, or an event
    /// stream. A response with a length ends by itself.
    pub(crate) fn is_open_ended(&self) -> bool {
        let has_length = matches!(self.framing, Framing::Empty | Framing::Length(_));
        self.status == StatusCode::SWITCHING_PROTOCOLS
            || !has_length
                && self.headers.get(CONTENT_TYPE).is_some_and(|value| {
                    let value = value.as_bytes();
                    let prefix = value.get(..EVENT_STREAM.len());
                    prefix.is_some_and(|prefix| prefix.eq_ignore_ascii_case(EVENT_STREAM))
                })
    }
}

/// Delimitation of a message body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// No body.
    Empty,
    /// Body of a known length in bytes.
    Length(u64),
    /// Body of unknown length whose end is marked.
    Chunked,
    /// Body that ends when the peer closes the connection.
    UntilClose,
}

impl Framing {
    pub(crate) fn is_empty(self) -> bool {
        matches!(self, Self::Empty | Self::Length(0))
    }
}

impl ResponseHeaders {
    /// Returns true for load shedding or a planned outage: a 503 response that says when to retry (RFC 9110,
    /// sections 10.2.3 and 15.6.4).
    pub(crate) fn is_load_shedding(&self) -> bool {
        self.status == StatusCode::SERVICE_UNAVAILABLE && self.headers.contains_key(RETRY_AFTER)
    }
}

/// Protocol that the peers of a connection switch to (RFC 9110, section 7.8). No other protocol than
/// these is forwarded: requests inside of it could not be checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Upgrade {
    None,
    WebSocket,
}

/// Reason why a request is rejected before it reaches a handler. Its `Display` is the message for the
/// client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum RequestError {
    #[error("Line endings must be CRLF")]
    LineEnding,
    #[error("The request line is malformed")]
    RequestLine,
    #[error("The HTTP version is not supported")]
    Version,
    #[error("The request target is malformed")]
    Target,
    #[error("The request target is too long")]
    TargetTooLong,
    #[error("A header field is malformed")]
    Header,
    #[error("The header is too large")]
    HeadersTooLarge,
    #[error("The message framing is ambiguous")]
    Framing,
    #[error("The expectation is not supported")]
    Expectation,
    #[error("The Host header is missing, repeated or malformed")]
    Host,
    #[error("The method is not allowed")]
    Method,
    #[error("The method is too long")]
    MethodTooLong,
    #[error("The request took too long to arrive")]
    Timeout,
}

impl RequestError {
    /// Returns the status of the error response.
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::HeadersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            // The status for a method that a server does not recognise (RFC 9110, section 15.6.2).
            Self::MethodTooLong => StatusCode::NOT_IMPLEMENTED,
            Self::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Self::Expectation => StatusCode::EXPECTATION_FAILED,
            Self::Timeout => StatusCode::REQUEST_TIMEOUT,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}
