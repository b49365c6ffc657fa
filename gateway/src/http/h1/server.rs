//! HTTP/1.1 server (RFC 9112). It serves the requests of a connection one after another; pipelined
//! requests wait in the input buffer.
//!
//! A connection persists only while the start of the next request is certain: an aborted response, a
//! malformed body, and a body that is too long to discard close it.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{BufMut, Bytes};
use http::header::{EXPECT, HOST};
use http::{StatusCode, Version};
use pingora::protocols::Stream;
use pingora::server::ShutdownWatch;

use crate::config::Limits;
use crate::http::downstream::{Backpressure, Downstream, DownstreamEvent};
use crate::http::h1::encode::put_header;
use crate::http::h1::framing::{self, BodyDecoder, BodyEvent, ChunkSyntax};
use crate::http::h1::hop_by_hop::Persistence;
use crate::http::h1::io::BufferedStream;
use crate::http::h1::request_headers::{HeaderLimits, HeaderScanner, ReadError, Rejection};
use crate::http::handler::RequestHandler;
use crate::http::lingering_close::LingeringClose;
use crate::http::message::{Framing, RequestError, RequestHeaders, ResponseHeaders};
use crate::runtime::idle_timer::IdleTimer;

/// Longest time to send the rest of the output before the connection is closed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// Time for which an idle connection stays open after shutdown has begun: a request that is already on
/// its way is served, and its response announces the close. Shorter than `IDLE_DRAIN_TIMEOUT` of
/// `server/shutdown.rs`, after which the process ends.
const KEEP_ALIVE_DRAIN_TIMEOUT: Duration = Duration::from_millis(800);
/// Maximum size of the rest of a request body that is read and discarded to keep the connection.
const MAX_DISCARDED_BODY: u64 = 64 * 1024;
/// Maximum number of bytes that are read ahead of their use, to notice that the client disconnected.
const MAX_READ_AHEAD: usize = 16 * 1024;

/// Client connection, and the current exchange on it.
pub(crate) struct Http1Connection {
    stream: BufferedStream,
    shutdown: ShutdownWatch,
    version: Version,
    persistence: Persistence,
    request_decoder: BodyDecoder,
    /// `Complete` once [`DownstreamEvent::End`] is returned.
    request: MessageState,
    /// True if the client waits for `100 Continue` before it sends the body.
    expects_continue: bool,
    response: MessageState,
    response_framing: Framing,
    status: Option<StatusCode>,
    sent_body_bytes: u64,
}

/// Progress of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MessageState {
    Open,
    Complete,
}

/// Serves the requests of a connection until it is closed.
pub(crate) async fn serve(handler: &impl RequestHandler, stream: Stream, shutdown: &ShutdownWatch) {
    let mut connection = Http1Connection::new(stream, shutdown);
    let mut timer = IdleTimer::new();
    let mut drained = pin!(drain(shutdown.clone()));
    let mut idle_timeout = handler.limits().header_timeout;
    loop {
        let limits = handler.limits();
        let header_limits = HeaderLimits {
            idle_timeout,
            header_timeout: limits.header_timeout,
            max_bytes: limits.max_header_bytes,
        };
        let request = tokio::select! {
            biased;
            request = connection.read_request(header_limits, &mut timer) => request,
            () = &mut drained => Err(ReadError::Closed),
        };
        match request {
            Ok(mut request) => {
                if request.version == Version::HTTP_10 {
                    connection.complete_host(&mut request, handler);
                }
                handler.serve(request, &mut connection, &mut timer).await;
            }
            Err(ReadError::Closed) => return connection.close().await,
            Err(ReadError::Rejected(Rejection { error, method })) => {
                connection.reset_response();
                handler.reject(error, &method, Version::HTTP_11, &mut connection);
                return connection.close_lingering().await;
            }
        }
        match connection.finish_exchange(limits, &mut timer).await {
            NextStep::ReadRequest => idle_timeout = limits.idle_timeout,
            NextStep::Close => return connection.close().await,
            NextStep::LingeringClose => return connection.close_lingering().await,
            NextStep::Drop => return,
        }
    }
}

/// Waits until shutdown has begun and the drain timeout has passed.
async fn drain(mut shutdown: ShutdownWatch) {
    // An error means that the sender of the signal is gone, which is a shutdown too.
    let _ = shutdown.wait_for(|is_shutdown| *is_shutdown).await;
    tokio::time::sleep(KEEP_ALIVE_DRAIN_TIMEOUT).await;
}

/// Step after an exchange.
enum NextStep {
    ReadRequest,
    Close,
    /// The client may still be sending.
    LingeringClose,
    /// Closes without a shutdown of the stream: the client disconnected, or the response must not
    /// look complete.
    Drop,
}

impl Http1Connection {
    fn new(stream: Stream, shutdown: &ShutdownWatch) -> Self {
        Self {
            stream: BufferedStream::new(stream),
            shutdown: shutdown.clone(),
            version: Version::HTTP_11,
            persistence: Persistence::Close,
            request_decoder: BodyDecoder::Done,
            request: MessageState::Complete,
            expects_continue: false,
            response: MessageState::Open,
            response_framing: Framing::Empty,
            status: None,
            sent_body_bytes: 0,
        }
    }

    /// Reads a request to the end of its headers.
    async fn read_request(
        &mut self,
        limits: HeaderLimits,
        timer: &mut IdleTimer,
    ) -> Result<RequestHeaders, ReadError> {
        if self.stream.input.is_empty() {
            match timer.timeout(limits.idle_timeout, self.read()).await {
                Some(Ok(1..)) => {}
                _ => return Err(ReadError::Closed),
            }
        }
        // Nearly all header sections arrive in one read and need no deadline.
        let mut scanner = HeaderScanner::default();
        if let Some((request, persistence)) =
            scanner.take_request(&mut self.stream.input, limits.max_bytes)?
        {
            return Ok(self.begin_request(request, persistence));
        }
        let rest = async {
            loop {
                match self.read().await {
                    Ok(1..) => {}
                    _ => return Err(ReadError::Closed),
                }
                if let Some(request) =
                    scanner.take_request(&mut self.stream.input, limits.max_bytes)?
                {
                    return Ok(request);
                }
            }
        };
        match timer.timeout(limits.header_timeout, rest).await {
            Some(result) => {
                result.map(|(request, persistence)| self.begin_request(request, persistence))
            }
            None => Err(Rejection::new(RequestError::Timeout, &self.stream.input).into()),
        }
    }

    fn begin_request(
        &mut self,
        request: RequestHeaders,
        persistence: Persistence,
    ) -> RequestHeaders {
        self.version = request.version;
        self.persistence = persistence;
        self.request_decoder = BodyDecoder::from(request.framing);
        self.expects_continue =
            !self.request_decoder.is_done() && request.headers.contains_key(EXPECT);
        self.request = MessageState::Open;
        self.reset_response();
        request
    }

    /// Adds `Host` to a request of HTTP/1.0 that has none.
    fn complete_host(&self, request: &mut RequestHeaders, handler: &impl RequestHandler) {
        if !request.headers.contains_key(HOST)
            && let Some(local) = self.stream.local_address()
            && let Some(host) = handler.default_host(local)
        {
            request.headers.insert(HOST, host);
        }
    }

    fn reset_response(&mut self) {
        self.response = MessageState::Open;
        self.status = None;
        self.sent_body_bytes = 0;
    }

    async fn read(&mut self) -> io::Result<usize> {
        poll_fn(|cx| self.stream.poll_read(cx)).await
    }

    /// Discards the rest of the request, so that the next one can be read, if that is possible.
    async fn finish_exchange(&mut self, limits: Limits, timer: &mut IdleTimer) -> NextStep {
        if self.response == MessageState::Open || !self.stream.is_flushed() {
            let flushed = poll_fn(|cx| self.stream.poll_flush(cx));
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, flushed).await;
            return NextStep::Drop;
        }
        match (self.persistence, self.request_decoder.is_done()) {
            (Persistence::KeepAlive, true) => return NextStep::ReadRequest,
            // No input is unread, as far as is known.
            (Persistence::Close, true) if self.stream.input.is_empty() => return NextStep::Close,
            (Persistence::Close, _) => return NextStep::LingeringClose,
            (Persistence::KeepAlive, false) => {}
        }
        let rest = async {
            loop {
                match self
                    .request_decoder
                    .decode(&mut self.stream.input, ChunkSyntax::Strict)
                {
                    Ok(Some(BodyEvent::Data(_))) => {}
                    Ok(Some(BodyEvent::End)) => return NextStep::ReadRequest,
                    Err(_) => return NextStep::LingeringClose,
                    Ok(None) => match self.read().await {
                        Ok(1..) => {}
                        _ => return NextStep::Drop,
                    },
                }
            }
        };
        let next_step = timer.timeout(limits.body_timeout, rest).await;
        next_step.unwrap_or(NextStep::LingeringClose)
    }

    /// Returns whether the rest of the request body is small enough to be discarded.
    fn is_rest_discardable(&self) -> bool {
        match self.request_decoder {
            BodyDecoder::Done => true,
            BodyDecoder::Length { remaining } => {
                !self.expects_continue && remaining <= MAX_DISCARDED_BODY
            }
            BodyDecoder::Chunked { .. } | BodyDecoder::UntilClose => false,
        }
    }

    async fn close(&mut self) {
        let closed = poll_fn(|cx| self.stream.poll_shutdown(cx));
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, closed).await;
    }

    /// Closes the connection with a lingering close.
    async fn close_lingering(&mut self) {
        self.close().await;
        let mut lingering_close = LingeringClose::new();
        let closed = poll_fn(|cx| {
            lingering_close.poll(cx, |cx| {
                self.stream.input.clear();
                self.stream.poll_read(cx)
            })
        });
        closed.await;
    }

    /// Reads the request body.
    fn poll_request(
        &mut self,
        cx: &mut Context<'_>,
        upstream: Backpressure,
    ) -> Poll<DownstreamEvent> {
        if self.request == MessageState::Complete || upstream == Backpressure::Blocked {
            // Either side of a tunnel may close it for writing and go on reading. What precedes the end is not skipped.
            return if self.is_tunnel() {
                Poll::Pending
            } else {
                self.poll_disconnect(cx)
            };
        }
        loop {
            match self
                .request_decoder
                .decode(&mut self.stream.input, ChunkSyntax::Strict)
            {
                Ok(Some(BodyEvent::Data(data))) => return Poll::Ready(DownstreamEvent::Data(data)),
                Ok(Some(BodyEvent::End)) => {
                    self.request = MessageState::Complete;
                    return Poll::Ready(DownstreamEvent::End);
                }
                Err(_) => return Poll::Ready(DownstreamEvent::Malformed(RequestError::Framing)),
                Ok(None) => {}
            }
            match ready!(self.stream.poll_read(cx)) {
                Ok(1..) => {}
                Ok(0) if self.request_decoder.end_of_input().is_ok() => {}
                _ => return Poll::Ready(DownstreamEvent::Disconnected),
            }
        }
    }

    fn is_tunnel(&self) -> bool {
        self.status == Some(StatusCode::SWITCHING_PROTOCOLS)
    }

    /// Returns `Ready` once the client has disconnected.
    fn poll_disconnect(&mut self, cx: &mut Context<'_>) -> Poll<DownstreamEvent> {
        while self.stream.input.len() < MAX_READ_AHEAD {
            match ready!(self.stream.poll_read(cx)) {
                Ok(1..) => {}
                _ => return Poll::Ready(DownstreamEvent::Disconnected),
            }
        }
        Poll::Pending
    }

    fn put_headers(&mut self, response: &ResponseHeaders) {
        let output = self.stream.output();
        output.put_slice(b"HTTP/1.1 ");
        output.put_slice(response.status.as_str().as_bytes());
        output.put_u8(b' ');
        let canonical = response.status.canonical_reason().unwrap_or_default();
        output.put_slice(response.reason.as_deref().unwrap_or(canonical.as_bytes()));
        output.put_slice(b"\r\n");
        for (name, value) in &response.headers {
            put_header(output, name.as_str().as_bytes(), value.as_bytes());
        }
    }
}

impl Downstream for Http1Connection {
    fn poll(&mut self, cx: &mut Context<'_>, upstream: Backpressure) -> Poll<DownstreamEvent> {
        if !self.stream.is_flushed() {
            match self.stream.poll_flush(cx) {
                Poll::Ready(Err(_)) => return Poll::Ready(DownstreamEvent::Disconnected),
                Poll::Pending if self.response == MessageState::Complete => return Poll::Pending,
                Poll::Ready(Ok(())) | Poll::Pending => {}
            }
        }
        if self.response == MessageState::Complete {
            return Poll::Ready(DownstreamEvent::ResponseSent);
        }
        self.poll_request(cx, upstream)
    }

    fn buffered_bytes(&self) -> usize {
        self.stream.buffered_bytes()
    }

    fn send_interim(&mut self, headers: &ResponseHeaders) {
        self.expects_continue &= headers.status != StatusCode::CONTINUE;
        // HTTP/1.0 has no interim responses (RFC 9110, section 15.2).
        if self.version == Version::HTTP_11 {
            self.put_headers(headers);
            self.stream.output().put_slice(b"\r\n");
        }
    }

    fn send_headers(&mut self, headers: ResponseHeaders) {
        self.status = Some(headers.status);
        self.response_framing = match headers.framing {
            Framing::Chunked | Framing::UntilClose if self.version == Version::HTTP_11 => {
                Framing::Chunked
            }
            // HTTP/1.0 has no transfer codings (RFC 9112, section 6.1).
            Framing::Chunked => Framing::UntilClose,
            other => other,
        };
        self.put_headers(&headers);
        if headers.status == StatusCode::SWITCHING_PROTOCOLS {
            (self.response_framing, self.persistence) = (Framing::UntilClose, Persistence::Close);
            (self.request_decoder, self.request) = (BodyDecoder::UntilClose, MessageState::Open);
            let upgrade = b"connection: upgrade\r\n\r\n";
            return self.stream.output().put_slice(upgrade);
        }
        let must_close = self.response_framing == Framing::UntilClose || *self.shutdown.borrow();
        if must_close || !self.is_rest_discardable() {
            self.persistence = Persistence::Close;
        }
        let output = self.stream.output();
        framing::put_framing_header(output, self.response_framing);
        match (self.persistence, self.version) {
            (Persistence::Close, _) => output.put_slice(b"connection: close\r\n"),
            (Persistence::KeepAlive, Version::HTTP_10) => {
                output.put_slice(b"connection: keep-alive\r\n");
            }
            (Persistence::KeepAlive, _) => {}
        }
        output.put_slice(b"\r\n");
    }

    fn send_data(&mut self, data: Bytes) {
        self.sent_body_bytes += data.len() as u64;
        framing::put_data(self.stream.output(), self.response_framing, &data);
    }

    fn finish(&mut self) {
        framing::put_end(self.stream.output(), self.response_framing);
        self.response = MessageState::Complete;
    }

    fn abort(&mut self) {
        self.response = MessageState::Open;
    }

    fn close_after_response(&mut self) {
        self.persistence = Persistence::Close;
    }

    fn status(&self) -> Option<StatusCode> {
        self.status
    }

    fn sent_body_bytes(&self) -> u64 {
        self.sent_body_bytes
    }
}
