//! TLS of connections to endpoints, as a client (RFC 8446). The certificate of a server is always verified, for
//! the name in its URL or the configured one.

use std::fmt;
use std::io;
use std::sync::Arc;

use anyhow::{Context, Result};
use pingora::protocols::Stream;
use pingora::tls::{ClientTlsStream, TlsConnector, load_native_certs};
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;

use crate::config::{Server, UpstreamTlsSettings};
use crate::tls::certificates::crypto_provider;

/// Protocol that is offered by ALPN (RFC 7301, section 6).
const HTTP_1_1: &[u8] = b"http/1.1";

/// TLS client of an upstream group. A reload that changes its settings replaces it, and with it the connections
/// that it has established.
pub(crate) struct TlsClient {
    connector: TlsConnector,
    /// `None` for the host of the server.
    server_name: Option<ServerName<'static>>,
}

impl TlsClient {
    /// Creates a client.
    ///
    /// # Errors
    /// Returns an error if the authorities that the system trusts are needed and cannot be read.
    pub(super) fn new(settings: &UpstreamTlsSettings) -> Result<Self> {
        let roots = match &settings.authorities {
            Some(authorities) => authorities.roots(),
            None => system_roots()?,
        };
        let builder = ClientConfig::builder_with_provider(Arc::new(crypto_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let mut config = match &settings.client_certificate {
            Some(certificate) => {
                let key = SingleCertAndKey::from(Arc::clone(&certificate.key));
                builder.with_client_cert_resolver(Arc::new(key))
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![HTTP_1_1.to_vec()];
        Ok(Self {
            connector: TlsConnector::from(Arc::new(config)),
            server_name: settings.server_name.clone(),
        })
    }

    /// Returns the TLS stream over a connection to a server.
    ///
    /// # Errors
    /// Returns an error if the handshake fails or the certificate of the server is not valid.
    pub(super) async fn handshake(
        &self,
        server: &Server,
        stream: Stream,
    ) -> io::Result<ClientTlsStream<Stream>> {
        let name = match &self.server_name {
            Some(name) => name.clone(),
            None => ServerName::try_from(server.host.clone()).map_err(io::Error::other)?,
        };
        self.connector.connect(name, stream).await
    }
}

/// Returns the authorities that the system trusts, or those of `SSL_CERT_FILE` and `SSL_CERT_DIR`.
fn system_roots() -> Result<RootCertStore> {
    let certificates =
        load_native_certs().context("cannot read the certificates that the system trusts")?;
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(certificates);
    if added == 0 {
        tracing::warn!(
            "the system trusts no certificates: https servers cannot be verified; install \
             ca-certificates, or set tls.ca of the upstream"
        );
    }
    Ok(roots)
}

impl fmt::Debug for TlsClient {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("TlsClient")
            .field("server_name", &self.server_name)
            .finish_non_exhaustive()
    }
}
