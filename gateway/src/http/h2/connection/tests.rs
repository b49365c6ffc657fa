//! Protocol tests by the sections of RFC 9113, frame by frame, as h2spec has them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Wake, Waker};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};
use proptest::prelude::*;

use super::responses::{AfterHeaders, Response};
use super::*;
use crate::http::downstream::{Backpressure, DownstreamEvent};
use crate::http::h2::frame::{END_HEADERS, END_STREAM, PADDED, PRIORITISED};
use crate::http::h2::header_block::Verdict;
use crate::http::h2::settings::MAX_SETTINGS;
use crate::http::h2::streams::MAX_UNSENT_REST;

const MAX_HEADER_BYTES: usize = 32 * 1024;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let header = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
    [&header, payload].concat()
}

fn literal(name: &str, value: &str) -> Vec<u8> {
    let length = |text: &str| u8::try_from(text.len()).unwrap();
    let name_part = [&[0, length(name)], name.as_bytes()].concat();
    [&name_part, &[length(value)][..], value.as_bytes()].concat()
}

/// Header block of a request for `/` with further headers.
fn block(method: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let mut block = literal(":method", method);
    // `:scheme: https` and `:path: /`.
    block.extend([0x87, 0x84]);
    block.extend(literal(":authority", "a"));
    block.extend(
        headers
            .iter()
            .flat_map(|(name, value)| literal(name, value)),
    );
    block
}

fn get(stream: u32) -> Vec<u8> {
    frame(
        HEADERS,
        END_HEADERS | END_STREAM,
        stream,
        &block("GET", &[]),
    )
}

fn post(stream: u32, headers: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &block("POST", headers))
}

fn settings(settings: &[(u16, u32)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::put_settings(&mut bytes, settings);
    bytes
}

fn window_update(stream: u32, increment: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &increment.to_be_bytes())
}

/// Frame that was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sent {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

/// Takes the frames that were sent.
fn sent(connection: &mut Connection) -> Vec<Sent> {
    let mut bytes = connection.output.unsent().to_vec();
    connection.record_sent(bytes.len());
    connection.output.record_flush();
    let mut frames = Vec::new();
    while let Some(header) = FrameHeader::parse(&bytes) {
        let end = FRAME_HEADER_LENGTH + header.length;
        frames.push(Sent {
            kind: header.kind,
            flags: header.flags,
            stream: header.stream,
            payload: bytes[FRAME_HEADER_LENGTH..end].to_vec(),
        });
        bytes.drain(..end);
    }
    assert!(bytes.is_empty());
    frames
}

fn receive(connection: &mut Connection, bytes: &[u8]) -> Result<(), Reason> {
    connection.input.extend_from_slice(bytes);
    connection.receive()
}

/// Connection after preface and settings, of which nothing is unsent.
fn connected() -> Connection {
    let mut connection = Connection::new(MAX_HEADER_BYTES);
    let start = [PREFACE, &settings(&[])].concat();
    receive(&mut connection, &start).unwrap();
    sent(&mut connection);
    connection
}

/// Reaction to frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reaction {
    /// The connection goes on, and no stream is reset.
    None,
    Reset(u32, Reason),
    Closed(Reason),
}

fn react(connection: &mut Connection, bytes: &[u8]) -> Reaction {
    if let Err(reason) = receive(connection, bytes) {
        return Reaction::Closed(reason);
    }
    let frames = sent(connection);
    let reset = frames.iter().find(|frame| frame.kind == RST_STREAM);
    reset.map_or(Reaction::None, |frame| {
        let code = u32::from_be_bytes(frame.payload[..].try_into().unwrap());
        let reasons = [
            Reason::NoError,
            Reason::ProtocolError,
            Reason::InternalError,
            Reason::FlowControlError,
            Reason::StreamClosed,
            Reason::FrameSizeError,
            Reason::RefusedStream,
            Reason::EnhanceYourCalm,
        ];
        let reason = reasons.into_iter().find(|reason| *reason as u32 == code);
        Reaction::Reset(frame.stream, reason.unwrap())
    })
}

fn check(cases: impl IntoIterator<Item = (&'static str, Vec<Vec<u8>>, Reaction)>) {
    for (name, frames, expected) in cases {
        let mut connection = connected();
        assert_eq!(react(&mut connection, &frames.concat()), expected, "{name}");
    }
}

fn respond(connection: &mut Connection, stream: u32, body: &[u8]) {
    let headers = HeaderMap::new();
    let response = Response {
        status: StatusCode::OK,
        content_length: None,
        headers: &headers,
    };
    connection.send_headers(stream, response, AfterHeaders::Body);
    connection.send_data(stream, Bytes::copy_from_slice(body));
    connection.finish_response(stream);
}

fn event(connection: &mut Connection, stream: u32) -> Option<DownstreamEvent> {
    connection.next_event(stream, Backpressure::Ready, Waker::noop())
}

#[test]
fn a_connection_begins_with_the_preface_and_settings() {
    for start in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[PREFACE, &frame(PING, 0, 0, &[0; 8])].concat(),
        &[PREFACE, &frame(SETTINGS, ACK, 0, &[])].concat(),
    ] {
        let mut connection = Connection::new(MAX_HEADER_BYTES);
        assert_eq!(receive(&mut connection, start), Err(Reason::ProtocolError));
    }
    let mut connection = Connection::new(MAX_HEADER_BYTES);
    assert!(connection.header_block_since().is_some());
    let start = [PREFACE, &settings(&[])].concat();
    for byte in &start {
        receive(&mut connection, &[*byte]).unwrap();
    }
    assert!(connection.header_block_since().is_none());
    let kinds: Vec<_> = sent(&mut connection)
        .into_iter()
        .map(|frame| (frame.kind, frame.flags))
        .collect();
    assert_eq!(kinds, [(SETTINGS, 0), (WINDOW_UPDATE, 0), (SETTINGS, ACK)]);
}

// Sections 4.1 and 4.2.
#[test]
fn frames_have_a_maximum_size_and_unknown_ones_are_ignored() {
    check([
        (
            "unknown type",
            vec![frame(0xff, 0xff, 1, &[1; 8])],
            Reaction::None,
        ),
        (
            "unknown flags",
            vec![frame(PING, 0xfe, 0, &[1; 8])],
            Reaction::None,
        ),
        (
            "a frame that is too large",
            vec![
                post(1, &[]),
                frame(DATA, 0, 1, &vec![0; MAX_FRAME_SIZE + 1]),
            ],
            Reaction::Closed(Reason::FrameSizeError),
        ),
        (
            "a frame of the largest size",
            vec![post(1, &[]), frame(DATA, 0, 1, &vec![0; MAX_FRAME_SIZE])],
            Reaction::None,
        ),
    ]);
}

// Sections 4.3, 6.2 and 6.10.
#[test]
fn header_blocks_are_contiguous_and_well_formed() {
    let open = || frame(HEADERS, END_STREAM, 1, &block("GET", &[])[..5]);
    let rest = |stream| frame(CONTINUATION, END_HEADERS, stream, &block("GET", &[])[5..]);
    let protocol_error = Reaction::Closed(Reason::ProtocolError);
    check([
        ("continued", vec![open(), rest(1)], Reaction::None),
        ("another stream", vec![open(), rest(3)], protocol_error),
        (
            "another frame",
            vec![open(), frame(PRIORITY, 0, 1, &[0; 5])],
            protocol_error,
        ),
        (
            "an unknown frame",
            vec![open(), frame(0xff, 0, 1, &[])],
            protocol_error,
        ),
        ("headers", vec![open(), get(3)], protocol_error),
        ("no header block", vec![rest(1)], protocol_error),
        ("after the end", vec![get(1), rest(1)], protocol_error),
        (
            "malformed",
            vec![frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0x80])],
            Reaction::Closed(Reason::CompressionError),
        ),
        (
            "padding longer than the payload",
            vec![frame(
                HEADERS,
                END_HEADERS | END_STREAM | PADDED,
                1,
                &[9, 0x82],
            )],
            protocol_error,
        ),
        (
            "a priority that is cut off",
            vec![frame(
                HEADERS,
                END_HEADERS | END_STREAM | PRIORITISED,
                1,
                &[0; 4],
            )],
            Reaction::Closed(Reason::FrameSizeError),
        ),
        (
            "padding and priority",
            vec![frame(
                HEADERS,
                END_HEADERS | END_STREAM | PADDED | PRIORITISED,
                1,
                &[&[2, 0, 0, 0, 0, 7][..], &block("GET", &[]), &[0, 0]].concat(),
            )],
            Reaction::None,
        ),
        (
            "a dependency on itself",
            vec![frame(
                HEADERS,
                END_HEADERS | END_STREAM | PRIORITISED,
                1,
                &[&[0, 0, 0, 1, 7][..], &block("GET", &[])].concat(),
            )],
            Reaction::Reset(1, Reason::ProtocolError),
        ),
    ]);
}

// Sections 5.1 and 5.1.1.
#[test]
fn frames_fit_the_state_of_their_stream() {
    let protocol_error = Reaction::Closed(Reason::ProtocolError);
    let trailers = |flags| frame(HEADERS, END_HEADERS | flags, 1, &literal("x", "y"));
    let reset = || frame(RST_STREAM, 0, 1, &[0, 0, 0, 8]);
    let stream_closed = Reaction::Reset(1, Reason::StreamClosed);
    check([
        ("idle: data", vec![frame(DATA, 0, 1, b"a")], protocol_error),
        ("idle: reset", vec![reset()], protocol_error),
        ("idle: window", vec![window_update(1, 1)], protocol_error),
        (
            "idle: priority",
            vec![frame(PRIORITY, 0, 1, &[0; 5])],
            Reaction::None,
        ),
        (
            "half-closed: data",
            vec![get(1), frame(DATA, 0, 1, b"a")],
            stream_closed,
        ),
        (
            "half-closed: headers",
            vec![get(1), trailers(END_STREAM)],
            stream_closed,
        ),
        (
            "half-closed: window",
            vec![get(1), window_update(1, 1)],
            Reaction::None,
        ),
        ("half-closed: reset", vec![get(1), reset()], Reaction::None),
        (
            "closed: priority",
            vec![get(1), reset(), frame(PRIORITY, 0, 1, &[0; 5])],
            Reaction::None,
        ),
        (
            "closed: window",
            vec![get(1), reset(), window_update(1, 1)],
            Reaction::None,
        ),
        (
            "closed: reset",
            vec![get(1), reset(), reset()],
            Reaction::None,
        ),
        ("even id", vec![get(2)], protocol_error),
        ("id 0", vec![get(0)], protocol_error),
        (
            "smaller id",
            vec![get(5), get(3)],
            Reaction::Closed(Reason::StreamClosed),
        ),
        ("larger id", vec![get(5), get(9)], Reaction::None),
        (
            "data of stream 0",
            vec![frame(DATA, 0, 0, b"a")],
            protocol_error,
        ),
        (
            "push",
            vec![get(1), frame(PUSH_PROMISE, END_HEADERS, 1, &[0; 4])],
            protocol_error,
        ),
        (
            "trailers",
            vec![post(1, &[]), trailers(END_STREAM)],
            Reaction::None,
        ),
        (
            "trailers that do not end the stream",
            vec![post(1, &[]), trailers(0)],
            Reaction::Reset(1, Reason::ProtocolError),
        ),
        (
            "trailers with a pseudo-header",
            vec![
                post(1, &[]),
                frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0x82]),
            ],
            Reaction::Reset(1, Reason::ProtocolError),
        ),
    ]);
}

#[test]
fn frames_for_a_closed_stream_are_errors_unless_the_gateway_reset_it() {
    let mut connection = connected();
    assert_eq!(react(&mut connection, &post(1, &[])), Reaction::None);
    connection.abort_response(1);
    connection.end_exchange(1);
    assert_eq!(sent(&mut connection)[0].kind, RST_STREAM);
    let frames = [frame(DATA, 0, 1, b"a"), window_update(1, 1)].concat();
    assert_eq!(react(&mut connection, &frames), Reaction::None);
    let trailers = frame(HEADERS, END_HEADERS | END_STREAM, 1, &literal("x", "y"));
    assert_eq!(react(&mut connection, &trailers), Reaction::None);
    // Also before the exchange is over.
    let mut aborted = connected();
    receive(&mut aborted, &post(1, &[])).unwrap();
    aborted.abort_response(1);
    sent(&mut aborted);
    let reset = frame(RST_STREAM, 0, 1, &[0, 0, 0, 8]);
    for frame in [
        frame(DATA, 0, 1, b"a"),
        window_update(1, 1),
        trailers,
        reset,
    ] {
        assert_eq!(react(&mut aborted, &frame), Reaction::None);
    }
    receive(&mut connection, &get(3)).unwrap();
    respond(&mut connection, 3, b"");
    event(&mut connection, 3);
    connection.end_exchange(3);
    sent(&mut connection);
    let data = frame(DATA, 0, 3, b"a");
    let reaction = react(&mut connection, &data);
    assert_eq!(reaction, Reaction::Reset(3, Reason::StreamClosed));
    let mut connection = connected();
    receive(&mut connection, &get(3)).unwrap();
    respond(&mut connection, 3, b"");
    connection.end_exchange(3);
    let reaction = react(&mut connection, &get(3));
    assert_eq!(reaction, Reaction::Closed(Reason::StreamClosed));
}

// Section 5.1.2.
#[test]
fn streams_beyond_the_limit_are_refused() {
    let mut connection = connected();
    let mut id = 1;
    for _ in 0..MAX_CONCURRENT_STREAMS {
        assert_eq!(react(&mut connection, &get(id)), Reaction::None);
        while connection.next_request().is_some() {}
        id += 2;
    }
    let refused = Reaction::Reset(id, Reason::RefusedStream);
    assert_eq!(react(&mut connection, &get(id)), refused);
    // A stream that the client has reset makes room, but not without limit while its exchange is not over.
    for number in 0..u32::try_from(MAX_STREAMS).unwrap() {
        let reset = frame(RST_STREAM, 0, 2 * number + 1, &[0, 0, 0, 8]);
        if react(&mut connection, &reset) != Reaction::None {
            break;
        }
        id += 2;
        if react(&mut connection, &get(id)) != Reaction::None {
            break;
        }
        while connection.next_request().is_some() {}
    }
    assert!(connection.streams.len() <= MAX_STREAMS);
}

// Sections 6.3 to 6.9.
#[test]
fn control_frames_have_their_size_and_stream() {
    let protocol_error = Reaction::Closed(Reason::ProtocolError);
    let size_error = Reaction::Closed(Reason::FrameSizeError);
    let calm = Reaction::None;
    check([
        (
            "priority of stream 0",
            vec![frame(PRIORITY, 0, 0, &[0; 5])],
            protocol_error,
        ),
        (
            "priority of another size",
            vec![post(1, &[]), frame(PRIORITY, 0, 1, &[0; 4])],
            Reaction::Reset(1, Reason::FrameSizeError),
        ),
        (
            "priority on itself",
            vec![post(1, &[]), frame(PRIORITY, 0, 1, &[0, 0, 0, 1, 0])],
            Reaction::Reset(1, Reason::ProtocolError),
        ),
        (
            "reset of stream 0",
            vec![frame(RST_STREAM, 0, 0, &[0; 4])],
            protocol_error,
        ),
        (
            "reset of another size",
            vec![get(1), frame(RST_STREAM, 0, 1, &[0; 3])],
            size_error,
        ),
        ("settings", vec![settings(&[(1, 0), (4, 1), (99, 1)])], calm),
        (
            "settings of a stream",
            vec![frame(SETTINGS, 0, 1, &[])],
            protocol_error,
        ),
        (
            "settings of another size",
            vec![frame(SETTINGS, 0, 0, &[0; 5])],
            size_error,
        ),
        (
            "acknowledgement with settings",
            vec![frame(SETTINGS, ACK, 0, &[0; 6])],
            size_error,
        ),
        ("acknowledgement", vec![frame(SETTINGS, ACK, 0, &[])], calm),
        (
            "push enabled by 2",
            vec![settings(&[(2, 2)])],
            protocol_error,
        ),
        ("small frames", vec![settings(&[(5, 1)])], protocol_error),
        (
            "a large window",
            vec![settings(&[(4, 0x8000_0000)])],
            Reaction::Closed(Reason::FlowControlError),
        ),
        (
            "ping of a stream",
            vec![frame(PING, 0, 1, &[0; 8])],
            protocol_error,
        ),
        (
            "ping of another size",
            vec![frame(PING, 0, 0, &[0; 7])],
            size_error,
        ),
        (
            "goaway of a stream",
            vec![frame(GOAWAY, 0, 1, &[0; 8])],
            protocol_error,
        ),
        (
            "goaway of another size",
            vec![frame(GOAWAY, 0, 0, &[0; 7])],
            size_error,
        ),
    ]);
}

// CVE-2020-11080.
#[test]
fn a_settings_frame_has_a_limited_number_of_settings() {
    let many = |count| settings(&vec![(4, 1000); count]);
    check([
        ("many", vec![many(MAX_SETTINGS)], Reaction::None),
        (
            "too many",
            vec![many(MAX_SETTINGS + 1)],
            Reaction::Closed(Reason::EnhanceYourCalm),
        ),
    ]);
}

// Sections 6.1 and 6.9.
#[test]
fn windows_have_a_maximum_and_change_by_more_than_nothing() {
    let protocol_error = Reaction::Closed(Reason::ProtocolError);
    let size_error = Reaction::Closed(Reason::FrameSizeError);
    check([
        (
            "window of another size",
            vec![frame(WINDOW_UPDATE, 0, 0, &[0; 3])],
            size_error,
        ),
        ("window by 0", vec![window_update(0, 0)], protocol_error),
        (
            "window of a stream by 0",
            vec![get(1), window_update(1, 0)],
            Reaction::Reset(1, Reason::ProtocolError),
        ),
        (
            "window overflow",
            vec![window_update(0, MAX_31_BIT)],
            Reaction::Closed(Reason::FlowControlError),
        ),
        (
            "window overflow of a stream",
            vec![get(1), window_update(1, MAX_31_BIT)],
            Reaction::Reset(1, Reason::FlowControlError),
        ),
        (
            "window overflow by settings",
            vec![
                get(1),
                window_update(1, MAX_31_BIT - DEFAULT_WINDOW),
                settings(&[(4, DEFAULT_WINDOW + 1)]),
            ],
            Reaction::Closed(Reason::FlowControlError),
        ),
        (
            "padding longer than the data",
            vec![post(1, &[]), frame(DATA, PADDED, 1, &[5, 0, 0])],
            protocol_error,
        ),
    ]);
}

#[test]
fn pings_are_acknowledged_with_their_payload() {
    let mut connection = connected();
    receive(&mut connection, &frame(PING, 0, 0, b"12345678")).unwrap();
    let frames = sent(&mut connection);
    assert_eq!((frames[0].kind, frames[0].flags), (PING, ACK));
    assert_eq!(frames[0].payload, b"12345678");
    receive(&mut connection, &frame(PING, ACK, 0, b"12345678")).unwrap();
    assert_eq!(sent(&mut connection), []);
}

// Sections 8.1.1 to 8.3.
#[test]
fn malformed_requests_are_reset_and_counted() {
    let malformed = [
        [literal(":method", "GET"), vec![0x87]].concat(),
        [vec![0x87, 0x84]].concat(),
        [literal(":method", "GET"), vec![0x84]].concat(),
        [literal(":method", "G T"), vec![0x87, 0x84]].concat(),
        [literal(":method", ""), vec![0x87, 0x84]].concat(),
        [block("GET", &[]), vec![0x82]].concat(),
        [block("GET", &[("x", "y")]), vec![0x84]].concat(),
        [block("GET", &[]), literal(":path", "/")].concat(),
        [vec![0x82, 0x87], literal(":path", "")].concat(),
        block("GET", &[(":status", "200")]),
        block("GET", &[(":unknown", "a")]),
        block("GET", &[(":protocol", "websocket")]),
        block("GET", &[("X", "y")]),
        block("GET", &[("", "y")]),
        block("GET", &[("x y", "z")]),
        block("GET", &[("x", "y\0z")]),
        block("GET", &[("x", "y\r\nz")]),
        block("GET", &[("connection", "close")]),
        block("GET", &[("keep-alive", "a")]),
        block("GET", &[("proxy-connection", "a")]),
        block("GET", &[("transfer-encoding", "chunked")]),
        block("GET", &[("upgrade", "h2c")]),
        block("GET", &[("te", "gzip")]),
        block("CONNECT", &[]),
    ];
    for block in malformed {
        let mut connection = connected();
        let headers = frame(HEADERS, END_HEADERS | END_STREAM, 1, &block);
        let reaction = react(&mut connection, &headers);
        assert_eq!(
            reaction,
            Reaction::Reset(1, Reason::ProtocolError),
            "{block:x?}"
        );
        assert_eq!(connection.take_malformed_requests(), 1);
        assert!(connection.next_request().is_none());
        assert_eq!(connection.streams.len(), 0);
        // The tables of HPACK are intact, and other streams go on.
        assert_eq!(react(&mut connection, &get(3)), Reaction::None);
        assert!(connection.next_request().is_some());
    }
}

// Section 8.1.1.
#[test]
fn a_body_has_the_announced_length() {
    let length = || post(1, &[("content-length", "3")]);
    let protocol_error = Reaction::Reset(1, Reason::ProtocolError);
    let data = |flags, data: &[u8]| frame(DATA, flags, 1, data);
    check([
        (
            "equal",
            vec![length(), data(0, b"ab"), data(END_STREAM, b"c")],
            Reaction::None,
        ),
        ("too long", vec![length(), data(0, b"abcd")], protocol_error),
        (
            "too short",
            vec![length(), data(END_STREAM, b"ab")],
            protocol_error,
        ),
        (
            "empty",
            vec![length(), data(END_STREAM, b"")],
            protocol_error,
        ),
        (
            "too short before trailers",
            vec![
                length(),
                data(0, b"ab"),
                frame(HEADERS, END_HEADERS | END_STREAM, 1, &literal("x", "y")),
            ],
            protocol_error,
        ),
    ]);
}

#[test]
fn header_lists_are_limited() {
    let mut connection = connected();
    let entry = {
        let mut entry = literal("cookie", "a");
        entry[0] = 0x40;
        entry
    };
    let mut bomb = block("GET", &[]);
    bomb.extend(entry);
    bomb.extend([0xbe; 1000]);
    let headers = frame(HEADERS, END_HEADERS | END_STREAM, 1, &bomb);
    assert_eq!(react(&mut connection, &headers), Reaction::None);
    let request = connection.next_request().unwrap();
    assert_eq!(request.headers.request_verdict(), Verdict::TooLarge);
    assert!(request.headers.headers.is_empty());
    let mut attack = block("GET", &[]);
    attack.extend([0xbe; 9000]);
    let headers = frame(HEADERS, END_HEADERS | END_STREAM, 3, &attack);
    let reaction = react(&mut connection, &headers);
    assert_eq!(reaction, Reaction::Closed(Reason::EnhanceYourCalm));
    // Without end.
    let mut connection = connected();
    receive(
        &mut connection,
        &frame(HEADERS, END_STREAM, 1, &block("GET", &[])),
    )
    .unwrap();
    assert!(connection.header_block_since().is_some());
    let part = frame(
        CONTINUATION,
        0,
        1,
        &literal("x", &"y".repeat(100)).repeat(100),
    );
    let mut parts = 0;
    while react(&mut connection, &part) == Reaction::None {
        parts += 1;
    }
    assert!(parts < 10, "{parts}");
}

/// Frames by which a client has its stream with this id reset.
type Offence = fn(u32) -> Vec<u8>;

#[test]
fn floods_of_frames_and_resets_close_the_connection() {
    for (name, beginning, flood) in [
        ("settings", Vec::new(), settings(&[])),
        ("pings", Vec::new(), frame(PING, 0, 0, &[0; 8])),
        ("priorities", Vec::new(), frame(PRIORITY, 0, 3, &[0; 5])),
        ("windows", Vec::new(), window_update(0, 1)),
        ("unknown frames", Vec::new(), frame(0xff, 0, 0, &[])),
        ("empty data", post(1, &[]), frame(DATA, 0, 1, &[])),
        (
            "padding",
            post(1, &[]),
            frame(DATA, PADDED, 1, &[&[200][..], &[0; 200]].concat()),
        ),
    ] {
        let mut connection = connected();
        receive(&mut connection, &beginning).unwrap();
        let mut frames = 0;
        let reason = loop {
            match react(&mut connection, &flood) {
                Reaction::None => frames += 1,
                Reaction::Closed(reason) => break reason,
                Reaction::Reset(..) => panic!("{name}"),
            }
        };
        assert_eq!(reason, Reason::EnhanceYourCalm, "{name}");
        assert!(frames < 20_000, "{name}: {frames}");
    }
    let offences: [(&str, Offence); 4] = [
        ("resets", |id| frame(RST_STREAM, 0, id, &[0, 0, 0, 8])),
        ("empty window updates", |id| window_update(id, 0)),
        ("data after the end", |id| frame(DATA, 0, id, b"a")),
        ("window overflows", |id| window_update(id, MAX_31_BIT)),
    ];
    for (name, offence) in offences {
        let mut connection = connected();
        let mut streams = 0;
        for id in (1..).step_by(2) {
            let request = [get(id), offence(id)].concat();
            if let Reaction::Closed(reason) = react(&mut connection, &request) {
                assert_eq!(reason, Reason::EnhanceYourCalm, "{name}");
                break;
            }
            while connection.next_request().is_some() {}
            connection.end_exchange(id);
            streams += 1;
        }
        assert!(streams < 150, "{name}: {streams}");
    }
}

#[test]
fn short_data_is_a_flood_only_if_it_is_discarded() {
    let data = frame(DATA, 0, 1, b"a");
    let mut connection = connected();
    receive(&mut connection, &post(1, &[])).unwrap();
    for _ in 0..20_000 {
        assert_eq!(react(&mut connection, &data), Reaction::None);
        assert!(matches!(
            event(&mut connection, 1),
            Some(DownstreamEvent::Data(_))
        ));
    }
    connection.abort_response(1);
    connection.end_exchange(1);
    sent(&mut connection);
    let discarded = (0..20_000).take_while(|_| react(&mut connection, &data) == Reaction::None);
    assert!(discarded.count() < 15_000);
}

#[test]
fn each_data_frame_may_be_acknowledged_by_two_window_updates() {
    let mut connection = connected();
    receive(&mut connection, &get(1)).unwrap();
    let headers = HeaderMap::new();
    let response = Response {
        status: StatusCode::OK,
        content_length: None,
        headers: &headers,
    };
    connection.send_headers(1, response, AfterHeaders::Body);
    assert!(matches!(
        event(&mut connection, 1),
        Some(DownstreamEvent::End)
    ));
    let updates = [window_update(1, 5), window_update(0, 5)].concat();
    for _ in 0..20_000 {
        connection.send_data(1, Bytes::from_static(b"event"));
        assert!(event(&mut connection, 1).is_none());
        assert_eq!(react(&mut connection, &updates), Reaction::None);
    }
}

// CVE-2019-9511.
#[test]
fn a_window_that_grows_by_single_bytes_is_a_flood() {
    let mut connection = connected();
    let start = [settings(&[(4, 0)]), get(1)].concat();
    receive(&mut connection, &start).unwrap();
    respond(&mut connection, 1, &vec![b'a'; 60_000]);
    event(&mut connection, 1);
    let update = window_update(1, 1);
    let updates = (0..20_000).take_while(|_| react(&mut connection, &update) == Reaction::None);
    assert!(updates.count() < 15_000);
}

// Section 6.9.
#[test]
fn responses_stay_within_the_windows_of_the_client() {
    let mut connection = connected();
    receive(
        &mut connection,
        &[settings(&[(4, 10)]), get(1), get(3)].concat(),
    )
    .unwrap();
    sent(&mut connection);
    for id in [1, 3] {
        respond(&mut connection, id, &[b'a'; 5000]);
        assert!(event(&mut connection, id).is_none());
    }
    let data = |frames: Vec<Sent>| -> Vec<(u32, usize, u8)> {
        let data = frames.into_iter().filter(|frame| frame.kind == DATA);
        data.map(|frame| (frame.stream, frame.payload.len(), frame.flags))
            .collect()
    };
    assert_eq!(data(sent(&mut connection)), [(1, 10, 0), (3, 10, 0)]);
    // The window of a stream may become negative.
    receive(
        &mut connection,
        &[settings(&[(4, 0)]), window_update(1, 9)].concat(),
    )
    .unwrap();
    assert_eq!(data(sent(&mut connection)), []);
    receive(&mut connection, &window_update(1, 2)).unwrap();
    assert_eq!(data(sent(&mut connection)), [(1, 1, 0)]);
    // The exchange may end when little is left, and the rest follows.
    receive(&mut connection, &window_update(1, 1000)).unwrap();
    assert_eq!(data(sent(&mut connection)), [(1, 1000, 0)]);
    assert!(matches!(
        event(&mut connection, 1),
        Some(DownstreamEvent::ResponseSent)
    ));
    connection.end_exchange(1);
    assert!(connection.has_unsent_responses());
    receive(&mut connection, &settings(&[(4, 100_000)])).unwrap();
    assert_eq!(
        data(sent(&mut connection)),
        [(1, 3989, END_STREAM), (3, 4990, END_STREAM)]
    );
    connection.end_exchange(3);
    assert_eq!(connection.streams.len(), 0);
    assert!(!connection.has_unsent_responses());
}

#[test]
fn a_response_that_the_client_does_not_read_ends_with_its_exchange_but_for_a_short_rest() {
    let mut connection = connected();
    let requests = [settings(&[(4, 0)]), get(1), get(3)].concat();
    receive(&mut connection, &requests).unwrap();
    sent(&mut connection);
    for (id, length) in [(1, MAX_UNSENT_REST), (3, MAX_UNSENT_REST + 1)] {
        respond(&mut connection, id, &vec![b'a'; length]);
        event(&mut connection, id);
        connection.end_exchange(id);
    }
    let frames = sent(&mut connection);
    let resets = frames.iter().filter(|frame| frame.kind == RST_STREAM);
    assert_eq!(resets.map(|frame| frame.stream).collect::<Vec<_>>(), [3]);
    let streams: Vec<_> = connection.streams.iter().map(|stream| stream.id).collect();
    assert_eq!(streams, [1]);
}

#[test]
fn the_window_of_the_connection_is_shared_in_turns() {
    let mut connection = connected();
    let windows = [settings(&[(4, MAX_31_BIT)]), get(1), get(3)].concat();
    receive(&mut connection, &windows).unwrap();
    sent(&mut connection);
    for id in [1, 3] {
        respond(&mut connection, id, &vec![b'a'; 40_000]);
        event(&mut connection, id);
    }
    let mut received = [0; 2];
    for _ in 0..10 {
        for frame in sent(&mut connection) {
            if frame.kind == DATA {
                received[usize::from(frame.stream == 3)] += frame.payload.len();
            }
        }
        connection.pump();
    }
    assert_eq!(received.iter().sum::<usize>(), DEFAULT_WINDOW as usize);
    assert!(received.iter().all(|bytes| *bytes > 16_000), "{received:?}");
    receive(&mut connection, &window_update(0, 100_000)).unwrap();
    for frame in sent(&mut connection) {
        received[usize::from(frame.stream == 3)] += frame.payload.len();
    }
    assert_eq!(received, [40_000; 2]);
}

#[test]
fn the_end_of_a_response_needs_no_window() {
    let mut connection = connected();
    let requests = [settings(&[(4, MAX_31_BIT)]), get(1), get(3)].concat();
    receive(&mut connection, &requests).unwrap();
    respond(
        &mut connection,
        1,
        &vec![b'a'; DEFAULT_WINDOW as usize + 10_000],
    );
    event(&mut connection, 1);
    while connection.send_window.available() > 0 {
        sent(&mut connection);
        connection.pump();
    }
    sent(&mut connection);
    respond(&mut connection, 3, b"");
    event(&mut connection, 3);
    let end = sent(&mut connection).pop().unwrap();
    assert_eq!((end.kind, end.stream, end.flags), (DATA, 3, END_STREAM));
    connection.end_exchange(3);
    assert_eq!(connection.streams.len(), 1);
}

#[test]
fn requests_stay_within_the_window_of_their_stream() {
    let mut connection = connected();
    receive(&mut connection, &post(1, &[])).unwrap();
    let data = frame(DATA, 0, 1, &[b'a'; MAX_FRAME_SIZE]);
    for _ in 0..4 {
        assert_eq!(react(&mut connection, &data), Reaction::None);
    }
    // The window grows by the data that the exchange has received.
    let mut taken = 0;
    while let Some(DownstreamEvent::Data(data)) = event(&mut connection, 1) {
        taken += data.len();
    }
    assert_eq!(taken, 64 * 1024);
    let updates: usize = sent(&mut connection)
        .iter()
        .filter(|frame| (frame.kind, frame.stream) == (WINDOW_UPDATE, 1))
        .map(|frame| u32::from_be_bytes(frame.payload[..].try_into().unwrap()) as usize)
        .sum();
    assert_eq!(updates, taken);
    let end = frame(DATA, END_STREAM, 1, b"a");
    receive(&mut connection, &end).unwrap();
    assert!(matches!(
        event(&mut connection, 1),
        Some(DownstreamEvent::Data(_))
    ));
    assert!(matches!(
        event(&mut connection, 1),
        Some(DownstreamEvent::End)
    ));
    assert!(event(&mut connection, 1).is_none());
    let mut connection = connected();
    let uploads = [post(1, &[]), data.repeat(4), frame(DATA, 0, 1, b"a")].concat();
    let reaction = react(&mut connection, &uploads);
    assert_eq!(reaction, Reaction::Reset(1, Reason::FlowControlError));
}

#[test]
fn the_window_of_the_connection_is_given_back_although_nothing_is_read() {
    let mut connection = connected();
    let (mut received, mut increments) = (0, 0);
    for stream in (1..).step_by(2).take(100) {
        receive(&mut connection, &post(stream, &[])).unwrap();
        assert!(connection.next_request().is_some());
        let data = frame(DATA, 0, stream, &[b'a'; MAX_FRAME_SIZE]).repeat(4);
        assert_eq!(receive(&mut connection, &data), Ok(()));
        received += 4 * MAX_FRAME_SIZE;
        for frame in sent(&mut connection) {
            assert_eq!((frame.kind, frame.stream), (WINDOW_UPDATE, 0));
            increments += u32::from_be_bytes(frame.payload[..].try_into().unwrap()) as usize;
        }
        assert!(received - increments <= CONNECTION_WINDOW as usize / 2);
    }
    assert!(increments > 0);
}

#[tokio::test(start_paused = true)]
async fn the_rest_of_an_upload_is_ignored_while_its_response_waits_for_the_client() {
    let mut connection = connected();
    let no_window = settings(&[(settings::INITIAL_WINDOW_SIZE, 0)]);
    receive(&mut connection, &[no_window, post(1, &[])].concat()).unwrap();
    connection.next_request();
    respond(&mut connection, 1, b"rest");
    event(&mut connection, 1);
    connection.end_exchange(1);
    // Empty frames are no progress of the upload.
    let deadline = connection.discard_deadline();
    let empty = frame(DATA, 0, 1, b"");
    assert_eq!(react(&mut connection, &empty), Reaction::None);
    assert_eq!(connection.discard_deadline(), deadline);
    connection.expire_discarded(deadline.unwrap());
    assert!(!connection.is_discarding());
    let data = frame(DATA, 0, 1, &[b'a'; MAX_FRAME_SIZE]);
    for _ in 0..5 {
        assert_eq!(react(&mut connection, &data), Reaction::None);
    }
    receive(&mut connection, &window_update(1, 4)).unwrap();
    let frames: Vec<_> = sent(&mut connection)
        .into_iter()
        .map(|frame| (frame.kind, frame.flags, frame.payload))
        .collect();
    let reset = (RST_STREAM, 0, vec![0, 0, 0, Reason::NoError as u8]);
    assert_eq!(frames, [(DATA, END_STREAM, b"rest".to_vec()), reset]);
    assert_eq!(connection.streams.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_rest_of_an_upload_is_discarded_within_its_window_and_time() {
    let upload = |connection: &mut Connection| {
        receive(connection, &post(1, &[])).unwrap();
        connection.next_request();
        respond(connection, 1, b"");
        event(connection, 1);
        connection.end_exchange(1);
        assert!(
            !sent(connection)
                .iter()
                .any(|frame| frame.kind == RST_STREAM)
        );
        assert!(connection.is_discarding());
    };
    // It ends.
    let mut connection = connected();
    upload(&mut connection);
    let end = frame(DATA, END_STREAM, 1, b"abc");
    assert_eq!(react(&mut connection, &end), Reaction::None);
    assert_eq!(connection.streams.len(), 0);
    // It uses the window up.
    let mut connection = connected();
    upload(&mut connection);
    let data = frame(DATA, 0, 1, &[b'a'; MAX_FRAME_SIZE]);
    for _ in 0..3 {
        assert_eq!(react(&mut connection, &data), Reaction::None);
    }
    let reset = Reaction::Reset(1, Reason::NoError);
    assert_eq!(react(&mut connection, &data), reset);
    assert_eq!(connection.streams.len(), 0);
    // It pauses.
    let mut connection = connected();
    upload(&mut connection);
    let deadline = connection.discard_deadline().unwrap();
    connection.expire_discarded(Instant::now());
    assert!(connection.is_discarding());
    connection.expire_discarded(deadline);
    assert_eq!(react(&mut connection, &[]), reset);
    assert_eq!(connection.streams.len(), 0);
}

#[test]
fn an_aborted_response_resets_its_stream() {
    let mut connection = connected();
    receive(&mut connection, &[get(1), get(3)].concat()).unwrap();
    connection.end_exchange(1);
    let headers = HeaderMap::new();
    let response = Response {
        status: StatusCode::OK,
        content_length: None,
        headers: &headers,
    };
    connection.send_headers(3, response, AfterHeaders::Body);
    connection.abort_response(3);
    connection.send_data(3, Bytes::from_static(b"late"));
    connection.end_exchange(3);
    let kinds: Vec<_> = sent(&mut connection)
        .iter()
        .map(|frame| (frame.kind, frame.stream))
        .collect();
    assert_eq!(kinds, [(RST_STREAM, 1), (HEADERS, 3), (RST_STREAM, 3)]);
}

#[test]
fn long_headers_are_continued_and_interim_responses_come_first() {
    let mut connection = connected();
    receive(&mut connection, &get(1)).unwrap();
    let mut headers = HeaderMap::new();
    headers.insert("x", HeaderValue::from_str(&"y".repeat(40_000)).unwrap());
    let response = |status| Response {
        status,
        content_length: None,
        headers: &headers,
    };
    let interim = response(StatusCode::EARLY_HINTS);
    connection.send_headers(1, interim, AfterHeaders::Response);
    connection.send_headers(1, response(StatusCode::OK), AfterHeaders::End);
    connection.send_headers(1, response(StatusCode::OK), AfterHeaders::End);
    let frames: Vec<_> = sent(&mut connection)
        .iter()
        .map(|frame| (frame.kind, frame.flags))
        .collect();
    let block = |flags| {
        [
            (HEADERS, flags),
            (CONTINUATION, 0),
            (CONTINUATION, END_HEADERS),
        ]
    };
    assert_eq!(frames, [block(0), block(END_STREAM)].concat());
}

// Section 6.8.
#[test]
fn a_graceful_shutdown_completes_what_the_client_has_sent() {
    let mut connection = connected();
    receive(&mut connection, &get(1)).unwrap();
    connection.begin_drain();
    connection.begin_drain();
    let frames = sent(&mut connection);
    // No frame but GOAWAY may follow GOAWAY for python-h2.
    let kinds: Vec<_> = frames.iter().map(|frame| frame.kind).collect();
    assert_eq!(kinds, [PING, GOAWAY]);
    assert_eq!(frames[1].payload[..4], MAX_31_BIT.to_be_bytes());
    // A request that was on its way.
    assert_eq!(react(&mut connection, &get(3)), Reaction::None);
    let ack = frame(PING, ACK, 0, &frames[0].payload);
    receive(&mut connection, &ack).unwrap();
    let frames = sent(&mut connection);
    assert_eq!(
        (frames[0].kind, &frames[0].payload[..4]),
        (GOAWAY, &[0, 0, 0, 3][..])
    );
    let refused = Reaction::Reset(5, Reason::RefusedStream);
    assert_eq!(react(&mut connection, &get(5)), refused);
    for id in [1, 3] {
        assert!(!connection.is_drained());
        respond(&mut connection, id, b"ok");
        connection.end_exchange(id);
    }
    assert!(connection.is_drained());
    // The stream that was refused is not named as one that may have been processed.
    connection.close(Some(Reason::NoError));
    let goaway = sent(&mut connection).pop().unwrap();
    assert_eq!(
        (goaway.kind, &goaway.payload[..4]),
        (GOAWAY, &[0, 0, 0, 3][..])
    );
}

struct CountingWaker(AtomicUsize);

impl Wake for CountingWaker {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn an_exchange_is_notified_of_its_events_once() {
    let waker = Waker::from(Arc::new(CountingWaker(AtomicUsize::new(0))));
    let mut connection = connected();
    receive(&mut connection, &post(1, &[])).unwrap();
    let poll = |connection: &mut Connection| connection.next_event(1, Backpressure::Ready, &waker);
    assert!(poll(&mut connection).is_none());
    assert!(poll(&mut connection).is_none());
    for bytes in [
        frame(DATA, 0, 1, b"a"),
        frame(DATA, END_STREAM, 1, b"b"),
        frame(RST_STREAM, 0, 1, &[0, 0, 0, 8]),
    ] {
        receive(&mut connection, &bytes).unwrap();
        assert_eq!(connection.next_notified().map(|(id, _)| id), Some(1));
        assert!(connection.next_notified().is_none());
        while poll(&mut connection)
            .is_some_and(|event| !matches!(event, DownstreamEvent::Disconnected))
        {}
    }
    // A response that is sent at once needs no notification.
    receive(&mut connection, &get(3)).unwrap();
    let poll = |connection: &mut Connection| connection.next_event(3, Backpressure::Ready, &waker);
    while poll(&mut connection).is_some() {}
    respond(&mut connection, 3, b"ok");
    assert!(matches!(
        poll(&mut connection),
        Some(DownstreamEvent::ResponseSent)
    ));
    assert!(connection.next_notified().is_none());
}

proptest! {
    #[test]
    fn frames_are_recognised_wherever_reads_split_them(read_size in 1_usize..80) {
        let bytes = [
            PREFACE.to_vec(),
            settings(&[(1, 100), (4, 20)]),
            post(1, &[("content-length", "5")]),
            frame(DATA, PADDED, 1, &[3, b'a', b'b', 0, 0, 0]),
            frame(PING, 0, 0, &[1; 8]),
            frame(HEADERS, END_STREAM, 3, &block("GET", &[])[..9]),
            frame(CONTINUATION, END_HEADERS, 3, &block("GET", &[])[9..]),
            frame(DATA, END_STREAM, 1, b"cde"),
            frame(DATA, 0, 3, b"late"),
            window_update(1, 0),
        ]
        .concat();
        let run = |read_size: usize| {
            let mut connection = Connection::new(MAX_HEADER_BYTES);
            for read in bytes.chunks(read_size) {
                receive(&mut connection, read).unwrap();
            }
            let requests = std::iter::from_fn(|| connection.next_request());
            let requests: Vec<_> = requests.map(|request| request.stream).collect();
            (requests, sent(&mut connection))
        };
        prop_assert_eq!(run(read_size), run(bytes.len()));
    }

    #[test]
    fn responses_arrive_whole_and_within_the_windows(
        bodies in prop::collection::vec(prop_oneof![Just(0), 0_usize..100_000], 1..6),
        grants in prop::collection::vec((0_usize..8, 1_u32..60_000), 0..60),
    ) {
        let mut connection = connected();
        let ids: Vec<u32> = (1..).step_by(2).take(bodies.len()).collect();
        for (id, length) in ids.iter().zip(&bodies) {
            receive(&mut connection, &get(*id)).unwrap();
            respond(&mut connection, *id, &vec![b'a'; *length]);
            event(&mut connection, *id);
        }
        let mut windows = vec![i64::from(DEFAULT_WINDOW); bodies.len()];
        let (mut initial, mut shared) = (DEFAULT_WINDOW, i64::from(DEFAULT_WINDOW));
        let (mut received, mut ends) = (vec![0; bodies.len()], vec![0; bodies.len()]);
        // At last all windows are open. Before the first update the frames are received that were within the first windows.
        let last = [(0, 1_000_000), (1, 1_000_000)];
        let grants = grants.into_iter().chain(last).map(Some);
        for grant in std::iter::once(None).chain(grants) {
            let update = match grant {
                None => frame(PING, ACK, 0, &[0; 8]),
                Some((0, size)) => {
                    shared += i64::from(size);
                    window_update(0, size)
                }
                Some((1, size)) => {
                    let change = i64::from(size) - i64::from(initial);
                    initial = size;
                    for window in &mut windows { *window += change; }
                    settings(&[(4, size)])
                }
                Some((window, size)) => {
                    let stream = window % bodies.len();
                    windows[stream] += i64::from(size);
                    window_update(ids[stream], size)
                }
            };
            receive(&mut connection, &update).unwrap();
            while connection.output.len() > 0 {
                for frame in sent(&mut connection) {
                    let Some(stream) = ids.iter().position(|id| *id == frame.stream) else {
                        continue;
                    };
                    if frame.kind == DATA {
                        let length = frame.payload.len();
                        received[stream] += length;
                        windows[stream] -= i64::try_from(length).unwrap();
                        shared -= i64::try_from(length).unwrap();
                        prop_assert!(length == 0 || windows[stream] >= 0 && shared >= 0);
                        ends[stream] += usize::from(frame.flags & END_STREAM);
                    }
                }
                connection.pump();
            }
        }
        prop_assert_eq!(received, bodies);
        prop_assert!(ends.iter().all(|count| *count == 1), "{:?}", ends);
    }

    #[test]
    fn any_bytes_are_received_without_a_panic(parts in prop::collection::vec(
        prop_oneof![
            (0_u8..12, any::<u8>(), 0_u32..8, prop::collection::vec(any::<u8>(), 0..40))
                .prop_map(|(kind, flags, stream, payload)| frame(kind, flags, stream, &payload)),
            (0_u32..8).prop_map(|number| get(2 * number + 1)),
            (0_u32..8).prop_map(|number| post(2 * number + 1, &[])),
        ],
        0..40,
    )) {
        let mut connection = connected();
        for (number, part) in parts.iter().enumerate() {
            if receive(&mut connection, part).is_err() {
                break;
            }
            while let Some(request) = connection.next_request() {
                respond(&mut connection, request.stream, &[b'a'; 100]);
            }
            let id = u32::try_from(number % 8).unwrap() * 2 + 1;
            while event(&mut connection, id).is_some_and(|event| {
                matches!(event, DownstreamEvent::Data(_) | DownstreamEvent::End)
            }) {}
            if number % 3 == 0 {
                connection.end_exchange(id);
            }
            sent(&mut connection);
        }
    }
}
