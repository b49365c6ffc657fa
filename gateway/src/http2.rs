//! Clients that speak HTTP/2: many requests at once on a connection (RFC 9113).

use std::collections::VecDeque;
use std::future::{pending, poll_fn};
use std::pin::pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::Either;
use futures::stream::FuturesUnordered;
use h2::server::{Builder, SendResponse};
use h2::{Reason, RecvStream, SendStream};
use http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::{HeaderValue, Method, Request, Response, StatusCode, Version, request};
use pingora::protocols::Stream;
use pingora::server::ShutdownWatch;

use crate::bell::Quiet;
use crate::config::Limits;
use crate::downstream::{Appetite, Downstream, FromClient, RequestHead, ResponseHead};
use crate::framing::Framing;
use crate::gateway::Gateway;
use crate::handshake::Peer;
use crate::head::{self, Refused};
use crate::path::Target;
use crate::patience::Patience;
use crate::proxy;

/// Streams of one connection at once.
const MAX_STREAMS: u32 = 128;
/// Bytes that a client may send ahead, of a stream and of a connection.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Streams that a client may reset before they are served (CVE-2023-44487).
const MAX_EARLY_RESETS: usize = 32;
/// Bytes at the end of an answer that need no room in the client's windows to be let go of: they wait
/// in the library, and a client that never takes them is idle.
const SMALL_REST: usize = 4 * 1024;
/// For a client to take the farewell.
const LINGER: Duration = Duration::from_secs(1);

/// Serves a connection to its end.
pub(crate) async fn serve(
    gateway: &Gateway,
    stream: Stream,
    peer: &Peer,
    limits: Limits,
    shutdown: &ShutdownWatch,
) {
    let handshake = options(limits).handshake(stream);
    let Ok(Ok(mut connection)) = tokio::time::timeout(limits.header_timeout, handshake).await
    else {
        return;
    };
    let mut shutdown = shutdown.clone();
    let mut ending = pin!(async {
        // An error means that whoever would tell us of the end has ended.
        let _ = shutdown.wait_for(|is_ending| *is_ending).await;
    });
    let mut stage = Stage::Serving;
    let mut idle = Patience::new();
    let quiet = Quiet::new();
    // Of streams that have ended, for those to come.
    let mut spare = Vec::new();
    // They wake their task once more for nothing whenever as many of them ran as there are: so there
    // is always one that never does.
    let mut streams = FuturesUnordered::from_iter([Either::Left(pending())]);
    loop {
        let is_idle = streams.len() == 1;
        let accepted = async {
            let accept = poll_fn(|cx| quiet.look(cx, |cx| connection.poll_accept(cx)));
            let accepted = if is_idle {
                idle.within(limits.idle_timeout, accept).await
            } else {
                Some(accept.await)
            };
            match accepted {
                Some(accepted) => accepted
                    .and_then(Result::ok)
                    .map_or(Event::Closed, Event::Accepted),
                None => Event::Idle,
            }
        };
        let ended = poll_fn(|cx| {
            quiet.hush();
            streams.poll_next_unpin(cx)
        });
        let event = tokio::select! {
            biased;
            Some(patience) = ended => Event::StreamEnded(patience),
            () = &mut ending, if stage == Stage::Serving => Event::Ending,
            event = accepted => event,
        };
        match event {
            Event::StreamEnded(patience) => spare.push(patience),
            Event::Ending => {
                stage = Stage::Ending;
                connection.graceful_shutdown();
            }
            Event::Accepted((request, respond)) => {
                let patience = spare.pop().unwrap_or_else(Patience::new);
                let client = Http2::new(respond);
                let stream = serve_stream(gateway, request, client, peer, limits, patience);
                streams.push(Either::Right(stream));
            }
            Event::Closed => {
                drop(connection);
                // They find that out each for itself, and are counted like any other.
                while streams.len() > 1 {
                    streams.next().await;
                }
                return;
            }
            Event::Idle => break,
        }
    }
    connection.graceful_shutdown();
    let closed = poll_fn(|cx| connection.poll_closed(cx));
    let _ = tokio::time::timeout(LINGER, closed).await;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Serving,
    Ending,
}

/// What happened next on a connection.
#[expect(
    clippy::large_enum_variant,
    reason = "it is taken apart where it was made"
)]
enum Event {
    StreamEnded(Patience),
    Ending,
    Accepted((Request<RecvStream>, SendResponse<Bytes>)),
    /// The client has closed, or did what it must not.
    Closed,
    /// No stream was open for too long.
    Idle,
}

/// Bounds on what a client may make us keep (RFC 9113, section 10.5).
fn options(limits: Limits) -> Builder {
    let mut options = Builder::new();
    options
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(u32::try_from(limits.max_header).unwrap_or(u32::MAX))
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_pending_accept_reset_streams(MAX_EARLY_RESETS);
    options
}

async fn serve_stream(
    gateway: &Gateway,
    request: Request<RecvStream>,
    mut client: Http2,
    peer: &Peer,
    limits: Limits,
    mut patience: Patience,
) -> Patience {
    let (parts, body) = request.into_parts();
    match read_head(parts, &body, limits.max_header) {
        Ok(head) => {
            client.body = Some(body);
            proxy::serve(gateway, peer, head, &mut client, &mut patience).await;
        }
        Err(refused) => {
            proxy::refuse(gateway, peer, refused, Version::HTTP_2, &mut client);
            let sent = poll_fn(|cx| client.poll(cx, Appetite::Full));
            let _ = patience.within(limits.idle_timeout, sent).await;
        }
    }
    patience
}

/// HTTP/2 adds no reading to a request (RFC 9113, section 8.3.1): `:authority` is the host, and a
/// `Host` beside it says the same. What else there is to refuse, the library has refused.
fn read_head(
    parts: request::Parts,
    body: &RecvStream,
    max_header: usize,
) -> Result<RequestHead, Refused> {
    let mut fields = parts.headers;
    if matches!(parts.method, Method::TRACE | Method::CONNECT) {
        return Err(Refused::Method);
    }
    let named = parts.uri.authority().map(http::uri::Authority::as_str);
    let mut hosts = fields.get_all(HOST).iter();
    let host = hosts.next().map(HeaderValue::as_bytes);
    if hosts.next().is_some() {
        return Err(Refused::Host);
    }
    let named = named.map(str::as_bytes).or(host).ok_or(Refused::Host)?;
    let agree = host.is_none_or(|host| host.eq_ignore_ascii_case(named));
    if !agree || !head::is_authority(named) {
        return Err(Refused::Host);
    }
    if host.is_none() {
        let host = HeaderValue::from_bytes(named).map_err(|_| Refused::Host)?;
        fields.insert(HOST, host);
    }
    let size: usize = fields
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + 2)
        .sum();
    if fields.len() > head::MAX_FIELDS || size > max_header {
        return Err(Refused::TooLarge);
    }
    // HTTP/1.1 would take them off, and so see another value than we (RFC 9113, section 8.2.1).
    let has_outer_blank = |value: &HeaderValue| {
        let ends = [value.as_bytes().first(), value.as_bytes().last()];
        ends.into_iter().flatten().any(|end| head::is_blank(*end))
    };
    if fields.values().any(has_outer_blank) {
        return Err(Refused::Field);
    }
    let target = parts.uri.path_and_query().ok_or(Refused::Target)?;
    head::check_target(target.as_str().as_bytes())?;
    let target = Target::new(Bytes::copy_from_slice(target.as_str().as_bytes()));
    let lengths = fields.get_all(CONTENT_LENGTH).iter().count();
    if lengths > 1 || fields.contains_key(TRANSFER_ENCODING) {
        return Err(Refused::Framing);
    }
    let framing = if let Some(length) = fields.remove(CONTENT_LENGTH) {
        Framing::Length(head::length(length.as_bytes()).ok_or(Refused::Framing)?)
    } else if body.is_end_stream() {
        Framing::Empty
    } else {
        Framing::Chunked
    };
    // A length is held against what comes, unless nothing comes.
    if body.is_end_stream() && !framing.is_empty() {
        return Err(Refused::Framing);
    }
    Ok(RequestHead {
        version: Version::HTTP_2,
        method: parts.method,
        target,
        fields,
        framing,
        upgrade: None,
    })
}

/// A client's stream: one exchange.
struct Http2 {
    /// Of the request, until it has come to its end.
    body: Option<RecvStream>,
    respond: SendResponse<Bytes>,
    /// Of the answer, once it has begun.
    stream: Option<SendStream<Bytes>>,
    waiting: VecDeque<Bytes>,
    waiting_bytes: usize,
    response: Phase,
    status: Option<StatusCode>,
    sent: u64,
}

/// How far the answer has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// It is whole, and waits.
    Done,
    Sent,
}

/// The stream is no more.
struct Reset;

impl From<h2::Error> for Reset {
    fn from(_: h2::Error) -> Self {
        Self
    }
}

impl Http2 {
    fn new(respond: SendResponse<Bytes>) -> Self {
        Self {
            body: None,
            respond,
            stream: None,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            response: Phase::Open,
            status: None,
            sent: 0,
        }
    }

    /// Sends as much as the client has room for.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Reset>> {
        let Some(stream) = &mut self.stream else {
            return Poll::Ready(Ok(()));
        };
        while self.response != Phase::Sent {
            let is_rest = self.response == Phase::Done && self.waiting_bytes <= SMALL_REST;
            let data = match self.waiting.front_mut() {
                Some(data) => data,
                // Something has to carry the end.
                None if is_rest => {
                    stream.send_data(Bytes::new(), true)?;
                    self.response = Phase::Sent;
                    break;
                }
                None => break,
            };
            let mut room = data.len();
            if !is_rest {
                stream.reserve_capacity(data.len());
                room = stream.capacity();
                if room == 0 {
                    match ready!(stream.poll_capacity(cx)) {
                        Some(room_now) => room = room_now?,
                        None => return Poll::Ready(Err(Reset)),
                    }
                }
            }
            let part = data.split_to(room.min(data.len()));
            self.waiting_bytes -= part.len();
            if data.is_empty() {
                self.waiting.pop_front();
            }
            let is_last = self.waiting.is_empty() && self.response == Phase::Done;
            stream.send_data(part, is_last)?;
            if is_last {
                self.response = Phase::Sent;
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_request(&mut self, cx: &mut Context<'_>) -> Poll<FromClient> {
        let Some(body) = &mut self.body else {
            let _ = ready!(match &mut self.stream {
                Some(stream) => stream.poll_reset(cx),
                None => self.respond.poll_reset(cx),
            });
            return Poll::Ready(FromClient::Gone);
        };
        loop {
            match ready!(body.poll_data(cx)) {
                Some(Ok(data)) if data.is_empty() => {}
                Some(Ok(data)) => {
                    // An error means that the stream is no more, as the next poll will tell.
                    let _ = body.flow_control().release_capacity(data.len());
                    return Poll::Ready(FromClient::Data(data));
                }
                Some(Err(_)) => return Poll::Ready(FromClient::Gone),
                None => {
                    self.body = None;
                    return Poll::Ready(FromClient::End);
                }
            }
        }
    }
}

impl Downstream for Http2 {
    fn poll(&mut self, cx: &mut Context<'_>, appetite: Appetite) -> Poll<FromClient> {
        match self.poll_send(cx) {
            Poll::Ready(Err(Reset)) => return Poll::Ready(FromClient::Gone),
            Poll::Ready(Ok(())) if self.response == Phase::Sent => {
                return Poll::Ready(FromClient::Finished);
            }
            Poll::Pending if self.response == Phase::Done => return Poll::Pending,
            _ => {}
        }
        match appetite {
            Appetite::Hungry => self.poll_request(cx),
            Appetite::Full => Poll::Pending,
        }
    }

    fn waiting(&self) -> usize {
        self.waiting_bytes
    }

    fn interim(&mut self, head: &ResponseHead) {
        let mut response = Response::new(());
        *response.status_mut() = head.status;
        response.headers_mut().clone_from(&head.fields);
        // A client that is gone is found out when it is polled.
        let _ = self.respond.send_informational(response);
    }

    fn begin(&mut self, head: ResponseHead) {
        self.status = Some(head.status);
        let mut response = Response::new(());
        *response.status_mut() = head.status;
        *response.headers_mut() = head.fields;
        if let Framing::Length(length) = head.framing {
            response.headers_mut().insert(CONTENT_LENGTH, length.into());
        }
        let is_empty = head.framing.is_empty();
        self.stream = self.respond.send_response(response, is_empty).ok();
        if is_empty {
            self.response = Phase::Sent;
        }
    }

    fn send(&mut self, data: Bytes) {
        if !data.is_empty() {
            self.sent += data.len() as u64;
            self.waiting_bytes += data.len();
            self.waiting.push_back(data);
        }
    }

    fn finish(&mut self) {
        if self.response == Phase::Open {
            self.response = Phase::Done;
        }
    }

    fn cut(&mut self) {
        match &mut self.stream {
            Some(stream) => stream.send_reset(Reason::INTERNAL_ERROR),
            None => self.respond.send_reset(Reason::INTERNAL_ERROR),
        }
    }

    fn close_after(&mut self) {
        // A stream that is malformed says nothing of the others (RFC 9113, section 8.1.1).
    }

    fn status(&self) -> Option<StatusCode> {
        self.status
    }

    fn sent(&self) -> u64 {
        self.sent
    }
}
