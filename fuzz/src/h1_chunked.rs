//! Chunked bodies (RFC 9112, section 7.1) against a decoder that sees the whole input, and against hyper.

use gateway::fuzz::{Body, ChunkedReader, Reading, read_chunked};

use crate::hyper_peer;

const MAX_SIZE_LINE: usize = 256;
const MAX_TRAILERS: usize = 8 * 1024;
/// Maximum size of the extensions of all chunks of a request together.
const MAX_EXTENSIONS: usize = 8 * 1024;
/// Number of trailers from which on hyper rejects them.
const MAX_TRAILERS_OF_HYPER: usize = 100;

/// Input: what follows the header section.
pub(crate) fn run(input: &[u8]) {
    for reader in [ChunkedReader::OfRequests, ChunkedReader::OfResponses] {
        let reading = read_chunked(input, input.len().max(1), reader);
        assert_eq!(reading, reference(input, reader), "{reader:?}");
        for read_size in [1, 2, 5] {
            assert_eq!(
                read_chunked(input, read_size, reader),
                reading,
                "{reader:?}"
            );
        }
        if let (ChunkedReader::OfRequests, Reading::Complete(body)) = (reader, reading) {
            compare_with_hyper(&input[..body.length], &body.data);
        }
    }
}

fn compare_with_hyper(encoded: &[u8], data: &[u8]) {
    let headers = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
    let request = hyper_peer::read_request(&[headers, encoded].concat());
    let body = request.expect("the headers are valid").body;
    let lines = encoded.split(|byte| *byte == b'\n').count();
    match body {
        Some(body) => assert_eq!(body, data),
        None => assert!(lines > MAX_TRAILERS_OF_HYPER, "hyper rejects the body"),
    }
}

/// Decodes a whole body.
fn reference(input: &[u8], reader: ChunkedReader) -> Reading<Body> {
    let malformed = || {
        Reading::Malformed("the chunked encoding is malformed, or the body is incomplete".into())
    };
    let (mut data, mut rest, mut extension_bytes) = (Vec::new(), input, 0);
    loop {
        let Some(line) = take_line(&mut rest, MAX_SIZE_LINE) else {
            return malformed();
        };
        let Some(line) = line else {
            return Reading::Incomplete;
        };
        let Some(size) = chunk_size(line, reader) else {
            return malformed();
        };
        if reader == ChunkedReader::OfRequests {
            let start = line.iter().position(|byte| *byte == b';');
            let extensions = &line[start.unwrap_or(line.len())..];
            extension_bytes += extensions.len();
            if extension_bytes > MAX_EXTENSIONS || !are_extensions(extensions) {
                return malformed();
            }
        }
        if size == 0 {
            break;
        }
        if size >= rest.len() as u64 {
            return Reading::Incomplete;
        }
        let Ok(size) = usize::try_from(size) else {
            return Reading::Incomplete;
        };
        data.extend_from_slice(&rest[..size]);
        rest = &rest[size..];
        match rest {
            [b'\r', b'\n', after @ ..] => rest = after,
            [] => return Reading::Incomplete,
            [one] if *one != b'\n' => return Reading::Incomplete,
            _ => return malformed(),
        }
    }
    let mut bytes = 0;
    loop {
        let Some(line) = take_line(&mut rest, MAX_TRAILERS) else {
            return malformed();
        };
        match line {
            None => return Reading::Incomplete,
            Some([]) => {
                let length = input.len() - rest.len();
                return Reading::Complete(Body { data, length });
            }
            Some(line) => {
                bytes += line.len() + 2;
                let is_named = line
                    .split(|byte| *byte == b':')
                    .next()
                    .is_some_and(|name| name.len() < line.len() && is_token(name));
                let is_valid = reader == ChunkedReader::OfResponses || is_named;
                if !is_valid || bytes > MAX_TRAILERS {
                    return malformed();
                }
            }
        }
    }
}

/// Takes a line without its CRLF. Returns `None` if it is malformed or longer than `max_bytes` with it, and
/// `Some(None)` if it is incomplete.
#[expect(
    clippy::option_option,
    reason = "a malformed line and an incomplete one are distinct"
)]
fn take_line<'i>(rest: &mut &'i [u8], max_bytes: usize) -> Option<Option<&'i [u8]>> {
    let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
        return (rest.len() < max_bytes).then_some(None);
    };
    let line = rest[..end].strip_suffix(b"\r")?;
    let is_text = |byte: &u8| *byte == b'\t' || (0x20..=0xff).contains(byte) && *byte != 0x7f;
    if end >= max_bytes || !line.iter().all(is_text) {
        return None;
    }
    *rest = &rest[end + 1..];
    Some(Some(line))
}

fn chunk_size(line: &[u8], reader: ChunkedReader) -> Option<u64> {
    let text = String::from_utf8_lossy(line);
    let digits = match (text.split_once(';'), reader) {
        (Some((digits, _)), ChunkedReader::OfResponses) => digits.trim_end_matches([' ', '\t']),
        (Some((digits, _)), ChunkedReader::OfRequests) => digits,
        (None, _) => &text,
    };
    let is_valid =
        (1..=16).contains(&digits.len()) && digits.chars().all(|c| c.is_ascii_hexdigit());
    is_valid.then(|| {
        let digits = digits.chars().filter_map(|digit| digit.to_digit(16));
        digits.fold(0, |size, digit| size << 4 | u64::from(digit))
    })
}

/// Position within chunk extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extension {
    Start,
    NameStart,
    Name,
    ValueStart,
    Value,
    Quoted,
    Escaped,
    QuotedEnd,
}

/// Returns whether a text consists of chunk extensions without whitespace (RFC 9112, section 7.1.1).
fn are_extensions(text: &[u8]) -> bool {
    use Extension::{Escaped, Name, NameStart, Quoted, QuotedEnd, Start, Value, ValueStart};
    let end = text.iter().try_fold(Start, |at, byte| match (at, byte) {
        (Start | Name | Value | QuotedEnd, b';') => Some(NameStart),
        (Name, b'=') => Some(ValueStart),
        (NameStart | Name, byte) => is_token(&[*byte]).then_some(Name),
        (ValueStart, b'"') => Some(Quoted),
        (ValueStart | Value, byte) => is_token(&[*byte]).then_some(Value),
        (Quoted, b'"') => Some(QuotedEnd),
        (Quoted, b'\\') => Some(Escaped),
        (Quoted | Escaped, _) => Some(Quoted),
        (Start | QuotedEnd, _) => None,
    });
    matches!(end, Some(Start | Name | Value | QuotedEnd))
}

fn is_token(name: &[u8]) -> bool {
    let is_token_byte =
        |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !name.is_empty() && name.iter().all(is_token_byte)
}
