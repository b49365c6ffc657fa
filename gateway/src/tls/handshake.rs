//! TLS handshakes of client connections: bounded in time; their result is kept for the requests.

use std::any::Any;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use pingora::listeners::TlsAccept;
use pingora::listeners::tls::{Acceptor, TlsSettings};
use pingora::protocols::Stream;
use pingora::protocols::l4::stream::Stream as TcpStream;
use pingora::protocols::tls::{SslDigest, TlsRef};
use pingora::tls::TlsAcceptor;

use crate::http::syntax::host_name;
use crate::telemetry::metrics::{HandshakeOutcome, Metrics};
use crate::tls::certificates::{self, Certificates};

/// Server name that the client sent (SNI), and names of the certificate that it was served.
#[derive(Debug)]
pub(crate) struct ServerNames {
    requested: Option<String>,
    certificate: Vec<String>,
}

impl ServerNames {
    /// Returns whether the connection is authoritative for `host` (RFC 9110, section 7.4). A client that
    /// sent no server name, because it connected to an address, may request any host.
    pub(crate) fn cover(&self, host: &str) -> bool {
        let Some(requested) = &self.requested else {
            return true;
        };
        let name = host_name(host);
        name.eq_ignore_ascii_case(requested) || certificates::names_cover(&self.certificate, name)
    }
}

/// Peer of a client connection.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) address: IpAddr,
    handshake: Option<Arc<SslDigest>>,
}

impl Peer {
    /// Returns a peer that sent no server name.
    #[cfg(test)]
    pub(crate) fn unnamed(address: IpAddr) -> Self {
        Self {
            address,
            handshake: None,
        }
    }

    /// Returns the peer of a connection, `None` if it was closed.
    pub(crate) fn of(stream: &Stream) -> Option<Self> {
        let socket = stream.get_socket_digest()?;
        Some(Self {
            address: socket.peer_addr()?.as_inet()?.ip(),
            handshake: stream.get_ssl_digest(),
        })
    }

    /// Returns whether the client may request `host` on this connection: the server name of the TLS
    /// handshake, or another name of the certificate (RFC 9110, section 7.4).
    pub(crate) fn may_request(&self, host: Option<&str>) -> bool {
        self.names()
            .is_none_or(|names| host.is_some_and(|host| names.cover(host)))
    }

    /// Returns the server name that the client sent in the TLS handshake.
    pub(crate) fn server_name(&self) -> Option<&str> {
        self.names()?.requested.as_deref()
    }

    fn names(&self) -> Option<&ServerNames> {
        self.handshake.as_ref()?.extension.get()
    }
}

/// Accepts TLS connections.
pub(crate) struct TlsAcceptService {
    acceptor: Acceptor,
    metrics: Arc<Metrics>,
}

impl TlsAcceptService {
    /// Creates the acceptor, which selects from `certificates`.
    ///
    /// # Errors
    /// Returns an error if the system provides no random numbers for session tickets.
    pub(crate) fn new(certificates: &Arc<Certificates>, metrics: &Arc<Metrics>) -> Result<Self> {
        let config = certificates::server_config(certificates)?;
        let mut settings =
            TlsSettings::with_callbacks(Box::new(RecordServerNames(Arc::clone(certificates))))?;
        settings.set_cert_resolver(Arc::clone(certificates) as _);
        let mut acceptor = settings.build();
        // Pingora's settings do not support session tickets: the acceptor that they build is replaced.
        acceptor.acceptor = TlsAcceptor::from(Arc::new(config));
        Ok(Self {
            acceptor,
            metrics: Arc::clone(metrics),
        })
    }

    /// Returns the TLS stream, or `None` if the handshake fails or exceeds `limit`.
    pub(crate) async fn accept(&self, stream: Stream, limit: Duration) -> Option<Stream> {
        let stream = stream.into_any().downcast::<TcpStream>().ok()?;
        let handshake = self.acceptor.tls_handshake(*stream);
        match tokio::time::timeout(limit, handshake).await {
            Ok(Ok(stream)) => {
                self.metrics.count_handshake(HandshakeOutcome::Completed);
                Some(Box::new(stream))
            }
            Ok(Err(error)) => {
                self.metrics.count_handshake(HandshakeOutcome::Failed);
                tracing::debug!(%error, "TLS handshake failed");
                None
            }
            Err(_) => {
                self.metrics.count_handshake(HandshakeOutcome::TimedOut);
                None
            }
        }
    }
}

/// Records the server names of each handshake in the connection's digest.
struct RecordServerNames(Arc<Certificates>);

#[async_trait]
impl TlsAccept for RecordServerNames {
    async fn handshake_complete_callback(
        &self,
        connection: &TlsRef,
    ) -> Option<Arc<dyn Any + Send + Sync>> {
        let requested = connection
            .server_name()
            .map(|name| host_name(name).to_owned());
        let certificate = requested
            .as_deref()
            .map_or_else(Vec::new, |name| self.0.names_for(name));
        Some(Arc::new(ServerNames {
            requested,
            certificate,
        }))
    }
}

impl std::fmt::Debug for TlsAcceptService {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("TlsAcceptService")
            .finish_non_exhaustive()
    }
}
