//! One end of a connection that speaks HTTP/1.1: what was read and not yet understood, and what was
//! said and not yet sent.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use pingora::protocols::Stream;

/// Bytes that wait to be sent, beyond which no more is taken from the other side.
pub(crate) const FULL: usize = 64 * 1024;
/// Room for one read: most heads, and what an idle connection holds.
const READ: usize = 2 * 1024;
/// Room where the last read was large.
const LARGE_READ: usize = 16 * 1024;
/// An output of this size is kept for what comes next.
const KEPT: usize = 4 * 1024;

/// A stream and its two buffers.
pub(crate) struct Wire {
    stream: Stream,
    pub(crate) input: BytesMut,
    output: Vec<u8>,
    /// Of the output.
    sent: usize,
    flushed: bool,
    /// Bytes of the last read.
    last: usize,
}

impl Wire {
    pub(crate) fn new(stream: Stream) -> Self {
        Self {
            stream,
            input: BytesMut::new(),
            output: Vec::new(),
            sent: 0,
            flushed: true,
            last: 0,
        }
    }

    /// Where to write what is to be sent.
    pub(crate) fn output(&mut self) -> &mut Vec<u8> {
        self.flushed = false;
        &mut self.output
    }

    /// Bytes that wait to be sent.
    pub(crate) fn waiting(&self) -> usize {
        self.output.len() - self.sent
    }

    /// Whether everything is sent.
    pub(crate) fn is_flushed(&self) -> bool {
        self.flushed
    }

    /// Gives up what is not sent.
    pub(crate) fn discard(&mut self) {
        (self.sent, self.flushed) = (0, true);
        self.output.clear();
    }

    /// Reads some more; nothing where the other end has closed.
    pub(crate) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let room = if self.last >= READ / 2 {
            LARGE_READ
        } else {
            READ
        };
        if self.input.capacity() - self.input.len() < room / 2 {
            self.input.reserve(room);
        }
        let stream = Pin::new(&mut *self.stream);
        let read = ready!(tokio_util::io::poll_read_buf(stream, cx, &mut self.input));
        self.last = *read.as_ref().unwrap_or(&0);
        Poll::Ready(read)
    }

    /// Sends everything.
    pub(crate) fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut stream = Pin::new(&mut *self.stream);
        while self.sent < self.output.len() {
            match ready!(stream.as_mut().poll_write(cx, &self.output[self.sent..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.sent += written,
            }
        }
        ready!(stream.poll_flush(cx))?;
        self.discard();
        self.output.shrink_to(KEPT);
        Poll::Ready(Ok(()))
    }

    /// [`Wire::poll_send`], and tells the other end that nothing follows.
    pub(crate) fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        Pin::new(&mut *self.stream).poll_shutdown(cx)
    }
}
