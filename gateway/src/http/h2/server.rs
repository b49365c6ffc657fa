//! HTTP/2 server (RFC 9113): one task drives a connection and the exchanges of all its streams.
//!
//! Limits on the work and memory that a client can cause (RFC 9113, section 10.5): streams, windows
//! and header sizes are limited by `h2`; frames by [`frame_guard`](super::frame_guard); waiting by
//! [`idle`](super::idle); and streams that are reset before their response (rapid reset,
//! CVE-2023-44487) by [`RapidResetDetector`].
//!
//! Graceful shutdown (RFC 9113, section 6.8): GOAWAY announces that the connection accepts no new
//! streams, and the open ones are completed.

use std::future::{pending, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::Either;
use futures::stream::FuturesUnordered;
use h2::server::{Builder, Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::{Request, Version};
use pingora::protocols::Stream;
use pingora::server::ShutdownWatch;

use crate::config::Limits;
use crate::http::downstream::wait_until_sent;
use crate::http::h2::coalescing_waker::CoalescingWaker;
use crate::http::h2::frame_guard::{FrameGuard, GuardedStream};
use crate::http::h2::idle::{ConnectionPhase, IdleAction, IdleMonitor, RemainingWork};
use crate::http::h2::rejected_streams::DeliveredStreams;
use crate::http::h2::request_headers;
use crate::http::h2::stream::Http2Stream;
use crate::http::h2::unread_body;
use crate::http::handler::RequestHandler;
use crate::http::lingering_close;
use crate::http::message::RequestError;
use crate::http::syntax::{MAX_HEADERS, unknown_method};
use crate::runtime::clock::Instant;
use crate::runtime::idle_timer::IdleTimer;
use crate::telemetry::gauge_guard::GaugeGuard;

/// Maximum number of concurrent streams of a connection.
const MAX_CONCURRENT_STREAMS: u32 = 128;
/// Initial flow-control window of a stream, in bytes.
const STREAM_WINDOW: u32 = 64 * 1024;
/// Flow-control window of a connection, in bytes: a stream that is not read does not block the others.
const CONNECTION_WINDOW: u32 = MAX_CONCURRENT_STREAMS * STREAM_WINDOW;
/// Maximum number of streams that `h2` remembers, for a second, as reset by the gateway: as many as a client can have
/// open at once.
const MAX_REMEMBERED_RESETS: usize = MAX_CONCURRENT_STREAMS as usize;
/// Maximum number of response bytes that `h2` buffers for a stream.
const SEND_BUFFER_SIZE: usize = 64 * 1024;
/// Maximum number of streams that a client has reset before they were accepted.
const MAX_PENDING_RESETS: usize = 32;
/// Number of resets that are tolerated on every connection.
const MIN_TOLERATED_RESETS: u64 = 100;
/// Further resets that are tolerated in each second: clients give up long polls, and browsers leave pages.
const TOLERATED_RESETS_PER_SECOND: u64 = 10;
/// Number of streams of which one may be reset, for a proxy that carries many clients.
const STREAMS_PER_TOLERATED_RESET: u64 = 10;
/// Longest time to send GOAWAY to a client whose connection is aborted.
const ABORT_TIMEOUT: Duration = Duration::from_secs(1);
/// Bytes that `SETTINGS_MAX_HEADER_LIST_SIZE` counts besides name and value of a header (RFC 9113,
/// section 6.5.2).
const HEADER_OVERHEAD: usize = 32;

/// Serves the requests of a connection until it is closed.
pub(crate) async fn serve(handler: &impl RequestHandler, stream: Stream, shutdown: &ShutdownWatch) {
    let limits = handler.limits();
    let (stream, guard) = GuardedStream::new(stream);
    let handshake = builder(limits).handshake(stream);
    let Ok(Ok(mut connection)) = tokio::time::timeout(limits.header_timeout, handshake).await
    else {
        return;
    };
    let mut shutdown_begun = pin!(wait_for_shutdown(shutdown.clone()));
    let mut phase = ConnectionPhase::Serving;
    let mut idle_monitor = IdleMonitor::new(Arc::clone(&guard), limits);
    let count_unsent = || GaugeGuard::increment(handler.unsent_responses());
    let mut unsent_responses = None;
    let mut resets = RapidResetDetector::new();
    let mut delivered = DeliveredStreams::default();
    let coalescing_waker = CoalescingWaker::new();
    // Timers of streams that have ended are reused.
    let mut spare_timers = Vec::new();
    // `FuturesUnordered` yields to the task, which is woken once more, after it has polled as many
    // futures as it has. One future that is never polled again keeps it below that number.
    let mut streams = FuturesUnordered::from_iter([Either::Left(pending())]);
    let mut unread_bodies = FuturesUnordered::new();
    loop {
        let event = poll_fn(|cx| {
            coalescing_waker.suspend();
            if let Poll::Ready(Some(ended)) = streams.poll_next_unpin(cx) {
                return Poll::Ready(ConnectionEvent::StreamEnded(ended));
            }
            if let Poll::Ready(Some(())) = unread_bodies.poll_next_unpin(cx) {
                return Poll::Ready(ConnectionEvent::BodyDiscarded);
            }
            if phase == ConnectionPhase::Serving && shutdown_begun.as_mut().poll(cx).is_ready() {
                return Poll::Ready(ConnectionEvent::Drain);
            }
            let accepted = coalescing_waker.resume_and_poll(cx, |cx| connection.poll_accept(cx));
            if let Poll::Ready(accepted) = accepted {
                let accepted = accepted.and_then(Result::ok);
                let event = accepted.map_or(ConnectionEvent::Closed, ConnectionEvent::Accepted);
                return Poll::Ready(event);
            }
            if guard.has_malformed_streams() {
                return Poll::Ready(ConnectionEvent::MalformedRequest);
            }
            let exchanges = streams.len() - 1;
            let remaining = remaining_work(exchanges, unread_bodies.len(), &guard, &connection);
            if matches!(remaining, RemainingWork::Exchanges | RemainingWork::None) {
                unsent_responses = None;
            } else {
                unsent_responses.get_or_insert_with(count_unsent);
            }
            let wait = idle_monitor.wait(remaining, phase);
            Poll::Ready(match ready!(idle_monitor.poll(cx, wait)) {
                IdleAction::Drain => ConnectionEvent::Drain,
                IdleAction::Close(reason) => ConnectionEvent::Abort(reason),
            })
        });
        let abort_reason = match event.await {
            ConnectionEvent::StreamEnded(ended) => {
                spare_timers.push(ended.timer);
                if let Some(body) = ended.unread_body {
                    unread_bodies.push(unread_body::discard(body, STREAM_WINDOW));
                }
                let is_attack = ended.was_reset && resets.record_reset();
                is_attack.then_some(Reason::ENHANCE_YOUR_CALM)
            }
            ConnectionEvent::Drain => {
                phase = ConnectionPhase::Draining;
                connection.graceful_shutdown();
                None
            }
            ConnectionEvent::Accepted((request, respond)) => {
                resets.record_stream();
                delivered.record(respond.stream_id().as_u32());
                idle_monitor.restart();
                let timer = spare_timers.pop().unwrap_or_else(IdleTimer::new);
                let stream = serve_stream(handler, request, respond, timer);
                streams.push(Either::Right(stream));
                None
            }
            ConnectionEvent::BodyDiscarded => None,
            ConnectionEvent::MalformedRequest => {
                record_malformed_requests(handler, &guard, &delivered);
                None
            }
            ConnectionEvent::Closed => break,
            ConnectionEvent::Abort(reason) => Some(reason),
        };
        if let Some(reason) = abort_reason {
            if reason == Reason::NO_ERROR {
                unsent_responses.get_or_insert_with(count_unsent);
            }
            close(&mut connection, reason).await;
            break;
        }
    }
    record_malformed_requests(handler, &guard, &delivered);
    drop(connection);
    // Each open exchange finds that its client is gone, and is recorded like any other.
    while streams.len() > 1 {
        streams.next().await;
    }
}

async fn wait_for_shutdown(mut shutdown: ShutdownWatch) {
    // An error means that the sender of the signal is gone, which is a shutdown too.
    let _ = shutdown.wait_for(|is_shutdown| *is_shutdown).await;
}

/// Records the requests that `h2` has rejected. Other streams are recorded when their exchange ends.
fn record_malformed_requests(
    handler: &impl RequestHandler,
    guard: &FrameGuard,
    delivered: &DeliveredStreams,
) {
    for id in guard.take_malformed_streams() {
        if !delivered.contains(id) {
            handler.record_malformed(Version::HTTP_2);
        }
    }
}

/// Sends GOAWAY, aborts the open streams and closes the connection.
async fn close(connection: &mut Connection<GuardedStream, Bytes>, reason: Reason) {
    // A client that did nothing wrong may read everything that it was sent.
    let limit = if reason == Reason::NO_ERROR {
        lingering_close::MAX_DURATION
    } else {
        ABORT_TIMEOUT
    };
    connection.abrupt_shutdown(reason);
    let closed = poll_fn(|cx| connection.poll_closed(cx));
    let _ = tokio::time::timeout(limit, closed).await;
}

fn remaining_work(
    exchanges: usize,
    unread_bodies: usize,
    guard: &FrameGuard,
    connection: &Connection<GuardedStream, Bytes>,
) -> RemainingWork {
    if exchanges > 0 {
        RemainingWork::Exchanges
    } else if unread_bodies > 0 {
        RemainingWork::UnreadBodies
    } else if guard.is_lingering() {
        RemainingWork::LingeringClose
    } else if connection.has_streams() {
        RemainingWork::UnsentResponses
    } else {
        RemainingWork::None
    }
}

/// Detector of rapid resets (CVE-2023-44487): streams that a client resets before it has received the
/// response.
///
/// They are an attack if they exceed [`MIN_TOLERATED_RESETS`], [`TOLERATED_RESETS_PER_SECOND`] and one for
/// each [`STREAMS_PER_TOLERATED_RESET`] streams together. Their share in all streams alone would not do: an
/// attacker would pad them with cheap requests.
struct RapidResetDetector {
    resets: u64,
    streams: u64,
    started_at: Instant,
}

impl RapidResetDetector {
    fn new() -> Self {
        Self {
            resets: 0,
            streams: 0,
            started_at: Instant::now(),
        }
    }

    fn record_stream(&mut self) {
        self.streams += 1;
    }

    /// Records a reset, and returns whether the resets are an attack.
    fn record_reset(&mut self) -> bool {
        self.resets += 1;
        let tolerated_by_streams =
            MIN_TOLERATED_RESETS + self.streams / STREAMS_PER_TOLERATED_RESET;
        let tolerated_by_time =
            || TOLERATED_RESETS_PER_SECOND * Instant::now().since(self.started_at).as_secs();
        self.resets > tolerated_by_streams
            && self.resets > tolerated_by_streams + tolerated_by_time()
    }
}

/// Event on a connection.
#[expect(
    clippy::large_enum_variant,
    reason = "it is taken apart where it is created"
)]
enum ConnectionEvent {
    StreamEnded(EndedStream),
    /// The rest of a request body was received, and its stream is to be closed.
    BodyDiscarded,
    /// The connection is to be shut down gracefully.
    Drain,
    Accepted((Request<RecvStream>, SendResponse<Bytes>)),
    /// `h2` has reset a stream because of a malformed message.
    MalformedRequest,
    /// The client disconnected, or `h2` closed the connection after a protocol error.
    Closed,
    /// The connection is to be closed with this reason, whatever is in progress.
    Abort(Reason),
}

/// Result of an exchange.
struct EndedStream {
    timer: IdleTimer,
    was_reset: bool,
    /// Request body of which the client has not sent everything, though it has been sent the whole response.
    unread_body: Option<RecvStream>,
}

/// Returns the settings of `h2`.
fn builder(limits: Limits) -> Builder {
    // Headers that exceed the limit only slightly reach the gateway, which sends the usual error
    // response.
    let overhead = (MAX_HEADERS + 1) * HEADER_OVERHEAD;
    let max_header_list_size = 2 * limits.max_header_bytes + overhead;
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
        .max_header_list_size(u32::try_from(max_header_list_size).unwrap_or(u32::MAX))
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER_SIZE)
        .max_concurrent_reset_streams(MAX_REMEMBERED_RESETS)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS);
    builder
}

async fn serve_stream(
    handler: &impl RequestHandler,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
    mut timer: IdleTimer,
) -> EndedStream {
    let mut stream = Http2Stream::new(respond);
    let limits = handler.limits();
    let (parts, body) = request.into_parts();
    let method = parts.method.clone();
    let request = request_headers::parse(parts, &body, limits.max_header_bytes);
    stream.request_body = Some(body);
    match request {
        Ok(request) => {
            handler.serve(request, &mut stream, &mut timer).await;
        }
        Err(error) => {
            let method = match error {
                RequestError::MethodTooLong => unknown_method(),
                _ => method,
            };
            handler.reject(error, &method, Version::HTTP_2, &mut stream);
            wait_until_sent(&mut stream, &mut timer, limits.idle_timeout).await;
        }
    }
    EndedStream {
        timer,
        was_reset: stream.was_reset(),
        unread_body: stream.into_unread_body(),
    }
}
