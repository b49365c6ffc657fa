//! A client that sends bytes as they are, over TLS, as no well-behaved client would.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::certificate::Certificate;
use crate::client::HOST;
use crate::gateway::Gateway;
use crate::wait::PATIENCE;

/// A TLS connection that speaks HTTP/1.1, more or less.
#[derive(Debug)]
pub struct Raw(TlsStream<TcpStream>);

impl Raw {
    /// Connects to a gateway as a client of [`HOST`].
    ///
    /// # Errors
    /// When it does not answer, or not with its certificate.
    pub async fn connect(gateway: &Gateway) -> Result<Self> {
        Self::connect_to(gateway, HOST, &gateway.certificate).await
    }

    /// Connects to a gateway as a client that asks for `name` and trusts `certificate` alone.
    ///
    /// # Errors
    /// When it does not answer, or not with that certificate.
    pub async fn connect_to(
        gateway: &Gateway,
        name: &str,
        certificate: &Certificate,
    ) -> Result<Self> {
        Self::handshake(gateway, name, certificate, Vec::new()).await
    }

    /// Connects to a gateway to speak HTTP/2, frame by frame.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn connect_http2(gateway: &Gateway) -> Result<Self> {
        let protocols = vec![b"h2".to_vec()];
        Self::handshake(gateway, HOST, &gateway.certificate, protocols).await
    }

    async fn handshake(
        gateway: &Gateway,
        name: &str,
        certificate: &Certificate,
        protocols: Vec<Vec<u8>>,
    ) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(certificate.pem.as_bytes())?)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = protocols;
        let stream = TcpStream::connect(gateway.address).await?;
        let name = ServerName::try_from(name.to_owned())?;
        let connector = TlsConnector::from(Arc::new(config));
        Ok(Self(connector.connect(name, stream).await?))
    }

    /// What both sides agreed the key on with, as rustls calls it.
    #[must_use]
    pub fn key_exchange(&self) -> String {
        let (_, connection) = self.0.get_ref();
        let group = connection.negotiated_key_exchange_group();
        group.map_or_else(String::new, |group| format!("{:?}", group.name()))
    }

    /// Sends bytes.
    ///
    /// # Errors
    /// When the connection is closed.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> Result<()> {
        self.0.write_all(bytes.as_ref()).await?;
        Ok(self.0.flush().await?)
    }

    /// Everything until the other side closes.
    ///
    /// # Errors
    /// When it does not.
    pub async fn rest(&mut self) -> Result<String> {
        self.rest_within(PATIENCE).await
    }

    /// [`Raw::rest`] with another patience.
    ///
    /// # Errors
    /// When the other side does not close in that time.
    pub async fn rest_within(&mut self, patience: Duration) -> Result<String> {
        let bytes = self.bytes_within(patience).await?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// [`Raw::rest`] of what is no text.
    ///
    /// # Errors
    /// When the other side does not close.
    pub async fn rest_of_bytes(&mut self) -> Result<Vec<u8>> {
        self.bytes_within(PATIENCE).await
    }

    async fn bytes_within(&mut self, patience: Duration) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let read = async {
            let mut chunk = [0; 4096];
            // A reset after the answer is as good an end as any.
            while let Ok(count @ 1..) = self.0.read(&mut chunk).await {
                bytes.extend_from_slice(&chunk[..count]);
            }
        };
        tokio::time::timeout(patience, read)
            .await
            .context("the connection is not closed")?;
        Ok(bytes)
    }

    /// Some bytes that the other side sent, none where it has closed.
    ///
    /// # Errors
    /// When it says nothing.
    pub async fn some(&mut self) -> Result<Vec<u8>> {
        let mut chunk = vec![0; 16 * 1024];
        let read = tokio::time::timeout(PATIENCE, self.0.read(&mut chunk));
        let count = read.await.context("nothing came")??;
        chunk.truncate(count);
        Ok(chunk)
    }

    /// Until `end` has been read.
    ///
    /// # Errors
    /// When the other side closes before, or says nothing.
    pub async fn until(&mut self, end: &str) -> Result<String> {
        let mut text = String::new();
        let read = async {
            let mut chunk = [0; 4096];
            while !text.contains(end) {
                let count = self.0.read(&mut chunk).await?;
                anyhow::ensure!(count > 0, "closed after {text:?}");
                text.push_str(&String::from_utf8_lossy(&chunk[..count]));
            }
            Ok(())
        };
        tokio::time::timeout(PATIENCE, read).await??;
        Ok(text)
    }
}

/// The status of an answer as it came, 0 where there is none.
#[must_use]
pub fn status(answer: &str) -> u16 {
    answer
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .unwrap_or(0)
}
