//! Frames of HTTP/2 (RFC 9113, section 4): a generator of what clients send, and a reader of what servers send.

use crate::input::Choices;

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PUSH_PROMISE: u8 = 5;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const CONTINUATION: u8 = 9;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// Frame that was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frame<'b> {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: &'b [u8],
}

/// Reads frames. The last one may be incomplete, and is left out.
pub(crate) fn read(mut bytes: &[u8]) -> Vec<Frame<'_>> {
    let mut frames = Vec::new();
    while let [high, middle, low, frame_type, flags, a, b, c, d, rest @ ..] = bytes {
        let length = usize::from(*high) << 16 | usize::from(*middle) << 8 | usize::from(*low);
        let Some((payload, rest)) = rest.split_at_checked(length) else {
            break;
        };
        frames.push(Frame {
            kind: *frame_type,
            flags: *flags,
            stream: u32::from_be_bytes([*a, *b, *c, *d]),
            payload,
        });
        bytes = rest;
    }
    frames
}

/// Appends a frame.
pub(crate) fn put(output: &mut Vec<u8>, frame_type: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len())
        .unwrap_or(u32::MAX)
        .to_be_bytes();
    output.extend_from_slice(&length[1..]);
    output.extend_from_slice(&[frame_type, flags]);
    output.extend_from_slice(&stream.to_be_bytes());
    output.extend_from_slice(payload);
}

/// Takes a frame of any type, flags, stream and payload, and appends it.
pub(crate) fn put_any(output: &mut Vec<u8>, choices: &mut Choices<'_>) {
    let frame_type = choices.byte() % 12;
    let flags = choices.byte();
    let stream = match choices.byte() {
        255 => choices.number(),
        low => u32::from(low),
    };
    let length = usize::from(choices.byte());
    let payload = choices.bytes(length).to_vec();
    put(output, frame_type, flags, stream, &payload);
}

/// Takes a request, most of whose parts are valid, and appends its frames.
pub(crate) fn put_request(output: &mut Vec<u8>, choices: &mut Choices<'_>, stream: u32) {
    let block = header_block(choices);
    let options = choices.byte();
    let end_stream = if options & 1 != 0 { END_STREAM } else { 0 };
    // Sometimes in several frames.
    let split = if options & 2 != 0 {
        block.len() / 2
    } else {
        block.len()
    };
    let (first, rest) = block.split_at(split);
    let end_headers = if rest.is_empty() { END_HEADERS } else { 0 };
    put(output, HEADERS, end_stream | end_headers, stream, first);
    if !rest.is_empty() {
        put(output, CONTINUATION, END_HEADERS, stream, rest);
    }
}

fn header_block(choices: &mut Choices<'_>) -> Vec<u8> {
    let mut block = Vec::new();
    let mut fields = vec![
        (
            ":method",
            choices.one_of(&["GET", "POST", "HEAD", "OPTIONS", "TRACE", "a b"]),
        ),
        (":scheme", choices.one_of(&["https", "http", "ftp", ""])),
        (
            ":path",
            choices.one_of(&[
                "/echo",
                "/early",
                "/large",
                "/interim",
                "/abort",
                "/never",
                "/echo?a=b#c",
                "*",
                "",
            ]),
        ),
        (
            ":authority",
            choices.one_of(&["a", "a:443", "[::1]", "u@a", ""]),
        ),
    ];
    for _ in 0..choices.byte() % 5 {
        fields.push(choices.one_of(&[
            ("content-length", "0"),
            ("content-length", "5"),
            ("content-length", "+5"),
            ("host", "a"),
            ("host", "b"),
            ("cookie", "a=b"),
            ("cookie", "c=d"),
            ("te", "trailers"),
            ("connection", "close"),
            ("transfer-encoding", "chunked"),
            ("expect", "100-continue"),
            ("x-a", " b"),
            ("x-a", "b\r\nc: d"),
            ("X-A", "b"),
            (":path", "/again"),
            (":protocol", "websocket"),
            ("", "empty"),
        ]));
    }
    let order = choices.byte();
    if order & 1 != 0 {
        fields.rotate_left(usize::from(order >> 1) % 4);
    }
    for (name, value) in fields {
        if !value.is_empty() || name == "x-a" {
            put_literal(&mut block, name.as_bytes(), value.as_bytes());
        }
    }
    // Bytes that may be indexes, table size updates, Huffman codes, or nothing.
    let length = usize::from(choices.byte() % 16);
    block.extend_from_slice(choices.bytes(length));
    block
}

/// Appends a literal header field with a new name (RFC 7541, section 6.2). It is added to the table, so that later
/// indexes can name it.
fn put_literal(block: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    block.push(0x40);
    for text in [name, value] {
        block.push(u8::try_from(text.len()).unwrap_or(0));
        block.extend_from_slice(text);
    }
}
