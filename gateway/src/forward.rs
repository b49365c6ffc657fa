//! What a replica is told about a request: whom it is from, how it came, what it is called.
//!
//! A client cannot say any of this itself: its own words under these names are replaced. From a
//! trusted proxy they are kept and appended to.

use std::fmt::Write as _;

use http::header::{COOKIE, FORWARDED, HOST};
use http::{HeaderName, HeaderValue};
use pingora::Result;
use pingora::http::RequestHeader;

use crate::answer::REQUEST_ID;
use crate::client::{Client, FORWARDED_FOR, Trust};
use crate::request::Request;

const TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACE_STATE: HeaderName = HeaderName::from_static("tracestate");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const OURS: &str = "x-forwarded-";

/// Writes them into the request that goes to a replica.
///
/// # Errors
/// Never in practice: the names and values are well-formed.
pub(crate) fn introduce(
    upstream: &mut RequestHeader,
    request: &Request,
    client: &Client,
) -> Result<()> {
    let has_trace = client.trust == Trust::Proxy && known_trace(upstream).is_some();
    let chain = match client.trust {
        Trust::Proxy => chain(upstream, client),
        Trust::Nobody => client.peer.to_string(),
    };
    if client.trust == Trust::Nobody {
        forget_claims(upstream);
    }
    upstream.insert_header(FORWARDED_FOR, chain)?;
    if !upstream.headers.contains_key(FORWARDED_PROTO) {
        upstream.insert_header(FORWARDED_PROTO, HeaderValue::from_static("https"))?;
    }
    if !upstream.headers.contains_key(FORWARDED_HOST)
        && let Some(host) = upstream.headers.get(HOST).cloned()
    {
        upstream.insert_header(FORWARDED_HOST, host)?;
    }
    upstream.insert_header(REQUEST_ID, request.id.header())?;
    if !has_trace {
        upstream.remove_header(&TRACE_STATE);
        upstream.insert_header(TRACE_PARENT, request.id.trace())?;
    }
    join_cookies(upstream)
}

/// Everything by which a client could pass itself off as another.
fn forget_claims(upstream: &mut RequestHeader) {
    upstream.remove_header(&FORWARDED);
    upstream.remove_header(&REAL_IP);
    let claims: Vec<HeaderName> = upstream
        .headers
        .keys()
        .filter(|name| name.as_str().starts_with(OURS))
        .cloned()
        .collect();
    for name in claims {
        upstream.remove_header(&name);
    }
}

/// What the proxies before us wrote, and the last of them.
fn chain(upstream: &RequestHeader, client: &Client) -> String {
    let mut chain = String::new();
    for line in upstream.headers.get_all(FORWARDED_FOR) {
        if let Ok(line) = line.to_str() {
            chain.push_str(line.trim());
            chain.push_str(", ");
        }
    }
    write!(chain, "{}", client.peer).expect("a String takes everything");
    chain
}

/// `version-trace-parent-flags` (W3C Trace Context, section 3.2), if it is one.
fn known_trace(upstream: &RequestHeader) -> Option<&HeaderValue> {
    let value = upstream.headers.get(TRACE_PARENT)?;
    let mut parts = value.to_str().ok()?.split('-');
    let mut is_hex = |length: usize| {
        parts.next().is_some_and(|part| {
            part.len() == length && part.bytes().all(|digit| digit.is_ascii_hexdigit())
        })
    };
    (is_hex(2) && is_hex(32) && is_hex(16) && is_hex(2)).then_some(value)
}

/// HTTP/2 may cut a cookie into crumbs; HTTP/1.1 has one line of them (RFC 9113, section 8.2.3).
fn join_cookies(upstream: &mut RequestHeader) -> Result<()> {
    let mut crumbs = upstream.headers.get_all(COOKIE).iter();
    if crumbs.nth(1).is_none() {
        return Ok(());
    }
    let joined = upstream
        .headers
        .get_all(COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect::<Vec<_>>()
        .join(&b"; "[..]);
    let joined = HeaderValue::from_bytes(&joined).expect("it is made of header values");
    upstream.insert_header(COOKIE, joined)?;
    Ok(())
}
