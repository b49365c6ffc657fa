//! Connector: establishes connections to servers, in cleartext or with TLS.

use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use async_trait::async_trait;
use pingora::connectors::TransportConnector;
use pingora::protocols::Stream;
use pingora::protocols::l4::ext::TcpKeepalive;
use pingora::upstreams::peer::HttpPeer;

use crate::config::{Scheme, Server};
use crate::upstream::connect_error::ConnectError;
use crate::upstream::connection::Connection;
use crate::upstream::tls::TlsClient;

/// TCP keep-alive of upstream connections: a vanished endpoint is noticed after one minute.
const TCP_KEEPALIVE: TcpKeepalive = TcpKeepalive {
    idle: Duration::from_secs(30),
    interval: Duration::from_secs(10),
    count: 3,
    user_timeout: Duration::ZERO,
};

/// Establishes byte streams to addresses: over TCP in the gateway, in memory in tests of the exchange.
#[async_trait]
pub(crate) trait StreamConnector: Send + Sync {
    /// Establishes a byte stream to an address.
    ///
    /// # Errors
    /// Returns an error if it is not established within `timeout`.
    async fn connect(&self, address: SocketAddr, timeout: Duration)
    -> Result<Stream, ConnectError>;
}

/// Stream connector of the gateway, which outlives a reload.
pub(crate) type SharedConnector = Arc<dyn StreamConnector>;

/// TCP connector. Pingora's, on which it is built, reads the certificates that the system trusts when it is created.
pub(crate) struct TcpConnector(LazyLock<TransportConnector>);

impl TcpConnector {
    pub(crate) fn new() -> Self {
        Self(LazyLock::new(|| TransportConnector::new(None)))
    }
}

#[async_trait]
impl StreamConnector for TcpConnector {
    async fn connect(
        &self,
        address: SocketAddr,
        timeout: Duration,
    ) -> Result<Stream, ConnectError> {
        // TLS is not Pingora's.
        let mut peer = HttpPeer::new(address, false, String::new());
        peer.options.tcp_keepalive = Some(TCP_KEEPALIVE);
        peer.options.connection_timeout = Some(timeout);
        peer.options.total_connection_timeout = Some(timeout);
        let stream = self.0.new_stream(&peer).await;
        stream.map_err(|error| ConnectError::from(error.etype()))
    }
}

/// Means of connecting to servers.
#[derive(Clone, Copy)]
pub(super) struct Connector<'c> {
    pub(super) stream: &'c dyn StreamConnector,
    /// `None` if no server has `https`.
    pub(super) tls: Option<&'c Arc<TlsClient>>,
}

impl<'c> Connector<'c> {
    /// Establishes a connection to an address of a server.
    ///
    /// # Errors
    /// Returns an error if it is not established, TLS included, within `timeout`.
    pub(super) async fn open(
        self,
        server: &Server,
        address: SocketAddr,
        timeout: Duration,
    ) -> Result<Connection, ConnectError> {
        let tls = self.tls_to(server)?;
        let deadline = tokio::time::Instant::now() + timeout;
        let stream = self.stream.connect(address, timeout).await?;
        let Some(tls) = tls else {
            return Ok(Connection::new(stream, None));
        };
        let handshake = tls.handshake(server, stream);
        match tokio::time::timeout_at(deadline, handshake).await {
            Ok(Ok(stream)) => Ok(Connection::new(stream, Some(tls))),
            Ok(Err(error)) => Err(ConnectError::Tls(error.to_string())),
            Err(_) => Err(ConnectError::TimedOut),
        }
    }

    /// Returns the TLS client of connections to a server, `None` for cleartext.
    ///
    /// # Errors
    /// Returns an error if the server needs TLS and the group had no such server yet when the request began: it is
    /// not sent in cleartext.
    pub(super) fn tls_to(
        self,
        server: &Server,
    ) -> Result<Option<&'c Arc<TlsClient>>, ConnectError> {
        match (server.scheme, self.tls) {
            (Scheme::Http, _) => Ok(None),
            (Scheme::Https, Some(tls)) => Ok(Some(tls)),
            (Scheme::Https, None) => Err(ConnectError::Tls(
                "a reload has changed the scheme of the server".to_owned(),
            )),
        }
    }
}
