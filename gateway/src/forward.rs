//! What a replica is told: the request, whom it is from, how it came, what it is called.
//!
//! A client cannot say the latter itself: its own words under these names are left out. From a
//! trusted proxy they are kept and appended to.

use bytes::BufMut;
use http::header::{COOKIE, FORWARDED, HOST, TE, TRAILER};
use http::{HeaderMap, HeaderName};

use crate::answer::REQUEST_ID;
use crate::client::{Client, FORWARDED_FOR, Trust};
use crate::downstream::RequestHead;
use crate::framing;
use crate::hop::{Upgrade, WEBSOCKET};
use crate::http1::put_field;
use crate::request::Request;
use crate::text;
use crate::upstream::connection::put_request_line;

const TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACE_STATE: HeaderName = HeaderName::from_static("tracestate");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const OURS: &str = "x-forwarded-";

/// Writes a request's head as a replica gets it.
pub(crate) fn write(output: &mut Vec<u8>, head: &RequestHead, request: &Request) {
    let (fields, client) = (&head.fields, &request.client);
    put_request_line(output, &head.method, head.target.as_bytes());
    let goes_on = client.trust == Trust::Proxy && has_trace(fields);
    for (name, value) in fields {
        if passes(name, client.trust, goes_on) {
            put_field(output, name.as_str().as_bytes(), value.as_bytes());
        }
    }
    put_cookies(output, fields);
    put_forwarded_for(output, fields, client);
    let says = |name| client.trust == Trust::Proxy && fields.contains_key(name);
    if !says(FORWARDED_PROTO) {
        output.put_slice(b"x-forwarded-proto: https\r\n");
    }
    if let Some(host) = fields.get(HOST).filter(|_| !says(FORWARDED_HOST)) {
        put_field(output, b"x-forwarded-host", host.as_bytes());
    }
    if !goes_on {
        put_field(output, b"traceparent", &request.id.trace());
    }
    put_field(output, b"x-request-id", request.id.as_str().as_bytes());
    if head.upgrade == Upgrade::WebSocket {
        put_field(output, b"connection", b"upgrade");
        put_field(output, b"upgrade", WEBSOCKET.as_bytes());
    }
    framing::put_field(output, head.framing);
    output.put_slice(b"\r\n");
}

/// Whether a field goes on as it is: the others the gateway writes itself, or nobody may.
fn passes(name: &HeaderName, trust: Trust, goes_on: bool) -> bool {
    let text = name.as_str();
    if memchr::memchr(b'_', text.as_bytes()).is_some() && is_a_disguise(text) {
        return false;
    }
    let is_left_out = match text.as_bytes()[0] {
        b'c' => *name == COOKIE,
        b'x' if *name == REQUEST_ID || *name == FORWARDED_FOR => true,
        b'x' => trust == Trust::Nobody && (*name == REAL_IP || text.starts_with(OURS)),
        b'f' => trust == Trust::Nobody && *name == FORWARDED,
        // The latter two are for one connection: HTTP/2 has no more of them.
        b't' => {
            !goes_on && (*name == TRACE_PARENT || *name == TRACE_STATE)
                || *name == TE
                || *name == TRAILER
        }
        _ => false,
    };
    !is_left_out
}

/// Whether a back end that takes `_` for `-`, as CGI and WSGI do, would read one of our names.
fn is_a_disguise(text: &str) -> bool {
    let name = text.replace('_', "-");
    let ours = [REQUEST_ID, REAL_IP, FORWARDED, TRACE_PARENT, TRACE_STATE];
    name.starts_with(OURS) || ours.iter().any(|our| *our == *name)
}

/// HTTP/2 may cut a cookie into crumbs; HTTP/1.1 has one line of them (RFC 9113, section 8.2.3).
fn put_cookies(output: &mut Vec<u8>, fields: &HeaderMap) {
    let mut crumbs = fields.get_all(COOKIE).iter();
    let Some(first) = crumbs.next() else { return };
    output.put_slice(b"cookie: ");
    output.put_slice(first.as_bytes());
    for crumb in crumbs {
        output.put_slice(b"; ");
        output.put_slice(crumb.as_bytes());
    }
    output.put_slice(b"\r\n");
}

/// What the proxies before us wrote, if they are trusted, and the last of them.
fn put_forwarded_for(output: &mut Vec<u8>, fields: &HeaderMap, client: &Client) {
    output.put_slice(b"x-forwarded-for: ");
    if client.trust == Trust::Proxy {
        for line in fields.get_all(FORWARDED_FOR) {
            output.put_slice(line.as_bytes().trim_ascii());
            output.put_slice(b", ");
        }
    }
    text::address(output, client.peer);
    output.put_slice(b"\r\n");
}

/// Whether there is a `version-trace-parent-flags` (W3C Trace Context, section 3.2).
fn has_trace(fields: &HeaderMap) -> bool {
    let trace = fields
        .get(TRACE_PARENT)
        .and_then(|trace| trace.to_str().ok());
    let Some(trace) = trace else { return false };
    let mut parts = trace.split('-');
    let mut is_hex = |length: usize| {
        parts.next().is_some_and(|part| {
            part.len() == length && part.bytes().all(|digit| digit.is_ascii_hexdigit())
        })
    };
    is_hex(2) && is_hex(32) && is_hex(16) && is_hex(2)
}
