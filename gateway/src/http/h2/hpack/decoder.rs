//! Decoder of header blocks (RFC 7541, sections 3 and 6), with its dynamic table.

use std::collections::VecDeque;

use crate::http::h2::hpack::field::Field;
use crate::http::h2::hpack::{huffman, integer, static_table};

/// Maximum size of the dynamic table: the default of `SETTINGS_HEADER_TABLE_SIZE`, which the gateway does not change.
const MAX_TABLE_SIZE: usize = 4096;
/// Maximum number of size updates at the start of a header block: the smallest size and the last one (RFC 7541,
/// section 4.2).
const MAX_SIZE_UPDATES: usize = 2;
/// Maximum capacity that each buffer for decoded strings retains.
const MAX_RETAINED: usize = 1024;

/// The header block is malformed, and so are all that follow, whose tables are unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::http::h2) struct DecodeError;

/// Decoder of the header blocks of a connection.
#[derive(Debug)]
pub(in crate::http::h2) struct Decoder {
    table: DynamicTable,
    /// Buffers for names and values that are Huffman-coded.
    name: Vec<u8>,
    value: Vec<u8>,
}

impl Decoder {
    pub(in crate::http::h2) fn new() -> Self {
        Self {
            table: DynamicTable {
                fields: VecDeque::new(),
                size: 0,
                max_size: MAX_TABLE_SIZE,
            },
            name: Vec::new(),
            value: Vec::new(),
        }
    }

    /// Decodes a complete header block, and calls `on_field` with each field.
    ///
    /// # Errors
    /// Returns an error if the block is malformed.
    pub(in crate::http::h2) fn decode(
        &mut self,
        mut block: &[u8],
        mut on_field: impl FnMut(&Field),
    ) -> Result<(), DecodeError> {
        let mut size_updates = 0;
        while let Some(first) = block.first()
            && first & 0b1110_0000 == 0b0010_0000
        {
            let (size, rest) = integer::read(block, 5).ok_or(DecodeError)?;
            size_updates += 1;
            if size > MAX_TABLE_SIZE || size_updates > MAX_SIZE_UPDATES {
                return Err(DecodeError);
            }
            self.table.set_max_size(size);
            block = rest;
        }
        while let Some(first) = block.first() {
            block = match first {
                0x80.. => {
                    let (index, rest) = integer::read(block, 7).ok_or(DecodeError)?;
                    on_field(self.table.get(index).ok_or(DecodeError)?);
                    rest
                }
                0x40.. => {
                    let (field, rest) = self.literal(block, 6).ok_or(DecodeError)?;
                    on_field(&field);
                    self.table.insert(field);
                    rest
                }
                0x20.. => return Err(DecodeError),
                // Without indexing, or never indexed.
                _ => {
                    let (field, rest) = self.literal(block, 4).ok_or(DecodeError)?;
                    on_field(&field);
                    rest
                }
            };
        }
        self.name.shrink_to(MAX_RETAINED);
        self.value.shrink_to(MAX_RETAINED);
        Ok(())
    }

    /// Reads a literal, whose name may be that of a table entry.
    fn literal<'b>(&mut self, block: &'b [u8], prefix_bits: u8) -> Option<(Field, &'b [u8])> {
        let (index, block) = integer::read(block, prefix_bits)?;
        if index == 0 {
            let (name, block) = read_string(block, &mut self.name)?;
            let (value, block) = read_string(block, &mut self.value)?;
            Some((Field::new(name, value), block))
        } else {
            let (value, block) = read_string(block, &mut self.value)?;
            Some((self.table.get(index)?.with_value(value), block))
        }
    }
}

/// Reads a string (RFC 7541, section 5.2), into `buffer` if it is Huffman-coded.
fn read_string<'s, 'b: 's>(
    block: &'b [u8],
    buffer: &'s mut Vec<u8>,
) -> Option<(&'s [u8], &'b [u8])> {
    let is_huffman = block.first()? & 0x80 != 0;
    let (length, block) = integer::read(block, 7)?;
    let (string, rest) = block.split_at_checked(length)?;
    if !is_huffman {
        return Some((string, rest));
    }
    buffer.clear();
    huffman::decode(string, buffer)?;
    Some((buffer, rest))
}

/// Dynamic table (RFC 7541, section 2.3.2), newest entry first.
#[derive(Debug)]
struct DynamicTable {
    fields: VecDeque<Field>,
    /// Sum of the sizes of the fields.
    size: usize,
    max_size: usize,
}

impl DynamicTable {
    /// Returns the field with this index, in the static or the dynamic table.
    fn get(&self, index: usize) -> Option<&Field> {
        let index = index.checked_sub(1)?;
        let fields = static_table::fields();
        fields
            .get(index)
            .or_else(|| self.fields.get(index - fields.len()))
    }

    /// Inserts a field. One that is larger than the table empties it.
    fn insert(&mut self, field: Field) {
        let size = field.size();
        self.evict(self.max_size.saturating_sub(size));
        if size <= self.max_size {
            self.size += size;
            self.fields.push_front(field);
        }
    }

    fn set_max_size(&mut self, size: usize) {
        self.max_size = size;
        self.evict(size);
    }

    /// Removes the oldest fields until the rest has at most this size.
    fn evict(&mut self, size: usize) {
        while self.size > size
            && let Some(field) = self.fields.pop_back()
        {
            self.size -= field.size();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::http::h2::hpack::{FieldName, PseudoHeader};

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<u8> = hex.bytes().filter(|byte| *byte != b' ').collect();
        digits
            .chunks(2)
            .map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    fn text(field: &Field) -> String {
        let name = match &field.name {
            FieldName::Pseudo(PseudoHeader::Authority) => ":authority",
            FieldName::Pseudo(PseudoHeader::Method) => ":method",
            FieldName::Pseudo(PseudoHeader::Path) => ":path",
            FieldName::Pseudo(PseudoHeader::Scheme) => ":scheme",
            FieldName::Pseudo(PseudoHeader::Status) => ":status",
            FieldName::Pseudo(PseudoHeader::Protocol) => ":protocol",
            FieldName::Header(name) => name.as_str(),
            FieldName::Forbidden => "forbidden",
        };
        let value = field.value.as_ref().map(|value| value.to_str().unwrap());
        format!("{name}: {}", value.unwrap_or("forbidden"))
    }

    fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<String>, DecodeError> {
        let mut fields = Vec::new();
        decoder.decode(block, |field| fields.push(text(field)))?;
        Ok(fields)
    }

    const FIRST: [&str; 4] = [
        ":method: GET",
        ":scheme: http",
        ":path: /",
        ":authority: www.example.com",
    ];

    // RFC 7541, appendices C.3 and C.4.
    #[test]
    fn the_requests_of_the_rfc_are_decoded() {
        let plain = [
            "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
            "8286 84be 5808 6e6f 2d63 6163 6865",
            "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
        ];
        let huffman = [
            "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
            "8286 84be 5886 a8eb 1064 9cbf",
            "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
        ];
        for blocks in [plain, huffman] {
            let mut decoder = Decoder::new();
            assert_eq!(decode(&mut decoder, &bytes(blocks[0])).unwrap(), FIRST);
            let second = [&FIRST[..], &["cache-control: no-cache"]].concat();
            assert_eq!(decode(&mut decoder, &bytes(blocks[1])).unwrap(), second);
            let third = [
                ":method: GET",
                ":scheme: https",
                ":path: /index.html",
                ":authority: www.example.com",
                "custom-key: custom-value",
            ];
            assert_eq!(decode(&mut decoder, &bytes(blocks[2])).unwrap(), third);
            assert_eq!(decoder.table.size, 164);
        }
    }

    // RFC 7541, appendix C.5: a table of 256 bytes.
    #[test]
    fn the_responses_of_the_rfc_are_decoded_with_evictions() {
        let mut decoder = Decoder::new();
        decoder.table.set_max_size(256);
        let first = "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3120 474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d";
        let headers = [
            ":status: 302",
            "cache-control: private",
            "date: Mon, 21 Oct 2013 20:13:21 GMT",
            "location: https://www.example.com",
        ];
        assert_eq!(decode(&mut decoder, &bytes(first)).unwrap(), headers);
        assert_eq!(decoder.table.size, 222);
        let fields = decode(&mut decoder, &bytes("4803 3330 37c1 c0bf")).unwrap();
        assert_eq!(fields[0], ":status: 307");
        assert_eq!(fields[1..], headers[1..]);
        assert_eq!(decoder.table.size, 222);
        let third = "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 5a04 677a 6970 7738 666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49 553b 206d 6178 2d61 6765 3d33 3630 303b 2076 6572 7369 6f6e 3d31";
        let fields = decode(&mut decoder, &bytes(third)).unwrap();
        assert_eq!(
            fields,
            [
                ":status: 200",
                "cache-control: private",
                "date: Mon, 21 Oct 2013 20:13:22 GMT",
                "location: https://www.example.com",
                "content-encoding: gzip",
                "set-cookie: foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1",
            ]
        );
        assert_eq!(decoder.table.size, 215);
    }

    #[test]
    fn malformed_blocks_are_rejected() {
        for block in [
            // Index 0, and one past both tables.
            "80",
            "be",
            "7e 00",
            "ff 80 80 80 80 00",
            // Strings that are cut off, and a Huffman code with wrong padding.
            "00",
            "00 05 61",
            "00 01 61",
            "00 01 61 81 00",
            "44",
            // Size updates: too large, after a field, and a third one.
            "3f e2 1f",
            "82 20",
            "20 20 20",
        ] {
            let result = decode(&mut Decoder::new(), &bytes(block));
            assert_eq!(result, Err(DecodeError), "{block}");
        }
    }

    #[test]
    fn a_size_update_evicts_and_a_field_larger_than_the_table_empties_it() {
        let mut decoder = Decoder::new();
        decode(&mut decoder, &bytes("40 01 61 01 62")).unwrap();
        assert_eq!(decode(&mut decoder, &bytes("be")).unwrap(), ["a: b"]);
        assert_eq!(
            decode(&mut decoder, &bytes("20 3f e1 1f be")),
            Err(DecodeError)
        );
        let mut decoder = Decoder::new();
        decode(&mut decoder, &bytes("40 01 61 01 62 3f")).unwrap_err();
        decode(&mut decoder, &bytes("3f 03 40 01 61 02 62 62")).unwrap();
        assert_eq!((decoder.table.size, decoder.table.fields.len()), (0, 0));
    }

    #[test]
    fn names_and_values_that_no_request_has_are_marked() {
        // Upper case, an empty name, a control character, an unknown pseudo-header, and a connection-specific header.
        for block in [
            "00 01 41 01 62",
            "00 00 01 62",
            "00 02 3a 61 01 62",
            "00 02 74 0a 00",
        ] {
            assert!(decode(&mut Decoder::new(), &bytes(block)).unwrap()[0].contains("forbidden"));
        }
        let block = [&[0, 10][..], b"connection", &[5], b"close"].concat();
        let fields = decode(&mut Decoder::new(), &block).unwrap();
        assert_eq!(fields, ["forbidden: close"]);
        let fields = decode(&mut Decoder::new(), &bytes("00 01 61 03 62 0d 0a")).unwrap();
        assert_eq!(fields, ["a: forbidden"]);
    }

    proptest! {
        #[test]
        fn the_table_stays_within_its_size(blocks in prop::collection::vec(any::<Vec<u8>>(), 0..20)) {
            let mut decoder = Decoder::new();
            for block in blocks {
                let _ = decoder.decode(&block, |_| {});
                let size: usize = decoder.table.fields.iter().map(Field::size).sum();
                prop_assert_eq!(decoder.table.size, size);
                prop_assert!(size <= decoder.table.max_size && size <= MAX_TABLE_SIZE);
            }
        }
    }
}
