//! Messages of HTTP/1.1.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::BytesMut;
use http::{HeaderMap, Method, Version};
use pingora::protocols::Stream;
use tokio::io::AsyncWrite;

use crate::http::downstream::Backpressure;
use crate::http::h1::framing::{BodyDecoder, BodyEvent, ChunkSyntax};
use crate::http::h1::hop_by_hop::Persistence;
use crate::http::h1::request_headers::HeaderScanner;
use crate::http::message::{Framing, Upgrade};
use crate::upstream::{Connection, UpstreamEvent};

/// Name and value of a header.
pub type Header = (String, Vec<u8>);

/// Result of reading what has been received of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reading<T> {
    Complete(T),
    /// More bytes are needed.
    Incomplete,
    Malformed(String),
}

/// Delimitation of a message body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyFraming {
    Empty,
    Length(u64),
    Chunked,
    UntilClose,
}

impl From<Framing> for BodyFraming {
    fn from(framing: Framing) -> Self {
        match framing {
            Framing::Empty => Self::Empty,
            Framing::Length(length) => Self::Length(length),
            Framing::Chunked => Self::Chunked,
            Framing::UntilClose => Self::UntilClose,
        }
    }
}

/// Request headers as they are passed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub method: String,
    /// Target in origin form, not normalised.
    pub target: Vec<u8>,
    pub is_http_1_0: bool,
    /// In the order of their names' first lines.
    pub headers: Vec<Header>,
    pub framing: BodyFraming,
    /// True if another request may follow on the connection.
    pub persists: bool,
    /// Number of bytes up to the end of the header section.
    pub length: usize,
}

/// Reads the request headers at the start of `bytes`, which arrive in reads of `read_size` bytes.
#[must_use]
pub fn read_request(bytes: &[u8], read_size: usize, max_bytes: usize) -> Reading<Request> {
    let (mut scanner, mut buffer) = (HeaderScanner::default(), BytesMut::new());
    let mut received = 0;
    for read in bytes.chunks(read_size) {
        buffer.extend_from_slice(read);
        received += read.len();
        match scanner.take_request(&mut buffer, max_bytes) {
            Ok(None) => {}
            Ok(Some((request, persistence))) => {
                return Reading::Complete(Request {
                    method: request.method.to_string(),
                    target: request.target.as_bytes().to_vec(),
                    is_http_1_0: request.version == Version::HTTP_10,
                    headers: list(&request.headers),
                    framing: request.framing.into(),
                    persists: persistence == Persistence::KeepAlive,
                    length: received - buffer.len(),
                });
            }
            Err(rejection) => return Reading::Malformed(rejection.error.to_string()),
        }
    }
    Reading::Incomplete
}

fn list(headers: &HeaderMap) -> Vec<Header> {
    headers
        .iter()
        .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()))
        .collect()
}

/// Recipient of a chunked body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChunkedReader {
    OfRequests,
    OfResponses,
}

/// Decoded body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Body {
    pub data: Vec<u8>,
    /// Number of bytes of the encoding, trailers included.
    pub length: usize,
}

/// Decodes the chunked body at the start of `bytes`, which arrive in reads of `read_size` bytes.
#[must_use]
pub fn read_chunked(bytes: &[u8], read_size: usize, reader: ChunkedReader) -> Reading<Body> {
    let syntax = match reader {
        ChunkedReader::OfRequests => ChunkSyntax::Strict,
        ChunkedReader::OfResponses => ChunkSyntax::Lenient,
    };
    let mut decoder = BodyDecoder::from(Framing::Chunked);
    let (mut buffer, mut data, mut received) = (BytesMut::new(), Vec::new(), 0);
    for read in bytes.chunks(read_size) {
        buffer.extend_from_slice(read);
        received += read.len();
        loop {
            match decoder.decode(&mut buffer, syntax) {
                Ok(Some(BodyEvent::Data(part))) => data.extend_from_slice(&part),
                Ok(Some(BodyEvent::End)) => {
                    let length = received - buffer.len();
                    return Reading::Complete(Body { data, length });
                }
                Ok(None) => break,
                Err(error) => return Reading::Malformed(error.to_string()),
            }
        }
    }
    Reading::Incomplete
}

/// Exchange of an upstream connection, as its endpoint carries it out.
#[derive(Debug, Clone, Copy)]
pub struct EndpointBehaviour<'b> {
    pub method: &'b str,
    /// True if the request asks for a WebSocket.
    pub wants_upgrade: bool,
    /// Everything that the endpoint sends.
    pub sent: &'b [u8],
    /// True if the endpoint then closes the connection.
    pub closes: bool,
}

/// Response as it is passed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Status of each interim response.
    pub interim: Vec<u16>,
    pub status: u16,
    pub headers: Vec<Header>,
    pub framing: BodyFraming,
    pub body: Vec<u8>,
    /// True if the connection would be used for another request.
    pub is_reusable: bool,
}

/// Reads the response of an endpoint, whose bytes arrive in writes of `write_size` bytes.
///
/// # Panics
/// Panics if `method` is none, or the connection does not take the bytes.
#[must_use]
pub fn read_response(endpoint: EndpointBehaviour<'_>, write_size: usize) -> Reading<Response> {
    let (mut peer, stream) = tokio::io::duplex(endpoint.sent.len() + 1);
    let stream: Stream = Box::new(stream);
    let mut connection = Connection::new(stream, None);
    let method = Method::from_bytes(endpoint.method.as_bytes()).expect("it is a token");
    let upgrade = if endpoint.wants_upgrade {
        Upgrade::WebSocket
    } else {
        Upgrade::None
    };
    connection.begin_request(&method, Framing::Empty, upgrade);
    connection.finish_request();
    let mut cx = Context::from_waker(Waker::noop());
    let mut progress = ResponseProgress::default();
    for part in endpoint.sent.chunks(write_size) {
        let written = Pin::new(&mut peer).poll_write(&mut cx, part);
        assert!(
            matches!(written, Poll::Ready(Ok(count)) if count == part.len()),
            "the pipe has room"
        );
        if let Err(error) = progress.poll(&mut connection, &mut cx) {
            return Reading::Malformed(error);
        }
    }
    let peer = (!endpoint.closes).then_some(peer);
    if let Err(error) = progress.poll(&mut connection, &mut cx) {
        return Reading::Malformed(error);
    }
    let is_reusable = connection.is_reusable() && connection.is_still_idle();
    drop(peer);
    match progress.headers.filter(|_| progress.has_ended) {
        Some((status, headers, framing)) => Reading::Complete(Response {
            interim: progress.interim,
            status,
            headers,
            framing,
            body: progress.body,
            is_reusable,
        }),
        None => Reading::Incomplete,
    }
}

#[derive(Default)]
struct ResponseProgress {
    interim: Vec<u16>,
    headers: Option<(u16, Vec<Header>, BodyFraming)>,
    body: Vec<u8>,
    has_ended: bool,
}

impl ResponseProgress {
    /// Reads on until the connection waits or the response is complete.
    fn poll(&mut self, connection: &mut Connection, cx: &mut Context<'_>) -> Result<(), String> {
        while !self.has_ended {
            let Poll::Ready(event) = connection.poll(cx, Backpressure::Ready) else {
                return Ok(());
            };
            match event.map_err(|error| error.to_string())? {
                UpstreamEvent::Interim(headers) => self.interim.push(headers.status.as_u16()),
                UpstreamEvent::Headers(headers) => {
                    assert!(self.headers.is_none(), "a second final response");
                    let status = headers.status.as_u16();
                    let framing = headers.framing.into();
                    self.headers = Some((status, list(&headers.headers), framing));
                }
                UpstreamEvent::Data(data) => self.body.extend_from_slice(&data),
                UpstreamEvent::End => self.has_ended = true,
            }
        }
        Ok(())
    }
}
