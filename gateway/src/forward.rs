//! What a replica is told about a request: whom it is from, how it came, what it is called.
//!
//! A client cannot say any of this itself: its own words under these names are replaced. From a
//! trusted proxy they are kept and appended to.

use http::header::{COOKIE, FORWARDED, HOST};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::answer::REQUEST_ID;
use crate::client::{Client, FORWARDED_FOR, Trust};
use crate::request::Request;
use crate::text;

const TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACE_STATE: HeaderName = HeaderName::from_static("tracestate");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const HTTPS: HeaderValue = HeaderValue::from_static("https");
const OURS: &str = "x-forwarded-";

/// Writes them into the fields that go to a replica.
pub(crate) fn introduce(fields: &mut HeaderMap, request: &Request, client: &Client) {
    let peer = text::header_value(|value| text::address(value, client.peer));
    match client.trust {
        Trust::Nobody => {
            forget_claims(fields);
            fields.insert(FORWARDED_FOR, peer);
            fields.insert(FORWARDED_PROTO, HTTPS);
            tell_host(fields);
            begin_trace(fields, request);
        }
        Trust::Proxy => {
            let chain = chain(fields, &peer);
            fields.insert(FORWARDED_FOR, chain);
            if !fields.contains_key(FORWARDED_PROTO) {
                fields.insert(FORWARDED_PROTO, HTTPS);
            }
            if !fields.contains_key(FORWARDED_HOST) {
                tell_host(fields);
            }
            if !has_trace(fields) {
                begin_trace(fields, request);
            }
        }
    }
    fields.insert(REQUEST_ID, request.id.header());
    join_cookies(fields);
}

/// Everything by which a client could pass itself off as another.
fn forget_claims(fields: &mut HeaderMap) {
    let is_claim =
        |name: &HeaderName| name == FORWARDED || name == REAL_IP || name.as_str().starts_with(OURS);
    // Hardly any client makes one, and to look is cheaper than to remove.
    let claims: Vec<HeaderName> = fields
        .keys()
        .filter(|name| is_claim(name))
        .cloned()
        .collect();
    for name in claims {
        fields.remove(name);
    }
}

fn tell_host(fields: &mut HeaderMap) {
    if let Some(host) = fields.get(HOST).cloned() {
        fields.insert(FORWARDED_HOST, host);
    }
}

/// The trace begins here, whatever else came.
fn begin_trace(fields: &mut HeaderMap, request: &Request) {
    fields.remove(TRACE_STATE);
    fields.insert(TRACE_PARENT, request.id.trace());
}

/// What the proxies before us wrote, and the last of them.
fn chain(fields: &HeaderMap, peer: &HeaderValue) -> HeaderValue {
    let mut chain = Vec::new();
    for line in fields.get_all(FORWARDED_FOR) {
        if let Ok(line) = line.to_str() {
            chain.extend_from_slice(line.trim().as_bytes());
            chain.extend_from_slice(b", ");
        }
    }
    chain.extend_from_slice(peer.as_bytes());
    HeaderValue::try_from(chain).expect("it is made of header values")
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

/// HTTP/2 may cut a cookie into crumbs; HTTP/1.1 has one line of them (RFC 9113, section 8.2.3).
fn join_cookies(fields: &mut HeaderMap) {
    let mut crumbs = fields.get_all(COOKIE).iter();
    if crumbs.nth(1).is_none() {
        return;
    }
    let joined = fields
        .get_all(COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect::<Vec<_>>()
        .join(&b"; "[..]);
    let joined = HeaderValue::try_from(joined).expect("it is made of header values");
    fields.insert(COOKIE, joined);
}
