//! TLS of the gateway: certificate selection by server name, key exchange, HSTS.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Result;
use tests::certificate::Certificate;
use tests::raw_connection::{RawConnection, parse_status};
use tests::{Gateway, MockUpstream};

#[tokio::test]
async fn certificates_are_selected_by_server_name() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let one = Certificate::generate(folder.path(), "one", &["one.example"])?;
    let two = Certificate::generate(folder.path(), "two", &["two.example", "*.two.example"])?;
    let config = format!(
        "premier: {{tls: {{certificates: [{{cert: {:?}, key: {:?}}}, {{cert: {:?}, key: {:?}}}]}}}}",
        one.cert_file, one.key_file, two.cert_file, two.key_file
    );
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::start(upstream.address, &config).await?;
    for (server_name, certificate) in [
        ("one.example", &one),
        ("two.example", &two),
        ("www.two.example", &two),
    ] {
        // The final dot of a fully qualified name is not part of the server name (RFC 6066, section 3).
        for host in [server_name.to_owned(), format!("{server_name}.")] {
            let mut connection =
                RawConnection::connect_with_server_name(&gateway, server_name, certificate).await?;
            connection
                .send(format!(
                    "GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
                ))
                .await?;
            assert_eq!(
                parse_status(&connection.read_to_string().await?),
                200,
                "{host}"
            );
        }
    }
    // The first certificate is served for unknown names, for which it is not valid.
    let unknown = RawConnection::connect_with_server_name(&gateway, "other.example", &one).await;
    let error = unknown
        .expect_err("the certificate is not valid for the name")
        .to_string();
    assert!(error.contains("not valid for name"), "{error}");

    let mut misdirected =
        RawConnection::connect_with_server_name(&gateway, "one.example", &one).await?;
    misdirected
        .send("GET / HTTP/1.1\r\nHost: two.example\r\nConnection: close\r\n\r\n")
        .await?;
    assert_eq!(parse_status(&misdirected.read_to_string().await?), 421);
    Ok(())
}

#[tokio::test]
async fn every_response_has_strict_transport_security() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    for path in ["/", "/metrics", "/%00"] {
        let response = gateway.client()?.get(path).await?;
        let header = response.header("strict-transport-security");
        assert!(header.starts_with("max-age="), "{path}: {header}");
    }
    Ok(())
}

#[tokio::test]
async fn the_key_exchange_is_post_quantum_hybrid() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    let connection = RawConnection::connect(&gateway).await?;
    assert_eq!(connection.key_exchange_group(), "X25519MLKEM768");
    Ok(())
}

#[tokio::test]
async fn of_two_certificates_for_a_name_the_one_that_the_client_supports_is_served() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let ecdsa = Certificate::generate(folder.path(), "ecdsa", &["localhost"])?;
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../gateway/src/config/fixtures");
    let cert_file = fixtures.join("rsa-cert.pem");
    let rsa = Certificate {
        pem: std::fs::read_to_string(&cert_file)?,
        cert_file,
        key_file: fixtures.join("rsa-key.pem"),
    };
    let config = format!(
        "premier: {{tls: {{certificates: [{{cert: {:?}, key: {:?}}}, {{cert: {:?}, key: {:?}}}]}}}}",
        ecdsa.cert_file, ecdsa.key_file, rsa.cert_file, rsa.key_file
    );
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::start(upstream.address, &config).await?;
    RawConnection::connect_with_server_name(&gateway, "localhost", &ecdsa).await?;
    let mut connection = RawConnection::connect_with_rsa_only(&gateway, "localhost", &rsa).await?;
    connection
        .send("GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .await?;
    assert_eq!(parse_status(&connection.read_to_string().await?), 200);
    Ok(())
}

#[tokio::test]
async fn a_private_key_that_others_can_read_is_warned_of() -> Result<()> {
    const WARNING: &str = "private key is readable by others";
    let folder = tempfile::tempdir()?;
    let upstream = MockUpstream::always_ok().await?;
    for (mode, is_warned_of) in [(0o644, true), (0o600, false)] {
        let certificate = Certificate::generate(folder.path(), "one", &["localhost"])?;
        std::fs::set_permissions(&certificate.key_file, Permissions::from_mode(mode))?;
        let config = format!(
            "premier: {{tls: {{certificates: [{{cert: {:?}, key: {:?}}}]}}}}",
            certificate.cert_file, certificate.key_file
        );
        let gateway = Gateway::builder(&[upstream.address])
            .config(&config)
            .start()
            .await?;
        if is_warned_of {
            gateway.process.wait_for_log(WARNING).await?;
        }
        assert_eq!(gateway.process.log().contains(WARNING), is_warned_of);
    }
    Ok(())
}
