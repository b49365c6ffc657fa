//! Header fields as the tables of HPACK hold them: checked once, when they are received as a literal, however often
//! they are referred to.

use http::{HeaderName, HeaderValue};

use crate::http::h1::hop_by_hop::{KEEP_ALIVE, PROXY_CONNECTION};
use crate::http::syntax::HTTP2_SETTINGS;

/// Bytes that a field counts for besides its name and value (RFC 7541, section 4.1; RFC 9113, section 6.5.2).
pub(in crate::http::h2) const FIELD_OVERHEAD: usize = 32;

/// Pseudo-header (RFC 9113, section 8.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::http::h2) enum PseudoHeader {
    Authority,
    Method,
    Path,
    Scheme,
    /// Pseudo-header of responses.
    Status,
    /// Pseudo-header of extended CONNECT (RFC 8441).
    Protocol,
}

/// Name of a field, by what a request may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::http::h2) enum FieldName {
    Pseudo(PseudoHeader),
    Header(HeaderName),
    /// No header name in lower case, an unknown pseudo-header, or a connection-specific header: it makes a message malformed
    /// (RFC 9113, sections 8.2 and 8.3).
    Forbidden,
}

/// Header field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::http::h2) struct Field {
    pub(in crate::http::h2) name: FieldName,
    /// `None` if it has bytes that no header value has.
    pub(in crate::http::h2) value: Option<HeaderValue>,
    name_length: usize,
    value_length: usize,
}

impl Field {
    /// Creates a field from the bytes of its name and value.
    pub(super) fn new(name: &[u8], value: &[u8]) -> Self {
        Self {
            name: FieldName::new(name),
            value: HeaderValue::from_bytes(value).ok(),
            name_length: name.len(),
            value_length: value.len(),
        }
    }

    /// Creates a field with the name of this one and another value.
    pub(super) fn with_value(&self, value: &[u8]) -> Self {
        Self {
            name: self.name.clone(),
            value: HeaderValue::from_bytes(value).ok(),
            name_length: self.name_length,
            value_length: value.len(),
        }
    }

    /// Returns the number of bytes of name and value.
    pub(in crate::http::h2) fn length(&self) -> usize {
        self.name_length + self.value_length
    }

    /// Returns the size as the limits of HPACK and HTTP/2 count it.
    pub(in crate::http::h2) fn size(&self) -> usize {
        self.length() + FIELD_OVERHEAD
    }
}

impl FieldName {
    fn new(name: &[u8]) -> Self {
        match name {
            b":authority" => Self::Pseudo(PseudoHeader::Authority),
            b":method" => Self::Pseudo(PseudoHeader::Method),
            b":path" => Self::Pseudo(PseudoHeader::Path),
            b":scheme" => Self::Pseudo(PseudoHeader::Scheme),
            b":status" => Self::Pseudo(PseudoHeader::Status),
            b":protocol" => Self::Pseudo(PseudoHeader::Protocol),
            b"connection" | b"transfer-encoding" | b"upgrade" => Self::Forbidden,
            _ => match HeaderName::from_lowercase(name) {
                Ok(name) if [KEEP_ALIVE, PROXY_CONNECTION, HTTP2_SETTINGS].contains(&name) => {
                    Self::Forbidden
                }
                Ok(name) => Self::Header(name),
                Err(_) => Self::Forbidden,
            },
        }
    }
}
