//! Connection in memory that the peer of the gateway can close or reset, as a TCP connection.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use async_trait::async_trait;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl,
    TimingDigest, UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex};

/// Bytes that a pipe holds in each direction, as the buffers of sockets. More than any header section of the tests, so
/// that one write passes it on as a whole.
pub(super) const PIPE_CAPACITY: usize = 4 * 1024;

/// Bytes that the gateway's end holds until they are flushed, as the buffer of a TLS connection.
pub(super) const UNFLUSHED_CAPACITY: usize = 1024;

/// Returns the two ends of a connection.
pub(super) fn pipe() -> (GatewayEnd, PeerEnd) {
    let (gateway, peer) = duplex(PIPE_CAPACITY);
    let is_reset = Arc::new(AtomicBool::new(false));
    let gateway = GatewayEnd {
        stream: gateway,
        unflushed: Vec::new(),
        is_reset: Arc::clone(&is_reset),
    };
    let peer = PeerEnd {
        stream: peer,
        reset: Reset(is_reset),
    };
    (gateway, peer)
}

/// End of the client or endpoint. Dropping the stream closes the connection.
pub(super) struct PeerEnd {
    pub(super) stream: DuplexStream,
    pub(super) reset: Reset,
}

/// Makes the close of a connection a reset: the gateway does not get the bytes that it has not read.
pub(super) struct Reset(Arc<AtomicBool>);

impl Reset {
    /// To be called before the stream is dropped.
    pub(super) fn announce(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// End of the gateway.
#[derive(Debug)]
pub(super) struct GatewayEnd {
    stream: DuplexStream,
    unflushed: Vec<u8>,
    is_reset: Arc<AtomicBool>,
}

impl GatewayEnd {
    /// Passes on what was written.
    fn poll_pass_on(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unflushed.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.unflushed))?;
            self.unflushed.drain(..written);
        }
        Poll::Ready(Ok(()))
    }

    fn check_reset(&self) -> io::Result<()> {
        if self.is_reset.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Ok(())
    }
}

impl AsyncRead for GatewayEnd {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check_reset()?;
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for GatewayEnd {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check_reset()?;
        if self.unflushed.len() >= UNFLUSHED_CAPACITY {
            ready!(self.poll_pass_on(cx))?;
        }
        let accepted = bytes.len().min(UNFLUSHED_CAPACITY - self.unflushed.len());
        self.unflushed.extend_from_slice(&bytes[..accepted]);
        Poll::Ready(Ok(accepted))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_reset()?;
        self.poll_pass_on(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_pass_on(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[async_trait]
impl Shutdown for GatewayEnd {
    async fn shutdown(&mut self) {}
}

impl UniqueID for GatewayEnd {
    fn id(&self) -> UniqueIDType {
        0
    }
}

impl GetTimingDigest for GatewayEnd {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for GatewayEnd {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        None
    }
}

impl GetSocketDigest for GatewayEnd {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        None
    }
}

impl Ssl for GatewayEnd {}

impl Peek for GatewayEnd {}
