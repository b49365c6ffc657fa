//! Connection to an endpoint, as an HTTP/1.1 client (RFC 9112).

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, UPGRADE};
use http::{HeaderValue, Method, StatusCode};
use rustls::AlertDescription;
use thiserror::Error;

use crate::http::adaptive_read::ReadSize;
use crate::http::downstream::Backpressure;
use crate::http::h1::framing::{self, BodyDecoder, BodyError, BodyEvent, ChunkSyntax};
use crate::http::h1::hop_by_hop::{ConnectionHeaders, Persistence, WEBSOCKET};
use crate::http::h1::io::{BufferedStream, Transport};
use crate::http::message::{Framing, ResponseHeaders, Upgrade};
use crate::http::syntax::MAX_HEADERS;
use crate::runtime::clock::Instant;
use crate::upstream::response_headers::{self, InvalidHeaders, ParsedResponse};
use crate::upstream::tls::TlsClient;

/// Maximum size of the headers of a response and of the interim responses before it, in bytes.
const MAX_HEADER_BYTES: usize = 64 * 1024;
/// Number of bytes of interim responses that an exchange may always have, however fast they come…
const MAX_INTERIM_BURST: usize = MAX_HEADER_BYTES;
/// …and that it gains with each second since the first one: a long operation may report progress to its end.
const INTERIM_BYTES_PER_SECOND: usize = 1024;

/// Longest time for which an idle connection is kept. Shorter than the keep-alive timeout of the
/// endpoints, so that no connection is used while the endpoint closes it.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(55);

/// Longest time from a request on a pooled connection to the close of the connection for which the close may have
/// begun before the request arrived: such a close is seen after a round trip. The time is longer than a round trip
/// between data centres of one continent. A later close may be the effect of the request.
const MAX_STALE_CLOSE_DELAY: Duration = Duration::from_millis(250);

/// Event on the upstream side of an exchange.
#[derive(Debug)]
pub(crate) enum UpstreamEvent {
    /// Headers of an interim response.
    Interim(ResponseHeaders),
    /// Headers of the final response.
    Headers(ResponseHeaders),
    /// Part of the response body.
    Data(Bytes),
    /// The response is complete.
    End,
}

/// Failure of the upstream side of an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum UpstreamError {
    #[error("the connection was closed or reset")]
    Connection,
    /// The endpoint rejected the connection in the TLS layer (RFC 8446, section 6.2), as it does after the
    /// handshake if it does not accept the gateway's certificate.
    #[error("the endpoint closed the connection with the TLS alert {0:?}")]
    TlsAlert(AlertDescription),
    #[error("the response headers are malformed")]
    Headers,
    #[error(
        "the response has more than {MAX_HEADERS} header lines, or its headers or the interim responses before it \
         are larger than {MAX_HEADER_BYTES} bytes"
    )]
    HeaderLimit,
    #[error("the response body is malformed or incomplete")]
    Body,
}

impl From<io::Error> for UpstreamError {
    fn from(error: io::Error) -> Self {
        let tls_error = error.get_ref().and_then(|error| error.downcast_ref());
        match tls_error {
            Some(rustls::Error::AlertReceived(alert)) => Self::TlsAlert(*alert),
            _ => Self::Connection,
        }
    }
}

impl From<BodyError> for UpstreamError {
    fn from(_: BodyError) -> Self {
        Self::Body
    }
}

impl From<InvalidHeaders> for UpstreamError {
    fn from(error: InvalidHeaders) -> Self {
        match error {
            InvalidHeaders::Malformed => Self::Headers,
            InvalidHeaders::TooMany => Self::HeaderLimit,
        }
    }
}

/// Upstream connection, and the current exchange on it.
pub(crate) struct Connection {
    stream: BufferedStream,
    request_framing: Framing,
    /// Method of the request, on which the framing of the response depends.
    method: Method,
    /// Upgrade that the request wants.
    upgrade: Upgrade,
    /// True if the connection was taken from the pool: the endpoint may have closed it meanwhile.
    was_pooled: bool,
    /// Time of the current request.
    request_since: Instant,
    /// Number of bytes of the headers of interim responses.
    interim_bytes: usize,
    /// Time of the first interim response.
    interim_since: Option<Instant>,
    request: RequestState,
    response: ResponseState,
    persistence: Persistence,
    /// TLS client that has established the connection, `None` for cleartext.
    tls: Option<Arc<TlsClient>>,
}

/// Progress of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RequestState {
    Open,
    /// The client has closed its side of a tunnel: the connection is closed for writing once everything is sent.
    Closing,
    Complete,
    /// Writing failed: the endpoint reads no more, and may have responded before.
    WriteFailed,
}

/// Progress of the response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ResponseState {
    Headers {
        /// Number of bytes in which the end of the header section was searched.
        searched: usize,
    },
    Body(BodyDecoder),
    Complete,
}

impl Connection {
    /// Creates a connection. `tls` is the TLS client that has established it, `None` for cleartext.
    pub(crate) fn new(stream: impl Into<Transport>, tls: Option<&Arc<TlsClient>>) -> Self {
        Self {
            stream: BufferedStream::new(stream),
            request_framing: Framing::Empty,
            method: Method::GET,
            upgrade: Upgrade::None,
            was_pooled: false,
            request_since: Instant::default(),
            interim_bytes: 0,
            interim_since: None,
            request: RequestState::Open,
            response: ResponseState::Complete,
            persistence: Persistence::KeepAlive,
            tls: tls.map(Arc::clone),
        }
    }

    /// Returns whether the connection was established by this TLS client, or by none.
    pub(super) fn is_by(&self, tls: Option<&Arc<TlsClient>>) -> bool {
        match (&self.tls, tls) {
            (None, None) => true,
            (Some(own), Some(tls)) => Arc::ptr_eq(own, tls),
            _ => false,
        }
    }

    /// Begins an exchange. Returns the buffer to which the request headers are to be written.
    pub(crate) fn begin_request(
        &mut self,
        method: &Method,
        framing: Framing,
        upgrade: Upgrade,
    ) -> &mut Vec<u8> {
        self.method = method.clone();
        self.request_framing = framing;
        self.upgrade = upgrade;
        self.request_since = Instant::now();
        (self.interim_bytes, self.interim_since) = (0, None);
        self.request = RequestState::Open;
        self.response = ResponseState::Headers { searched: 0 };
        self.persistence = Persistence::KeepAlive;
        self.stream.output()
    }

    /// Sends part of the request body.
    pub(crate) fn send_data(&mut self, data: &[u8]) {
        if self.request == RequestState::Open {
            framing::put_data(self.stream.output(), self.request_framing, data);
        }
    }

    /// Ends the request.
    pub(crate) fn finish_request(&mut self) {
        if self.request == RequestState::Open {
            framing::put_end(self.stream.output(), self.request_framing);
            self.request = match self.request_framing {
                Framing::UntilClose => RequestState::Closing,
                Framing::Empty | Framing::Length(_) | Framing::Chunked => RequestState::Complete,
            };
        }
    }

    /// Sets the size of the next reads of the response.
    pub(crate) fn set_read_size(&mut self, size: ReadSize) {
        self.stream.read_size = size;
    }

    /// Excludes another exchange after the response whose headers have been received.
    pub(crate) fn close_after_response(&mut self) {
        self.persistence = Persistence::Close;
    }

    /// Returns the number of request bytes that wait to be sent.
    pub(crate) fn buffered_bytes(&self) -> usize {
        self.stream.buffered_bytes()
    }

    /// Returns whether another exchange can follow.
    pub(crate) fn is_reusable(&self) -> bool {
        self.persistence == Persistence::KeepAlive
            && self.request == RequestState::Complete
            && self.response == ResponseState::Complete
            && self.stream.is_flushed()
            && self.stream.input.is_empty()
    }

    /// Records that the connection was put into the pool.
    pub(super) fn mark_pooled(&mut self) {
        self.was_pooled = true;
    }

    /// Returns whether the endpoint, which has closed the connection by `now`, may have begun to before it received
    /// the current request, and may thus not have acted on it.
    pub(crate) fn may_have_been_stale(&self, now: Instant) -> bool {
        self.was_pooled
            && now.since(self.request_since) <= MAX_STALE_CLOSE_DELAY
            && self.response == (ResponseState::Headers { searched: 0 })
            && self.interim_bytes == 0
            && self.stream.input.is_empty()
    }

    /// Returns whether the endpoint has neither closed the idle connection nor sent anything on it.
    pub(crate) fn is_still_idle(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        // Tokio's cooperative budget would make an exhausted task take every connection for idle.
        let mut read = pin!(tokio::task::unconstrained(poll_fn(|cx| {
            self.stream.poll_read(cx)
        })));
        read.as_mut().poll(&mut cx).is_pending()
    }

    /// Sends buffered data and reads the response. If the downstream side is [`Backpressure::Blocked`],
    /// the response is not read.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        downstream: Backpressure,
    ) -> Poll<Result<UpstreamEvent, UpstreamError>> {
        let _ = self.poll_send(cx);
        self.poll_response(cx, downstream)
    }

    /// Sends buffered data, and closes the connection for writing if it is a tunnel that the client has closed.
    ///
    /// # Errors
    /// Returns an error once if it fails. The endpoint may have sent a response before that.
    pub(crate) fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let sent = if self.request == RequestState::Closing {
            ready!(self.stream.poll_shutdown(cx)).map(|()| self.request = RequestState::Complete)
        } else if self.stream.is_flushed() {
            Ok(())
        } else {
            ready!(self.stream.poll_flush(cx))
        };
        if sent.is_err() {
            self.stream.discard_output();
            self.request = RequestState::WriteFailed;
        }
        Poll::Ready(sent)
    }

    /// Reads the response, unless the downstream side is [`Backpressure::Blocked`].
    pub(crate) fn poll_response(
        &mut self,
        cx: &mut Context<'_>,
        downstream: Backpressure,
    ) -> Poll<Result<UpstreamEvent, UpstreamError>> {
        if downstream == Backpressure::Blocked {
            return Poll::Pending;
        }
        loop {
            if let Some(event) = self.parse_input()? {
                return Poll::Ready(Ok(event));
            }
            if self.response == ResponseState::Complete {
                return Poll::Pending;
            }
            match ready!(self.stream.poll_read(cx)) {
                Ok(1..) => {}
                Ok(_) => return Poll::Ready(self.end_of_input()),
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    /// Parses the input that is already read. Returns `None` if more is needed.
    fn parse_input(&mut self) -> Result<Option<UpstreamEvent>, UpstreamError> {
        match &mut self.response {
            ResponseState::Complete => Ok(None),
            ResponseState::Headers { searched } => {
                let input = &self.stream.input;
                // The end may begin in the last three bytes of the previous read.
                let start = searched.saturating_sub(3);
                if let Some(found) = memchr::memmem::find(&input[start..], b"\r\n\r\n") {
                    let length = start + found + 4;
                    if length > MAX_HEADER_BYTES {
                        return Err(UpstreamError::HeaderLimit);
                    }
                    return self.take_headers(length).map(Some);
                }
                // Bare line feeds: another parser would see the end of the header section here.
                if memchr::memmem::find(&input[start..], b"\n\n").is_some() {
                    return Err(UpstreamError::Headers);
                }
                if input.len() > MAX_HEADER_BYTES {
                    return Err(UpstreamError::HeaderLimit);
                }
                *searched = input.len();
                Ok(None)
            }
            ResponseState::Body(decoder) => {
                match decoder.decode(&mut self.stream.input, ChunkSyntax::Lenient)? {
                    Some(BodyEvent::Data(data)) => Ok(Some(UpstreamEvent::Data(data))),
                    Some(BodyEvent::End) => {
                        self.response = ResponseState::Complete;
                        Ok(Some(UpstreamEvent::End))
                    }
                    None => Ok(None),
                }
            }
        }
    }

    /// Ends the input: the endpoint has closed the connection.
    fn end_of_input(&mut self) -> Result<UpstreamEvent, UpstreamError> {
        self.persistence = Persistence::Close;
        let ResponseState::Body(decoder) = &mut self.response else {
            return Err(UpstreamError::Connection);
        };
        decoder.end_of_input()?;
        self.response = ResponseState::Complete;
        Ok(UpstreamEvent::End)
    }

    /// Takes a header section of `length` bytes from the input.
    fn take_headers(&mut self, length: usize) -> Result<UpstreamEvent, UpstreamError> {
        let section = self.stream.input.split_to(length).freeze();
        let ParsedResponse {
            mut headers,
            connection,
            content_length,
            is_http_1_0,
        } = response_headers::parse(&section)?;
        let status = headers.status;
        if status == StatusCode::SWITCHING_PROTOCOLS {
            return self.switch_protocols(headers, &connection);
        }
        if status.is_informational() {
            self.interim_bytes += section.len();
            self.response = ResponseState::Headers { searched: 0 };
            let max_bytes = self.max_interim_bytes(Instant::now());
            return if self.interim_bytes <= max_bytes {
                Ok(UpstreamEvent::Interim(headers))
            } else {
                Err(UpstreamError::HeaderLimit)
            };
        }
        let may_have_body = match headers.framing {
            Framing::Empty | Framing::Length(0) => false,
            Framing::UntilClose => {
                self.method == Method::HEAD && status != StatusCode::NOT_MODIFIED
            }
            Framing::Length(_) | Framing::Chunked => true,
        };
        // These responses have no body, regardless of their headers (RFC 9112, section 6.3).
        if self.method == Method::HEAD || status == StatusCode::NOT_MODIFIED {
            if let Some(length) = content_length {
                headers.headers.insert(CONTENT_LENGTH, length.into());
            }
            headers.framing = Framing::Empty;
        } else if status == StatusCode::NO_CONTENT {
            headers.framing = Framing::Empty;
        }
        // An endpoint that wrongly sends the body that it announced may do so later, when another client would
        // take it for its response.
        let may_send_unread_body = headers.framing == Framing::Empty && may_have_body;
        self.persistence = if headers.framing == Framing::UntilClose || may_send_unread_body {
            Persistence::Close
        } else {
            connection.persistence(is_http_1_0)
        };
        self.response = ResponseState::Body(BodyDecoder::from(headers.framing));
        Ok(UpstreamEvent::Headers(headers))
    }

    /// Returns the number of bytes of interim responses that the exchange may have had by now.
    fn max_interim_bytes(&mut self, now: Instant) -> usize {
        let since = *self.interim_since.get_or_insert(now);
        let seconds = usize::try_from(now.since(since).as_secs()).unwrap_or(usize::MAX);
        seconds
            .saturating_mul(INTERIM_BYTES_PER_SECOND)
            .saturating_add(MAX_INTERIM_BURST)
    }

    /// Turns the connection into a tunnel for the protocol that the client requested (RFC 9110,
    /// section 15.2.2).
    fn switch_protocols(
        &mut self,
        mut headers: ResponseHeaders,
        connection: &ConnectionHeaders,
    ) -> Result<UpstreamEvent, UpstreamError> {
        if self.upgrade == Upgrade::None || connection.upgrade() != self.upgrade {
            return Err(UpstreamError::Headers);
        }
        let protocol = HeaderValue::from_static(WEBSOCKET);
        headers.headers.insert(UPGRADE, protocol);
        headers.framing = Framing::UntilClose;
        self.request_framing = Framing::UntilClose;
        self.persistence = Persistence::Close;
        self.request = RequestState::Open;
        self.response = ResponseState::Body(BodyDecoder::UntilClose);
        Ok(UpstreamEvent::Headers(headers))
    }
}
