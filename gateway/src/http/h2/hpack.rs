//! HPACK (RFC 7541): compression of headers. It works on bytes alone, without I/O.

mod decoder;
mod encoder;
mod field;
mod huffman;
mod integer;
mod static_table;

pub(super) use decoder::Decoder;
pub(super) use encoder::Encoder;
pub(super) use field::{FIELD_OVERHEAD, Field, FieldName, PseudoHeader};
