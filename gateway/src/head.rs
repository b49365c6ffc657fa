//! The head of an HTTP/1.1 request, and refusing every one that has two readings.
//!
//! Whatever another parser, before or behind us, might repair or read otherwise is not passed on:
//! bare line feeds, blanks where none belong, two framings, two hosts (RFC 9112, sections 2.2, 3, 5
//! and 6; RFC 9110, section 7.2).

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};
use thiserror::Error;

use crate::downstream::RequestHead;
use crate::framing::Framing;
use crate::hop::{Fate, Hop, Persistence, Upgrade};
use crate::path::Target;

/// Header fields.
pub(crate) const MAX_FIELDS: usize = 100;
/// Bytes of a request target.
pub(crate) const MAX_TARGET: usize = 8 * 1024;
/// What may follow a target that is too long before that is said.
const SLACK: usize = 2 * 1024;
/// Room for the fields of most requests.
const USUAL_FIELDS: usize = 12;

/// How long and how large a head may be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Until its first byte.
    pub(crate) idle: Duration,
    /// From there to its end.
    pub(crate) whole: Duration,
    /// Bytes.
    pub(crate) size: usize,
}

/// A head that is not passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum Refused {
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
    Field,
    #[error("The header is too large")]
    TooLarge,
    #[error("The message framing is ambiguous")]
    Framing,
    #[error("The Host header is missing, repeated or malformed")]
    Host,
    #[error("The method is not allowed")]
    Method,
    #[error("The request took too long to arrive")]
    TooSlow,
}

impl Refused {
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::TooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

/// Why no head came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoHead {
    /// The peer has gone, or was idle for too long: nothing to say.
    Closed,
    Refused(Refused),
}

impl From<Refused> for NoHead {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

/// Looks for the end of a head, line by line, wherever the reads cut it.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    /// Where the current line begins.
    line: usize,
    /// What has been looked at.
    seen: usize,
}

impl Scan {
    /// Takes a head out of what was read, `None` where its end is still to come.
    ///
    /// # Errors
    /// When it is larger than `size` bytes, or has another reading.
    pub(crate) fn head(
        &mut self,
        buffer: &mut BytesMut,
        size: usize,
    ) -> Result<Option<(RequestHead, Persistence)>, Refused> {
        match self.end(buffer, size)? {
            Some(end) => parse(&buffer.split_to(end).freeze()).map(Some),
            None => Ok(None),
        }
    }

    fn end(&mut self, buffer: &mut BytesMut, size: usize) -> Result<Option<usize>, Refused> {
        while let Some(found) = memchr::memchr(b'\n', &buffer[self.seen..]) {
            let feed = self.seen + found;
            if feed == self.line || buffer[feed - 1] != b'\r' {
                return Err(Refused::LineEnding);
            }
            let is_empty = feed == self.line + 1;
            (self.line, self.seen) = (feed + 1, feed + 1);
            if !is_empty {
                continue;
            }
            if feed > 1 {
                let end = feed + 1;
                return if end > size {
                    Err(Refused::TooLarge)
                } else {
                    Ok(Some(end))
                };
            }
            // An empty line before a request is a leftover of the one before (RFC 9112, 2.2).
            buffer.advance(feed + 1);
            *self = Self::default();
        }
        self.seen = buffer.len();
        if self.line == 0 && self.seen > MAX_TARGET + SLACK {
            return Err(Refused::TargetTooLong);
        }
        if self.seen > size {
            return Err(Refused::TooLarge);
        }
        Ok(None)
    }
}

/// What of a head decides how the rest of the message is read.
#[derive(Debug, Default)]
struct Facts<'h> {
    host: Option<&'h [u8]>,
    framing: Option<Framing>,
}

/// Reads a head that ends with an empty line.
fn parse(head: &Bytes) -> Result<(RequestHead, Persistence), Refused> {
    let mut lines = lines(head);
    let request_line = lines.next().ok_or(Refused::RequestLine)?;
    let (method, target, version) = read_request_line(request_line)?;
    let (mut facts, mut hop) = (Facts::default(), Hop::default());
    let mut fields = HeaderMap::with_capacity(USUAL_FIELDS);
    for (number, line) in lines.enumerate() {
        if number >= MAX_FIELDS {
            return Err(Refused::TooLarge);
        }
        let (name, value) = read_field(line, &mut facts)?;
        let name = HeaderName::from_bytes(name).map_err(|_| Refused::Field)?;
        let value =
            HeaderValue::from_maybe_shared(head.slice_ref(value)).map_err(|_| Refused::Field)?;
        if hop.look(&name, &value) == Fate::Passes {
            fields.append(name, value);
        }
    }
    hop.strike(&mut fields);
    let is_http_1_0 = version == Version::HTTP_10;
    if is_http_1_0 && facts.framing == Some(Framing::Chunked) {
        return Err(Refused::Framing);
    }
    check_host(facts.host.ok_or(Refused::Host)?, target)?;
    let persistence = hop.persistence(is_http_1_0);
    let may_upgrade =
        !is_http_1_0 && method == Method::GET && facts.framing.is_none_or(Framing::is_empty);
    let head = RequestHead {
        version,
        method,
        target: Target::new(head.slice_ref(target)),
        fields,
        framing: facts.framing.unwrap_or(Framing::Empty),
        upgrade: if may_upgrade {
            hop.upgrade()
        } else {
            Upgrade::Nothing
        },
    };
    Ok((head, persistence))
}

/// The lines without their ends, up to the empty one.
fn lines(head: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = head;
    std::iter::from_fn(move || {
        let feed = memchr::memchr(b'\n', rest)?;
        let line = &rest[..feed.checked_sub(1)?];
        rest = &rest[feed + 1..];
        (!line.is_empty()).then_some(line)
    })
}

fn read_request_line(line: &[u8]) -> Result<(Method, &[u8], Version), Refused> {
    let mut parts = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Refused::RequestLine);
    };
    let method = Method::from_bytes(method).map_err(|_| Refused::RequestLine)?;
    if method == Method::TRACE || method == Method::CONNECT {
        return Err(Refused::Method);
    }
    check_target(target)?;
    match version {
        b"HTTP/1.1" => Ok((method, target, Version::HTTP_11)),
        b"HTTP/1.0" => Ok((method, target, Version::HTTP_10)),
        _ if version.starts_with(b"HTTP/") => Err(Refused::Version),
        _ => Err(Refused::RequestLine),
    }
}

/// Whether a target is one that can be written into a request line (RFC 9112, section 3.2).
pub(crate) fn check_target(target: &[u8]) -> Result<(), Refused> {
    if target.len() > MAX_TARGET {
        return Err(Refused::TargetTooLong);
    }
    let is_good = |byte: &u8| byte.is_ascii_graphic() && *byte != b'#';
    if target.is_empty() || !target.iter().all(is_good) {
        return Err(Refused::Target);
    }
    Ok(())
}

/// A line as name and value.
fn read_field<'h>(line: &'h [u8], facts: &mut Facts<'h>) -> Result<(&'h [u8], &'h [u8]), Refused> {
    // A folded line begins with a blank, which is no part of a name either.
    let colon = memchr::memchr(b':', line).ok_or(Refused::Field)?;
    let (name, value) = (&line[..colon], without_blanks(&line[colon + 1..]));
    let is_good = |byte: &u8| *byte == b'\t' || *byte >= b' ' && *byte != 0x7f;
    if name.is_empty() || !name.iter().all(|byte| is_token(*byte)) || !value.iter().all(is_good) {
        return Err(Refused::Field);
    }
    // Three names out of many: their length sorts nearly all others out.
    match name.len() {
        4 if name.eq_ignore_ascii_case(b"host") && facts.host.replace(value).is_some() => {
            return Err(Refused::Host);
        }
        14 if name.eq_ignore_ascii_case(b"content-length") => {
            let length = length(value).ok_or(Refused::Framing)?;
            if facts.framing.replace(Framing::Length(length)).is_some() {
                return Err(Refused::Framing);
            }
        }
        17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
            let is_first = facts.framing.replace(Framing::Chunked).is_none();
            if !is_first || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Refused::Framing);
            }
        }
        _ => {}
    }
    Ok((name, value))
}

/// A value without the blanks around it (RFC 9110, section 5.5). What else a lenient parser takes for
/// one, a bare CR or a form feed, stays, to be refused.
fn without_blanks(value: &[u8]) -> &[u8] {
    let is_ink = |byte: &u8| !is_blank(*byte);
    let start = value.iter().position(is_ink).unwrap_or(value.len());
    let end = value
        .iter()
        .rposition(is_ink)
        .map_or(start, |last| last + 1);
    &value[start..end]
}

pub(crate) fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

/// The value of `Content-Length`: digits and nothing else (RFC 9110, section 8.6).
pub(crate) fn length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    str::from_utf8(value).ok()?.parse().ok()
}

fn check_host(host: &[u8], target: &[u8]) -> Result<(), Refused> {
    if !is_authority(host) {
        return Err(Refused::Host);
    }
    if target.starts_with(b"/") {
        return Ok(());
    }
    let (scheme, rest) = target
        .iter()
        .position(|byte| *byte == b':')
        .and_then(|colon| Some((&target[..colon], target[colon..].strip_prefix(b"://")?)))
        .ok_or(Refused::Target)?;
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?'));
    let authority = &rest[..end.unwrap_or(rest.len())];
    let is_http = scheme.eq_ignore_ascii_case(b"https") || scheme.eq_ignore_ascii_case(b"http");
    if is_http && authority.eq_ignore_ascii_case(host) {
        Ok(())
    } else {
        Err(Refused::Target)
    }
}

/// A host with or without a port, and nothing else: no user, no blanks, no list.
pub(crate) fn is_authority(text: &[u8]) -> bool {
    let is_v6 = text.first() == Some(&b'[');
    let (host, port) = if is_v6 {
        match text.iter().position(|byte| *byte == b']') {
            Some(end) => (&text[1..end], &text[end + 1..]),
            None => return false,
        }
    } else {
        let end = text.iter().position(|byte| *byte == b':');
        text.split_at(end.unwrap_or(text.len()))
    };
    let is_good = |byte: &u8| match byte {
        b':' => is_v6,
        b'-' | b'.' | b'_' | b'~' => true,
        _ => byte.is_ascii_alphanumeric(),
    };
    let port_is_good = match port {
        [] => true,
        [b':', digits @ ..] => digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    !host.is_empty() && host.len() <= 255 && host.iter().all(is_good) && port_is_good
}

/// RFC 9110, section 5.6.2: looked up, since every byte of every field's name is.
fn is_token(byte: u8) -> bool {
    const TOKEN: [bool; 256] = {
        let mut table = [false; 256];
        let mut byte = 0_u8;
        while byte < 0x80 {
            table[byte as usize] = match byte {
                b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^'
                | b'_' | b'`' | b'|' | b'~' => true,
                letter => letter.is_ascii_alphanumeric(),
            };
            byte += 1;
        }
        table
    };
    TOKEN[usize::from(byte)]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The head at the start of bytes that come in reads of `step`.
    fn read(bytes: &[u8], step: usize) -> Result<Option<(RequestHead, Persistence)>, Refused> {
        let (mut scan, mut buffer) = (Scan::default(), BytesMut::new());
        for read in bytes.chunks(step) {
            buffer.extend_from_slice(read);
            if let Some(head) = scan.head(&mut buffer, 32 * 1024)? {
                return Ok(Some(head));
            }
        }
        Ok(None)
    }

    fn refused(head: &str) -> Option<Refused> {
        let whole = read(head.as_bytes(), head.len());
        let pieces = read(head.as_bytes(), 7);
        assert_eq!(whole.as_ref().err(), pieces.as_ref().err(), "{head:?}");
        whole.err()
    }

    #[test]
    fn a_plain_request_passes() {
        for head in [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "\r\nGET /a?b HTTP/1.1\r\nhost:a.example:443\r\nX: \ty\t\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: [::1]:8443\r\nContent-Length: 3\r\n\r\nabc",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n0\r\n\r\n",
            "GET https://a/b HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.0\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: \u{e4}\r\n\r\n",
        ] {
            assert_eq!(refused(head), None, "{head:?}");
        }
    }

    #[test]
    fn what_has_two_readings_is_refused() {
        for (request, why) in [
            ("GET / HTTP/1.1\nHost: a\n\n", Refused::LineEnding),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nX: y\n\r\n",
                Refused::LineEnding,
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nX: y\rz\r\n\r\n",
                Refused::Field,
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nX: y\r\r\n\r\n",
                Refused::Field,
            ),
            ("GET / HTTP/1.1\r\nHost: \ra\u{c}\r\n\r\n", Refused::Field),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nX: y\0z\r\n\r\n",
                Refused::Field,
            ),
            ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", Refused::Field),
            (
                "GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
                Refused::Field,
            ),
            ("GET / HTTP/1.1\r\n Host: a\r\n\r\n", Refused::Field),
            ("GET / HTTP/1.1\r\nHost: a\r\n: x\r\n\r\n", Refused::Field),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nnothing\r\n\r\n",
                Refused::Field,
            ),
            ("GET / HTTP/1.1\r\n\r\n", Refused::Host),
            ("GET / HTTP/1.0\r\n\r\n", Refused::Host),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
                Refused::Host,
            ),
            ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", Refused::Host),
            ("GET / HTTP/1.1\r\nHost: a,b\r\n\r\n", Refused::Host),
            ("GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", Refused::Host),
            ("GET / HTTP/1.1\r\nHost:\r\n\r\n", Refused::Host),
            ("GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", Refused::Target),
            ("GET a HTTP/1.1\r\nHost: a\r\n\r\n", Refused::Target),
            ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", Refused::Target),
            ("GET /\u{e4} HTTP/1.1\r\nHost: a\r\n\r\n", Refused::Target),
            ("GET /#a HTTP/1.1\r\nHost: a\r\n\r\n", Refused::Target),
            ("GET /a\tb HTTP/1.1\r\nHost: a\r\n\r\n", Refused::Target),
            ("GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", Refused::RequestLine),
            ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", Refused::RequestLine),
            ("G@T / HTTP/1.1\r\nHost: a\r\n\r\n", Refused::RequestLine),
            ("GET /\r\nHost: a\r\n\r\n", Refused::RequestLine),
            ("GET / HTTP/1.2\r\nHost: a\r\n\r\n", Refused::Version),
            ("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", Refused::Method),
            ("CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", Refused::Method),
        ] {
            assert_eq!(refused(request), Some(why), "{request:?}");
        }
        for fields in [
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
            let head = format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n");
            assert!(refused(&head).is_some(), "{fields:?}");
        }
        let old = "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(refused(old), Some(Refused::Framing));
    }

    #[test]
    fn sizes_are_bounded() {
        let long = "a".repeat(MAX_TARGET);
        let target = format!("GET /{long} HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(refused(&target), Some(Refused::TargetTooLong));
        let endless = format!("GET /{long}{long}");
        assert_eq!(refused(&endless), Some(Refused::TargetTooLong));
        let value = "v".repeat(33 * 1024);
        let large = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {value}\r\n\r\n");
        assert_eq!(refused(&large), Some(Refused::TooLarge));
        let many = "X: y\r\n".repeat(MAX_FIELDS);
        let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n");
        assert_eq!(refused(&many), Some(Refused::TooLarge));
    }

    proptest! {
        #[test]
        fn no_bytes_break_it(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes, 9);
        }

        #[test]
        fn what_passes_has_one_host_and_one_framing(
            bytes in "(GET|POST) [/a-z:]{1,6} HTTP/1.[01]\r\n((Host|Content-Length|Transfer-Encoding|X)[: ]{1,2}[a0-9, ]{0,3}(chunked)?\r?\n){0,4}\r\n"
        ) {
            if let Ok(Some((head, _))) = read(bytes.as_bytes(), 1000) {
                let text = bytes.to_lowercase();
                let count = |name: &str| text.matches(name).count();
                prop_assert_eq!(count("\r\nhost:"), 1);
                prop_assert!(count("content-length:") + count("transfer-encoding:") <= 1);
                prop_assert_eq!(count("\n"), count("\r\n"));
                let is_framed = count("content-length:") + count("transfer-encoding:") == 1;
                prop_assert_eq!(head.framing != Framing::Empty, is_framed);
            }
        }
    }
}
