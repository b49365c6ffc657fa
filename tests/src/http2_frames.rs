//! HTTP/2 frames (RFC 9113) that a test writes itself, to be sent over a [`RawConnection`].

use std::ops::Range;

use anyhow::Result;

use crate::Gateway;
use crate::raw_connection::RawConnection;

/// Connection preface of a client (RFC 9113, section 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Frame type DATA (RFC 9113, section 6.1).
pub const DATA: u8 = 0;
/// Frame type HEADERS (RFC 9113, section 6.2).
pub const HEADERS: u8 = 1;
/// Frame type `RST_STREAM` (RFC 9113, section 6.4).
pub const RST_STREAM: u8 = 3;
/// Frame type SETTINGS (RFC 9113, section 6.5).
pub const SETTINGS: u8 = 4;
/// Frame type PING (RFC 9113, section 6.7).
pub const PING: u8 = 6;
/// Frame type GOAWAY (RFC 9113, section 6.8).
pub const GOAWAY: u8 = 7;
/// Frame type `WINDOW_UPDATE` (RFC 9113, section 6.9).
pub const WINDOW_UPDATE: u8 = 8;
/// Frame type CONTINUATION (RFC 9113, section 6.10).
pub const CONTINUATION: u8 = 9;
/// Flag of DATA and HEADERS frames: the request is complete.
pub const END_STREAM: u8 = 1;
/// Flag of HEADERS frames: the header block is complete.
pub const END_HEADERS: u8 = 4;

/// Frame with the given header fields and payload (RFC 9113, section 4.1).
///
/// # Panics
/// Panics if the payload is longer than 4 GiB.
#[must_use]
pub fn frame(frame_type: u8, flags: u8, stream_id: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("the payload is short");
    let mut frame = length.to_be_bytes()[1..].to_vec();
    frame.extend([frame_type, flags]);
    frame.extend(stream_id.to_be_bytes());
    frame.extend(payload);
    frame
}

/// HPACK literal header without indexing, with a new name (RFC 7541, section 6.2.2).
///
/// # Panics
/// Panics if name or value is longer than 255 bytes.
#[must_use]
pub fn literal_header(name: &str, value: &str) -> Vec<u8> {
    let length = |text: &str| u8::try_from(text.len()).expect("the text is short");
    let mut header = vec![0, length(name)];
    header.extend(name.as_bytes());
    header.push(length(value));
    header.extend(value.as_bytes());
    header
}

/// Header block of a GET request for `/` with further headers.
#[must_use]
pub fn header_block(headers: &[(&str, &str)]) -> Vec<u8> {
    header_block_for("/", headers)
}

/// Header block of a GET request for `path` with further headers.
#[must_use]
pub fn header_block_for(path: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    // Indices of the static table: `:method: GET` and `:scheme: https`.
    let mut block = vec![0x82, 0x87];
    block.extend(literal_header(":path", path));
    block.extend(literal_header(":authority", "localhost"));
    for (name, value) in headers {
        block.extend(literal_header(name, value));
    }
    block
}

/// Opens an HTTP/2 connection: sends the preface and empty settings.
///
/// # Errors
/// Returns an error if the connection or the TLS handshake fails.
pub async fn connect(gateway: &Gateway) -> Result<RawConnection> {
    let mut connection = RawConnection::connect_http2(gateway).await?;
    connection
        .send([PREFACE, &frame(SETTINGS, 0, 0, &[])].concat())
        .await?;
    Ok(connection)
}

/// HEADERS frame with a complete request.
#[must_use]
pub fn request(stream_id: u32, header_block: &[u8]) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, stream_id, header_block)
}

/// HEADERS frame with a complete GET request for `path`.
#[must_use]
pub fn get(stream_id: u32, path: &str) -> Vec<u8> {
    request(stream_id, &header_block_for(path, &[]))
}

/// HEADERS frame of a POST request for `path`, whose body follows.
#[must_use]
pub fn post(stream_id: u32, path: &str) -> Vec<u8> {
    let mut block = header_block_for(path, &[]);
    // `:method: POST` in the static table, in place of GET.
    block[0] = 0x83;
    frame(HEADERS, END_HEADERS, stream_id, &block)
}

/// `RST_STREAM` frame with the error code `CANCEL`.
#[must_use]
pub fn reset(stream_id: u32) -> Vec<u8> {
    const CANCEL: u32 = 8;
    frame(RST_STREAM, 0, stream_id, &CANCEL.to_be_bytes())
}

/// GOAWAY frame of a client that sends no further request.
#[must_use]
pub fn goaway() -> Vec<u8> {
    frame(GOAWAY, 0, 0, &[0; 8])
}

#[must_use]
pub fn ping() -> Vec<u8> {
    frame(PING, 0, 0, &[0; 8])
}

/// Ids of the client's streams with these numbers, counted from 0.
pub fn stream_ids(numbers: Range<u32>) -> impl Iterator<Item = u32> {
    numbers.map(|number| number * 2 + 1)
}

/// Types of the complete or truncated frames in `bytes`.
#[must_use]
pub fn frame_types(bytes: &[u8]) -> Vec<u8> {
    let (mut types, mut rest) = (Vec::new(), bytes);
    while let [a, b, c, frame_type, _, _, _, _, _, after @ ..] = rest {
        types.push(*frame_type);
        let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
        rest = after.get(length..).unwrap_or_default();
    }
    types
}

/// Reads until the connection is closed and returns the types of the frames received.
///
/// # Errors
/// Returns an error if the connection is not closed within [`wait::TIMEOUT`](crate::wait::TIMEOUT).
pub async fn read_frame_types(connection: &mut RawConnection) -> Result<Vec<u8>> {
    Ok(frame_types(&connection.read_to_end().await?))
}

/// Reads until a frame of this type is received.
///
/// # Errors
/// Returns an error if the connection is closed before.
pub async fn read_until_frame(frame_type: u8, connection: &mut RawConnection) -> Result<()> {
    read_until_frames(frame_type, 1, &mut Vec::new(), connection).await
}

/// Reads until `received`, to which it appends, contains `count` frames of this type.
///
/// # Errors
/// Returns an error if the connection is closed before.
pub async fn read_until_frames(
    frame_type: u8,
    count: usize,
    received: &mut Vec<u8>,
    connection: &mut RawConnection,
) -> Result<()> {
    let is_wanted = |kind: &u8| *kind == frame_type;
    while frame_types(received).into_iter().filter(is_wanted).count() < count {
        let bytes = connection.read_some().await?;
        anyhow::ensure!(
            !bytes.is_empty(),
            "closed after frames of types {:?}",
            frame_types(received)
        );
        received.extend(bytes);
    }
    Ok(())
}
