//! Network in memory, in place of TCP, for tests whose time is paused: connections of this thread, and pipes whose peer
//! can close or reset them.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use async_trait::async_trait;
use futures::future::BoxFuture;
use pingora::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream,
    TimingDigest, UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

use crate::upstream::connect_error::ConnectError;

/// Connection that is being established.
pub(crate) type Connecting = BoxFuture<'static, Result<Stream, ConnectError>>;
type Network = Box<dyn FnMut(SocketAddr) -> Connecting>;

thread_local! {
    static NETWORK: RefCell<Option<Network>> = const { RefCell::new(None) };
}

/// Lets `network` establish the connections of this thread.
pub(crate) fn replace_tcp(network: impl FnMut(SocketAddr) -> Connecting + 'static) {
    NETWORK.with_borrow_mut(|current| *current = Some(Box::new(network)));
}

/// Returns the connection to an address, `None` unless this thread has such a network.
pub(super) fn connect(address: SocketAddr) -> Option<Connecting> {
    NETWORK.with_borrow_mut(|network| network.as_mut().map(|network| network(address)))
}

/// Peer of the gateway on a pipe. Dropping it closes the connection.
#[derive(Debug)]
pub(crate) struct PipeEnd {
    pub(crate) stream: DuplexStream,
    pub(crate) reset: Reset,
}

/// Means to have a connection end with a reset: an error once the gateway has read everything, in place of the end of
/// the stream.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reset(Arc<AtomicBool>);

impl Reset {
    /// Makes the end of the connection, which follows, a reset.
    pub(crate) fn prepare(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Returns both ends of a connection with room for `capacity` bytes in each direction.
pub(crate) fn pipe(capacity: usize) -> (PipeEnd, Stream) {
    let (peer, inner) = tokio::io::duplex(capacity);
    let reset = Reset::default();
    let end = PipeEnd {
        stream: peer,
        reset: reset.clone(),
    };
    (end, Box::new(PipeStream { inner, reset }))
}

/// The gateway's end of a pipe.
#[derive(Debug)]
struct PipeStream {
    inner: DuplexStream,
    reset: Reset,
}

impl AsyncRead for PipeStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buffer))?;
        let is_end = buffer.filled().len() == before && buffer.remaining() > 0;
        if is_end && self.reset.0.load(Ordering::Relaxed) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for PipeStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[async_trait]
impl Shutdown for PipeStream {
    async fn shutdown(&mut self) {}
}

impl UniqueID for PipeStream {
    fn id(&self) -> UniqueIDType {
        0
    }
}

impl Ssl for PipeStream {}
impl Peek for PipeStream {}

impl GetTimingDigest for PipeStream {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for PipeStream {
    fn get_proxy_digest(&self) -> Option<Arc<pingora::protocols::raw_connect::ProxyDigest>> {
        None
    }
}

impl GetSocketDigest for PipeStream {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        None
    }
}
