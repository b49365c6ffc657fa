//! Checks of HTTP/2 request headers, and their conversion to [`RequestHeaders`].
//!
//! A request must not change its meaning when it is forwarded over HTTP/1.1 (RFC 9113, sections 8.3.1
//! and 10.3). The `h2` crate has already rejected malformed pseudo-headers, names and values.

use bytes::Bytes;
use h2::RecvStream;
use http::header::{CONTENT_LENGTH, COOKIE, HOST, TRANSFER_ENCODING};
use http::uri::{Authority, Scheme};
use http::{HeaderMap, HeaderValue, Version, request};

use crate::http::expectation::check_expectation;
use crate::http::message::{Framing, RequestError, RequestHeaders, Upgrade};
use crate::http::syntax::{self, HTTP2_SETTINGS, MAX_HEADERS};
use crate::path::RequestTarget;

/// Maximum number of headers into which a client may split its cookies, more than browsers keep cookies for a site
/// (RFC 6265, section 6.1). HPACK encodes a repeated header in one byte, so that their size alone is no limit for
/// the memory that they take (CVE-2026-49975).
const MAX_COOKIE_HEADERS: usize = 200;
/// Bytes besides name and value that a header counts for: colon and space, as in HTTP/1.1.
const HEADER_SEPARATOR: usize = 2;

/// Converts the headers of a request, whose size is limited to `max_bytes`.
///
/// # Errors
/// Returns an error if they are too large or could be read differently behind the gateway.
pub(super) fn parse(
    parts: request::Parts,
    body: &RecvStream,
    max_bytes: usize,
) -> Result<RequestHeaders, RequestError> {
    let mut headers = parts.headers;
    syntax::check_method(&parts.method)?;
    if !parts.uri.scheme().is_none_or(is_http) || headers.contains_key(HTTP2_SETTINGS) {
        return Err(RequestError::Header);
    }
    set_host(&mut headers, parts.uri.authority())?;
    check_headers(&headers, max_bytes)?;
    let target = parts.uri.path_and_query().ok_or(RequestError::Target)?;
    syntax::check_target(target.as_str().as_bytes())?;
    let target = RequestTarget::new(Bytes::copy_from_slice(target.as_str().as_bytes()));
    let framing = take_framing(&mut headers, body)?;
    check_expectation(&mut headers, Version::HTTP_2, framing)?;
    Ok(RequestHeaders {
        version: Version::HTTP_2,
        method: parts.method,
        target,
        headers,
        framing,
        upgrade: Upgrade::None,
    })
}

/// Returns whether a scheme is http or https, the only ones in which the target of a request to the gateway
/// can be. `h2` has dropped the scheme of a request without `:authority`. A proxy that terminates TLS in
/// front of the gateway may leave it at http.
fn is_http(scheme: &Scheme) -> bool {
    *scheme == Scheme::HTTPS || *scheme == Scheme::HTTP
}

/// Sets `Host` to the value of `:authority`. If a request has both, they have to be the same.
fn set_host(headers: &mut HeaderMap, authority: Option<&Authority>) -> Result<(), RequestError> {
    let mut hosts = headers.get_all(HOST).iter();
    let host = hosts.next().map(HeaderValue::as_bytes);
    if hosts.next().is_some() {
        return Err(RequestError::Host);
    }
    let authority = authority
        .map(|authority| authority.as_str().as_bytes())
        .or(host)
        .ok_or(RequestError::Host)?;
    let is_same = host.is_none_or(|host| host.eq_ignore_ascii_case(authority));
    if !is_same || !syntax::is_authority(authority) {
        return Err(RequestError::Host);
    }
    if host.is_none() {
        let host = HeaderValue::from_bytes(authority).map_err(|_| RequestError::Host)?;
        headers.insert(HOST, host);
    }
    Ok(())
}

/// Checks size and number of the headers, and that no value has another reading in HTTP/1.1.
fn check_headers(headers: &HeaderMap, max_bytes: usize) -> Result<(), RequestError> {
    let mut size = 0;
    for (name, value) in headers {
        let value = value.as_bytes();
        size += name.as_str().len() + value.len() + HEADER_SEPARATOR;
        // HTTP/1.1 trims whitespace and would see another value (RFC 9113, section 8.2.1).
        let ends = [value.first(), value.last()];
        if ends
            .into_iter()
            .flatten()
            .any(|end| syntax::is_whitespace(*end))
        {
            return Err(RequestError::Header);
        }
    }
    // A cookie may be split into several headers, which are forwarded as one (RFC 9113, section 8.2.3).
    let cookies = headers.get_all(COOKIE).iter().count();
    let count = headers.len() - cookies.saturating_sub(1);
    if count > MAX_HEADERS || cookies > MAX_COOKIE_HEADERS || size > max_bytes {
        return Err(RequestError::HeadersTooLarge);
    }
    Ok(())
}

/// Removes the headers that frame the body, and returns its framing.
fn take_framing(headers: &mut HeaderMap, body: &RecvStream) -> Result<Framing, RequestError> {
    let lengths = headers.get_all(CONTENT_LENGTH).iter().count();
    if lengths > 1 || headers.contains_key(TRANSFER_ENCODING) {
        return Err(RequestError::Framing);
    }
    let framing = if let Some(length) = headers.remove(CONTENT_LENGTH) {
        let length = syntax::parse_content_length(length.as_bytes());
        Framing::Length(length.ok_or(RequestError::Framing)?)
    } else if body.is_end_stream() {
        Framing::Empty
    } else {
        Framing::Chunked
    };
    // `h2` compares the length with the DATA frames, but only if there are any.
    if body.is_end_stream() && !framing.is_empty() {
        return Err(RequestError::Framing);
    }
    Ok(framing)
}
