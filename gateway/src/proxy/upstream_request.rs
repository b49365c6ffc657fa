//! Request headers as they are sent upstream: those of the client, those of the gateway about the
//! client, the connection and the trace, and those that the path sets by `headers`.
//!
//! Invariant: a client cannot set the headers that the gateway sets. Its own under these names, in any
//! spelling that a server could take for them, are removed. From a trusted proxy they are kept, but
//! `X-Forwarded-For` ends with the client, and the headers of the identity are removed from its requests too.

use bytes::BufMut;
use http::header::{CONTENT_LENGTH, COOKIE, FORWARDED, HOST, TE, TRAILER, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName};

use crate::client::{
    ClientIdentity, FORWARDED_FOR, PeerTrust, elements_before_client, forwarded_for_elements,
};
use crate::config::{PathPrefix, folded_name};
use crate::http::h1::encode::{put_header, put_request_line};
use crate::http::h1::framing;
use crate::http::h1::hop_by_hop::{KEEP_ALIVE, PROXY_CONNECTION, WEBSOCKET};
use crate::http::message::{RequestHeaders, Upgrade};
use crate::http::syntax::HTTP2_SETTINGS;
use crate::identity::{SESSION_ID, USER_ID, USER_LOGIN};
use crate::path::StrippedTarget;
use crate::proxy::context::RequestContext;
use crate::telemetry::request_id::REQUEST_ID;
use crate::telemetry::text;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PREFIX: &str = "x-forwarded-";
const IDENTITY_HEADERS: [HeaderName; 3] = [USER_ID, USER_LOGIN, SESSION_ID];

/// Trace that the upstream request belongs to (W3C Trace Context).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trace {
    /// The trace of a trusted proxy: its headers are forwarded.
    Continued,
    /// A trace that begins with this request: the client's headers are replaced.
    Started,
}

/// Writes the request line and the headers of the upstream request.
pub(crate) fn put_request_headers(
    output: &mut Vec<u8>,
    request: &RequestHeaders,
    context: &RequestContext,
) {
    let (headers, client) = (&request.headers, &context.client);
    let prefix = put_request_target(output, request, context);
    let trace = if client.trust == PeerTrust::TrustedProxy && has_valid_traceparent(headers) {
        Trace::Continued
    } else {
        Trace::Started
    };
    let changes = context.route().features.request_headers.as_ref();
    let is_kept = |name: &HeaderName| changes.is_none_or(|changes| !changes.replace(name));
    for (name, value) in headers {
        if is_forwarded(name, client.trust, trace) && is_kept(name) {
            put_header(output, name.as_str().as_bytes(), value.as_bytes());
        }
    }
    if is_kept(&COOKIE) {
        put_cookies(output, headers);
    }
    if let Some(changes) = changes {
        output.put_slice(&changes.lines);
    }
    if let Some(identity) = &context.identity {
        output.put_slice(&identity.header_lines);
    }
    put_forwarded_for(output, headers, client);
    let is_set_by_proxy =
        |name| client.trust == PeerTrust::TrustedProxy && headers.contains_key(name);
    if !is_set_by_proxy(FORWARDED_PROTO) {
        output.put_slice(b"x-forwarded-proto: https\r\n");
    }
    if let Some(host) = headers
        .get(HOST)
        .filter(|_| !is_set_by_proxy(FORWARDED_HOST))
    {
        put_header(output, b"x-forwarded-host", host.as_bytes());
    }
    if let Some(prefix) = prefix {
        put_header(output, b"x-forwarded-prefix", prefix.as_str().as_bytes());
    }
    if trace == Trace::Started {
        put_header(output, b"traceparent", &context.id.traceparent());
    }
    put_header(output, b"x-request-id", context.id.as_str().as_bytes());
    if request.upgrade == Upgrade::WebSocket {
        put_header(output, b"connection", b"upgrade");
        put_header(output, b"upgrade", WEBSOCKET.as_bytes());
    }
    framing::put_framing_header(output, request.framing);
    output.put_slice(b"\r\n");
}

/// Writes the request line. Returns the prefix that was removed from the path, which the endpoint needs for links to
/// itself: it gets it as `X-Forwarded-Prefix`, as from Traefik. One of a trusted proxy stays, and this one follows it.
fn put_request_target<'c>(
    output: &mut Vec<u8>,
    request: &RequestHeaders,
    context: &'c RequestContext,
) -> Option<&'c PathPrefix> {
    let prefix = context.route().strip_prefix.as_ref();
    let stripped = prefix.and_then(|prefix| {
        let stripped = request.target.without_prefix(prefix.as_str())?;
        Some((prefix, stripped))
    });
    if let Some((prefix, StrippedTarget { path, query })) = stripped {
        put_request_line(output, &request.method, &[path, query]);
        Some(prefix)
    } else {
        put_request_line(output, &request.method, &[request.target.as_bytes()]);
        None
    }
}

/// Returns true if a header is forwarded unchanged. The others are removed, or written by the gateway.
fn is_forwarded(name: &HeaderName, trust: PeerTrust, trace: Trace) -> bool {
    let text = name.as_str();
    if text.bytes().any(is_separator) && is_alias(text) {
        return false;
    }
    let is_removed = match text.as_bytes()[0] {
        b'c' => *name == COOKIE,
        b'x' if *name == REQUEST_ID || *name == FORWARDED_FOR => true,
        b'x' if IDENTITY_HEADERS.contains(name) => true,
        b'x' => {
            trust == PeerTrust::Untrusted
                && (*name == REAL_IP || text.starts_with(FORWARDED_PREFIX))
        }
        b'f' => trust == PeerTrust::Untrusted && *name == FORWARDED,
        // TE and Trailer are hop-by-hop (RFC 9110, section 7.6.1), and HTTP/2 has no Connection header
        // that would name them.
        b't' => {
            trace == Trace::Started && (*name == TRACEPARENT || *name == TRACESTATE)
                || *name == TE
                || *name == TRAILER
        }
        _ => false,
    };
    !is_removed
}

/// Returns true for a character other than `-` that separates the words of a name: any that is neither letter nor
/// digit.
fn is_separator(byte: u8) -> bool {
    !byte.is_ascii_alphanumeric() && byte != b'-'
}

/// Returns true if a server that does not distinguish separators would take a name for that of a header that the
/// gateway sets: one that identifies the client, the user or the request, frames the body, or concerns the
/// connection. WSGI treats `_` like `-`, and servers of CGI replace every character that is neither letter nor
/// digit by `_` (RFC 3875, section 4.1.18).
fn is_alias(text: &str) -> bool {
    let name = folded_name(text);
    let protected = [
        REQUEST_ID,
        REAL_IP,
        CONTENT_LENGTH,
        TRANSFER_ENCODING,
        KEEP_ALIVE,
        PROXY_CONNECTION,
        HTTP2_SETTINGS,
        USER_ID,
        USER_LOGIN,
        SESSION_ID,
    ];
    name.starts_with(FORWARDED_PREFIX) || protected.iter().any(|header| *header == *name)
}

/// Joins the cookie headers into one: HTTP/2 allows to split them, HTTP/1.1 does not (RFC 9113,
/// section 8.2.3).
fn put_cookies(output: &mut Vec<u8>, headers: &HeaderMap) {
    let mut cookies = headers.get_all(COOKIE).iter();
    let Some(first) = cookies.next() else { return };
    output.put_slice(b"cookie: ");
    output.put_slice(first.as_bytes());
    for cookie in cookies {
        output.put_slice(b"; ");
        output.put_slice(cookie.as_bytes());
    }
    output.put_slice(b"\r\n");
}

/// Writes `X-Forwarded-For`, whose last element is the client, so that an endpoint need not know which proxies are trusted
/// (as with nginx's `real_ip` module). What a trusted proxy said of before the client stays. Elements with bytes other
/// than printable ASCII, which only a client can have sent, are left out: an upstream might ignore the
/// whole list because of them.
fn put_forwarded_for(output: &mut Vec<u8>, headers: &HeaderMap, client: &ClientIdentity) {
    output.put_slice(b"x-forwarded-for: ");
    if client.trust == PeerTrust::TrustedProxy {
        let is_printable =
            |element: &&[u8]| element.iter().all(|byte| (b' '..=b'~').contains(byte));
        let before_client = elements_before_client(headers, client.address);
        let elements = forwarded_for_elements(headers).take(before_client);
        for element in elements.filter(is_printable) {
            output.put_slice(element);
            output.put_slice(b", ");
        }
    }
    text::put_address(output, client.address);
    output.put_slice(b"\r\n");
}

/// Returns true if `traceparent` has the form `version-trace_id-parent_id-trace_flags` (W3C Trace Context,
/// section 3.2).
fn has_valid_traceparent(headers: &HeaderMap) -> bool {
    let value = headers
        .get(TRACEPARENT)
        .and_then(|value| value.to_str().ok());
    let Some(value) = value else { return false };
    let mut parts = value.split('-');
    let mut is_hex = |length: usize| {
        parts.next().is_some_and(|part| {
            part.len() == length && part.bytes().all(|digit| digit.is_ascii_hexdigit())
        })
    };
    is_hex(2) && is_hex(32) && is_hex(16) && is_hex(2)
}
