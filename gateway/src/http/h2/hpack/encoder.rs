//! Encoder of header blocks (RFC 7541, section 6), with its dynamic table: headers that responses repeat take one byte.
//!
//! The search is linear in a few entries, and what differs with each response is not inserted: it would evict the rest.
//! Literals are not Huffman-coded, which would cost more CPU time than all else here.

use std::collections::VecDeque;

use http::header::{
    AGE, CONTENT_RANGE, ETAG, EXPIRES, LAST_MODIFIED, LOCATION, RETRY_AFTER, SET_COOKIE,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::http::h2::hpack::field::FIELD_OVERHEAD;
use crate::http::h2::hpack::{integer, static_table};

/// Maximum size of the dynamic table, whatever the client permits.
const MAX_TABLE_SIZE: usize = 4096;
/// Number of the newest entries that are searched: more than there are headers in a response.
const SEARCHED_ENTRIES: usize = 24;
/// Maximum size of an entry.
const MAX_ENTRY_SIZE: usize = 256;

/// Literal without indexing (RFC 7541, section 6.2.2).
const WITHOUT_INDEXING: u8 = 0;
/// Literal that is never indexed, by intermediaries neither (RFC 7541, section 6.2.3).
const NEVER_INDEXED: u8 = 0x10;
/// Literal that is inserted into the table (RFC 7541, section 6.2.1).
const WITH_INDEXING: u8 = 0x40;
/// Reference to an entry (RFC 7541, section 6.1).
const INDEXED: u8 = 0x80;
/// Size update of the dynamic table (RFC 7541, section 6.3).
const SIZE_UPDATE: u8 = 0x20;

/// Encoder of the header blocks of a connection.
#[derive(Debug)]
pub(in crate::http::h2) struct Encoder {
    /// Dynamic table, newest entry first.
    entries: VecDeque<Entry>,
    /// Sum of the sizes of the entries.
    size: usize,
    max_size: usize,
    /// Smallest maximum size since the last header block, if it has changed.
    announced_size: Option<usize>,
}

#[derive(Debug)]
struct Entry {
    name: HeaderName,
    value: HeaderValue,
}

impl Entry {
    fn size(&self) -> usize {
        entry_size(&self.name, &self.value)
    }
}

fn entry_size(name: &HeaderName, value: &HeaderValue) -> usize {
    name.as_str().len() + value.len() + FIELD_OVERHEAD
}

impl Encoder {
    pub(in crate::http::h2) fn new() -> Self {
        Self {
            entries: VecDeque::new(),
            size: 0,
            max_size: MAX_TABLE_SIZE,
            announced_size: None,
        }
    }

    /// Applies `SETTINGS_HEADER_TABLE_SIZE` of the client. The next header block announces the new size (RFC 7541, section
    /// 4.2).
    pub(in crate::http::h2) fn set_max_table_size(&mut self, size: u32) {
        let size = usize::try_from(size).map_or(MAX_TABLE_SIZE, |size| size.min(MAX_TABLE_SIZE));
        let smallest = self.announced_size.unwrap_or(size).min(size);
        self.announced_size = Some(smallest);
        self.max_size = size;
        self.evict(smallest);
    }

    /// Appends the header block of a response. Blocks have to be sent in the order in which they are encoded.
    pub(in crate::http::h2) fn put_response(
        &mut self,
        output: &mut Vec<u8>,
        status: StatusCode,
        content_length: Option<u64>,
        headers: &HeaderMap,
    ) {
        if let Some(smallest) = self.announced_size.take() {
            integer::put(output, 5, SIZE_UPDATE, smallest);
            if smallest < self.max_size {
                integer::put(output, 5, SIZE_UPDATE, self.max_size);
            }
        }
        put_status(output, status);
        if let Some(length) = content_length {
            let mut buffer = itoa::Buffer::new();
            let value = buffer.format(length).as_bytes();
            put_literal(output, WITHOUT_INDEXING, "content-length", value);
        }
        for (name, value) in headers {
            self.put_header(output, name, value);
        }
    }

    fn put_header(&mut self, output: &mut Vec<u8>, name: &HeaderName, value: &HeaderValue) {
        if value.is_sensitive() {
            return put_literal(output, NEVER_INDEXED, name.as_str(), value.as_bytes());
        }
        let mut searched = self.entries.iter().take(SEARCHED_ENTRIES);
        let position = searched.position(|entry| entry.name == *name && entry.value == *value);
        if let Some(position) = position {
            return integer::put(output, 7, INDEXED, static_table::LENGTH + 1 + position);
        }
        let size = entry_size(name, value);
        if size > MAX_ENTRY_SIZE.min(self.max_size) || differs_with_each_response(name) {
            return put_literal(output, WITHOUT_INDEXING, name.as_str(), value.as_bytes());
        }
        put_literal(output, WITH_INDEXING, name.as_str(), value.as_bytes());
        self.evict(self.max_size - size);
        // A copy, since the value may be a part of a large buffer.
        if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
            self.size += size;
            let name = name.clone();
            self.entries.push_front(Entry { name, value });
        }
    }

    /// Removes the oldest entries until the rest has at most this size.
    fn evict(&mut self, size: usize) {
        while self.size > size
            && let Some(entry) = self.entries.pop_back()
        {
            self.size -= entry.size();
        }
    }
}

/// Returns whether a header has another value in nearly every response.
fn differs_with_each_response(name: &HeaderName) -> bool {
    matches!(
        *name,
        AGE | CONTENT_RANGE | ETAG | EXPIRES | LAST_MODIFIED | LOCATION | RETRY_AFTER | SET_COOKIE
    )
}

fn put_status(output: &mut Vec<u8>, status: StatusCode) {
    let index = match status.as_u16() {
        200 => 8,
        204 => 9,
        206 => 10,
        304 => 11,
        400 => 12,
        404 => 13,
        500 => 14,
        _ => {
            output.push(WITHOUT_INDEXING | static_table::STATUS);
            return put_string(output, status.as_str().as_bytes());
        }
    };
    output.push(INDEXED | index);
}

/// Writes a header as a literal, whose name is an index if it is in the static table.
fn put_literal(output: &mut Vec<u8>, representation: u8, name: &str, value: &[u8]) {
    let prefix_bits = if representation == WITH_INDEXING {
        6
    } else {
        4
    };
    if let Some(index) = static_table::index_of_name(name) {
        integer::put(output, prefix_bits, representation, index);
    } else {
        output.push(representation);
        put_string(output, name.as_bytes());
    }
    put_string(output, value);
}

fn put_string(output: &mut Vec<u8>, string: &[u8]) {
    integer::put(output, 7, 0, string.len());
    output.extend_from_slice(string);
}

#[cfg(test)]
mod tests {
    use http::header::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    use super::*;
    use crate::http::h2::hpack::{Decoder, FieldName, PseudoHeader};

    fn decode(decoder: &mut Decoder, block: &[u8]) -> (HeaderValue, HeaderMap) {
        let (mut status, mut headers) = (None, HeaderMap::new());
        let result = decoder.decode(block, |field| {
            let value = field.value.clone().unwrap();
            match &field.name {
                FieldName::Pseudo(name) => {
                    assert_eq!(*name, PseudoHeader::Status);
                    assert!(status.replace(value).is_none());
                }
                FieldName::Header(name) => {
                    headers.append(name.clone(), value);
                }
                FieldName::Forbidden => {}
            }
        });
        result.unwrap();
        (status.unwrap(), headers)
    }

    #[test]
    fn repeated_headers_take_one_byte_unless_they_are_sensitive() {
        let mut headers = HeaderMap::new();
        headers.insert("content-type", HeaderValue::from_static("text/plain"));
        headers.insert("x-a", HeaderValue::from_static("b"));
        let encode = |encoder: &mut Encoder, headers: &HeaderMap| {
            let mut block = Vec::new();
            encoder.put_response(&mut block, StatusCode::OK, None, headers);
            block
        };
        let mut encoder = Encoder::new();
        encode(&mut encoder, &headers);
        assert_eq!(encode(&mut encoder, &headers), [0x88, 0xbf, 0xbe]);
        let mut secret = HeaderValue::from_static("c");
        secret.set_sensitive(true);
        headers.insert("x-a", secret);
        for _ in 0..2 {
            let block = encode(&mut encoder, &headers);
            assert_eq!(block[..3], [0x88, 0xbf, NEVER_INDEXED]);
        }
        // The client has reduced the table, and enlarged it again.
        encoder.set_max_table_size(0);
        encoder.set_max_table_size(100);
        let block = encode(&mut encoder, &headers);
        assert_eq!(block[..5], [0x20, 0x3f, 100 - 31, 0x88, WITH_INDEXING | 31]);
        assert_eq!(encoder.size, 12 + 10 + 32);
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(
            responses in prop::collection::vec(
                (
                    100_u16..1000,
                    any::<Option<u64>>(),
                    prop::collection::vec(
                        (
                            prop_oneof!["x-[a-c]", "age|vary|set-cookie|etag|link|date"],
                            prop_oneof!["[a-c]?", "[ -~\u{e4}]{0,300}"],
                            any::<bool>(),
                        ),
                        0..10,
                    ),
                    prop_oneof![3 => Just(None), 1 => (0_u32..5000).prop_map(Some)],
                ),
                0..40,
            ),
        ) {
            let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new());
            for (status, content_length, headers, table_size) in responses {
                let mut map = HeaderMap::new();
                for (name, value, is_sensitive) in headers {
                    let mut value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
                    value.set_sensitive(is_sensitive);
                    map.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value);
                }
                if let Some(size) = table_size {
                    encoder.set_max_table_size(size);
                }
                let (status, mut block) = (StatusCode::from_u16(status).unwrap(), Vec::new());
                encoder.put_response(&mut block, status, content_length, &map);
                let (decoded_status, mut decoded) = decode(&mut decoder, &block);
                prop_assert_eq!(decoded_status, status.as_str());
                let decoded_length = decoded.remove("content-length");
                prop_assert_eq!(decoded_length, content_length.map(HeaderValue::from));
                prop_assert_eq!(decoded, map);
                prop_assert_eq!(encoder.size, encoder.entries.iter().map(Entry::size).sum::<usize>());
                prop_assert!(encoder.size <= encoder.max_size);
            }
        }
    }
}
