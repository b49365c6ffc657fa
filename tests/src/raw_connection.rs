//! A TLS connection that carries exactly the bytes that a test writes, valid HTTP or not.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, HandshakeKind, RootCertStore, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::certificate::Certificate;
use crate::client::HOST;
use crate::gateway::Gateway;
use crate::wait;

/// A TLS connection to a gateway.
#[derive(Debug)]
pub struct RawConnection(TlsStream<TcpStream>);

impl RawConnection {
    /// Connects to a gateway under the name [`HOST`], without ALPN.
    ///
    /// # Errors
    /// Returns an error if the connection or the TLS handshake fails.
    pub async fn connect(gateway: &Gateway) -> Result<Self> {
        Self::connect_with_server_name(gateway, HOST, &gateway.certificate).await
    }

    /// Connects to a gateway under the name `name` (SNI), trusting only `certificate`, without
    /// ALPN.
    ///
    /// # Errors
    /// Returns an error if the connection or the TLS handshake fails.
    pub async fn connect_with_server_name(
        gateway: &Gateway,
        name: &str,
        certificate: &Certificate,
    ) -> Result<Self> {
        Self::handshake(gateway, name, certificate, Vec::new()).await
    }

    /// Connects to a gateway and negotiates HTTP/2; the test writes the frames.
    ///
    /// # Errors
    /// Returns an error if the connection or the TLS handshake fails.
    pub async fn connect_http2(gateway: &Gateway) -> Result<Self> {
        let alpn_protocols = vec![b"h2".to_vec()];
        Self::handshake(gateway, HOST, &gateway.certificate, alpn_protocols).await
    }

    /// Connects to a gateway under the name `name` (SNI) as a client that supports only RSA keys, trusting
    /// only `certificate`, without ALPN.
    ///
    /// # Errors
    /// Returns an error if the connection or the TLS handshake fails.
    pub async fn connect_with_rsa_only(
        gateway: &Gateway,
        name: &str,
        certificate: &Certificate,
    ) -> Result<Self> {
        const RSA_SCHEMES: [SignatureScheme; 2] = [
            SignatureScheme::RSA_PSS_SHA256,
            SignatureScheme::RSA_PKCS1_SHA256,
        ];
        let mut provider = rustls::crypto::aws_lc_rs::default_provider();
        let algorithms = &mut provider.signature_verification_algorithms;
        let mut mapping = algorithms.mapping.to_vec();
        mapping.retain(|(scheme, _)| RSA_SCHEMES.contains(scheme));
        algorithms.mapping = mapping.leak();
        Self::handshake_with(provider, gateway, name, certificate, Vec::new()).await
    }

    /// Connects to a gateway under the name `name` (SNI) with a TLS configuration of the test.
    ///
    /// # Errors
    /// Returns an error if the connection or the TLS handshake fails.
    pub async fn connect_with_config(
        gateway: &Gateway,
        name: &str,
        config: Arc<ClientConfig>,
    ) -> Result<Self> {
        let stream = TcpStream::connect(gateway.address).await?;
        let name = ServerName::try_from(name.to_owned())?;
        let connector = TlsConnector::from(config);
        Ok(Self(connector.connect(name, stream).await?))
    }

    /// Sends bytes on a new connection ([`RawConnection::connect`]) and reads until the gateway
    /// closes it.
    ///
    /// # Errors
    /// Returns an error if the connection fails or is not closed within [`wait::TIMEOUT`].
    pub async fn exchange(gateway: &Gateway, bytes: impl AsRef<[u8]>) -> Result<String> {
        let mut connection = Self::connect(gateway).await?;
        connection.send(bytes).await?;
        connection.read_to_string().await
    }

    async fn handshake(
        gateway: &Gateway,
        name: &str,
        certificate: &Certificate,
        alpn_protocols: Vec<Vec<u8>>,
    ) -> Result<Self> {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        Self::handshake_with(provider, gateway, name, certificate, alpn_protocols).await
    }

    async fn handshake_with(
        provider: CryptoProvider,
        gateway: &Gateway,
        name: &str,
        certificate: &Certificate,
        alpn_protocols: Vec<Vec<u8>>,
    ) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(certificate.pem.as_bytes()) {
            roots.add(root?)?;
        }
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn_protocols;
        Self::connect_with_config(gateway, name, Arc::new(config)).await
    }

    /// Returns whether the handshake has resumed a session.
    #[must_use]
    pub fn is_resumed(&self) -> bool {
        let (_, connection) = self.0.get_ref();
        connection.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// Returns whether the gateway has accepted early data (RFC 8446, section 2.3).
    #[must_use]
    pub fn has_sent_early_data(&self) -> bool {
        let (_, connection) = self.0.get_ref();
        connection.is_early_data_accepted()
    }

    /// Returns the negotiated key exchange group by rustls's name, empty if there is none.
    #[must_use]
    pub fn key_exchange_group(&self) -> String {
        let (_, connection) = self.0.get_ref();
        let group = connection.negotiated_key_exchange_group();
        group.map_or_else(String::new, |group| format!("{:?}", group.name()))
    }

    /// Sends bytes.
    ///
    /// # Errors
    /// Returns an error if the connection is closed.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> Result<()> {
        self.0.write_all(bytes.as_ref()).await?;
        Ok(self.0.flush().await?)
    }

    /// Closes the connection for writing: with an alert (RFC 8446, section 6.1), and the TCP connection.
    ///
    /// # Errors
    /// Returns an error if the connection fails.
    pub async fn shutdown(&mut self) -> Result<()> {
        Ok(self.0.shutdown().await?)
    }

    /// Reads until the gateway closes the connection.
    ///
    /// # Errors
    /// Returns an error if it is not closed within [`wait::TIMEOUT`].
    pub async fn read_to_end(&mut self) -> Result<Vec<u8>> {
        self.read_to_end_within(wait::TIMEOUT).await
    }

    /// Like [`RawConnection::read_to_end`], as text.
    ///
    /// # Errors
    /// Returns an error if the connection is not closed within [`wait::TIMEOUT`].
    pub async fn read_to_string(&mut self) -> Result<String> {
        self.read_to_string_within(wait::TIMEOUT).await
    }

    /// Like [`RawConnection::read_to_string`], with another time limit.
    ///
    /// # Errors
    /// Returns an error if the connection is not closed within `limit`.
    pub async fn read_to_string_within(&mut self, limit: Duration) -> Result<String> {
        let bytes = self.read_to_end_within(limit).await?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    async fn read_to_end_within(&mut self, limit: Duration) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let read = async {
            let mut chunk = [0; 4096];
            // A reset also ends the response.
            while let Ok(count @ 1..) = self.0.read(&mut chunk).await {
                bytes.extend_from_slice(&chunk[..count]);
            }
        };
        timeout(limit, read)
            .await
            .with_context(|| format!("the gateway did not close the connection in {limit:?}"))?;
        Ok(bytes)
    }

    /// Reads the bytes that are available, waiting for the first; returns none if the gateway has
    /// closed the connection.
    ///
    /// # Errors
    /// Returns an error if nothing is received within [`wait::TIMEOUT`].
    pub async fn read_some(&mut self) -> Result<Vec<u8>> {
        let mut chunk = vec![0; 16 * 1024];
        let read = timeout(wait::TIMEOUT, self.0.read(&mut chunk));
        let count = read.await.context("no bytes were received")??;
        chunk.truncate(count);
        Ok(chunk)
    }

    /// Reads until the text received in this call contains `end`.
    ///
    /// # Errors
    /// Returns an error if the gateway closes the connection before, or after [`wait::TIMEOUT`].
    pub async fn read_until(&mut self, end: &str) -> Result<String> {
        let mut text = String::new();
        let read = async {
            let mut chunk = [0; 4096];
            while !text.contains(end) {
                let count = self.0.read(&mut chunk).await?;
                ensure!(count > 0, "the connection was closed after {text:?}");
                text.push_str(&String::from_utf8_lossy(&chunk[..count]));
            }
            Ok(())
        };
        timeout(wait::TIMEOUT, read).await??;
        Ok(text)
    }
}

/// Returns the status code of an HTTP/1.1 response, 0 if it has none.
#[must_use]
pub fn parse_status(response: &str) -> u16 {
    response
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .unwrap_or(0)
}
