//! Pool of an endpoint's idle connections.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::runtime::clock::Instant;
use crate::runtime::fd_limit;
use crate::upstream::connection::{Connection, IDLE_TIMEOUT};
use crate::upstream::tls::TlsClient;

/// Maximum number of idle connections of an endpoint.
const MAX_IDLE_CONNECTIONS: usize = 1024;
/// Fraction of the file descriptor limit that the idle connections of an endpoint may use: one in
/// this many.
const FD_LIMIT_DIVISOR: usize = 8;

/// Idle connections of an endpoint, the most recently used one last.
pub(super) struct ConnectionPool {
    idle: Mutex<VecDeque<IdleConnection>>,
    max_idle: usize,
}

struct IdleConnection {
    connection: Connection,
    since: Instant,
}

impl IdleConnection {
    /// Returns whether it has not been idle for too long, and the endpoint has not closed it.
    fn is_usable(&mut self, now: Instant) -> bool {
        now.since(self.since) < IDLE_TIMEOUT && self.connection.is_still_idle()
    }
}

impl ConnectionPool {
    pub(super) fn new() -> Self {
        Self {
            idle: Mutex::default(),
            max_idle: MAX_IDLE_CONNECTIONS.min(fd_limit::max_connections() / FD_LIMIT_DIVISOR),
        }
    }

    /// Closes all connections, to free their file descriptors.
    pub(super) fn clear(&self) {
        let closed = std::mem::take(&mut *self.idle.lock());
        drop(closed);
    }

    /// Takes the most recently used connection by `tls`, or in cleartext, that the endpoint has not closed and that has not
    /// been idle for too long. Closes the others that it finds: they have expired, or their TLS settings are no longer those
    /// of the configuration.
    pub(super) fn take(&self, tls: Option<&Arc<TlsClient>>, now: Instant) -> Option<Connection> {
        loop {
            let mut candidate = self.idle.lock().pop_back()?;
            if candidate.connection.is_by(tls) && candidate.is_usable(now) {
                return Some(candidate.connection);
            }
        }
    }

    /// Adds a connection if it is reusable. Closes the least recently used one if the pool is full.
    pub(super) fn put(&self, mut connection: Connection, now: Instant) {
        if !connection.is_reusable() {
            return;
        }
        connection.mark_pooled();
        let idle_connection = IdleConnection {
            connection,
            since: now,
        };
        let mut idle = self.idle.lock();
        idle.push_back(idle_connection);
        let evicted = (idle.len() > self.max_idle).then(|| idle.pop_front());
        drop(idle);
        drop(evicted);
    }

    /// Closes the connections that have been idle for too long or that the endpoint has closed.
    pub(super) fn close_expired(&self, now: Instant) {
        let mut closed = Vec::new();
        let mut idle = self.idle.lock();
        for _ in 0..idle.len() {
            let mut candidate = idle.pop_front().expect("the loop runs once per connection");
            if candidate.is_usable(now) {
                idle.push_back(candidate);
            } else {
                closed.push(candidate);
            }
        }
        drop(idle);
        // Closing takes system calls: the lock is released first.
        drop(closed);
    }
}

impl fmt::Debug for ConnectionPool {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let idle = self.idle.lock().len();
        formatter
            .debug_struct("ConnectionPool")
            .field("idle", &idle)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};
    use std::time::Duration;

    use http::Method;
    use pingora::protocols::Stream;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex};

    use super::*;
    use crate::http::downstream::Backpressure;
    use crate::http::message::{Framing, Upgrade};
    use crate::upstream::UpstreamEvent;

    const MAX_IDLE: usize = 3;

    /// State of the exchange after which a connection is put into the pool.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Exchange {
        Complete,
        /// The endpoint has announced that it closes the connection.
        Last,
        RequestIncomplete,
        ResponseIncomplete,
        /// The endpoint has sent more than the response.
        Surplus,
    }

    /// Step of a run. A number selects one of the connections.
    #[derive(Debug, Clone, Copy)]
    enum Step {
        Put(Exchange),
        Take,
        CloseExpired,
        Clear,
        Advance(Duration),
        /// The endpoint closes a connection.
        Close(usize),
        /// The endpoint sends something on an idle connection.
        Send(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let exchange = prop_oneof![
            4 => Just(Exchange::Complete),
            1 => Just(Exchange::Last),
            1 => Just(Exchange::RequestIncomplete),
            1 => Just(Exchange::ResponseIncomplete),
            1 => Just(Exchange::Surplus),
        ];
        let seconds = prop_oneof![Just(1), Just(27), Just(54), Just(55)];
        prop_oneof![
            6 => exchange.prop_map(Step::Put),
            4 => Just(Step::Take),
            2 => Just(Step::CloseExpired),
            1 => Just(Step::Clear),
            3 => seconds.prop_map(|seconds| Step::Advance(Duration::from_secs(seconds))),
            1 => (0..8_usize).prop_map(Step::Close),
            1 => (0..8_usize).prop_map(Step::Send),
        ]
    }

    /// The endpoint's side of the connections, by number. `None` once the endpoint has closed it.
    #[derive(Default)]
    struct Endpoint(Vec<Option<DuplexStream>>);

    impl Endpoint {
        /// Returns a connection after an exchange.
        fn connection(&mut self, exchange: Exchange) -> Connection {
            let mut cx = Context::from_waker(Waker::noop());
            let (mut peer, stream) = duplex(1024);
            let stream: Stream = Box::new(stream);
            let mut connection = Connection::new(stream, None);
            let framing = match exchange {
                Exchange::RequestIncomplete => Framing::Length(1),
                _ => Framing::Empty,
            };
            connection.begin_request(&Method::GET, framing, Upgrade::None);
            if exchange != Exchange::RequestIncomplete {
                connection.finish_request();
            }
            let response: &[u8] = match exchange {
                Exchange::Last => {
                    b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
                }
                Exchange::ResponseIncomplete => b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n",
                Exchange::Surplus => b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\nHTTP",
                Exchange::Complete | Exchange::RequestIncomplete => {
                    b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
                }
            };
            let sent = Pin::new(&mut peer).poll_write(&mut cx, response);
            assert!(matches!(sent, Poll::Ready(Ok(count)) if count == response.len()));
            while let Poll::Ready(Ok(event)) = connection.poll(&mut cx, Backpressure::Ready) {
                if matches!(event, UpstreamEvent::End) {
                    break;
                }
            }
            self.0.push(Some(peer));
            connection
        }

        /// Returns the numbers of the connections that the gateway has open, of those that the endpoint has open.
        fn open(&mut self) -> Vec<usize> {
            let mut cx = Context::from_waker(Waker::noop());
            let peers = self.0.iter_mut().enumerate();
            peers
                .filter_map(|(number, peer)| {
                    let mut byte = [0];
                    let mut buffer = ReadBuf::new(&mut byte);
                    let stream = Pin::new(peer.as_mut()?);
                    let read: Poll<io::Result<()>> = stream.poll_read(&mut cx, &mut buffer);
                    read.is_pending().then_some(number)
                })
                .collect()
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        /// The model is the list of idle connections, the most recently used one last. Only clean ones are in it, not more
        /// than the maximum, and none that is returned has expired, or was closed or written to by the endpoint.
        #[test]
        fn a_pool_is_as_its_model_whatever_endpoints_do(steps in vec(step(), 0..60)) {
            let pool = ConnectionPool {
                idle: Mutex::default(),
                max_idle: MAX_IDLE,
            };
            let mut endpoint = Endpoint::default();
            let mut model: Vec<(usize, Instant)> = Vec::new();
            // Connections on which the endpoint has closed or sent something since they were put back.
            let mut unusable = Vec::new();
            let mut now = Instant(1_000_000_000);
            for step in steps {
                let number = match step {
                    Step::Close(number) | Step::Send(number) => number,
                    _ => 0,
                };
                let selected = number.checked_rem(model.len()).map(|index| model[index].0);
                match step {
                    Step::Put(exchange) => {
                        let connection = endpoint.connection(exchange);
                        pool.put(connection, now);
                        if exchange == Exchange::Complete {
                            model.push((endpoint.0.len() - 1, now));
                        }
                        if model.len() > MAX_IDLE {
                            model.remove(0);
                        }
                    }
                    Step::Take => {
                        let taken = pool.take(None, now);
                        let is_unusable = |(last, since): &(usize, Instant)| {
                            now.since(*since) >= IDLE_TIMEOUT || unusable.contains(last)
                        };
                        while model.last().is_some_and(is_unusable) {
                            model.pop();
                        }
                        let expected = model.pop();
                        prop_assert_eq!(taken.is_some(), expected.is_some());
                        // Dropped: the endpoint sees below that it was this one.
                        drop(taken);
                    }
                    Step::CloseExpired => {
                        pool.close_expired(now);
                        model.retain(|(number, since)| {
                            now.since(*since) < IDLE_TIMEOUT && !unusable.contains(number)
                        });
                    }
                    Step::Clear => {
                        pool.clear();
                        model.clear();
                    }
                    Step::Advance(duration) => now = now.saturating_add(duration),
                    Step::Close(_) => {
                        let Some(number) = selected else { continue };
                        endpoint.0[number] = None;
                        unusable.push(number);
                    }
                    Step::Send(_) => {
                        let Some(number) = selected else { continue };
                        let mut cx = Context::from_waker(Waker::noop());
                        if let Some(peer) = &mut endpoint.0[number] {
                            let sent = Pin::new(peer).poll_write(&mut cx, b"x");
                            prop_assert!(sent.is_ready());
                            unusable.push(number);
                        }
                    }
                }
                let mut expected: Vec<_> = model.iter().map(|(number, _)| *number).collect();
                expected.retain(|number| endpoint.0[*number].is_some());
                expected.sort_unstable();
                prop_assert_eq!(endpoint.open(), expected, "after {:?}", step);
            }
        }
    }
}
