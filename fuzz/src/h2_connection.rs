//! Whole connections of HTTP/2 with the real server, over a pipe, in time that is skipped: every connection ends by
//! itself, every frame of the server is valid, and each stream has one response at most.

use std::collections::BTreeMap;
use std::time::Duration;

use gateway::fuzz::{BodyFraming, ClientReading, ClientStep, Http2Connection, serve_http2};
use tokio::runtime::Builder;

use crate::h2_frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, Frame, GOAWAY, HEADERS, PREFACE, PUSH_PROMISE,
    RST_STREAM, SETTINGS, put, put_any, put_request, read,
};
use crate::input::Choices;

/// Time that the server has to end a connection whose client does nothing any more: a few of its timers, which are one
/// minute at most, one after another.
const MAX_TIME: Duration = Duration::from_mins(10);
/// Largest frame that a client has to accept without announcing it (RFC 9113, section 4.2).
const MAX_FRAME: usize = 16 * 1024;
const MAX_STEPS: usize = 64;

/// Input: a byte of options, then raw bytes or choices from which frames are made.
pub(crate) fn run(input: &[u8]) {
    let mut choices = Choices::new(input);
    let options = choices.byte();
    let reading = match options & 3 {
        0 | 1 => ClientReading::AtOnce,
        2 => ClientReading::Afterwards,
        _ => ClientReading::Never,
    };
    let mut steps = if options & 4 == 0 {
        frames(&mut choices)
    } else {
        raw(choices.rest())
    };
    if options & 8 != 0 {
        steps.push(ClientStep::Close);
    }
    let runtime = Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without threads");
    check(&runtime.block_on(serve_http2(&steps, reading, MAX_TIME)));
}

/// Returns raw bytes after a preface and settings, in a few parts.
fn raw(bytes: &[u8]) -> Vec<ClientStep> {
    let mut start = PREFACE.to_vec();
    put(&mut start, SETTINGS, 0, 0, &[]);
    let parts = bytes.chunks(bytes.len() / 3 + 1).map(<[u8]>::to_vec);
    let parts = [start].into_iter().chain(parts).map(ClientStep::Send);
    let mut steps = Vec::new();
    for part in parts {
        steps.push(part);
        steps.push(ClientStep::Wait(Duration::from_secs(1)));
    }
    steps
}

fn frames(choices: &mut Choices<'_>) -> Vec<ClientStep> {
    let (mut steps, mut bytes, mut stream) = (Vec::new(), PREFACE.to_vec(), 1);
    put(&mut bytes, SETTINGS, 0, 0, &[]);
    for _ in 0..MAX_STEPS {
        if choices.is_empty() {
            break;
        }
        match choices.byte() % 16 {
            0..=4 => {
                put_request(&mut bytes, choices, stream);
                stream += 2;
            }
            5 | 6 => put_any(&mut bytes, choices),
            7 => {
                let length = usize::from(choices.byte());
                let flags = choices.byte() & END_STREAM;
                let data = choices.bytes(length).to_vec();
                put(&mut bytes, DATA, flags, earlier(stream, choices), &data);
            }
            8 => put(
                &mut bytes,
                RST_STREAM,
                0,
                earlier(stream, choices),
                &[0, 0, 0, 8],
            ),
            9 => {
                // Initial window sizes, from none to the largest.
                let size = choices.one_of(&[0, 1, 65_535, 0x7fff_ffff, 0x8000_0000_u32]);
                let setting = [&[0, 4][..], &size.to_be_bytes()].concat();
                put(&mut bytes, SETTINGS, 0, 0, &setting);
            }
            10 => {
                let increment = choices
                    .one_of(&[0, 1, 65_535, 0x7fff_ffff_u32])
                    .to_be_bytes();
                let stream = choices.one_of(&[0, earlier(stream, &mut Choices::new(&[]))]);
                put(&mut bytes, 8, 0, stream, &increment);
            }
            11 => put(&mut bytes, 6, choices.byte() & 1, 0, &[0; 8]),
            12 => {
                // Many equal frames.
                let start = bytes.len();
                put_any(&mut bytes, choices);
                let frame = bytes[start..].to_vec();
                for _ in 0..choices.byte() {
                    bytes.extend_from_slice(&frame);
                }
            }
            13 => {
                steps.push(ClientStep::Send(std::mem::take(&mut bytes)));
                let seconds = choices.one_of(&[1, 9, 11, 59, 61, 100]);
                steps.push(ClientStep::Wait(Duration::from_secs(seconds)));
            }
            14 => {
                steps.push(ClientStep::Send(std::mem::take(&mut bytes)));
                steps.push(ClientStep::Shutdown);
            }
            _ => {
                let length = usize::from(choices.byte() % 32);
                bytes.extend_from_slice(choices.bytes(length));
            }
        }
    }
    steps.push(ClientStep::Send(bytes));
    steps
}

/// Takes one of the streams that were opened.
fn earlier(next: u32, choices: &mut Choices<'_>) -> u32 {
    next.saturating_sub(2 * (1 + u32::from(choices.byte() % 8)))
        .max(1)
}

fn check(connection: &Http2Connection) {
    assert!(
        connection.ended_after.is_some(),
        "the connection does not end"
    );
    assert_eq!(connection.unsent_responses, 0);
    for request in &connection.requests {
        assert!(!["TRACE", "CONNECT"].contains(&request.method.as_str()));
        assert!(request.target.iter().all(u8::is_ascii_graphic));
        assert!(!request.target.is_empty());
        let hosts = request.headers.iter().filter(|(name, _)| name == "host");
        assert_eq!(hosts.count(), 1);
        for (name, value) in &request.headers {
            assert!(
                !["connection", "transfer-encoding", "content-length"].contains(&name.as_str())
            );
            assert!(value.iter().all(|byte| !b"\r\n\0".contains(byte)), "{name}");
        }
        if let (BodyFraming::Length(expected), Some(length)) =
            (request.framing, request.body_length)
        {
            assert_eq!(length, expected);
        }
    }
    let interim = connection.requests.iter();
    let interim = interim.filter(|request| request.target.starts_with(b"/interim"));
    check_frames(&read(&connection.received), interim.count());
}

/// State of a stream, by what the server sent on it.
#[derive(Debug, Default)]
struct Stream {
    /// Number of header blocks, of interim responses and the final one.
    header_blocks: usize,
    has_data: bool,
    has_ended: bool,
    was_reset: bool,
}

/// Checks what the server sent. Requests for `interim` interim responses were served.
fn check_frames(frames: &[Frame<'_>], interim: usize) {
    let mut streams: BTreeMap<u32, Stream> = BTreeMap::new();
    let (mut open_block, mut last_stream) = (None, u32::MAX);
    for (number, frame) in frames.iter().enumerate() {
        assert!(frame.payload.len() <= MAX_FRAME, "{frame:?}");
        assert!(
            number > 0 || frame.kind == SETTINGS,
            "{frame:?} comes first"
        );
        assert_ne!(frame.kind, PUSH_PROMISE);
        if let Some(stream) = open_block {
            assert_eq!((frame.kind, frame.stream), (CONTINUATION, stream));
        }
        let stream = streams.entry(frame.stream).or_default();
        match frame.kind {
            HEADERS => {
                assert!(
                    !stream.has_ended && !stream.was_reset,
                    "{frame:?} after the end"
                );
                assert_eq!(frame.stream % 2, 1);
                assert!(!stream.has_data, "{frame:?} after data");
                stream.header_blocks += 1;
            }
            DATA => {
                assert!(stream.header_blocks > 0, "{frame:?} before a response");
                stream.has_data = true;
                assert!(
                    !stream.has_ended && !stream.was_reset,
                    "{frame:?} after the end"
                );
            }
            RST_STREAM => {
                assert!(!stream.was_reset, "a second reset");
                stream.was_reset = true;
            }
            SETTINGS => assert_eq!(frame.stream, 0),
            GOAWAY => {
                assert_eq!(frame.stream, 0);
                let named = frame.payload.first_chunk().copied();
                let named = u32::from_be_bytes(named.expect("it names a stream"));
                assert!(named <= last_stream, "{frame:?} names a later stream");
                last_stream = named;
            }
            _ => {}
        }
        if matches!(frame.kind, HEADERS | DATA) && frame.flags & END_STREAM != 0 {
            stream.has_ended = true;
        }
        open_block = match frame.kind {
            HEADERS | CONTINUATION if frame.flags & END_HEADERS == 0 => Some(frame.stream),
            _ => None,
        };
    }
    let further = streams
        .values()
        .map(|stream| stream.header_blocks.saturating_sub(1));
    assert!(
        further.sum::<usize>() <= interim,
        "a second response on a stream"
    );
}
