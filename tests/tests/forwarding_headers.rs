//! Headers that describe the client to the upstream (`X-Forwarded-*`, `X-Request-Id`,
//! `traceparent`): replaced for untrusted clients, kept from trusted proxies.

use anyhow::Result;
use tests::raw_connection::{RawConnection, parse_status};
use tests::{Gateway, MockUpstream};

/// Test clients are trusted proxies, and the clients that they name have a quota of two requests.
const BEHIND_A_TRUSTED_PROXY: &str = r"
premier:
  trusted_proxies: [127.0.0.0/8]
  default_features: {rate_limit: {quota: 2, duration: 864000}}
";

#[tokio::test]
async fn forwarding_headers_of_an_untrusted_client_are_replaced() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    let response = RawConnection::exchange(
        &gateway,
        "GET / HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: gopher\r\n\
         X-Forwarded-Host: evil\r\nX-Forwarded-Anything: evil\r\nForwarded: for=6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\n\
         X-Request-Id: evil\r\ntraceparent: 00-11111111111111111111111111111111-1111111111111111-01\r\n\
         tracestate: evil=1\r\nX_Forwarded_For: 6.6.6.6\r\nX-Real_IP: 6.6.6.6\r\nX_Request_Id: evil\r\n\
         Transfer_Encoding: evil\r\nContent_length: 666\r\nKeep_Alive: evil\r\n\
         Keep-Alive: evil\r\nConnection: close\r\n\r\n",
    )
    .await?;
    assert_eq!(parse_status(&response), 200);
    let received = upstream.received_requests().concat().to_lowercase();
    for forged in ["6.6.6.6", "evil", "gopher", "1111111111111111", "length"] {
        assert!(!received.contains(forged), "{forged}: {received}");
    }
    assert!(
        received.contains("x-forwarded-for: 127.0.0.1\r\n"),
        "{received}"
    );
    assert!(
        received.contains("x-forwarded-proto: https\r\n"),
        "{received}"
    );
    assert!(
        received.contains("x-forwarded-host: localhost\r\n"),
        "{received}"
    );
    assert!(received.contains("traceparent: 00-"), "{received}");
    Ok(())
}

#[tokio::test]
async fn connection_options_cannot_remove_headers_that_the_gateway_adds() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    for header in ["x-forwarded-for", "x-request-id", "host"] {
        let request =
            format!("GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close, {header}\r\n\r\n");
        let response = RawConnection::exchange(&gateway, request).await?;
        assert!(
            matches!(parse_status(&response), 200 | 400),
            "{header}: {response}"
        );
    }
    for request in upstream.received_requests() {
        let request = request.to_lowercase();
        assert!(request.contains("x-forwarded-for: 127.0.0.1"), "{request}");
        assert!(request.contains("x-request-id: "), "{request}");
        assert!(request.contains("host: localhost"), "{request}");
    }
    Ok(())
}

#[tokio::test]
async fn forwarding_headers_of_a_trusted_proxy_are_kept() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::start(upstream.address, BEHIND_A_TRUSTED_PROXY).await?;
    let traceparent = "00-11111111111111111111111111111111-2222222222222222-01";
    let mut statuses = Vec::new();
    for forwarded_for in [
        "192.0.2.1",
        "192.0.2.1",
        "6.6.6.6, 192.0.2.1",
        "6.6.6.6, 192.0.2.2",
    ] {
        let request = format!(
            "GET / HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: {forwarded_for}\r\n\
             traceparent: {traceparent}\r\nX-Request-Id: 4bf92f35-77b3\r\nConnection: close\r\n\r\n"
        );
        let response = RawConnection::exchange(&gateway, request).await?;
        statuses.push(parse_status(&response));
        assert!(
            response.contains("x-request-id: 4bf92f35-77b3\r\n"),
            "{response}"
        );
    }
    assert_eq!(statuses, [200, 200, 429, 200]);
    let received = upstream.received_requests().concat().to_lowercase();
    assert!(
        received.contains("x-forwarded-for: 192.0.2.1\r\n")
            && received.contains("x-forwarded-for: 6.6.6.6, 192.0.2.2\r\n"),
        "{received}"
    );
    assert!(
        received.contains(&format!("traceparent: {traceparent}\r\n")),
        "{received}"
    );
    assert_eq!(
        received.matches("x-request-id: 4bf92f35-77b3\r\n").count(),
        3,
        "{received}"
    );
    Ok(())
}

#[tokio::test]
async fn a_client_behind_a_trusted_proxy_cannot_hide_its_address() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::start(upstream.address, BEHIND_A_TRUSTED_PROXY).await?;
    let mut statuses = Vec::new();
    // The proxy appended 192.0.2.1 to what the client sent.
    for forwarded_for in [
        &b"X-Forwarded-For: \xff, 192.0.2.1\r\n"[..],
        b"X-Forwarded-For: \xff\r\nX-Forwarded-For: 192.0.2.1,\r\n",
        b"X-Forwarded-For: , 192.0.2.1\r\nX-Forwarded-For:\r\n",
    ] {
        let request = [
            b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n",
            forwarded_for,
            b"\r\n",
        ]
        .concat();
        let response = RawConnection::exchange(&gateway, request).await?;
        statuses.push(parse_status(&response));
    }
    assert_eq!(statuses, [200, 200, 429]);
    for request in upstream.received_requests() {
        let request = request.to_lowercase();
        assert!(
            request.contains("x-forwarded-for: 192.0.2.1\r\n"),
            "{request}"
        );
    }
    Ok(())
}
