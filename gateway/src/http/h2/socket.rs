//! Socket of a connection: bytes move between it and the connection's state.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use pingora::protocols::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::http::adaptive_read::{AdaptiveRead, ReadSize};
use crate::http::h2::connection::Connection;
use crate::http::h2::frame::Reason;
use crate::http::lingering_close::LingeringClose;

/// Size of the buffer for input that is discarded.
const DISCARD_BUFFER_SIZE: usize = 4 * 1024;

/// Reason why a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SocketEnd {
    /// The client disconnected.
    Disconnected,
    /// The gateway closes it, because of an error of the client unless the reason is `NoError`.
    Closed(Reason),
}

/// Socket of a connection.
pub(super) struct Socket {
    stream: Stream,
    read: AdaptiveRead,
    /// Number of bytes that were sent.
    pub(super) sent_bytes: u64,
    /// True if the client does not read what was sent.
    pub(super) is_write_blocked: bool,
}

impl Socket {
    pub(super) fn new(stream: Stream) -> Self {
        Self {
            stream,
            read: AdaptiveRead::default(),
            sent_bytes: 0,
            is_write_blocked: false,
        }
    }

    /// Sends output and receives input until neither is possible, or an event of the connection is to be handled.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        connection: &mut Connection,
    ) -> Poll<SocketEnd> {
        loop {
            if let Err(reason) = connection.receive() {
                return Poll::Ready(SocketEnd::Closed(reason));
            }
            if connection.has_events() {
                return Poll::Pending;
            }
            if let Poll::Ready(Err(_)) = self.poll_flush(cx, connection) {
                return Poll::Ready(SocketEnd::Disconnected);
            }
            if connection.has_events() || !connection.can_receive() {
                return Poll::Pending;
            }
            let stream = Pin::new(&mut self.stream);
            let input = &mut connection.input;
            match ready!(self.read.poll(cx, stream, input, ReadSize::default())) {
                Ok(1..) => {}
                Ok(0) | Err(_) => return Poll::Ready(SocketEnd::Disconnected),
            }
        }
    }

    /// Sends all output.
    pub(super) fn poll_flush(
        &mut self,
        cx: &mut Context<'_>,
        connection: &mut Connection,
    ) -> Poll<io::Result<()>> {
        while !connection.output.is_flushed() {
            let written = self.poll_write(cx, connection);
            self.is_write_blocked = written.is_pending();
            // There may be room for more response bytes.
            connection.pump();
            ready!(written)?;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        connection: &mut Connection,
    ) -> Poll<io::Result<()>> {
        let mut stream = Pin::new(&mut self.stream);
        while connection.output.len() > 0 {
            match ready!(stream.as_mut().poll_write(cx, connection.output.unsent()))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                length => {
                    self.sent_bytes += length as u64;
                    connection.record_sent(length);
                }
            }
        }
        ready!(stream.poll_flush(cx))?;
        connection.output.record_flush();
        Poll::Ready(Ok(()))
    }

    /// Sends all output and closes the socket for writing.
    pub(super) fn poll_shutdown(
        &mut self,
        cx: &mut Context<'_>,
        connection: &mut Connection,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_flush(cx, connection))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    /// Reads and discards input until the client has closed the socket: it may send as much as its windows allow until it
    /// has read the GOAWAY frame.
    pub(super) fn poll_linger(
        &mut self,
        cx: &mut Context<'_>,
        lingering_close: &mut LingeringClose,
    ) -> Poll<()> {
        let mut discarded = [0; DISCARD_BUFFER_SIZE];
        lingering_close.poll(cx, |cx| {
            let mut buffer = ReadBuf::new(&mut discarded);
            let read = Pin::new(&mut self.stream).poll_read(cx, &mut buffer);
            read.map_ok(|()| buffer.filled().len())
        })
    }
}
