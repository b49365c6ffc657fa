//! Strict parser of HTTP/1.1 request headers.
//!
//! It rejects every request that another parser, before or behind the gateway, may repair or read
//! differently, since that enables request smuggling. Examples are bare line feeds, whitespace before a
//! colon, two framings and two hosts (RFC 9112, sections 2.2, 3, 5 and 6; RFC 9110, section 7.2).

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http::header::HOST;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};

use crate::http::expectation::check_expectation;
use crate::http::h1::hop_by_hop::{ConnectionHeaders, HeaderScope, Persistence};
use crate::http::message::{Framing, RequestError, RequestHeaders, Upgrade};
use crate::http::syntax::{
    MAX_HEADERS, MAX_TARGET_BYTES, check_method, check_target, is_authority, is_header_value_byte,
    is_token_byte, is_whitespace, parse_content_length, unknown_method, without_fragment,
};
use crate::path::RequestTarget;

/// Bytes of a request line besides its target: longer ones are rejected before their end is read.
const MAX_REQUEST_LINE_REST: usize = 2 * 1024;
/// Initial capacity for headers, enough for most requests.
const HEADER_CAPACITY: usize = 12;

/// Limits for reading the headers of one request.
#[derive(Debug, Clone, Copy)]
pub(super) struct HeaderLimits {
    /// Longest time until the first byte.
    pub(super) idle_timeout: Duration,
    /// Longest time from the first byte to the end of the header section.
    pub(super) header_timeout: Duration,
    /// Maximum size of request line and headers together.
    pub(super) max_bytes: usize,
}

/// Reason why no request could be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ReadError {
    /// The client disconnected or was idle for too long. It gets no response.
    Closed,
    Rejected(Rejection),
}

impl From<Rejection> for ReadError {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(rejection)
    }
}

/// Request whose headers are not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rejection {
    pub(crate) error: RequestError,
    /// Method, on which the framing of the response depends: one to HEAD has no body (RFC 9110, section 9.3.2).
    pub(crate) method: Method,
}

impl Rejection {
    /// Creates the rejection of the request whose headers begin with `bytes`.
    pub(super) fn new(error: RequestError, bytes: &[u8]) -> Self {
        let space = memchr::memchr(b' ', bytes);
        let method = space.and_then(|end| Method::from_bytes(&bytes[..end]).ok());
        let method = method.filter(|method| check_method(method).is_ok());
        Self {
            error,
            method: method.unwrap_or_else(unknown_method),
        }
    }
}

/// Incremental search for the end of a header section, independent of how reads split it.
#[derive(Debug, Default)]
pub(crate) struct HeaderScanner {
    /// Start of the current line.
    line_start: usize,
    /// Number of bytes that have been searched.
    scanned: usize,
}

impl HeaderScanner {
    /// Takes the headers of a request from the start of `buffer`. Returns `None` if they are
    /// incomplete.
    ///
    /// # Errors
    /// Returns an error if they exceed `max_bytes`, are malformed, or have more than one reading.
    pub(crate) fn take_request(
        &mut self,
        buffer: &mut BytesMut,
        max_bytes: usize,
    ) -> Result<Option<(RequestHeaders, Persistence)>, Rejection> {
        match self.find_end(buffer, max_bytes) {
            Ok(Some(end)) => {
                let section = buffer.split_to(end).freeze();
                let request = parse(&section).map_err(|error| Rejection::new(error, &section))?;
                Ok(Some(request))
            }
            Ok(None) => Ok(None),
            Err(error) => Err(Rejection::new(error, buffer)),
        }
    }

    fn find_end(
        &mut self,
        buffer: &mut BytesMut,
        max_bytes: usize,
    ) -> Result<Option<usize>, RequestError> {
        while let Some(found) = memchr::memchr(b'\n', &buffer[self.scanned..]) {
            let line_feed = self.scanned + found;
            if line_feed == self.line_start || buffer[line_feed - 1] != b'\r' {
                return Err(RequestError::LineEnding);
            }
            let is_empty_line = line_feed == self.line_start + 1;
            (self.line_start, self.scanned) = (line_feed + 1, line_feed + 1);
            if !is_empty_line {
                continue;
            }
            if line_feed > 1 {
                let end = line_feed + 1;
                return if end > max_bytes {
                    Err(RequestError::HeadersTooLarge)
                } else {
                    Ok(Some(end))
                };
            }
            // An empty line before the request line is ignored (RFC 9112, section 2.2).
            buffer.advance(line_feed + 1);
            *self = Self::default();
        }
        self.scanned = buffer.len();
        if self.line_start == 0 && self.scanned > MAX_TARGET_BYTES + MAX_REQUEST_LINE_REST {
            return Err(RequestError::TargetTooLong);
        }
        if self.scanned > max_bytes {
            return Err(RequestError::HeadersTooLarge);
        }
        Ok(None)
    }
}

/// Headers that determine the host and the framing of the body. Each may occur once.
#[derive(Debug, Default)]
struct ControlHeaders<'h> {
    host: Option<&'h [u8]>,
    framing: Option<Framing>,
}

/// Parses a header section, including the empty line that ends it.
fn parse(bytes: &Bytes) -> Result<(RequestHeaders, Persistence), RequestError> {
    let mut lines = lines(bytes);
    let request_line = lines.next().ok_or(RequestError::RequestLine)?;
    let (method, target, version) = parse_request_line(request_line)?;
    let (mut control, mut connection) = (ControlHeaders::default(), ConnectionHeaders::default());
    let mut headers = HeaderMap::with_capacity(HEADER_CAPACITY);
    for (number, line) in lines.enumerate() {
        if number >= MAX_HEADERS {
            return Err(RequestError::HeadersTooLarge);
        }
        let (name, value) = parse_header(line, &mut control)?;
        let name = HeaderName::from_bytes(name).map_err(|_| RequestError::Header)?;
        let value = HeaderValue::from_maybe_shared(bytes.slice_ref(value))
            .map_err(|_| RequestError::Header)?;
        if connection.inspect(&name, &value) == HeaderScope::EndToEnd {
            headers.append(name, value);
        }
    }
    if connection.has_too_many_options() {
        return Err(RequestError::HeadersTooLarge);
    }
    connection.remove_listed(&mut headers);
    let is_http_1_0 = version == Version::HTTP_10;
    if is_http_1_0 && control.framing == Some(Framing::Chunked) {
        return Err(RequestError::Framing);
    }
    if let Some(host) = host_in_target(control.host, target, version)? {
        let host = HeaderValue::from_maybe_shared(bytes.slice_ref(host));
        headers.insert(HOST, host.map_err(|_| RequestError::Host)?);
    }
    let framing = control.framing.unwrap_or(Framing::Empty);
    check_expectation(&mut headers, version, framing)?;
    let persistence = connection.persistence(is_http_1_0);
    let may_upgrade = !is_http_1_0 && method == Method::GET && framing.is_empty();
    let request = RequestHeaders {
        version,
        method,
        target: RequestTarget::new(bytes.slice_ref(target)),
        headers,
        framing,
        upgrade: if may_upgrade {
            connection.upgrade()
        } else {
            Upgrade::None
        },
    };
    Ok((request, persistence))
}

/// Returns the lines up to the empty one, without their line endings.
fn lines(section: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = section;
    std::iter::from_fn(move || {
        let line_feed = memchr::memchr(b'\n', rest)?;
        let line = &rest[..line_feed.checked_sub(1)?];
        rest = &rest[line_feed + 1..];
        (!line.is_empty()).then_some(line)
    })
}

fn parse_request_line(line: &[u8]) -> Result<(Method, &[u8], Version), RequestError> {
    let mut parts = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(RequestError::RequestLine);
    };
    let method = Method::from_bytes(method).map_err(|_| RequestError::RequestLine)?;
    check_method(&method)?;
    if !target.iter().all(u8::is_ascii_graphic) {
        return Err(RequestError::Target);
    }
    let target = without_fragment(target);
    check_target(target)?;
    match version {
        b"HTTP/1.1" => Ok((method, target, Version::HTTP_11)),
        b"HTTP/1.0" => Ok((method, target, Version::HTTP_10)),
        _ if version.starts_with(b"HTTP/") => Err(RequestError::Version),
        _ => Err(RequestError::RequestLine),
    }
}

/// Splits a line into name and value, and records it in `control` if it is one of these headers.
fn parse_header<'h>(
    line: &'h [u8],
    control: &mut ControlHeaders<'h>,
) -> Result<(&'h [u8], &'h [u8]), RequestError> {
    // A folded line (RFC 9112, section 5.2) begins with whitespace, which is not allowed in a name.
    let colon = memchr::memchr(b':', line).ok_or(RequestError::Header)?;
    let (name, value) = (&line[..colon], trim_whitespace(&line[colon + 1..]));
    let is_name_valid = !name.is_empty() && name.iter().all(|byte| is_token_byte(*byte));
    if !is_name_valid || !value.iter().all(|byte| is_header_value_byte(*byte)) {
        return Err(RequestError::Header);
    }
    // Comparing lengths first is cheap, and excludes nearly all other headers.
    match name.len() {
        4 if name.eq_ignore_ascii_case(b"host") && control.host.replace(value).is_some() => {
            return Err(RequestError::Host);
        }
        14 if name.eq_ignore_ascii_case(b"content-length") => {
            let length = parse_content_length(value).ok_or(RequestError::Framing)?;
            let framing = Framing::Length(length);
            if control.framing.replace(framing).is_some() {
                return Err(RequestError::Framing);
            }
        }
        17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
            let is_first = control.framing.replace(Framing::Chunked).is_none();
            if !is_first || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(RequestError::Framing);
            }
        }
        _ => {}
    }
    Ok((name, value))
}

/// Removes the whitespace around a value (RFC 9110, section 5.5). Other characters that a lenient
/// parser trims, such as a bare CR or a form feed, stay and are rejected.
fn trim_whitespace(value: &[u8]) -> &[u8] {
    let is_visible = |byte: &u8| !is_whitespace(*byte);
    let start = value.iter().position(is_visible).unwrap_or(value.len());
    let end = value
        .iter()
        .rposition(is_visible)
        .map_or(start, |last| last + 1);
    &value[start..end]
}

/// Checks `Host`, and that an absolute-form target (RFC 9112, section 3.2.2) names the same host. HTTP/1.0
/// requires no `Host` (section 3.2): returns the host of the target if only the target has one.
fn host_in_target<'t>(
    host: Option<&[u8]>,
    target: &'t [u8],
    version: Version,
) -> Result<Option<&'t [u8]>, RequestError> {
    let in_target = target_authority(target)?;
    match (host, in_target) {
        (Some(host), _) if !is_authority(host) => Err(RequestError::Host),
        (Some(host), Some(in_target)) if !in_target.eq_ignore_ascii_case(host) => {
            Err(RequestError::Target)
        }
        (Some(_), _) => Ok(None),
        (None, _) if version != Version::HTTP_10 => Err(RequestError::Host),
        (None, Some(in_target)) if !is_authority(in_target) => Err(RequestError::Target),
        (None, in_target) => Ok(in_target),
    }
}

/// Returns the authority of a target in absolute form, `None` in origin form.
fn target_authority(target: &[u8]) -> Result<Option<&[u8]>, RequestError> {
    if target.starts_with(b"/") {
        return Ok(None);
    }
    let (scheme, rest) = target
        .iter()
        .position(|byte| *byte == b':')
        .and_then(|colon| Some((&target[..colon], target[colon..].strip_prefix(b"://")?)))
        .ok_or(RequestError::Target)?;
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?'));
    let authority = &rest[..end.unwrap_or(rest.len())];
    let is_http = scheme.eq_ignore_ascii_case(b"https") || scheme.eq_ignore_ascii_case(b"http");
    if is_http {
        Ok(Some(authority))
    } else {
        Err(RequestError::Target)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Parses the request at the start of `bytes`, which arrive in reads of `read_size` bytes.
    fn read(
        bytes: &[u8],
        read_size: usize,
    ) -> Result<Option<(RequestHeaders, Persistence)>, Rejection> {
        let (mut scanner, mut buffer) = (HeaderScanner::default(), BytesMut::new());
        for read in bytes.chunks(read_size) {
            buffer.extend_from_slice(read);
            if let Some(request) = scanner.take_request(&mut buffer, 32 * 1024)? {
                return Ok(Some(request));
            }
        }
        Ok(None)
    }

    /// Returns the error for a request, which must not depend on how reads split it.
    fn rejection(request: &str) -> Option<RequestError> {
        let in_one_read = read(request.as_bytes(), request.len());
        let in_small_reads = read(request.as_bytes(), 7);
        assert_eq!(
            in_one_read.as_ref().err(),
            in_small_reads.as_ref().err(),
            "{request:?}"
        );
        in_one_read.err().map(|rejection| rejection.error)
    }

    #[test]
    fn the_method_of_a_rejected_request_is_known_if_it_is_valid() {
        let method = |request: &str| read(request.as_bytes(), 7).unwrap_err().method;
        assert_eq!(method("HEAD / HTTP/1.1\r\n\r\n"), Method::HEAD);
        assert_eq!(method("\r\nHEAD / HTTP/1.1\r\nHost: a\n"), Method::HEAD);
        assert_eq!(
            method("PUT\t/ HTTP/1.1\r\nHost: a\r\n\r\n"),
            unknown_method()
        );
        assert_eq!(method("CONNECT a HTTP/1.1\r\n\r\n"), unknown_method());
        assert_eq!(method("GET\n"), unknown_method());
    }

    #[test]
    fn well_formed_requests_are_accepted() {
        for request in [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "\r\nGET /a?b HTTP/1.1\r\nhost:a.example:443\r\nX: \ty\t\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: [::1]:8443\r\nContent-Length: 3\r\n\r\nabc",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n0\r\n\r\n",
            "GET https://a/b HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /#a HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.0\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.0\r\n\r\n",
            "GET http://a/ HTTP/1.0\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: \u{e4}\r\n\r\n",
        ] {
            assert_eq!(rejection(request), None, "{request:?}");
        }
    }

    #[test]
    fn requests_with_two_readings_are_rejected() {
        for (request, error) in [
            ("GET / HTTP/1.1\nHost: a\n\n", RequestError::LineEnding),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nX: y\n\r\n",
                RequestError::LineEnding,
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nX: y\rz\r\n\r\n",
                RequestError::Header,
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nX: y\r\r\n\r\n",
                RequestError::Header,
            ),
            (
                "GET / HTTP/1.1\r\nHost: \ra\u{c}\r\n\r\n",
                RequestError::Header,
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nX: y\0z\r\n\r\n",
                RequestError::Header,
            ),
            ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", RequestError::Header),
            (
                "GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
                RequestError::Header,
            ),
            ("GET / HTTP/1.1\r\n Host: a\r\n\r\n", RequestError::Header),
            (
                "GET / HTTP/1.1\r\nHost: a\r\n: x\r\n\r\n",
                RequestError::Header,
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nnothing\r\n\r\n",
                RequestError::Header,
            ),
            ("GET / HTTP/1.1\r\n\r\n", RequestError::Host),
            ("GET http://u@a/ HTTP/1.0\r\n\r\n", RequestError::Target),
            ("GET / HTTP/1.0\r\nHost:\r\n\r\n", RequestError::Host),
            (
                "GET / HTTP/1.1\r\nHost: a:99999\r\n\r\n",
                RequestError::Host,
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
                RequestError::Host,
            ),
            ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", RequestError::Host),
            ("GET / HTTP/1.1\r\nHost: a,b\r\n\r\n", RequestError::Host),
            ("GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", RequestError::Host),
            ("GET / HTTP/1.1\r\nHost:\r\n\r\n", RequestError::Host),
            (
                "GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
                RequestError::Target,
            ),
            ("GET a HTTP/1.1\r\nHost: a\r\n\r\n", RequestError::Target),
            (
                "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
                RequestError::Target,
            ),
            (
                "GET /\u{e4} HTTP/1.1\r\nHost: a\r\n\r\n",
                RequestError::Target,
            ),
            ("GET #a HTTP/1.1\r\nHost: a\r\n\r\n", RequestError::Target),
            (
                "GET /a\tb HTTP/1.1\r\nHost: a\r\n\r\n",
                RequestError::Target,
            ),
            (
                "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
                RequestError::RequestLine,
            ),
            (
                "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
                RequestError::RequestLine,
            ),
            (
                "G@T / HTTP/1.1\r\nHost: a\r\n\r\n",
                RequestError::RequestLine,
            ),
            ("GET /\r\nHost: a\r\n\r\n", RequestError::RequestLine),
            ("GET / HTTP/1.2\r\nHost: a\r\n\r\n", RequestError::Version),
            ("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", RequestError::Method),
            (
                "CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
                RequestError::Method,
            ),
        ] {
            assert_eq!(rejection(request), Some(error), "{request:?}");
        }
    }

    #[test]
    fn malformed_targets_are_rejected_also_in_the_fragment() {
        for request in [
            "GET /#\u{1}a HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /?q=\"a\" HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET http://a#@b/ HTTP/1.1\r\nHost: b\r\n\r\n",
        ] {
            assert_eq!(
                rejection(request),
                Some(RequestError::Target),
                "{request:?}"
            );
        }
    }

    #[test]
    fn requests_with_ambiguous_framing_are_rejected() {
        for headers in [
            "Content-Length: 1\r\nTransfer-Encoding: chunked",
            "Content-Length: 1\r\nContent-Length: 1",
            "Content-Length: 1, 1",
            "Content-Length: +1",
            "Content-Length: -1",
            "Content-Length: 0x1",
            "Content-Length:",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: gzip, chunked",
            "Transfer-Encoding: chunked, identity",
            "Transfer-Encoding: xchunked",
            "Transfer-Encoding: \u{b}chunked",
            "Transfer-Encoding: \u{c}chunked",
            "Transfer-Encoding:\rchunked",
            "Transfer-Encoding: chunked\r",
            "Content-Length: \r1",
            "Content-Length: 1\u{c}",
        ] {
            let request = format!("POST / HTTP/1.1\r\nHost: a\r\n{headers}\r\n\r\n");
            assert!(rejection(&request).is_some(), "{headers:?}");
        }
        let http_1_0 = "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(rejection(http_1_0), Some(RequestError::Framing));
    }

    #[test]
    fn sizes_are_limited() {
        let long = "a".repeat(MAX_TARGET_BYTES);
        let target = format!("GET /{long} HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(rejection(&target), Some(RequestError::TargetTooLong));
        let endless = format!("GET /{long}{long}");
        assert_eq!(rejection(&endless), Some(RequestError::TargetTooLong));
        let value = "v".repeat(33 * 1024);
        let large = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {value}\r\n\r\n");
        assert_eq!(rejection(&large), Some(RequestError::HeadersTooLarge));
        let options = format!("Connection: {}", "a,".repeat(1000));
        let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{options}\r\n\r\n");
        assert_eq!(rejection(&many), Some(RequestError::HeadersTooLarge));
        let method = "M".repeat(33);
        let long = format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(rejection(&long), Some(RequestError::MethodTooLong));
        assert_eq!(rejection(&long[1..]), None);
        let many = "X: y\r\n".repeat(MAX_HEADERS);
        let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n");
        assert_eq!(rejection(&many), Some(RequestError::HeadersTooLarge));
    }

    proptest! {
        #[test]
        fn no_input_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes, 9);
        }

        #[test]
        fn accepted_requests_have_one_host_and_at_most_one_framing(
            bytes in "(GET|POST) [/a-z:]{1,6} HTTP/1.[01]\r\n((Host|Content-Length|Transfer-Encoding|X)[: ]{1,2}[a0-9, ]{0,3}(chunked)?\r?\n){0,4}\r\n"
        ) {
            if let Ok(Some((request, _))) = read(bytes.as_bytes(), 1000) {
                let text = bytes.to_lowercase();
                let count = |name: &str| text.matches(name).count();
                let is_http_1_0 = text.contains("http/1.0");
                prop_assert!(count("\r\nhost:") == 1 || is_http_1_0 && count("\r\nhost:") == 0);
                prop_assert!(count("content-length:") + count("transfer-encoding:") <= 1);
                prop_assert_eq!(count("\n"), count("\r\n"));
                let is_framed = count("content-length:") + count("transfer-encoding:") == 1;
                prop_assert_eq!(request.framing != Framing::Empty, is_framed);
            }
        }
    }
}
