//! Header block of a request, or its trailers: collected from the fields that HPACK decodes, and checked for what makes a
//! message malformed (RFC 9113, sections 8.1.1 to 8.3).

use http::header::{CONTENT_LENGTH, COOKIE, HOST, TE};
use http::{HeaderMap, HeaderValue, Method};

use crate::http::h2::hpack::{Field, FieldName, PseudoHeader};
use crate::http::syntax::{self, MAX_HEADERS};

/// Maximum number of headers into which a client may split its cookies, more than browsers keep cookies for a site
/// (RFC 6265, section 6.1). HPACK encodes a repeated header in one byte, so that their size alone is no limit for
/// the memory that they take (CVE-2026-49975).
const MAX_COOKIE_HEADERS: usize = 200;
/// Bytes besides name and value that a header counts for: colon and space, as in HTTP/1.1.
const HEADER_SEPARATOR: usize = 2;
/// Number of headers for which there is room at first, as many as most requests have.
const EXPECTED_HEADERS: usize = 12;
/// Factor of the announced limit from which on a header list is an attack.
const MAX_LIST_FACTOR: usize = 4;

/// Headers of a request.
#[derive(Debug)]
pub(super) struct HeaderBlock {
    pub(super) method: Option<Method>,
    pub(super) scheme: Option<HeaderValue>,
    pub(super) authority: Option<HeaderValue>,
    pub(super) path: Option<HeaderValue>,
    /// All headers but `content-length`.
    pub(super) headers: HeaderMap,
    pub(super) content_length: ContentLength,
    /// Size of all headers, and of the authority, as HTTP/1.1 counts it.
    pub(super) size: usize,
    /// True if a value begins or ends with whitespace.
    pub(super) has_outer_whitespace: bool,
    /// Size as the limit of HTTP/2 counts it.
    list_size: usize,
    max_list_size: usize,
    headers_seen: usize,
    cookies: usize,
    hosts: usize,
    protocol: Option<HeaderValue>,
    verdict: Verdict,
}

/// `Content-Length` of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ContentLength {
    None,
    Bytes(u64),
    /// Repeated, or no number.
    Invalid,
}

/// Assessment of a decoded header block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Acceptable,
    /// Larger than a limit. Its headers are not kept.
    TooLarge,
    /// Malformed, whatever its size.
    Malformed,
}

impl HeaderBlock {
    /// Creates an empty header block. `max_list_size` is the announced limit of its size.
    pub(super) fn new(max_list_size: usize) -> Self {
        Self {
            method: None,
            scheme: None,
            authority: None,
            path: None,
            headers: HeaderMap::new(),
            content_length: ContentLength::None,
            size: 0,
            has_outer_whitespace: false,
            list_size: 0,
            max_list_size,
            headers_seen: 0,
            cookies: 0,
            hosts: 0,
            protocol: None,
            verdict: Verdict::Acceptable,
        }
    }

    /// Adds a field.
    pub(super) fn push(&mut self, field: &Field) {
        self.list_size = self.list_size.saturating_add(field.size());
        let Some(value) = &field.value else {
            return self.verdict = Verdict::Malformed;
        };
        match &field.name {
            FieldName::Pseudo(name) => self.push_pseudo_header(*name, value),
            FieldName::Header(name) => {
                self.headers_seen += 1;
                self.size += field.length() + HEADER_SEPARATOR;
                if *name == TE && !value.as_bytes().eq_ignore_ascii_case(b"trailers") {
                    self.verdict = Verdict::Malformed;
                }
                let bytes = value.as_bytes();
                let ends = [bytes.first(), bytes.last()];
                // HTTP/1.1 trims whitespace and would see another value (RFC 9113, section 8.2.1).
                self.has_outer_whitespace |= ends
                    .into_iter()
                    .flatten()
                    .any(|end| syntax::is_whitespace(*end));
                self.cookies += usize::from(*name == COOKIE);
                self.hosts += usize::from(*name == HOST);
                // A cookie may be split into several headers, which are forwarded as one (RFC 9113, section 8.2.3).
                let count = self.headers_seen - self.cookies.saturating_sub(1);
                let is_too_large = self.list_size > self.max_list_size
                    || count > MAX_HEADERS
                    || self.cookies > MAX_COOKIE_HEADERS;
                match self.verdict {
                    Verdict::Acceptable if is_too_large => {
                        self.verdict = Verdict::TooLarge;
                        self.headers = HeaderMap::new();
                    }
                    Verdict::Acceptable => self.append(name, value),
                    Verdict::TooLarge | Verdict::Malformed => {}
                }
            }
            FieldName::Forbidden => self.verdict = Verdict::Malformed,
        }
    }

    fn append(&mut self, name: &http::HeaderName, value: &HeaderValue) {
        if *name == CONTENT_LENGTH {
            self.content_length = match self.content_length {
                ContentLength::None => syntax::parse_content_length(value.as_bytes())
                    .map_or(ContentLength::Invalid, ContentLength::Bytes),
                ContentLength::Bytes(_) | ContentLength::Invalid => ContentLength::Invalid,
            };
            return;
        }
        if self.headers.capacity() == 0 {
            self.headers.reserve(EXPECTED_HEADERS);
        }
        self.headers.append(name.clone(), value.clone());
    }

    /// Adds a pseudo-header, which has to come before all headers, and once.
    fn push_pseudo_header(&mut self, name: PseudoHeader, value: &HeaderValue) {
        let slot = match name {
            PseudoHeader::Method => {
                let method = Method::from_bytes(value.as_bytes()).ok();
                let is_first = self.method.is_none() && self.headers_seen == 0;
                self.method = method.filter(|_| is_first);
                if self.method.is_none() {
                    self.verdict = Verdict::Malformed;
                }
                return;
            }
            PseudoHeader::Scheme => &mut self.scheme,
            PseudoHeader::Authority => {
                self.size += HOST.as_str().len() + value.len() + HEADER_SEPARATOR;
                &mut self.authority
            }
            PseudoHeader::Path => &mut self.path,
            PseudoHeader::Protocol => &mut self.protocol,
            PseudoHeader::Status => return self.verdict = Verdict::Malformed,
        };
        if slot.is_some() || self.headers_seen > 0 {
            self.verdict = Verdict::Malformed;
        }
        *slot = Some(value.clone());
    }

    /// Returns the verdict on the complete headers of a request.
    pub(super) fn request_verdict(&self) -> Verdict {
        let is_complete = match &self.method {
            None => false,
            Some(method) if *method == Method::CONNECT => {
                self.protocol.is_some() == self.scheme.is_some()
                    && self.protocol.is_some() == self.path.is_some()
            }
            Some(_) => {
                let has_path = self.path.as_ref().is_some_and(|path| !path.is_empty());
                self.scheme.is_some() && has_path && self.protocol.is_none()
            }
        };
        if is_complete {
            self.verdict
        } else {
            Verdict::Malformed
        }
    }

    /// Returns whether the fields may be the trailers of a request.
    pub(super) fn may_be_trailers(&self) -> bool {
        let has_pseudo_header = self.method.is_some()
            || [&self.scheme, &self.authority, &self.path, &self.protocol]
                .into_iter()
                .any(Option::is_some);
        self.verdict != Verdict::Malformed && !has_pseudo_header
    }

    /// Returns whether the list is so large that the connection is to be closed.
    pub(super) fn is_attack(&self) -> bool {
        self.list_size > self.max_list_size.saturating_mul(MAX_LIST_FACTOR)
    }

    /// Returns the value of `host`, if it is not repeated.
    pub(super) fn host(&self) -> Result<Option<&HeaderValue>, RepeatedHost> {
        match self.hosts {
            0 => Ok(None),
            1 => Ok(self.headers.get(HOST)),
            _ => Err(RepeatedHost),
        }
    }
}

/// The request has several `host` headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RepeatedHost;
