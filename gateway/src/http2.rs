//! Clients that speak HTTP/2: many requests at once on a connection (RFC 9113).

mod stream;
mod traffic;
mod watch;

use std::future::{pending, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::Either;
use futures::stream::FuturesUnordered;
use h2::server::{Builder, SendResponse};
use h2::{Reason, RecvStream};
use http::header::{CONTENT_LENGTH, COOKIE, HOST, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Method, Request, Version, request};
use pingora::protocols::Stream;
use pingora::server::ShutdownWatch;

use crate::bell::Quiet;
use crate::config::Limits;
use crate::downstream::{Appetite, Downstream, RequestHead};
use crate::framing::Framing;
use crate::gateway::Gateway;
use crate::handshake::Peer;
use crate::head::{self, Refused};
use crate::hop::Upgrade;
use crate::linger;
use crate::moment::Moment;
use crate::path::Target;
use crate::patience::Patience;
use crate::proxy;
use crate::request::Counted;
use stream::Http2;
use traffic::Watched;
use watch::{Left, Verdict, Watch};

/// Streams of one connection at once.
const MAX_STREAMS: u32 = 128;
/// Bytes that a client may send ahead, of a stream and of all of a connection: a stream that nobody
/// reads keeps no other one from being sent.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = MAX_STREAMS * STREAM_WINDOW;
/// Bytes of an answer that wait in the library.
const SEND_BUFFER: usize = 64 * 1024;
/// Streams that a client may reset before they are served (CVE-2023-44487).
const MAX_EARLY_RESETS: usize = 32;
/// Streams that a client may reset before they are answered, if those are most of its streams.
const MAX_RESETS: u64 = 100;
/// For a client that is cut off to hear why.
const FAREWELL: Duration = Duration::from_secs(1);
/// What the library adds to a field's size (RFC 9113, section 6.5.2).
const FIELD_OVERHEAD: usize = 32;

/// Serves a connection to its end.
pub(crate) async fn serve(
    gateway: &Gateway,
    stream: Stream,
    peer: &Peer,
    limits: Limits,
    shutdown: &ShutdownWatch,
) {
    let (stream, traffic) = Watched::new(stream);
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
    let mut watch = Watch::new(Arc::clone(&traffic), limits);
    let mut unsent = None;
    let mut resets = Resets::new();
    let quiet = Quiet::new();
    // Of streams that have ended, for those to come.
    let mut spare = Vec::new();
    // They wake their task once more for nothing whenever as many of them ran as there are: so there
    // is always one that never does.
    let mut streams = FuturesUnordered::from_iter([Either::Left(pending())]);
    loop {
        let event = poll_fn(|cx| {
            quiet.hush();
            if let Poll::Ready(Some(ended)) = streams.poll_next_unpin(cx) {
                return Poll::Ready(Event::StreamEnded(ended));
            }
            if stage == Stage::Serving && ending.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Event::Ending);
            }
            if let Poll::Ready(accepted) = quiet.look(cx, |cx| connection.poll_accept(cx)) {
                let accepted = accepted.and_then(Result::ok);
                return Poll::Ready(accepted.map_or(Event::Closed, Event::Accepted));
            }
            let left = if streams.len() > 1 {
                Left::Exchanges
            } else if traffic.is_lingering() {
                Left::Reading
            } else if connection.has_streams() {
                Left::Unsent
            } else {
                Left::Nothing
            };
            match left {
                Left::Exchanges | Left::Nothing => unsent = None,
                Left::Unsent | Left::Reading => {
                    unsent.get_or_insert_with(|| Counted::one_more(&gateway.unsent));
                }
            }
            let awaited = watch.awaited(left, stage);
            Poll::Ready(match ready!(watch.poll(cx, awaited)) {
                Verdict::Farewell => Event::Ending,
                Verdict::Close(reason) => Event::Over(reason),
            })
        });
        let over = match event.await {
            Event::StreamEnded(ended) => {
                spare.push(ended.patience);
                let is_a_flood = ended.was_reset && resets.are_a_flood();
                is_a_flood.then_some(Reason::ENHANCE_YOUR_CALM)
            }
            Event::Ending => {
                stage = Stage::Ending;
                connection.graceful_shutdown();
                None
            }
            Event::Accepted((request, respond)) => {
                resets.begun += 1;
                watch.start_over();
                let patience = spare.pop().unwrap_or_else(Patience::new);
                let stream = serve_stream(gateway, request, respond, peer, patience);
                streams.push(Either::Right(stream));
                None
            }
            Event::Closed => break,
            Event::Over(reason) => Some(reason),
        };
        if let Some(reason) = over {
            // Who did nothing wrong may read all that it was sent.
            let limit = if reason == Reason::NO_ERROR {
                unsent.get_or_insert_with(|| Counted::one_more(&gateway.unsent));
                linger::MOST
            } else {
                FAREWELL
            };
            connection.abrupt_shutdown(reason);
            let closed = poll_fn(|cx| connection.poll_closed(cx));
            let _ = tokio::time::timeout(limit, closed).await;
            break;
        }
    }
    drop(connection);
    // They find that out each for itself, and are counted like any other.
    while streams.len() > 1 {
        streams.next().await;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Serving,
    Ending,
}

/// Streams that a client has given up before they were answered.
struct Resets {
    count: u64,
    /// All streams.
    begun: u64,
    since: Moment,
}

impl Resets {
    fn new() -> Self {
        Self {
            count: 0,
            begun: 0,
            since: Moment::now(),
        }
    }

    /// Whether one more is beyond all reason. One a second is not, as long polls are given up.
    fn are_a_flood(&mut self) -> bool {
        self.count += 1;
        let usual = || MAX_RESETS + Moment::now().since(self.since).as_secs();
        self.count > MAX_RESETS && self.count > self.begun / 2 && self.count > usual()
    }
}

/// What happened next on a connection.
#[expect(
    clippy::large_enum_variant,
    reason = "it is taken apart where it was made"
)]
enum Event {
    StreamEnded(StreamEnd),
    /// The client is to be told that the connection ends.
    Ending,
    Accepted((Request<RecvStream>, SendResponse<Bytes>)),
    /// The client has closed, or did what it must not.
    Closed,
    /// The client has had its time.
    Over(Reason),
}

/// What is left of a stream.
struct StreamEnd {
    patience: Patience,
    was_reset: bool,
}

/// Bounds on what a client may make us keep (RFC 9113, section 10.5).
fn options(limits: Limits) -> Builder {
    // What is too large by a little is refused by us, who say so as always.
    let slack = (head::MAX_FIELDS + 1) * FIELD_OVERHEAD;
    let max_header = 2 * limits.max_header + slack;
    let mut options = Builder::new();
    options
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(u32::try_from(max_header).unwrap_or(u32::MAX))
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(MAX_EARLY_RESETS);
    options
}

async fn serve_stream(
    gateway: &Gateway,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
    peer: &Peer,
    mut patience: Patience,
) -> StreamEnd {
    let mut client = Http2::new(respond);
    let limits = gateway.limits();
    let (parts, body) = request.into_parts();
    let method = parts.method.clone();
    match read_head(parts, &body, limits.max_header) {
        Ok(head) => {
            client.body = Some(body);
            proxy::serve(gateway, peer, head, &mut client, &mut patience).await;
        }
        Err(refused) => {
            proxy::refuse(
                gateway,
                peer,
                refused,
                &method,
                Version::HTTP_2,
                &mut client,
            );
            let sent = poll_fn(|cx| client.poll(cx, Appetite::Full));
            let _ = patience.within(limits.idle_timeout, sent).await;
        }
    }
    StreamEnd {
        patience,
        was_reset: client.was_reset(),
    }
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
    check_fields(&fields, max_header)?;
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
        upgrade: Upgrade::Nothing,
    })
}

/// Whether fields are no more than there may be, and none reads otherwise behind us.
fn check_fields(fields: &HeaderMap, max_header: usize) -> Result<(), Refused> {
    let mut size = 0;
    for (name, value) in fields {
        let value = value.as_bytes();
        size += name.as_str().len() + value.len() + 2;
        // HTTP/1.1 would take them off, and so see another value than we (RFC 9113, section 8.2.1).
        let ends = [value.first(), value.last()];
        if ends.into_iter().flatten().any(|end| head::is_blank(*end)) {
            return Err(Refused::Field);
        }
    }
    // However many crumbs a cookie came in, it goes on as one field.
    let crumbs = fields.get_all(COOKIE).iter().count();
    let count = fields.len() - crumbs.saturating_sub(1);
    if count > head::MAX_FIELDS || size > max_header {
        return Err(Refused::TooLarge);
    }
    Ok(())
}
