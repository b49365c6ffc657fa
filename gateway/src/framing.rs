//! Where the body of an HTTP/1.1 message ends (RFC 9112, sections 6 and 7).
//!
//! There is one reading: what a lenient parser would repair, a bare line feed or a blank beside a
//! chunk's size, is malformed here, since somebody behind or before us may repair it otherwise.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use thiserror::Error;

/// Bytes of a chunk's size with its extensions, and of all trailers together.
const LONGEST_LINE: usize = 256;
const LONGEST_TRAILERS: usize = 8 * 1024;
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// How a body is delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// There is none.
    Empty,
    /// So many bytes.
    Length(u64),
    Chunked,
    /// Everything until the peer closes.
    UntilClose,
}

impl Framing {
    pub(crate) fn is_empty(self) -> bool {
        matches!(self, Self::Empty | Self::Length(0))
    }
}

/// Some of a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece {
    Data(Bytes),
    /// It is whole.
    End,
}

/// A body that is no body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the chunks are malformed, or the body ends before its end")]
pub(crate) struct Malformed;

/// Takes a body out of what a peer sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decoder {
    Length { left: u64 },
    Chunk(Chunk),
    UntilClose,
    Done,
}

/// What comes next in a chunked body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Chunk {
    Size,
    Data { left: u64 },
    DataEnd,
    Trailers { bytes: usize },
}

impl From<Framing> for Decoder {
    fn from(framing: Framing) -> Self {
        match framing {
            Framing::Empty | Framing::Length(0) => Self::Done,
            Framing::Length(left) => Self::Length { left },
            Framing::Chunked => Self::Chunk(Chunk::Size),
            Framing::UntilClose => Self::UntilClose,
        }
    }
}

impl Decoder {
    /// Whether the body has been read to its end.
    pub(crate) fn is_done(self) -> bool {
        self == Self::Done
    }

    /// The next piece of what is at hand, `None` where that needs more bytes. Chunks that came
    /// together are one piece, so that a byte in each does not cost what a chunk does.
    ///
    /// # Errors
    /// When the chunks have another reading, or none.
    pub(crate) fn next(&mut self, input: &mut BytesMut) -> Result<Option<Piece>, Malformed> {
        let first = match self.piece(input)? {
            Some(Piece::Data(data)) => data,
            other => return Ok(other),
        };
        let mut joined: Option<BytesMut> = None;
        // What is malformed is so again the next time.
        while !input.is_empty()
            && matches!(self, Self::Chunk(_))
            && let Ok(Some(Piece::Data(more))) = self.piece(input)
        {
            joined
                .get_or_insert_with(|| BytesMut::from(&first[..]))
                .extend_from_slice(&more);
        }
        Ok(Some(Piece::Data(joined.map_or(first, BytesMut::freeze))))
    }

    fn piece(&mut self, input: &mut BytesMut) -> Result<Option<Piece>, Malformed> {
        loop {
            match self {
                Self::Done => return Ok(Some(Piece::End)),
                Self::UntilClose => return Ok(take(input, u64::MAX).map(Piece::Data)),
                Self::Length { left } => {
                    let data = take(input, *left);
                    *left -= data.as_ref().map_or(0, Bytes::len) as u64;
                    if *left == 0 {
                        *self = Self::Done;
                    }
                    return Ok(data.map(Piece::Data));
                }
                Self::Chunk(Chunk::Data { left }) => {
                    let data = take(input, *left);
                    *left -= data.as_ref().map_or(0, Bytes::len) as u64;
                    if *left == 0 {
                        *self = Self::Chunk(Chunk::DataEnd);
                    }
                    return Ok(data.map(Piece::Data));
                }
                Self::Chunk(chunk) => match chunk.line(input)? {
                    Some(next) => *self = next,
                    None => return Ok(None),
                },
            }
        }
    }

    /// The peer has closed.
    ///
    /// # Errors
    /// When something was still to come.
    pub(crate) fn close(&mut self) -> Result<Piece, Malformed> {
        match self {
            Self::UntilClose | Self::Done => {
                *self = Self::Done;
                Ok(Piece::End)
            }
            Self::Length { .. } | Self::Chunk(_) => Err(Malformed),
        }
    }
}

impl Chunk {
    /// Reads a line that is no data, and says what follows it.
    fn line(self, input: &mut BytesMut) -> Result<Option<Decoder>, Malformed> {
        let limit = match self {
            Self::DataEnd => b"\r\n".len(),
            Self::Trailers { .. } => LONGEST_TRAILERS,
            Self::Size | Self::Data { .. } => LONGEST_LINE,
        };
        let Some(feed) = memchr::memchr(b'\n', input) else {
            return if input.len() < limit {
                Ok(None)
            } else {
                Err(Malformed)
            };
        };
        let line = input[..feed].strip_suffix(b"\r").ok_or(Malformed)?;
        let is_good = |byte: &u8| *byte == b'\t' || *byte >= b' ' && *byte != 0x7f;
        if feed >= limit || !line.iter().all(is_good) {
            return Err(Malformed);
        }
        let next = match self {
            Self::Size | Self::Data { .. } => match size(line)? {
                0 => Decoder::Chunk(Self::Trailers { bytes: 0 }),
                left => Decoder::Chunk(Self::Data { left }),
            },
            Self::DataEnd if line.is_empty() => Decoder::Chunk(Self::Size),
            Self::Trailers { .. } if line.is_empty() => Decoder::Done,
            Self::Trailers { bytes } if bytes + feed < LONGEST_TRAILERS => {
                Decoder::Chunk(Self::Trailers {
                    bytes: bytes + feed + 1,
                })
            }
            Self::DataEnd | Self::Trailers { .. } => return Err(Malformed),
        };
        input.advance(feed + 1);
        Ok(Some(next))
    }
}

/// A chunk's size: hexadecimal digits, and extensions, which mean nothing to us.
fn size(line: &[u8]) -> Result<u64, Malformed> {
    let end = memchr::memchr(b';', line).unwrap_or(line.len());
    let digits = &line[..end];
    if digits.is_empty() || digits.len() > 16 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return Err(Malformed);
    }
    let digits = str::from_utf8(digits).map_err(|_| Malformed)?;
    u64::from_str_radix(digits, 16).map_err(|_| Malformed)
}

fn take(input: &mut BytesMut, most: u64) -> Option<Bytes> {
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let length = input.len().min(most);
    (length > 0).then(|| input.split_to(length).freeze())
}

/// Writes some of a body as it is framed.
pub(crate) fn put_data(output: &mut Vec<u8>, framing: Framing, data: &[u8]) {
    // An empty chunk would be the last one.
    if framing != Framing::Chunked || data.is_empty() {
        return output.put_slice(data);
    }
    output.put_slice(format!("{:x}\r\n", data.len()).as_bytes());
    output.put_slice(data);
    output.put_slice(b"\r\n");
}

/// Writes what says that a body is whole.
pub(crate) fn put_end(output: &mut Vec<u8>, framing: Framing) {
    if framing == Framing::Chunked {
        output.put_slice(LAST_CHUNK);
    }
}

/// Writes the field that says how a body is framed.
pub(crate) fn put_field(output: &mut Vec<u8>, framing: Framing) {
    match framing {
        Framing::Empty | Framing::UntilClose => {}
        Framing::Chunked => output.put_slice(b"transfer-encoding: chunked\r\n"),
        Framing::Length(length) => {
            output.put_slice(b"content-length: ");
            crate::text::number(output, length);
            output.put_slice(b"\r\n");
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a body of these bytes comes to, cut into reads of `step` bytes, and what follows it.
    fn decode(
        framing: Framing,
        bytes: &[u8],
        step: usize,
    ) -> Result<(Vec<u8>, Vec<u8>), Malformed> {
        let mut decoder = Decoder::from(framing);
        let (mut input, mut body) = (BytesMut::new(), Vec::new());
        let mut reads = bytes.chunks(step);
        loop {
            match decoder.next(&mut input)? {
                Some(Piece::Data(data)) => body.extend(data),
                Some(Piece::End) => {
                    let rest = reads.flatten().copied();
                    return Ok((body, input.iter().copied().chain(rest).collect()));
                }
                None => match reads.next() {
                    Some(read) => input.extend_from_slice(read),
                    None => {
                        return decoder.close().map(|_| (body, input.to_vec()));
                    }
                },
            }
        }
    }

    #[test]
    fn what_is_malformed_is_not_repaired() {
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
            "1;a\0\r\na\r\n0\r\n\r\n",
            "ffffffffffffffffff\r\n",
            "10000000000000000\r\n",
            "1\r\na\r\n",
            "1\r\na\r\n0\r\n",
            "2\r\na",
        ] {
            for step in [1, 2, 1000] {
                let body = decode(Framing::Chunked, chunks.as_bytes(), step);
                assert_eq!(body, Err(Malformed), "{chunks:?} by {step}");
            }
        }
    }

    #[test]
    fn sizes_and_trailers_are_bounded() {
        let extension = format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(LONGEST_LINE));
        let trailer = format!("0\r\n{}\r\n", "x: y\r\n".repeat(LONGEST_TRAILERS / 5));
        for chunks in [extension, trailer] {
            for step in [1, 1000] {
                assert!(decode(Framing::Chunked, chunks.as_bytes(), step).is_err());
            }
        }
    }

    #[test]
    fn extensions_and_trailers_are_left_out() {
        let chunks = b"1;x=\"y\"\r\na\r\n002\r\nbc\r\n0;z\r\nx: y\r\n\r\nGET";
        let (body, rest) = decode(Framing::Chunked, chunks, 3).unwrap();
        assert_eq!((&body[..], &rest[..]), (&b"abc"[..], &b"GET"[..]));
    }

    #[test]
    fn chunks_that_came_together_are_one_piece() {
        let mut input = BytesMut::from("1\r\na\r\n2\r\nbc\r\n3\r\nde");
        let mut decoder = Decoder::from(Framing::Chunked);
        let piece = |text: &str| Ok(Some(Piece::Data(Bytes::copy_from_slice(text.as_bytes()))));
        assert_eq!(decoder.next(&mut input), piece("abcde"));
        input.extend_from_slice(b"f\r\n1\r\ng\r\nx");
        assert_eq!(decoder.next(&mut input), piece("fg"));
        assert_eq!(decoder.next(&mut input), Ok(None));
        input.extend_from_slice(b"\r\n");
        assert_eq!(decoder.next(&mut input), Err(Malformed));
        assert_eq!(decoder.next(&mut input), Err(Malformed));
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..50), 0..8),
            rest in prop::collection::vec(any::<u8>(), 0..20),
            step in 1_usize..60,
        ) {
            let body = pieces.concat();
            for framing in [Framing::Chunked, Framing::Length(body.len() as u64)] {
                let mut wire = Vec::new();
                for piece in &pieces {
                    put_data(&mut wire, framing, piece);
                }
                put_end(&mut wire, framing);
                wire.extend(&rest);
                prop_assert_eq!(decode(framing, &wire, step), Ok((body.clone(), rest.clone())));
            }
            let until_close = decode(Framing::UntilClose, &body, step);
            prop_assert_eq!(until_close, Ok((body, Vec::new())));
        }

        #[test]
        fn no_bytes_are_too_much_for_it(bytes: Vec<u8>, step in 1_usize..60) {
            let _ = decode(Framing::Chunked, &bytes, step);
        }
    }
}
