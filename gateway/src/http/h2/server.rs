//! HTTP/2 server (RFC 9113): one task drives a connection and the exchanges of all its streams.
//!
//! Each part has its limits on the work and memory that a client can cause (RFC 9113, section 10.5): the state of the
//! connection ([`Connection`]), and waiting ([`IdleMonitor`]).
//!
//! Graceful shutdown (RFC 9113, section 6.8): GOAWAY announces that the connection accepts no new
//! streams, and the open ones are completed.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use http::Version;
use parking_lot::Mutex;
use pingora::protocols::Stream;
use pingora::server::ShutdownWatch;

use crate::http::downstream::wait_until_sent;
use crate::http::h2::connection::{Connection, ReceivedRequest};
use crate::http::h2::exchanges::Exchanges;
use crate::http::h2::frame::Reason;
use crate::http::h2::idle::{
    ClientProgress, ConnectionPhase, IdleAction, IdleMonitor, RemainingWork,
};
use crate::http::h2::request_headers;
use crate::http::h2::socket::{Socket, SocketEnd};
use crate::http::h2::stream::Http2Stream;
use crate::http::handler::RequestHandler;
use crate::http::lingering_close::{self, LingeringClose};
use crate::http::message::RequestError;
use crate::http::syntax::unknown_method;
use crate::runtime::clock::Instant;
use crate::runtime::idle_timer::IdleTimer;
use crate::telemetry::gauge_guard::GaugeGuard;

/// Longest time to send GOAWAY to a client that exceeds limits.
const ABORT_TIMEOUT: Duration = Duration::from_secs(1);

/// Serves the requests of a connection until it is closed.
pub(crate) async fn serve(handler: &impl RequestHandler, stream: Stream, shutdown: &ShutdownWatch) {
    let limits = handler.limits();
    let connection = Mutex::new(Connection::new(limits.max_header_bytes));
    let mut socket = Socket::new(stream);
    let mut exchanges = Exchanges::new();
    let mut shutdown_begun = pin!(wait_for_shutdown(shutdown.clone()));
    let mut phase = ConnectionPhase::Serving;
    let mut idle_monitor = IdleMonitor::new(limits);
    let mut discard_timer = None;
    // Timers of exchanges that have ended are reused.
    let mut spare_timers = Vec::new();
    let count_unsent = || GaugeGuard::increment(handler.unsent_responses());
    let mut unsent_responses = None;
    let end = poll_fn(|cx| {
        loop {
            while let Poll::Ready(timer) = exchanges.poll(cx) {
                spare_timers.push(timer);
            }
            let mut state = connection.lock();
            if phase == ConnectionPhase::Serving && shutdown_begun.as_mut().poll(cx).is_ready() {
                phase = ConnectionPhase::Draining;
                state.begin_drain();
            }
            if let Poll::Ready(end) = socket.poll(cx, &mut state) {
                return Poll::Ready(end);
            }
            if state.has_events() {
                while let Some(request) = state.next_request() {
                    idle_monitor.restart();
                    let timer = spare_timers.pop().unwrap_or_else(IdleTimer::new);
                    let stream = Http2Stream::new(&connection, request.stream);
                    let id = request.stream;
                    let exchange = Box::pin(serve_stream(handler, request, stream, timer));
                    exchanges.push(id, exchange);
                }
                while let Some((stream, waker)) = state.next_notified() {
                    exchanges.wake(stream, waker);
                }
                record_malformed(handler, &mut state);
                continue;
            }
            if state.is_drained() {
                return Poll::Ready(SocketEnd::Closed(Reason::NoError));
            }
            if let Some(deadline) = state.discard_deadline() {
                let timer = discard_timer.get_or_insert_with(IdleTimer::new);
                if timer.poll_until(cx, deadline.to_tokio()).is_ready() {
                    state.expire_discarded(Instant::now());
                    continue;
                }
            }
            let remaining = remaining_work(exchanges.len(), &state);
            if matches!(remaining, RemainingWork::Exchanges | RemainingWork::None) {
                unsent_responses = None;
            } else {
                unsent_responses.get_or_insert_with(count_unsent);
            }
            let progress = ClientProgress {
                header_block_since: state.header_block_since(),
                sent_bytes: socket.sent_bytes,
                is_write_blocked: socket.is_write_blocked,
            };
            match idle_monitor.poll(cx, remaining, phase, progress) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(IdleAction::Close(reason)) => {
                    return Poll::Ready(SocketEnd::Closed(reason));
                }
                Poll::Ready(IdleAction::Drain) => {
                    phase = ConnectionPhase::Draining;
                    state.begin_drain();
                }
            }
        }
    })
    .await;
    if end == SocketEnd::Closed(Reason::NoError) {
        unsent_responses.get_or_insert_with(count_unsent);
    }
    {
        let mut state = connection.lock();
        record_malformed(handler, &mut state);
        state.close(match end {
            SocketEnd::Closed(reason) => Some(reason),
            SocketEnd::Disconnected => None,
        });
        while let Some((stream, waker)) = state.next_notified() {
            exchanges.wake(stream, waker);
        }
    }
    // Each open exchange finds that its client is gone, and is recorded like any other.
    let ended = poll_fn(|cx| {
        while exchanges.poll(cx).is_ready() {}
        if exchanges.len() == 0 {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    });
    tokio::join!(ended, close(socket, &connection, end));
}

async fn wait_for_shutdown(mut shutdown: ShutdownWatch) {
    // An error means that the sender of the signal is gone, which is a shutdown too.
    let _ = shutdown.wait_for(|is_shutdown| *is_shutdown).await;
}

/// Records the requests that were reset as malformed. The others are recorded when their exchange ends.
fn record_malformed(handler: &impl RequestHandler, state: &mut Connection) {
    for _ in 0..state.take_malformed_requests() {
        handler.record_malformed(Version::HTTP_2);
    }
}

fn remaining_work(exchanges: usize, state: &Connection) -> RemainingWork {
    if exchanges > 0 {
        RemainingWork::Exchanges
    } else if state.is_discarding() {
        RemainingWork::UnreadBodies
    } else if state.has_unsent_responses() {
        RemainingWork::UnsentResponses
    } else {
        RemainingWork::None
    }
}

/// Closes a socket. A client that is still connected is sent the rest of the output, which ends with GOAWAY.
async fn close(mut socket: Socket, connection: &Mutex<Connection>, end: SocketEnd) {
    let limit = match end {
        SocketEnd::Disconnected => return,
        SocketEnd::Closed(Reason::EnhanceYourCalm) => ABORT_TIMEOUT,
        SocketEnd::Closed(_) => lingering_close::MAX_DURATION,
    };
    let closed = async {
        let shutdown = poll_fn(|cx| socket.poll_shutdown(cx, &mut connection.lock()));
        if shutdown.await.is_ok() {
            let mut lingering_close = LingeringClose::new();
            poll_fn(|cx| socket.poll_linger(cx, &mut lingering_close)).await;
        }
    };
    let _ = tokio::time::timeout(limit, closed).await;
}

/// Serves a request, and returns the timer.
async fn serve_stream(
    handler: &impl RequestHandler,
    request: ReceivedRequest,
    mut stream: Http2Stream<'_>,
    mut timer: IdleTimer,
) -> IdleTimer {
    let limits = handler.limits();
    let method = request.headers.method.clone();
    match request_headers::parse(request.headers, request.body, limits.max_header_bytes) {
        Ok(request) => {
            handler.serve(request, &mut stream, &mut timer).await;
        }
        Err(error) => {
            let method = match error {
                RequestError::MethodTooLong => None,
                _ => method,
            };
            let method = method.unwrap_or_else(unknown_method);
            handler.reject(error, &method, Version::HTTP_2, &mut stream);
            wait_until_sent(&mut stream, &mut timer, limits.idle_timeout).await;
        }
    }
    stream.end();
    timer
}

#[cfg(test)]
mod tests;
