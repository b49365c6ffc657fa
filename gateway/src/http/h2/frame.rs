//! Frames (RFC 9113, sections 4 and 6): constants, frame headers, and serialisation of those that the gateway sends.

/// Connection preface of a client (RFC 9113, section 3.4).
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Length of a frame header in bytes (RFC 9113, section 4.1).
pub(super) const FRAME_HEADER_LENGTH: usize = 9;
/// Maximum length of a payload in bytes in either direction: `SETTINGS_MAX_FRAME_SIZE` is at least as large, and the
/// gateway does not raise its own.
pub(super) const MAX_FRAME_SIZE: usize = 16 * 1024;
/// Largest stream id, and largest flow-control window.
pub(super) const MAX_31_BIT: u32 = 0x7fff_ffff;

// Frame types (RFC 9113, section 6).
pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PUSH_PROMISE: u8 = 5;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

// Flags.
pub(super) const ACK: u8 = 0x1;
pub(super) const END_STREAM: u8 = 0x1;
pub(super) const END_HEADERS: u8 = 0x4;
pub(super) const PADDED: u8 = 0x8;
pub(super) const PRIORITISED: u8 = 0x20;

/// Error code (RFC 9113, section 7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Reason {
    NoError = 0x0,
    ProtocolError = 0x1,
    InternalError = 0x2,
    FlowControlError = 0x3,
    StreamClosed = 0x5,
    FrameSizeError = 0x6,
    RefusedStream = 0x7,
    CompressionError = 0x9,
    EnhanceYourCalm = 0xb,
}

/// Header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FrameHeader {
    /// Length of the payload.
    pub(super) length: usize,
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
}

impl FrameHeader {
    /// Parses the frame header at the start of `input`, `None` if it is incomplete.
    pub(super) fn parse(input: &[u8]) -> Option<Self> {
        let [high, middle, low, kind, flags, stream @ ..] = input.first_chunk::<9>()?;
        Some(Self {
            length: usize::from(*high) << 16 | usize::from(*middle) << 8 | usize::from(*low),
            kind: *kind,
            flags: *flags,
            stream: u32::from_be_bytes(*stream) & MAX_31_BIT,
        })
    }

    pub(super) fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Returns a 31-bit integer, whose first bit is reserved.
pub(super) fn read_31_bit(bytes: [u8; 4]) -> u32 {
    u32::from_be_bytes(bytes) & MAX_31_BIT
}

/// Removes the padding of the payload of a DATA or HEADERS frame (RFC 9113, section 6.1).
///
/// # Errors
/// Returns an error if the padding is longer than the payload.
pub(super) fn without_padding(frame: FrameHeader, payload: &[u8]) -> Result<&[u8], Reason> {
    if !frame.has(PADDED) {
        return Ok(payload);
    }
    let (padding, rest) = payload.split_first().ok_or(Reason::FrameSizeError)?;
    let length = rest.len().checked_sub(usize::from(*padding));
    length
        .and_then(|length| rest.get(..length))
        .ok_or(Reason::ProtocolError)
}

/// Writes a frame header. The payload, of at most [`MAX_FRAME_SIZE`] bytes, has to follow.
pub(super) fn put_frame_header(output: &mut Vec<u8>, frame: FrameHeader) {
    let [a, b, c, d] = frame.stream.to_be_bytes();
    let [high, middle, low] = length_bytes(frame.length);
    output.extend_from_slice(&[high, middle, low, frame.kind, frame.flags, a, b, c, d]);
}

/// Returns the length of a payload as it is written into a frame header.
pub(super) fn length_bytes(length: usize) -> [u8; 3] {
    debug_assert!(length <= MAX_FRAME_SIZE);
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    let [_, high, middle, low] = length.to_be_bytes();
    [high, middle, low]
}

fn put(output: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = payload.len();
    let frame = FrameHeader {
        length,
        kind,
        flags,
        stream,
    };
    put_frame_header(output, frame);
    output.extend_from_slice(payload);
}

/// Writes the settings of the gateway: pairs of identifier and value.
pub(super) fn put_settings(output: &mut Vec<u8>, settings: &[(u16, u32)]) {
    let payload: Vec<u8> = settings
        .iter()
        .flat_map(|(id, value)| id.to_be_bytes().into_iter().chain(value.to_be_bytes()))
        .collect();
    put(output, SETTINGS, 0, 0, &payload);
}

pub(super) fn put_settings_ack(output: &mut Vec<u8>) {
    put(output, SETTINGS, ACK, 0, &[]);
}

pub(super) fn put_ping(output: &mut Vec<u8>, payload: [u8; 8]) {
    put(output, PING, 0, 0, &payload);
}

pub(super) fn put_ping_ack(output: &mut Vec<u8>, payload: [u8; 8]) {
    put(output, PING, ACK, 0, &payload);
}

pub(super) fn put_goaway(output: &mut Vec<u8>, last_stream: u32, reason: Reason) {
    let payload = u64::from(last_stream) << 32 | u64::from(reason as u32);
    put(output, GOAWAY, 0, 0, &payload.to_be_bytes());
}

pub(super) fn put_reset(output: &mut Vec<u8>, stream: u32, reason: Reason) {
    put(
        output,
        RST_STREAM,
        0,
        stream,
        &(reason as u32).to_be_bytes(),
    );
}

/// Writes a `WINDOW_UPDATE` frame, of the connection for stream 0.
pub(super) fn put_window_update(output: &mut Vec<u8>, stream: u32, increment: u32) {
    put(output, WINDOW_UPDATE, 0, stream, &increment.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frame_headers_are_read_as_they_are_written() {
        let frame = FrameHeader {
            length: 0x3fff,
            kind: HEADERS,
            flags: END_STREAM | END_HEADERS,
            stream: 0x1234_5677,
        };
        let mut output = Vec::new();
        put_frame_header(&mut output, frame);
        assert_eq!(FrameHeader::parse(&output), Some(frame));
        assert_eq!(FrameHeader::parse(&output[..8]), None);
        // The reserved bit is ignored.
        output[5] |= 0x80;
        assert_eq!(FrameHeader::parse(&output), Some(frame));
    }

    #[test]
    fn padding_is_removed_unless_it_is_longer_than_the_payload() {
        let mut frame = FrameHeader {
            length: 0,
            kind: DATA,
            flags: 0,
            stream: 1,
        };
        assert_eq!(without_padding(frame, &[2, 3]), Ok(&[2, 3][..]));
        frame.flags = PADDED;
        assert_eq!(without_padding(frame, &[2, 3, 0, 0]), Ok(&[3][..]));
        assert_eq!(without_padding(frame, &[2, 0, 0]), Ok(&[][..]));
        assert_eq!(
            without_padding(frame, &[3, 0, 0]),
            Err(Reason::ProtocolError)
        );
        assert_eq!(without_padding(frame, &[]), Err(Reason::FrameSizeError));
    }
}
