//! Time limit for request headers.
//!
//! hyper has one timer for the wait for a request and for the receipt of its headers. A gateway keeps
//! connections open between requests for much longer than headers may take, so this module
//! distinguishes the two: the limit runs from the connection's start, and later from the first byte of
//! a request, to the end of the headers.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// Longest time to receive the request headers.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(10);

const RECEIVING_HEADERS: u8 = 0;
const IN_REQUEST: u8 = 1;
const IDLE: u8 = 2;

/// Activity of a connection. Shared by its stream and its service.
#[derive(Debug, Clone)]
pub(super) struct ConnectionPhase(Arc<AtomicU8>);

impl ConnectionPhase {
    /// Returns the phase of a new connection, on which a request is expected at once.
    pub(super) fn new() -> Self {
        Self(Arc::new(AtomicU8::new(RECEIVING_HEADERS)))
    }

    /// Records that the headers of a request are complete.
    pub(super) fn request_started(&self) {
        self.0.store(IN_REQUEST, Ordering::Relaxed);
    }

    /// Records that the response to a request begins. What arrives from now on belongs to the next one.
    pub(super) fn request_finished(&self) {
        self.0.store(IDLE, Ordering::Relaxed);
    }

    fn get(&self) -> u8 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Stream whose reads fail if request headers are not complete in time. The timer runs only while a
/// part of them is missing, so a request that arrives at once costs nothing.
#[derive(Debug)]
pub(super) struct HeaderTimeoutStream<S> {
    stream: S,
    phase: ConnectionPhase,
    timer: Option<Pin<Box<Sleep>>>,
}

impl<S> HeaderTimeoutStream<S> {
    pub(super) fn new(stream: S, phase: ConnectionPhase) -> Self {
        Self {
            stream,
            phase,
            timer: None,
        }
    }

    fn poll_timeout(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.phase.get() != RECEIVING_HEADERS {
            return Poll::Pending;
        }
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(HEADERS_TIMEOUT)));
        ready!(timer.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for HeaderTimeoutStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Poll::Ready(result) = Pin::new(&mut self.stream).poll_read(context, buffer) else {
            return self.poll_timeout(context);
        };
        if self.phase.get() == IDLE {
            self.phase.0.store(RECEIVING_HEADERS, Ordering::Relaxed);
            self.timer = None;
        }
        Poll::Ready(result)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for HeaderTimeoutStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn incomplete_headers_time_out_and_an_idle_connection_does_not() {
        let (mut client, server) = tokio::io::duplex(64);
        let phase = ConnectionPhase::new();
        let mut stream = HeaderTimeoutStream::new(server, phase.clone());

        client.write_all(b"request").await.unwrap();
        stream.read_exact(&mut [0; 7]).await.unwrap();
        phase.request_started();
        phase.request_finished();
        let idle = tokio::time::timeout(3 * HEADERS_TIMEOUT, stream.read_u8()).await;
        assert!(idle.is_err(), "{idle:?}");

        client.write_all(b"half").await.unwrap();
        stream.read_exact(&mut [0; 4]).await.unwrap();
        let error = stream.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_without_a_request_times_out() {
        let (_client, server) = tokio::io::duplex(64);
        let mut stream = HeaderTimeoutStream::new(server, ConnectionPhase::new());
        let error = stream.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
