//! Checks of HTTP/2 request headers, and their conversion to [`RequestHeaders`].
//!
//! A request must not change its meaning when it is forwarded over HTTP/1.1 (RFC 9113, sections 8.3.1
//! and 10.3). [`HeaderBlock`] has already rejected what makes a request malformed.

use bytes::Bytes;
use http::header::HOST;
use http::{HeaderValue, Version};

use crate::http::expectation::check_expectation;
use crate::http::h2::header_block::{ContentLength, HeaderBlock, Verdict};
use crate::http::message::{Framing, RequestError, RequestHeaders, Upgrade};
use crate::http::syntax;
use crate::path::RequestTarget;

/// Presence of a request body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RequestBody {
    /// The headers end the stream.
    None,
    Follows,
}

/// Converts the headers of a request, whose size is limited to `max_bytes`.
///
/// # Errors
/// Returns an error if they are too large or could be read differently behind the gateway.
pub(super) fn parse(
    mut block: HeaderBlock,
    body: RequestBody,
    max_bytes: usize,
) -> Result<RequestHeaders, RequestError> {
    let verdict = block.request_verdict();
    let method = block.method.take().ok_or(RequestError::Method)?;
    syntax::check_method(&method)?;
    if block.has_outer_whitespace || !block.scheme.as_ref().is_some_and(is_http) {
        return Err(RequestError::Header);
    }
    if verdict == Verdict::TooLarge || block.size > max_bytes {
        return Err(RequestError::HeadersTooLarge);
    }
    set_host(&mut block)?;
    let target = block.path.take().ok_or(RequestError::Target)?;
    let target = syntax::without_fragment(target.as_bytes());
    // A target in absolute form would name another host.
    if !target.starts_with(b"/") {
        return Err(RequestError::Target);
    }
    syntax::check_target(target)?;
    let target = RequestTarget::new(Bytes::copy_from_slice(target));
    let framing = framing(block.content_length, body)?;
    let mut headers = block.headers;
    check_expectation(&mut headers, Version::HTTP_2, framing)?;
    Ok(RequestHeaders {
        version: Version::HTTP_2,
        method,
        target,
        headers,
        framing,
        upgrade: Upgrade::None,
    })
}

/// Returns whether a scheme is http or https, the only ones in which the target of a request to the gateway
/// can be. A proxy that terminates TLS in front of the gateway may leave it at http.
fn is_http(scheme: &HeaderValue) -> bool {
    let scheme = scheme.as_bytes();
    scheme.eq_ignore_ascii_case(b"https") || scheme.eq_ignore_ascii_case(b"http")
}

/// Sets `Host` to the value of `:authority`. If a request has both, they have to be the same.
fn set_host(block: &mut HeaderBlock) -> Result<(), RequestError> {
    let host = block.host().map_err(|_| RequestError::Host)?;
    let authority = block
        .authority
        .as_ref()
        .or(host)
        .ok_or(RequestError::Host)?;
    let bytes = authority.as_bytes();
    let is_same = host.is_none_or(|host| host.as_bytes().eq_ignore_ascii_case(bytes));
    if !is_same || !syntax::is_authority(bytes) {
        return Err(RequestError::Host);
    }
    if host.is_none()
        && let Some(authority) = block.authority.take()
    {
        block.headers.insert(HOST, authority);
    }
    Ok(())
}

fn framing(length: ContentLength, body: RequestBody) -> Result<Framing, RequestError> {
    match (length, body) {
        (ContentLength::None, RequestBody::None) => Ok(Framing::Empty),
        (ContentLength::None, RequestBody::Follows) => Ok(Framing::Chunked),
        (ContentLength::Bytes(1..), RequestBody::None) | (ContentLength::Invalid, _) => {
            Err(RequestError::Framing)
        }
        (ContentLength::Bytes(length), _) => Ok(Framing::Length(length)),
    }
}
