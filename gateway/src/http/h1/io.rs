//! Buffered socket of an HTTP/1.1 connection, on either side of the gateway.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use pingora::protocols::Stream;
use pingora::tls::ClientTlsStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::http::adaptive_read::{AdaptiveRead, ReadSize};

/// Maximum capacity that the empty output buffer retains.
const MAX_RETAINED_OUTPUT: usize = 4 * 1024;

/// Byte stream of a connection.
pub(crate) enum Transport {
    /// Connection of a client, with or without TLS, or a cleartext connection to an endpoint.
    Stream(Stream),
    /// TLS connection to an endpoint.
    TlsToEndpoint(Box<ClientTlsStream<Stream>>),
}

impl Transport {
    fn socket(&self) -> &Stream {
        match self {
            Self::Stream(stream) => stream,
            Self::TlsToEndpoint(stream) => stream.get_ref().0,
        }
    }
}

impl From<Stream> for Transport {
    fn from(stream: Stream) -> Self {
        Self::Stream(stream)
    }
}

impl From<ClientTlsStream<Stream>> for Transport {
    fn from(stream: ClientTlsStream<Stream>) -> Self {
        Self::TlsToEndpoint(Box::new(stream))
    }
}

impl AsyncRead for Transport {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Stream(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::TlsToEndpoint(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Stream(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::TlsToEndpoint(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Stream(stream) => Pin::new(stream).poll_flush(cx),
            Self::TlsToEndpoint(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Stream(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::TlsToEndpoint(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// Stream with an input and an output buffer.
pub(crate) struct BufferedStream {
    stream: Transport,
    /// Bytes that are read and not yet parsed.
    pub(crate) input: BytesMut,
    output: Vec<u8>,
    /// Number of bytes of `output` that are sent.
    sent: usize,
    is_flushed: bool,
    read: AdaptiveRead,
    pub(crate) read_size: ReadSize,
}

impl BufferedStream {
    pub(crate) fn new(stream: impl Into<Transport>) -> Self {
        Self {
            stream: stream.into(),
            input: BytesMut::new(),
            output: Vec::new(),
            sent: 0,
            is_flushed: true,
            read: AdaptiveRead::default(),
            read_size: ReadSize::default(),
        }
    }

    /// Returns the local address of the socket.
    pub(crate) fn local_address(&self) -> Option<SocketAddr> {
        let digest = self.stream.socket().get_socket_digest()?;
        digest.local_addr()?.as_inet().copied()
    }

    /// Returns the output buffer, to append to it.
    pub(crate) fn output(&mut self) -> &mut Vec<u8> {
        self.is_flushed = false;
        &mut self.output
    }

    /// Returns the number of output bytes that are not sent yet.
    pub(crate) fn buffered_bytes(&self) -> usize {
        self.output.len() - self.sent
    }

    /// Returns whether all output is sent.
    pub(crate) fn is_flushed(&self) -> bool {
        self.is_flushed
    }

    /// Discards the output that is not sent.
    pub(crate) fn discard_output(&mut self) {
        (self.sent, self.is_flushed) = (0, true);
        self.output.clear();
    }

    /// Appends bytes to `input` and returns their number, 0 if the peer has closed the connection.
    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let stream = Pin::new(&mut self.stream);
        self.read.poll(cx, stream, &mut self.input, self.read_size)
    }

    /// Sends all output.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut stream = Pin::new(&mut self.stream);
        while self.sent < self.output.len() {
            match ready!(stream.as_mut().poll_write(cx, &self.output[self.sent..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.sent += written,
            }
        }
        ready!(stream.poll_flush(cx))?;
        self.discard_output();
        self.output.shrink_to(MAX_RETAINED_OUTPUT);
        Poll::Ready(Ok(()))
    }

    /// Sends all output and closes the stream for writing.
    pub(crate) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_flush(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
