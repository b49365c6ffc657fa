//! Framing of HTTP/1.1 message bodies (RFC 9112, sections 6 and 7): decoder and encoder.
//!
//! The decoder accepts one reading only. Deviations that a lenient parser repairs, such as a bare line
//! feed or whitespace beside a chunk size, are errors: a peer that repairs them differently would see
//! another message boundary (request smuggling). Whitespace that the grammar permits for historical reasons
//! is accepted in responses, whose bodies are framed anew ([`ChunkSyntax`]).

use bytes::{Buf, BufMut, Bytes, BytesMut};
use logging::put_number;
use thiserror::Error;

use crate::http::message::Framing;
use crate::http::syntax::{is_header_value_byte, is_token_byte, is_whitespace};

/// Maximum length of a chunk size with its extensions, in bytes.
const MAX_CHUNK_SIZE_LINE_BYTES: usize = 256;
/// Maximum length of all chunk extensions of a request together, in bytes: otherwise a body that is within its size
/// limit could be a hundred times as much to receive (CVE-2023-39326).
const MAX_EXTENSION_BYTES: usize = 8 * 1024;
/// Maximum length of all trailers together, in bytes.
const MAX_TRAILER_BYTES: usize = 8 * 1024;
/// Hexadecimal digits of the largest chunk size, 2^64 - 1.
const MAX_CHUNK_SIZE_DIGITS: usize = 16;
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// Treatment of the whitespace that a chunk size may be followed by before an extension. Its recipient has to
/// accept it and its sender must not generate it (BWS, RFC 9112, section 7.1.1; RFC 9110, section 5.6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChunkSyntax {
    /// It is an error: in requests it serves attacks rather than old software.
    Strict,
    /// It is ignored.
    Lenient,
}

/// Output of the decoder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BodyEvent {
    Data(Bytes),
    /// The body is complete.
    End,
}

/// Body that is malformed or incomplete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the chunked encoding is malformed, or the body is incomplete")]
pub(crate) struct BodyError;

/// Incremental decoder of a message body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BodyDecoder {
    Length {
        remaining: u64,
    },
    Chunked {
        state: ChunkState,
        /// Length of all chunk extensions so far.
        extension_bytes: usize,
    },
    UntilClose,
    Done,
}

/// Next element of a chunked body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChunkState {
    Size,
    Data {
        remaining: u64,
    },
    /// The CRLF after the data of a chunk.
    DataEnd,
    Trailers {
        bytes: usize,
    },
    /// Nothing: the body is complete.
    End,
}

impl From<Framing> for BodyDecoder {
    fn from(framing: Framing) -> Self {
        match framing {
            Framing::Empty | Framing::Length(0) => Self::Done,
            Framing::Length(remaining) => Self::Length { remaining },
            Framing::Chunked => Self::Chunked {
                state: ChunkState::Size,
                extension_bytes: 0,
            },
            Framing::UntilClose => Self::UntilClose,
        }
    }
}

impl BodyDecoder {
    /// Returns whether the body has been read to its end.
    pub(crate) fn is_done(self) -> bool {
        self == Self::Done
    }

    /// Decodes the next part of the body from `input`. Returns `None` if more input is needed. Chunks
    /// in one input are joined, so that a peer's one-byte chunks are not forwarded one by one.
    ///
    /// # Errors
    /// Returns an error if the chunked encoding is malformed.
    pub(crate) fn decode(
        &mut self,
        input: &mut BytesMut,
        syntax: ChunkSyntax,
    ) -> Result<Option<BodyEvent>, BodyError> {
        let first = match self.decode_one(input, syntax)? {
            Some(BodyEvent::Data(data)) => data,
            other => return Ok(other),
        };
        let mut joined: Option<BytesMut> = None;
        // An error is not lost: malformed input stays in the buffer, and the next call returns it.
        while !input.is_empty()
            && matches!(self, Self::Chunked { .. })
            && let Ok(Some(BodyEvent::Data(more))) = self.decode_one(input, syntax)
        {
            joined
                .get_or_insert_with(|| BytesMut::from(&first[..]))
                .extend_from_slice(&more);
        }
        let data = joined.map_or(first, BytesMut::freeze);
        Ok(Some(BodyEvent::Data(data)))
    }

    fn decode_one(
        &mut self,
        input: &mut BytesMut,
        syntax: ChunkSyntax,
    ) -> Result<Option<BodyEvent>, BodyError> {
        loop {
            match self {
                Self::Done => return Ok(Some(BodyEvent::End)),
                Self::UntilClose => return Ok(take_up_to(input, u64::MAX).map(BodyEvent::Data)),
                Self::Length { remaining } => {
                    let data = take_remaining(input, remaining);
                    if *remaining == 0 {
                        *self = Self::Done;
                    }
                    return Ok(data.map(BodyEvent::Data));
                }
                Self::Chunked {
                    state,
                    extension_bytes,
                } => {
                    if let ChunkState::Data { remaining } = state {
                        let data = take_remaining(input, remaining);
                        if *remaining == 0 {
                            *state = ChunkState::DataEnd;
                        }
                        return Ok(data.map(BodyEvent::Data));
                    }
                    match state.parse_line(input, syntax, extension_bytes)? {
                        Some(ChunkState::End) => *self = Self::Done,
                        Some(next) => *state = next,
                        None => return Ok(None),
                    }
                }
            }
        }
    }

    /// Ends the input: the peer has closed the connection.
    ///
    /// # Errors
    /// Returns an error if the body is incomplete.
    pub(crate) fn end_of_input(&mut self) -> Result<BodyEvent, BodyError> {
        match self {
            Self::UntilClose | Self::Done => {
                *self = Self::Done;
                Ok(BodyEvent::End)
            }
            Self::Length { .. } | Self::Chunked { .. } => Err(BodyError),
        }
    }
}

impl ChunkState {
    /// Parses a line of the encoding, which is no data, and returns the next state. Returns `None` if
    /// the line is incomplete. Adds the length of a chunk extension to `extension_bytes`.
    fn parse_line(
        self,
        input: &mut BytesMut,
        syntax: ChunkSyntax,
        extension_bytes: &mut usize,
    ) -> Result<Option<Self>, BodyError> {
        let max_bytes = match self {
            Self::DataEnd => b"\r\n".len(),
            Self::Trailers { .. } => MAX_TRAILER_BYTES,
            Self::Size | Self::Data { .. } | Self::End => MAX_CHUNK_SIZE_LINE_BYTES,
        };
        let Some(line_feed) = memchr::memchr(b'\n', input) else {
            return if input.len() < max_bytes {
                Ok(None)
            } else {
                Err(BodyError)
            };
        };
        let line = input[..line_feed].strip_suffix(b"\r").ok_or(BodyError)?;
        if line_feed >= max_bytes || !line.iter().all(|byte| is_header_value_byte(*byte)) {
            return Err(BodyError);
        }
        let next = match self {
            Self::Size | Self::Data { .. } | Self::End => {
                let size = parse_chunk_size(line, syntax, extension_bytes)?;
                match size {
                    0 => Self::Trailers { bytes: 0 },
                    remaining => Self::Data { remaining },
                }
            }
            Self::DataEnd if line.is_empty() => Self::Size,
            Self::Trailers { .. } if line.is_empty() => Self::End,
            Self::Trailers { bytes }
                if bytes + line_feed < MAX_TRAILER_BYTES && is_trailer(line, syntax) =>
            {
                Self::Trailers {
                    bytes: bytes + line_feed + 1,
                }
            }
            Self::DataEnd | Self::Trailers { .. } => return Err(BodyError),
        };
        input.advance(line_feed + 1);
        Ok(Some(next))
    }
}

/// Returns whether a line is a trailer field (RFC 9112, section 5.1): a name, and a colon right after it. Trailers
/// are not forwarded, so that those of a response need no check.
fn is_trailer(line: &[u8], syntax: ChunkSyntax) -> bool {
    syntax == ChunkSyntax::Lenient
        || memchr::memchr(b':', line)
            .is_some_and(|colon| colon > 0 && line[..colon].iter().all(|byte| is_token_byte(*byte)))
}

/// Parses a chunk size: hexadecimal digits, and extensions, which are ignored. Adds their length to
/// `extension_bytes`.
fn parse_chunk_size(
    line: &[u8],
    syntax: ChunkSyntax,
    extension_bytes: &mut usize,
) -> Result<u64, BodyError> {
    let digits = match (memchr::memchr(b';', line), syntax) {
        (Some(end), ChunkSyntax::Strict) => &line[..end],
        (Some(end), ChunkSyntax::Lenient) => trim_whitespace_end(&line[..end]),
        (None, _) => line,
    };
    // A response of any length may have extensions, and they are not forwarded.
    if syntax == ChunkSyntax::Strict {
        let extensions = &line[digits.len()..];
        *extension_bytes += extensions.len();
        if *extension_bytes > MAX_EXTENSION_BYTES || !are_extensions(extensions) {
            return Err(BodyError);
        }
    }
    if digits.is_empty()
        || digits.len() > MAX_CHUNK_SIZE_DIGITS
        || !digits.iter().all(u8::is_ascii_hexdigit)
    {
        return Err(BodyError);
    }
    let digits = str::from_utf8(digits).map_err(|_| BodyError)?;
    u64::from_str_radix(digits, 16).map_err(|_| BodyError)
}

/// Returns whether the rest of a chunk size line consists of extensions (RFC 9112, section 7.1.1), without whitespace
/// between their parts. A parser that finds the end of a quoted string that is not closed in a later line sees another
/// message boundary (CVE-2026-24880).
fn are_extensions(mut rest: &[u8]) -> bool {
    let token_length = |text: &[u8]| {
        let end = text.iter().position(|byte| !is_token_byte(*byte));
        end.unwrap_or(text.len())
    };
    while let Some(extension) = rest.strip_prefix(b";") {
        let name_length = token_length(extension);
        rest = &extension[name_length..];
        let mut is_valid = name_length > 0;
        if let Some(value) = rest.strip_prefix(b"=") {
            let length = quoted_string_length(value).unwrap_or_else(|| token_length(value));
            rest = &value[length..];
            is_valid &= length > 0;
        }
        if !is_valid {
            return false;
        }
    }
    rest.is_empty()
}

/// Returns the length of the quoted string at the start of a text (RFC 9110, section 5.6.4), `None` if there is none.
fn quoted_string_length(text: &[u8]) -> Option<usize> {
    let mut bytes = text.strip_prefix(b"\"")?.iter().enumerate();
    while let Some((index, byte)) = bytes.next() {
        match byte {
            // The opening and the closing quotation mark.
            b'"' => return Some(index + 2),
            b'\\' => bytes.next().map(drop)?,
            _ => {}
        }
    }
    None
}

fn trim_whitespace_end(text: &[u8]) -> &[u8] {
    let last = text.iter().rposition(|byte| !is_whitespace(*byte));
    &text[..last.map_or(0, |last| last + 1)]
}

/// Takes at most `max_bytes` bytes from the start of `input`. Returns `None` if that is empty.
fn take_up_to(input: &mut BytesMut, max_bytes: u64) -> Option<Bytes> {
    let max_bytes = usize::try_from(max_bytes).unwrap_or(usize::MAX);
    let length = input.len().min(max_bytes);
    (length > 0).then(|| input.split_to(length).freeze())
}

/// Takes at most `remaining` bytes from the start of `input`, and subtracts their number. Returns `None` if `input` is
/// empty.
fn take_remaining(input: &mut BytesMut, remaining: &mut u64) -> Option<Bytes> {
    let data = take_up_to(input, *remaining)?;
    *remaining -= data.len() as u64;
    Some(data)
}

/// Writes the header that announces the framing of a body.
pub(crate) fn put_framing_header(output: &mut Vec<u8>, framing: Framing) {
    match framing {
        Framing::Empty | Framing::UntilClose => {}
        Framing::Chunked => output.put_slice(b"transfer-encoding: chunked\r\n"),
        Framing::Length(length) => {
            output.put_slice(b"content-length: ");
            put_number(output, length);
            output.put_slice(b"\r\n");
        }
    }
}

/// Writes part of a body.
pub(crate) fn put_data(output: &mut Vec<u8>, framing: Framing, data: &[u8]) {
    // An empty chunk would be the last one.
    if framing != Framing::Chunked || data.is_empty() {
        return output.put_slice(data);
    }
    output.put_slice(format!("{:x}\r\n", data.len()).as_bytes());
    output.put_slice(data);
    output.put_slice(b"\r\n");
}

/// Writes the end of a body.
pub(crate) fn put_end(output: &mut Vec<u8>, framing: Framing) {
    if framing == Framing::Chunked {
        output.put_slice(LAST_CHUNK);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Decodes a body from `bytes`, which arrive in reads of `read_size` bytes. Returns the body and
    /// the bytes after it.
    fn decode(
        framing: Framing,
        bytes: &[u8],
        read_size: usize,
    ) -> Result<(Vec<u8>, Vec<u8>), BodyError> {
        decode_with(ChunkSyntax::Strict, framing, bytes, read_size)
    }

    fn decode_with(
        syntax: ChunkSyntax,
        framing: Framing,
        bytes: &[u8],
        read_size: usize,
    ) -> Result<(Vec<u8>, Vec<u8>), BodyError> {
        let mut decoder = BodyDecoder::from(framing);
        let (mut input, mut body) = (BytesMut::new(), Vec::new());
        let mut reads = bytes.chunks(read_size);
        loop {
            match decoder.decode(&mut input, syntax)? {
                Some(BodyEvent::Data(data)) => body.extend(data),
                Some(BodyEvent::End) => {
                    assert!(decoder.is_done());
                    let rest = reads.flatten().copied();
                    return Ok((body, input.iter().copied().chain(rest).collect()));
                }
                None => match reads.next() {
                    Some(read) => input.extend_from_slice(read),
                    None => {
                        return decoder.end_of_input().map(|_| (body, input.to_vec()));
                    }
                },
            }
        }
    }

    #[test]
    fn malformed_chunks_are_rejected() {
        for chunks in [
            "",
            "\r\n",
            "x\r\n",
            "-1\r\n",
            "+1\r\na\r\n0\r\n\r\n",
            "0x1\r\na\r\n0\r\n\r\n",
            "1 \r\na\r\n0\r\n\r\n",
            " 1\r\na\r\n0\r\n\r\n",
            "1\r\nab\r\n0\r\n\r\n",
            "1\r\na0\r\n\r\n",
            "1\na\r\n0\r\n\r\n",
            "1\r\na\n0\r\n\r\n",
            "1\r\na\r\n0\r\n\n",
            "1\r\na\r\n0\n\r\n",
            "1;a\rb\r\na\r\n0\r\n\r\n",
            "1;\r\na\r\n0\r\n\r\n",
            "1; a\r\na\r\n0\r\n\r\n",
            "1;a \r\na\r\n0\r\n\r\n",
            "1;a=\r\na\r\n0\r\n\r\n",
            "1;=b\r\na\r\n0\r\n\r\n",
            "1;a=\"\r\na\r\n0\r\n\r\n",
            "1;a=\"b\\\"\r\na\r\n0\r\n\r\n",
            "1;a=\"b\"c\r\na\r\n0\r\n\r\n",
            "1a;b\"\r\na\r\n0\r\n\r\n",
            "1;a\0\r\na\r\n0\r\n\r\n",
            "ffffffffffffffffff\r\n",
            "10000000000000000\r\n",
            "1\r\na\r\n",
            "1\r\na\r\n0\r\n",
            "2\r\na",
        ] {
            for read_size in [1, 2, 1000] {
                let body = decode(Framing::Chunked, chunks.as_bytes(), read_size);
                assert_eq!(
                    body,
                    Err(BodyError),
                    "{chunks:?} in reads of {read_size} bytes"
                );
            }
        }
    }

    #[test]
    fn whitespace_before_a_chunk_extension_is_accepted_in_responses_only() {
        let chunks = b"2 ;a=b\r\nab\r\n1\t ; c\r\nc\r\n0 ;\r\n\r\n";
        for read_size in [1, 1000] {
            let lenient = decode_with(ChunkSyntax::Lenient, Framing::Chunked, chunks, read_size);
            assert_eq!(lenient, Ok((b"abc".to_vec(), Vec::new())));
            assert_eq!(decode(Framing::Chunked, chunks, read_size), Err(BodyError));
        }
        for chunks in [
            &b"2 \r\nab\r\n0\r\n\r\n"[..],
            b" 2;a\r\n",
            b"2 2;a\r\n",
            b" ;a\r\n",
        ] {
            let lenient = decode_with(ChunkSyntax::Lenient, Framing::Chunked, chunks, 1000);
            assert_eq!(lenient, Err(BodyError), "{chunks:?}");
        }
    }

    #[test]
    fn chunk_size_lines_and_trailers_are_limited() {
        let extension = format!(
            "1;{}\r\na\r\n0\r\n\r\n",
            "x".repeat(MAX_CHUNK_SIZE_LINE_BYTES)
        );
        let trailer = format!("0\r\n{}\r\n", "x: y\r\n".repeat(MAX_TRAILER_BYTES / 5));
        for chunks in [extension, trailer] {
            for read_size in [1, 1000] {
                assert!(decode(Framing::Chunked, chunks.as_bytes(), read_size).is_err());
            }
        }
    }

    #[test]
    fn chunk_extensions_of_a_request_are_limited_together() {
        let extension = "x".repeat(MAX_CHUNK_SIZE_LINE_BYTES / 2);
        let count = MAX_EXTENSION_BYTES / extension.len();
        let chunk = format!("1;{extension}\r\na\r\n");
        for (chunks, is_valid) in [(count - 1, true), (count, false)] {
            let body = format!("{}0\r\n\r\n", chunk.repeat(chunks));
            let strict = decode(Framing::Chunked, body.as_bytes(), 1000);
            assert_eq!(strict.is_ok(), is_valid);
            let syntax = ChunkSyntax::Lenient;
            assert!(decode_with(syntax, Framing::Chunked, body.as_bytes(), 1000).is_ok());
        }
    }

    #[test]
    fn chunk_extensions_and_trailers_are_dropped() {
        let chunks = b"1;x=\"y;\\\" z\";a;b=c\r\na\r\n002\r\nbc\r\n0;z\r\nx: y\r\n\r\nGET";
        let (body, rest) = decode(Framing::Chunked, chunks, 3).unwrap();
        assert_eq!((&body[..], &rest[..]), (&b"abc"[..], &b"GET"[..]));
    }

    #[test]
    fn malformed_trailers_are_rejected_in_requests() {
        for trailer in ["A b", ": x", " Host: y", "A : b", "\u{e9}: x", "a"] {
            let chunks = format!("0\r\n{trailer}\r\n\r\n");
            let body = decode(Framing::Chunked, chunks.as_bytes(), 1000);
            assert_eq!(body, Err(BodyError), "{trailer}");
        }
    }

    #[test]
    fn chunks_in_one_read_are_joined() {
        let mut input = BytesMut::from("1\r\na\r\n2\r\nbc\r\n3\r\nde");
        let mut decoder = BodyDecoder::from(Framing::Chunked);
        let data = |text: &str| {
            Ok(Some(BodyEvent::Data(Bytes::copy_from_slice(
                text.as_bytes(),
            ))))
        };
        assert_eq!(
            decoder.decode(&mut input, ChunkSyntax::Strict),
            data("abcde")
        );
        input.extend_from_slice(b"f\r\n1\r\ng\r\nx");
        assert_eq!(decoder.decode(&mut input, ChunkSyntax::Strict), data("fg"));
        assert_eq!(decoder.decode(&mut input, ChunkSyntax::Strict), Ok(None));
        input.extend_from_slice(b"\r\n");
        assert_eq!(
            decoder.decode(&mut input, ChunkSyntax::Strict),
            Err(BodyError)
        );
        assert_eq!(
            decoder.decode(&mut input, ChunkSyntax::Strict),
            Err(BodyError)
        );
    }

    proptest! {
        #[test]
        fn an_encoded_body_is_decoded_to_the_same_bytes(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..50), 0..8),
            rest in prop::collection::vec(any::<u8>(), 0..20),
            read_size in 1_usize..60,
        ) {
            let body = parts.concat();
            for framing in [Framing::Chunked, Framing::Length(body.len() as u64)] {
                let mut encoded = Vec::new();
                for part in &parts {
                    put_data(&mut encoded, framing, part);
                }
                put_end(&mut encoded, framing);
                encoded.extend(&rest);
                prop_assert_eq!(decode(framing, &encoded, read_size), Ok((body.clone(), rest.clone())));
            }
            let until_close = decode(Framing::UntilClose, &body, read_size);
            prop_assert_eq!(until_close, Ok((body, Vec::new())));
        }

        #[test]
        fn no_input_panics(bytes: Vec<u8>, read_size in 1_usize..60) {
            for syntax in [ChunkSyntax::Strict, ChunkSyntax::Lenient] {
                let _ = decode_with(syntax, Framing::Chunked, &bytes, read_size);
            }
        }
    }

    #[test]
    fn the_header_announces_the_framing() {
        for (framing, header) in [
            (Framing::Empty, ""),
            (Framing::UntilClose, ""),
            (Framing::Chunked, "transfer-encoding: chunked\r\n"),
            (Framing::Length(0), "content-length: 0\r\n"),
            (
                Framing::Length(u64::MAX),
                "content-length: 18446744073709551615\r\n",
            ),
        ] {
            let mut output = Vec::new();
            put_framing_header(&mut output, framing);
            assert_eq!(output, header.as_bytes());
        }
    }
}
