//! Stream of an HTTP/2 connection: one exchange.

use std::collections::VecDeque;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::header::CONTENT_LENGTH;
use http::{Response, StatusCode};

use crate::http::downstream::{Backpressure, Downstream, DownstreamEvent};
use crate::http::message::{Framing, ResponseHeaders};

/// Maximum size of the rest of a complete response that is given to `h2` without waiting for capacity
/// in the client's flow-control windows: the exchange ends, and the rest waits in `h2`. A client that
/// never reads it is subject to the idle timeout of the connection.
const MAX_UNRESERVED_REST: usize = 4 * 1024;

/// Client's side of one exchange.
pub(super) struct Http2Stream {
    /// Body of the request, `None` once it is complete.
    pub(super) request_body: Option<RecvStream>,
    respond: SendResponse<Bytes>,
    /// Body of the response, `None` before its headers are sent.
    response_body: Option<SendStream<Bytes>>,
    buffer: VecDeque<Bytes>,
    buffered_bytes: usize,
    state: StreamState,
    status: Option<StatusCode>,
    sent_body_bytes: u64,
}

/// State of the stream, by the progress of its response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StreamState {
    Open,
    /// Complete, but partly in the buffer.
    Buffered,
    /// Given to `h2` completely.
    Sent,
    /// The client reset the stream or disconnected.
    Reset,
}

/// The stream was reset.
struct StreamReset;

impl From<h2::Error> for StreamReset {
    fn from(_: h2::Error) -> Self {
        Self
    }
}

impl Http2Stream {
    pub(super) fn new(respond: SendResponse<Bytes>) -> Self {
        Self {
            request_body: None,
            respond,
            response_body: None,
            buffer: VecDeque::new(),
            buffered_bytes: 0,
            state: StreamState::Open,
            status: None,
            sent_body_bytes: 0,
        }
    }

    /// Sends as much of the buffer as the client's flow-control windows allow.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamReset>> {
        let Some(body) = &mut self.response_body else {
            return Poll::Ready(Ok(()));
        };
        while matches!(self.state, StreamState::Open | StreamState::Buffered) {
            let is_unreserved =
                self.state == StreamState::Buffered && self.buffered_bytes <= MAX_UNRESERVED_REST;
            let data = match self.buffer.front_mut() {
                Some(data) => data,
                // An empty DATA frame carries END_STREAM.
                None if is_unreserved => {
                    body.send_data(Bytes::new(), true)?;
                    self.state = StreamState::Sent;
                    break;
                }
                None => break,
            };
            let mut capacity = data.len();
            if !is_unreserved {
                body.reserve_capacity(data.len());
                capacity = body.capacity();
                if capacity == 0 {
                    match ready!(body.poll_capacity(cx)) {
                        Some(assigned) => capacity = assigned?,
                        None => return Poll::Ready(Err(StreamReset)),
                    }
                }
            }
            let part = data.split_to(capacity.min(data.len()));
            self.buffered_bytes -= part.len();
            if data.is_empty() {
                self.buffer.pop_front();
            }
            let is_last = self.buffer.is_empty() && self.state == StreamState::Buffered;
            body.send_data(part, is_last)?;
            if is_last {
                self.state = StreamState::Sent;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Reads the request body.
    fn poll_request(&mut self, cx: &mut Context<'_>) -> Poll<DownstreamEvent> {
        let Some(body) = &mut self.request_body else {
            return self.poll_reset(cx);
        };
        loop {
            match ready!(body.poll_data(cx)) {
                Some(Ok(data)) if data.is_empty() => {}
                Some(Ok(data)) => {
                    // An error means that the stream was reset, which the next poll reports.
                    let _ = body.flow_control().release_capacity(data.len());
                    return Poll::Ready(DownstreamEvent::Data(data));
                }
                Some(Err(_)) => {
                    self.state = StreamState::Reset;
                    return Poll::Ready(DownstreamEvent::Disconnected);
                }
                None => {
                    self.request_body = None;
                    return Poll::Ready(DownstreamEvent::End);
                }
            }
        }
    }

    /// Returns `Ready` once the client has reset the stream or disconnected.
    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<DownstreamEvent> {
        let _ = ready!(match &mut self.response_body {
            Some(body) => body.poll_reset(cx),
            None => self.respond.poll_reset(cx),
        });
        self.state = StreamState::Reset;
        Poll::Ready(DownstreamEvent::Disconnected)
    }

    /// Returns the request body if it is incomplete, though the whole response is given to `h2`.
    pub(super) fn into_unread_body(self) -> Option<RecvStream> {
        let is_sent = self.state == StreamState::Sent;
        self.request_body
            .filter(|body| is_sent && !body.is_end_stream())
    }

    /// Returns whether the client ended the exchange before it was sent the whole response.
    pub(super) fn was_reset(&self) -> bool {
        self.state == StreamState::Reset
    }
}

impl Downstream for Http2Stream {
    fn poll(&mut self, cx: &mut Context<'_>, upstream: Backpressure) -> Poll<DownstreamEvent> {
        if let Poll::Ready(Err(StreamReset)) = self.poll_send(cx) {
            self.state = StreamState::Reset;
        }
        match self.state {
            StreamState::Reset => Poll::Ready(DownstreamEvent::Disconnected),
            StreamState::Sent => Poll::Ready(DownstreamEvent::ResponseSent),
            StreamState::Buffered => Poll::Pending,
            StreamState::Open if upstream == Backpressure::Blocked => self.poll_reset(cx),
            StreamState::Open => self.poll_request(cx),
        }
    }

    fn buffered_bytes(&self) -> usize {
        self.buffered_bytes
    }

    fn send_interim(&mut self, headers: &ResponseHeaders) {
        // `h2` would send it even on a stream that it has reset. Nothing else waits for a reset here: the caller
        // polls again.
        let mut cx = Context::from_waker(Waker::noop());
        if self.respond.poll_reset(&mut cx).is_ready() {
            return;
        }
        let mut response = Response::new(());
        *response.status_mut() = headers.status;
        response.headers_mut().clone_from(&headers.headers);
        // An error means that the stream was reset, which the next poll reports.
        let _ = self.respond.send_informational(response);
    }

    fn send_headers(&mut self, headers: ResponseHeaders) {
        self.status = Some(headers.status);
        let mut response = Response::new(());
        *response.status_mut() = headers.status;
        *response.headers_mut() = headers.headers;
        if let Framing::Length(length) = headers.framing {
            response.headers_mut().insert(CONTENT_LENGTH, length.into());
        }
        let is_empty = headers.framing.is_empty();
        match self.respond.send_response(response, is_empty) {
            Ok(body) => self.response_body = Some(body),
            Err(_) => self.state = StreamState::Reset,
        }
        if is_empty && self.state == StreamState::Open {
            self.state = StreamState::Sent;
        }
    }

    fn send_data(&mut self, data: Bytes) {
        if !data.is_empty() {
            self.sent_body_bytes += data.len() as u64;
            self.buffered_bytes += data.len();
            self.buffer.push_back(data);
        }
    }

    fn finish(&mut self) {
        if self.state == StreamState::Open {
            self.state = StreamState::Buffered;
        }
    }

    fn abort(&mut self) {
        match &mut self.response_body {
            Some(body) => body.send_reset(Reason::INTERNAL_ERROR),
            None => self.respond.send_reset(Reason::INTERNAL_ERROR),
        }
    }

    fn close_after_response(&mut self) {
        // A malformed request concerns its stream only (RFC 9113, section 8.1.1).
    }

    fn status(&self) -> Option<StatusCode> {
        self.status
    }

    fn sent_body_bytes(&self) -> u64 {
        self.sent_body_bytes
    }
}
