//! Parser of HTTP/1.1 response headers.

use std::mem::MaybeUninit;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, SERVER, TRANSFER_ENCODING, VIA};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use thiserror::Error;

use crate::http::h1::hop_by_hop::{ConnectionHeaders, HeaderScope};
use crate::http::message::{Framing, ResponseHeaders};
use crate::http::syntax::{self, MAX_HEADERS};

const X_POWERED_BY: HeaderName = HeaderName::from_static("x-powered-by");
/// Initial capacity for headers, enough for most responses and the headers that the gateway adds.
const HEADER_CAPACITY: usize = 16;

/// Reason why response headers are not forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(super) enum InvalidHeaders {
    /// Malformed, or with more than one reading.
    #[error("the response headers are malformed")]
    Malformed,
    #[error("the response has more than {MAX_HEADERS} header lines")]
    TooMany,
}

/// Response headers, and the properties that determine how the connection is used.
#[derive(Debug)]
pub(super) struct ParsedResponse {
    /// Headers with the framing that they announce. It does not apply to every response (RFC 9112,
    /// section 6.3).
    pub(super) headers: ResponseHeaders,
    pub(super) connection: ConnectionHeaders,
    pub(super) content_length: Option<u64>,
    pub(super) is_http_1_0: bool,
}

/// Parses a header section, including the empty line that ends it.
///
/// # Errors
/// Returns an error if the section is malformed, ends before its last byte, or frames the body
/// ambiguously. Two `Content-Length` are ambiguous even if they are equal, as for nginx: a recipient may
/// reject them (RFC 9110, section 8.6), and they show that the endpoint composes its messages carelessly.
pub(super) fn parse(section: &Bytes) -> Result<ParsedResponse, InvalidHeaders> {
    if !begins_with_status_line(section) {
        return Err(InvalidHeaders::Malformed);
    }
    let mut space = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut []);
    let status = httparse::ParserConfig::default().parse_response_with_uninit_headers(
        &mut response,
        section,
        &mut space,
    );
    match status {
        Ok(httparse::Status::Complete(end)) if end == section.len() => {}
        Err(httparse::Error::TooManyHeaders) => return Err(InvalidHeaders::TooMany),
        _ => return Err(InvalidHeaders::Malformed),
    }
    let status = response
        .code
        .and_then(|code| StatusCode::from_u16(code).ok())
        .ok_or(InvalidHeaders::Malformed)?;
    let is_canonical = response.reason == status.canonical_reason();
    let reason = response
        .reason
        .filter(|reason| !is_canonical && !reason.is_empty());
    let reason = reason.map(|reason| section.slice_ref(reason.as_bytes()));
    let mut headers = HeaderMap::with_capacity(HEADER_CAPACITY);
    let mut connection = ConnectionHeaders::default();
    let (mut content_length, mut is_chunked) = (None, false);
    for header in &*response.headers {
        if has_bare_line_feed_before(section, header.name) {
            return Err(InvalidHeaders::Malformed);
        }
        let name = HeaderName::from_bytes(header.name.as_bytes())
            .map_err(|_| InvalidHeaders::Malformed)?;
        match header.name.len() {
            14 if name == CONTENT_LENGTH => {
                let length =
                    syntax::parse_content_length(header.value).ok_or(InvalidHeaders::Malformed)?;
                if content_length.replace(length).is_some() {
                    return Err(InvalidHeaders::Malformed);
                }
            }
            17 if name == TRANSFER_ENCODING => {
                if is_chunked || !header.value.eq_ignore_ascii_case(b"chunked") {
                    return Err(InvalidHeaders::Malformed);
                }
                is_chunked = true;
            }
            _ => {}
        }
        if reveals_implementation(&name) {
            continue;
        }
        let value = HeaderValue::from_maybe_shared(section.slice_ref(header.value))
            .map_err(|_| InvalidHeaders::Malformed)?;
        if connection.inspect(&name, &value) == HeaderScope::EndToEnd {
            headers.append(name, value);
        }
    }
    if connection.has_too_many_options() {
        return Err(InvalidHeaders::Malformed);
    }
    connection.remove_listed(&mut headers);
    let is_http_1_0 = response.version == Some(0);
    let framing = match (is_chunked, content_length) {
        (true, Some(_)) => return Err(InvalidHeaders::Malformed),
        (true, None) if is_http_1_0 => return Err(InvalidHeaders::Malformed),
        (true, None) => Framing::Chunked,
        (false, Some(length)) => Framing::Length(length),
        (false, None) => Framing::UntilClose,
    };
    Ok(ParsedResponse {
        headers: ResponseHeaders {
            status,
            reason,
            headers,
            framing,
        },
        connection,
        content_length,
        is_http_1_0,
    })
}

/// Returns whether a section begins with a status line, after empty lines at most. `httparse` accepts a line
/// feed alone as an empty line.
fn begins_with_status_line(mut section: &[u8]) -> bool {
    while let Some(rest) = section.strip_prefix(b"\r\n") {
        section = rest;
    }
    section.starts_with(b"HTTP/")
}

/// Returns whether the line before a header of the section ends with a line feed alone. `httparse` accepts that;
/// other parsers do not, or not everywhere.
fn has_bare_line_feed_before(section: &Bytes, name: &str) -> bool {
    let start = name.as_ptr().addr() - section.as_ptr().addr();
    !section[..start].ends_with(b"\r\n")
}

/// Returns whether a header reveals the software or the location of the upstream.
fn reveals_implementation(name: &HeaderName) -> bool {
    match name.as_str().len() {
        3 => *name == VIA,
        6 => *name == SERVER,
        12 => *name == X_POWERED_BY,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_feed_alone_ends_no_line() {
        let is_valid =
            |section: &'static str| parse(&Bytes::from_static(section.as_bytes())).is_ok();
        for valid in [
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA: b\r\nC: d\r\n\r\n",
            "\r\nHTTP/1.1 200 OK\r\nA:\r\n\r\n",
        ] {
            assert!(is_valid(valid), "{valid:?}");
        }
        for invalid in [
            "HTTP/1.1 200 OK\nA: b\r\n\r\n",
            "HTTP/1.1 200\nA: b\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA: b\nC: d\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA:\nC: d\r\n\r\n",
            "\nHTTP/1.1 200 OK\r\nA: b\r\n\r\n",
            "\r\n\nHTTP/1.1 200 OK\r\nA: b\r\n\r\n",
            "HTTP/1.1 200 OK\n\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA: b\n\r\n\r\n",
        ] {
            assert!(!is_valid(invalid), "{invalid:?}");
        }
    }
}
