//! TLS to the servers of an upstream group: verification of their certificates, SNI, client certificates, and reloads
//! of the files.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use rustix::process::Signal;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tests::certificate::Certificate;
use tests::mock_upstream::TlsHandshake;
use tests::{Gateway, MockResponse, MockUpstream};

/// Name of the servers' certificate.
const SERVER_NAME: &str = "orders.internal";

/// Returns the TLS configuration of a server with `certificate`. If `clients` is given, clients have to present that
/// certificate.
fn server_config(certificate: &Certificate, clients: Option<&Certificate>) -> Result<ServerConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?;
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(clients) => {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(clients.pem.as_bytes())?)?;
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let chain = vec![CertificateDer::from_pem_slice(certificate.pem.as_bytes())?];
    let key = PrivateKeyDer::from_pem_file(&certificate.key_file)?;
    let mut config = builder.with_single_cert(chain, key)?;
    config.alpn_protocols = ["h2", "http/1.1"].map(Into::into).to_vec();
    Ok(config)
}

/// Starts a server over TLS that returns 200 with the body `orders`.
async fn start_server(
    certificate: &Certificate,
    clients: Option<&Certificate>,
) -> Result<MockUpstream> {
    let config = server_config(certificate, clients)?;
    MockUpstream::start_over_tls(config, |_| MockResponse::new(200, "orders")).await
}

/// Configuration whose paths under `/orders` go to `server` with the TLS settings `tls`, a flow mapping.
fn config(server: &MockUpstream, tls: &str) -> String {
    format!(
        "
premier:
  upstreams:
    orders: {{servers: ['https://{}'], tls: {tls}, health_check: {{path: /up, interval: 0.2}}}}
  paths:
    - {{pattern: /orders/*, upstream: orders}}
",
        server.address
    )
}

/// Certificates of a server, of a client and of a stranger, in a folder.
struct Certificates {
    folder: tempfile::TempDir,
    server: Certificate,
    client: Certificate,
    stranger: Certificate,
}

impl Certificates {
    fn generate() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let generate = |stem, name| Certificate::generate(folder.path(), stem, &[name]);
        Ok(Self {
            server: generate("server", SERVER_NAME)?,
            client: generate("client", "gateway")?,
            stranger: generate("stranger", SERVER_NAME)?,
            folder,
        })
    }
}

fn quoted(path: &Path) -> String {
    format!("'{}'", path.display())
}

#[tokio::test]
async fn a_server_with_its_own_authority_and_client_certificates_is_reached() -> Result<()> {
    let certificates = Certificates::generate()?;
    let server = start_server(&certificates.server, Some(&certificates.client)).await?;
    let default = MockUpstream::always_ok().await?;
    let tls = format!(
        "{{server_name: {SERVER_NAME}, ca: {}, cert: {}, key: {}}}",
        quoted(&certificates.server.cert_file),
        quoted(&certificates.client.cert_file),
        quoted(&certificates.client.key_file)
    );
    let gateway = Gateway::start(default.address, &config(&server, &tls)).await?;
    let client = gateway.client()?;
    gateway
        .wait_for_metric("gateway_replica_up", &["upstream=\"orders\""], 1.0)
        .await?;
    for _ in 0..3 {
        assert_eq!(client.get("/orders/1").await?.text, "orders");
    }
    assert_eq!(server.connection_count(), 1, "the connection is not kept");
    let expected = TlsHandshake {
        server_name: Some(SERVER_NAME.to_owned()),
        alpn_protocol: Some(b"http/1.1".to_vec()),
    };
    assert!(
        server
            .handshakes()
            .iter()
            .all(|handshake| *handshake == expected)
    );
    let label = format!(
        "certificate=\"{}\"",
        certificates.client.cert_file.display()
    );
    let labels = [label.as_str()];
    let expiry = gateway.metric("gateway_certificate_expiry_timestamp_seconds", &labels);
    assert!(expiry.await?.is_some());
    Ok(())
}

#[tokio::test]
async fn a_server_whose_certificate_is_not_valid_is_502_and_the_log_has_the_reason() -> Result<()> {
    let certificates = Certificates::generate()?;
    let server = start_server(&certificates.server, None).await?;
    let default = MockUpstream::always_ok().await?;
    let ca = |certificate: &Certificate| quoted(&certificate.cert_file);
    for (tls, reason) in [
        (
            format!(
                "{{server_name: {SERVER_NAME}, ca: {}}}",
                ca(&certificates.stranger)
            ),
            "invalid peer certificate",
        ),
        (
            format!(
                "{{server_name: other.internal, ca: {}}}",
                ca(&certificates.server)
            ),
            "certificate not valid for name",
        ),
        // The server's address is not in its certificate.
        (
            format!("{{ca: {}}}", ca(&certificates.server)),
            "certificate not valid for name",
        ),
        // The system does not trust it.
        (format!("{{server_name: {SERVER_NAME}}}"), "UnknownIssuer"),
    ] {
        let gateway = Gateway::start(default.address, &config(&server, &tls)).await?;
        let client = gateway.client()?;
        assert_eq!(client.get("/orders/1").await?.status, 502, "{tls}");
        gateway.process.wait_for_log(reason).await?;
        let log = gateway.process.log();
        let line = log
            .lines()
            .find(|line| line.contains("upstream attempt failed"));
        let line = line.context("no line about the attempt")?;
        assert!(
            line.contains("the TLS handshake failed") && line.contains(reason),
            "{line}"
        );
        let labels = ["upstream=\"orders\"", "outcome=\"connect_failure\""];
        let failures = gateway.metric("gateway_upstream_attempts_total", &labels);
        assert!(failures.await? >= Some(1.0), "{tls}");
        assert_eq!(client.get("/other").await?.status, 200);
    }
    assert!(server.received_requests().is_empty());
    Ok(())
}

#[tokio::test]
async fn a_server_that_rejects_the_client_certificate_is_502_and_the_log_has_the_alert()
-> Result<()> {
    let certificates = Certificates::generate()?;
    let server = start_server(&certificates.server, Some(&certificates.client)).await?;
    let default = MockUpstream::always_ok().await?;
    let authority = quoted(&certificates.server.cert_file);
    let stranger = format!(
        ", cert: {}, key: {}",
        quoted(&certificates.stranger.cert_file),
        quoted(&certificates.stranger.key_file)
    );
    // The alert for a certificate whose authority has the name, but not the key, of a trusted one is for the server
    // to choose.
    for (presented, alert) in [("", "CertificateRequired"), (&stranger, "")] {
        let tls = format!("{{server_name: {SERVER_NAME}, ca: {authority}{presented}}}");
        let gateway = Gateway::start(default.address, &config(&server, &tls)).await?;
        let client = gateway.client()?;
        assert_eq!(client.get("/orders/1").await?.status, 502, "{alert}");
        gateway
            .process
            .wait_for_log(&format!("TLS alert {alert}"))
            .await?;
    }
    assert!(server.received_requests().is_empty());
    Ok(())
}

#[tokio::test]
async fn changed_files_take_effect_for_new_connections_and_end_the_use_of_old_ones() -> Result<()> {
    let certificates = Certificates::generate()?;
    let server = start_server(&certificates.server, None).await?;
    let default = MockUpstream::always_ok().await?;
    let authority = certificates.folder.path().join("authority.pem");
    std::fs::copy(&certificates.server.cert_file, &authority)?;
    let tls = format!("{{server_name: {SERVER_NAME}, ca: {}}}", quoted(&authority));
    let gateway = Gateway::start(default.address, &config(&server, &tls)).await?;
    let client = gateway.client()?;
    assert_eq!(client.get("/orders/1").await?.text, "orders");

    // An idle connection to the server remains, which the new authority would not trust.
    std::fs::copy(&certificates.stranger.cert_file, &authority)?;
    client
        .wait_for_response("/orders/1", |response| response.status == 502)
        .await?;
    std::fs::copy(&certificates.server.cert_file, &authority)?;
    gateway.process.signal(Signal::HUP)?;
    client
        .wait_for_response("/orders/1", |response| response.text == "orders")
        .await?;

    std::fs::write(&authority, "not PEM")?;
    gateway
        .process
        .wait_for_log("contains no certificate in PEM format")
        .await?;
    assert_eq!(client.get("/orders/1").await?.text, "orders");
    Ok(())
}
