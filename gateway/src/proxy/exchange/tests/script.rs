//! Scripts: what the clients and the endpoint of one history do.
//!
//! Bodies consist of messages that would be noticed if a side took them for such.

use std::time::Duration;

/// Distance of the numbers of the first requests of two clients.
const NUMBERS_PER_CLIENT: u32 = 100;

/// Path on which the gateway retries, within a timeout.
pub(super) const RETRY_PATH: &str = "/retry";
pub(super) const PLAIN_PATH: &str = "/plain";

/// Size of an interim response.
pub(super) const INTERIM_BYTES: usize = "HTTP/1.1 103 Interim\r\n\r\n".len();

#[derive(Debug, Clone)]
pub(super) struct Script {
    pub(super) clients: Vec<ClientPlan>,
    /// Attempts to connect to the endpoint, in their order. Later ones are accepted.
    pub(super) connects: Vec<ConnectPlan>,
    /// Responses of the endpoint, in the order in which the requests arrive. Later ones are as the default.
    pub(super) responses: Vec<ResponsePlan>,
}

/// One connection of a client.
#[derive(Debug, Clone)]
pub(super) struct ClientPlan {
    pub(super) requests: Vec<RequestPlan>,
    pub(super) order: SendOrder,
    pub(super) pace: Pace,
    /// Pause before each request but the first.
    pub(super) rest: Duration,
    pub(super) reading: ClientReading,
    pub(super) stop: Option<Stop>,
}

/// Pace at which a message is sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// Size of its first pieces in bytes.
    pub(super) piece: usize,
    /// Pause after each piece.
    pub(super) pause: Duration,
}

impl Pace {
    pub(super) const AT_ONCE: Self = Self {
        piece: 1000,
        pause: Duration::ZERO,
    };
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SendOrder {
    AfterResponse,
    Pipelined,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClientReading {
    AtOnce,
    /// At most 1,000 bytes between two pauses.
    Slow(Duration),
    /// Nothing more once so many bytes are read.
    StopsAfter(usize),
}

/// End of sending, within a request or right after it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stop {
    /// Index of the request.
    pub(super) request: usize,
    /// Number of bytes of the request that are sent.
    pub(super) at: usize,
    pub(super) how: StopKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StopKind {
    Close,
    HalfClose,
    Reset,
    /// The client sends nothing more, and reads on.
    Stall,
}

#[derive(Debug, Clone)]
pub(super) struct RequestPlan {
    pub(super) method: &'static str,
    pub(super) path: &'static str,
    pub(super) body: BodyPlan,
    pub(super) expectation: Expectation,
    pub(super) defect: Option<HeaderDefect>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expectation {
    None,
    /// The client waits for a 100 response, but not forever.
    Continue,
}

/// Size in bytes, and framing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyPlan {
    None,
    Length(usize),
    Chunked {
        size: usize,
        chunk: usize,
        end: ChunkedEnd,
    },
    /// The last chunk is malformed.
    MalformedChunks(usize),
}

/// End of a chunked body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ChunkedEnd {
    LastChunk,
    Trailers,
}

impl ChunkedEnd {
    fn bytes(self) -> &'static [u8] {
        match self {
            Self::LastChunk => b"0\r\n\r\n",
            Self::Trailers => b"0\r\nx-trailer: 1\r\nx-other: 2\r\n\r\n",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeaderDefect {
    /// Line without a colon.
    Syntax,
    /// `Content-Length` and `Transfer-Encoding`.
    Framing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ConnectPlan {
    Accepted,
    Refused,
    TimesOut,
}

#[derive(Debug, Clone)]
pub(super) struct ResponsePlan {
    pub(super) begin: ResponseBegin,
    pub(super) delay: Duration,
    pub(super) interim: Vec<u16>,
    pub(super) status: u16,
    pub(super) framing: ResponseFraming,
    /// Size of the body in bytes.
    pub(super) size: usize,
    pub(super) pace: Pace,
    pub(super) cut: Option<Cut>,
    pub(super) after: AfterResponse,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ResponseBegin {
    AfterRequest,
    /// While the body arrives.
    AfterHeaders,
    /// The body is read after it.
    BeforeBody,
    Never,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ResponseFraming {
    Length,
    Chunked(usize, ChunkedEnd),
    UntilClose,
}

/// End of a response before its last byte.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cut {
    /// Number of bytes that are sent.
    pub(super) at: usize,
    pub(super) how: CutKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CutKind {
    Close,
    Reset,
    Stall,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AfterResponse {
    Keep,
    /// The response announces a close, which does not follow.
    AnnounceClose,
    /// Closes the connection if there is no request before.
    Close(Duration),
    /// Sends bytes that belong to no response after a while, if there is no request before.
    Surplus(Duration),
    /// Sends such bytes in one piece with the response, if that is short.
    SurplusAtOnce,
}

impl Script {
    pub(super) fn number(client: usize, index: usize) -> u32 {
        u32::try_from(client).unwrap() * NUMBERS_PER_CLIENT + u32::try_from(index).unwrap()
    }

    /// Returns the number of the request to a path, `None` if there is no such path.
    pub(super) fn number_in(path: &str) -> Option<u32> {
        let (prefix, number) = path.rsplit_once('/')?;
        let is_known = [RETRY_PATH, PLAIN_PATH].contains(&prefix);
        number.parse().ok().filter(|_| is_known)
    }

    pub(super) fn client(number: u32) -> usize {
        (number / NUMBERS_PER_CLIENT) as usize
    }

    /// Returns all requests with their numbers.
    pub(super) fn requests(&self) -> impl Iterator<Item = (u32, &RequestPlan)> {
        let clients = self.clients.iter().enumerate();
        clients.flat_map(|(client, plan)| {
            let requests = plan.requests.iter().enumerate();
            requests.map(move |(index, request)| (Self::number(client, index), request))
        })
    }
}

/// Message as it is sent.
pub(super) struct Wire {
    pub(super) bytes: Vec<u8>,
    /// Length of the headers, with interim responses before them.
    pub(super) headers: usize,
}

impl Wire {
    /// Returns how many of the first `sent` bytes are headers and data of a body of `size` bytes: the others are those of
    /// the chunked encoding.
    pub(super) fn decoded(&self, sent: usize, size: usize) -> usize {
        let encoded = (self.bytes.len() - self.headers).max(1);
        let body = sent.saturating_sub(self.headers) * size / encoded;
        sent.min(self.headers) + body
    }
}

impl RequestPlan {
    pub(super) fn wire(&self, number: u32) -> Wire {
        let (method, path) = (self.method, self.path);
        let mut bytes = format!("{method} {path}/{number} HTTP/1.1\r\nhost: a\r\n").into_bytes();
        bytes.extend_from_slice(match self.defect {
            Some(HeaderDefect::Syntax) => b"no colon\r\n",
            Some(HeaderDefect::Framing) => b"content-length: 4\r\ntransfer-encoding: chunked\r\n",
            None => b"",
        });
        if self.expectation == Expectation::Continue {
            bytes.extend_from_slice(b"expect: 100-continue\r\n");
        }
        let body = request_body(number, self.body_size());
        let encoded = match self.body {
            BodyPlan::None => Vec::new(),
            BodyPlan::Length(size) => {
                bytes.extend_from_slice(format!("content-length: {size}\r\n").as_bytes());
                body
            }
            BodyPlan::Chunked { chunk, end, .. } => {
                bytes.extend_from_slice(b"transfer-encoding: chunked\r\n");
                chunked(&body, chunk, end.bytes())
            }
            BodyPlan::MalformedChunks(_) => {
                bytes.extend_from_slice(b"transfer-encoding: chunked\r\n");
                chunked(&body, 100, b"x\r\n\r\n")
            }
        };
        bytes.extend_from_slice(b"\r\n");
        let headers = bytes.len();
        bytes.extend_from_slice(&encoded);
        Wire { bytes, headers }
    }

    pub(super) fn body_size(&self) -> usize {
        match self.body {
            BodyPlan::None => 0,
            BodyPlan::Length(size)
            | BodyPlan::Chunked { size, .. }
            | BodyPlan::MalformedChunks(size) => size,
        }
    }

    pub(super) fn is_idempotent(&self) -> bool {
        !matches!(self.method, "POST" | "PATCH")
    }

    /// Returns how often a request that reaches the endpoint may be sent, connections apart that turned out to be stale.
    pub(super) fn max_attempts(&self) -> usize {
        match self.path {
            RETRY_PATH if self.is_idempotent() => 3,
            _ => 1,
        }
    }
}

impl ResponsePlan {
    pub(super) fn wire(&self, number: u32, method: &str) -> Wire {
        let mut bytes = Vec::new();
        for status in &self.interim {
            bytes.extend_from_slice(format!("HTTP/1.1 {status} Interim\r\n\r\n").as_bytes());
        }
        let status = self.status;
        let headers = format!("HTTP/1.1 {status} Final\r\nx-request: {number}\r\n");
        bytes.extend_from_slice(headers.as_bytes());
        if self.after == AfterResponse::AnnounceClose {
            bytes.extend_from_slice(b"connection: close\r\n");
        }
        let body = response_body(number, self.size);
        let encoded = match self.framing {
            _ if status == 204 => Vec::new(),
            ResponseFraming::UntilClose => body,
            ResponseFraming::Length => {
                let length = format!("content-length: {}\r\n", self.size);
                bytes.extend_from_slice(length.as_bytes());
                body
            }
            ResponseFraming::Chunked(chunk, end) => {
                bytes.extend_from_slice(b"transfer-encoding: chunked\r\n");
                chunked(&body, chunk, end.bytes())
            }
        };
        bytes.extend_from_slice(b"\r\n");
        let headers = bytes.len();
        if method != "HEAD" {
            bytes.extend_from_slice(&encoded);
        }
        Wire { bytes, headers }
    }

    /// Returns the size of the body that the response to a request of this method has.
    pub(super) fn body_size(&self, method: &str) -> usize {
        match (method, self.status) {
            ("HEAD", _) | (_, 204) => 0,
            _ => self.size,
        }
    }

    /// Returns whether the headers of the response to a request of this method announce a body that does not follow.
    pub(super) fn announces_missing_body(&self, method: &str) -> bool {
        method == "HEAD"
            && self.status != 204
            && match self.framing {
                ResponseFraming::Length => self.size > 0,
                ResponseFraming::Chunked(..) | ResponseFraming::UntilClose => true,
            }
    }

    /// Returns whether the response ends where the endpoint closes the connection.
    pub(super) fn ends_with_close(&self, method: &str) -> bool {
        self.framing == ResponseFraming::UntilClose && self.status != 204 && method != "HEAD"
    }
}

impl Default for ResponsePlan {
    fn default() -> Self {
        Self {
            begin: ResponseBegin::AfterRequest,
            delay: Duration::ZERO,
            interim: Vec::new(),
            status: 200,
            framing: ResponseFraming::Length,
            size: 10,
            pace: Pace::AT_ONCE,
            cut: None,
            after: AfterResponse::Keep,
        }
    }
}

pub(super) fn request_body(number: u32, size: usize) -> Vec<u8> {
    repeated(
        &format!("POST /smuggled/{number} HTTP/1.1\r\nhost: a\r\n\r\n"),
        size,
    )
}

pub(super) fn response_body(number: u32, size: usize) -> Vec<u8> {
    repeated(
        &format!("HTTP/1.1 200 OK\r\nx-smuggled: {number}\r\ncontent-length: 0\r\n\r\n"),
        size,
    )
}

fn repeated(text: &str, size: usize) -> Vec<u8> {
    text.bytes().cycle().take(size).collect()
}

fn chunked(body: &[u8], chunk: usize, end: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    // Large bodies have large chunks, which take less time.
    for data in body.chunks(chunk.max(body.len() / 1000)) {
        bytes.extend_from_slice(format!("{:x}\r\n", data.len()).as_bytes());
        bytes.extend_from_slice(data);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(end);
    bytes
}
