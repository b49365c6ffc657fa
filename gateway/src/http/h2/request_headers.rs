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

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;
    use crate::http::h2::hpack::Decoder;

    const MAX_BYTES: usize = 1024;
    const START: [(&str, &str); 3] = [(":method", "POST"), (":scheme", "https"), (":path", "/a?b")];

    /// Converts the headers that a client sends as literals.
    fn parse_fields(
        fields: &[(&str, &str)],
        body: RequestBody,
    ) -> Result<RequestHeaders, RequestError> {
        let mut encoded = Vec::new();
        for (name, value) in fields {
            encoded.push(0);
            for text in [name, value] {
                encoded.push(u8::try_from(text.len()).unwrap());
                encoded.extend(text.bytes());
            }
        }
        let mut block = HeaderBlock::new(4 * MAX_BYTES);
        let decoded = Decoder::new().decode(&encoded, |field| block.push(field));
        assert_eq!(decoded, Ok(()));
        parse(block, body, MAX_BYTES)
    }

    fn error(fields: &[(&str, &str)]) -> Option<RequestError> {
        parse_fields(fields, RequestBody::Follows).err()
    }

    #[test]
    fn a_request_has_the_headers_that_it_would_have_over_http_1_1() {
        for hosts in [
            &[(":authority", "a.example")][..],
            &[("host", "a.example")],
            &[(":authority", "A.example"), ("host", "a.example")],
        ] {
            let fields = [&START[..], hosts, &[("x", "y")]].concat();
            let request = parse_fields(&fields, RequestBody::Follows).unwrap();
            assert_eq!(request.method, Method::POST);
            assert_eq!(request.target.as_bytes(), b"/a?b");
            assert_eq!(request.host(), Some("a.example"));
            assert_eq!(request.headers["x"], "y");
            assert_eq!(request.headers.len(), 2);
        }
    }

    #[test]
    fn requests_with_another_reading_over_http_1_1_are_rejected() {
        let long_method = "M".repeat(100);
        let authority = (":authority", "a");
        for (fields, expected) in [
            (
                vec![(":method", "TRACE"), START[1], START[2], authority],
                RequestError::Method,
            ),
            (
                vec![(":method", "CONNECT"), authority],
                RequestError::Method,
            ),
            (
                vec![(":method", &*long_method), START[1], START[2], authority],
                RequestError::MethodTooLong,
            ),
            (
                vec![START[0], (":scheme", "ftp"), START[2], authority],
                RequestError::Header,
            ),
            (
                vec![START[0], START[1], (":path", "*"), authority],
                RequestError::Target,
            ),
            (
                vec![START[0], START[1], (":path", "http://b/"), authority],
                RequestError::Target,
            ),
            (
                vec![START[0], START[1], (":path", "/a b"), authority],
                RequestError::Target,
            ),
        ] {
            assert_eq!(error(&fields), Some(expected), "{fields:?}");
        }
        let long = "x".repeat(120);
        for (fields, expected) in [
            (vec![authority, ("x", " y")], RequestError::Header),
            (vec![authority, ("x", "y\t")], RequestError::Header),
            (
                [vec![authority], vec![("x", &*long); 9]].concat(),
                RequestError::HeadersTooLarge,
            ),
            (
                [vec![authority], vec![("x", &*long); 60]].concat(),
                RequestError::HeadersTooLarge,
            ),
            (vec![("x", "y")], RequestError::Host),
            (vec![(":authority", "u@a")], RequestError::Host),
            (vec![authority, ("host", "b")], RequestError::Host),
            (vec![("host", "a"), ("host", "a")], RequestError::Host),
            (
                vec![authority, ("host", "a"), ("host", "a")],
                RequestError::Host,
            ),
            (
                vec![authority, ("content-length", "+1")],
                RequestError::Framing,
            ),
            (
                vec![
                    authority,
                    ("content-length", "1"),
                    ("content-length", "1"),
                    ("content-length", "1"),
                ],
                RequestError::Framing,
            ),
            (
                vec![authority, ("expect", "other")],
                RequestError::Expectation,
            ),
        ] {
            let fields = [START.to_vec(), fields].concat();
            assert_eq!(error(&fields), Some(expected), "{fields:?}");
        }
    }

    #[test]
    fn the_framing_is_that_of_the_length_and_the_end_of_the_stream() {
        let framing = |length: Option<&str>, body| {
            let mut fields = [&START[..], &[(":authority", "a")]].concat();
            fields.extend(length.map(|length| ("content-length", length)));
            parse_fields(&fields, body).map(|request| request.framing)
        };
        assert_eq!(framing(None, RequestBody::None), Ok(Framing::Empty));
        assert_eq!(framing(None, RequestBody::Follows), Ok(Framing::Chunked));
        for body in [RequestBody::None, RequestBody::Follows] {
            assert_eq!(framing(Some("0"), body), Ok(Framing::Length(0)));
        }
        let length = framing(Some("5"), RequestBody::Follows);
        assert_eq!(length, Ok(Framing::Length(5)));
        let length = framing(Some("5"), RequestBody::None);
        assert_eq!(length, Err(RequestError::Framing));
    }
}
