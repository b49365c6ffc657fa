//! The TLS handshake of one connection: bounded in time, and remembered for its requests.

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

use crate::metrics::{Handshake, Metrics};
use crate::tls::{self, Certificates};

/// Whom a client asked for, and whom we said we are.
#[derive(Debug)]
pub(crate) struct Presented {
    server_name: Option<String>,
    names: Vec<String>,
}

impl Presented {
    /// Whether a `Host` is one that this connection is for. A client that named nobody, as one
    /// does that connects to an address, may ask for anything.
    pub(crate) fn fits(&self, host: &str) -> bool {
        let Some(server_name) = &self.server_name else {
            return true;
        };
        let name = without_port(host);
        name.eq_ignore_ascii_case(server_name) || tls::covers(&self.names, name)
    }
}

fn without_port(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    host.split(':').next().unwrap_or(host)
}

/// The other end of a client's connection.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) address: IpAddr,
    handshake: Option<Arc<SslDigest>>,
}

impl Peer {
    /// `None` where it has no address any more.
    pub(crate) fn of(stream: &Stream) -> Option<Self> {
        let socket = stream.get_socket_digest()?;
        Some(Self {
            address: socket.peer_addr()?.as_inet()?.ip(),
            handshake: stream.get_ssl_digest(),
        })
    }

    /// Whether a host is one that the client could mean on this connection: the one it named in the
    /// TLS handshake, or another of the certificate's (RFC 9110, section 7.4).
    pub(crate) fn may_ask_for(&self, host: Option<&str>) -> bool {
        let presented = self
            .handshake
            .as_ref()
            .and_then(|handshake| handshake.extension.get::<Presented>());
        presented.is_none_or(|presented| host.is_some_and(|host| presented.fits(host)))
    }
}

/// Makes TLS connections out of TCP connections.
pub(crate) struct Handshakes {
    acceptor: Acceptor,
    metrics: Arc<Metrics>,
}

impl Handshakes {
    /// # Errors
    /// When the system has no randomness for session tickets.
    pub(crate) fn new(certificates: &Arc<Certificates>, metrics: &Arc<Metrics>) -> Result<Self> {
        let config = tls::server_config(certificates)?;
        let mut settings =
            TlsSettings::with_callbacks(Box::new(Remember(Arc::clone(certificates))))?;
        settings.set_cert_resolver(Arc::clone(certificates) as _);
        let mut acceptor = settings.build();
        // The settings know no tickets: what we chose takes the place of what they built.
        acceptor.acceptor = TlsAcceptor::from(Arc::new(config));
        Ok(Self {
            acceptor,
            metrics: Arc::clone(metrics),
        })
    }

    /// The client's stream, if it gets through the handshake in time.
    pub(crate) async fn complete(&self, stream: Stream, limit: Duration) -> Option<Stream> {
        let stream = stream.into_any().downcast::<TcpStream>().ok()?;
        let handshake = self.acceptor.tls_handshake(*stream);
        match tokio::time::timeout(limit, handshake).await {
            Ok(Ok(stream)) => {
                self.metrics.handshake(Handshake::Done);
                Some(Box::new(stream))
            }
            Ok(Err(error)) => {
                self.metrics.handshake(Handshake::Failed);
                tracing::debug!(%error, "TLS handshake failed");
                None
            }
            Err(_) => {
                self.metrics.handshake(Handshake::TimedOut);
                None
            }
        }
    }
}

/// Keeps with each connection what its handshake settled.
struct Remember(Arc<Certificates>);

#[async_trait]
impl TlsAccept for Remember {
    async fn handshake_complete_callback(
        &self,
        connection: &TlsRef,
    ) -> Option<Arc<dyn Any + Send + Sync>> {
        let server_name = connection.server_name().map(str::to_owned);
        let names = server_name
            .as_deref()
            .map_or_else(Vec::new, |name| self.0.names_for(name));
        Some(Arc::new(Presented { server_name, names }))
    }
}

impl std::fmt::Debug for Handshakes {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Handshakes").finish_non_exhaustive()
    }
}
