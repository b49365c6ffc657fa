//! Listeners of the gateway without TLS (admin, redirect to HTTPS), and a port that is in use.

use std::net::SocketAddr;

use anyhow::Result;
use tests::raw_connection::{RawConnection, parse_status};
use tests::replicas::Replicas;
use tests::{Gateway, MockUpstream, Store, address, http2_frames, wait};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[tokio::test]
async fn a_port_in_use_fails_the_start_with_a_message() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let mut gateway = Gateway::builder(&[upstream.address]).start().await?;
    let mut second = gateway.start_second(&[])?;
    assert!(!second.wait_for_exit()?.success());
    assert!(
        second.log().contains("premier.listen.https: listening on"),
        "{}",
        second.log()
    );
    Ok(())
}

#[tokio::test]
async fn the_admin_listener_reports_readiness_status_and_metrics() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    let admin = gateway.admin_client()?;
    admin
        .wait_for_response("/ready", |response| response.status == 200)
        .await?;
    gateway.client()?.get("/x").await?;
    let status = admin.get("/status").await?.json();
    assert_eq!(status["replicas"][0]["condition"], "up");
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    let metrics = admin.get("/metrics").await?;
    assert!(metrics.header("content-type").starts_with("text/plain"));
    let request_count = gateway
        .metric("gateway_requests_total", &["2xx", "GET"])
        .await?;
    assert_eq!(request_count, Some(1.0));
    assert_eq!(admin.get("/none").await?.status, 404);
    Ok(())
}

#[tokio::test]
async fn the_http_listener_redirects_to_https() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let client = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .build()?;
    for (public_port, port_in_location) in [
        (None, None),
        (Some("443"), Some("")),
        (Some("8443"), Some(":8443")),
    ] {
        let http = address::unused_loopback();
        let mut gateway =
            Gateway::builder(&[upstream.address]).set("GATEWAY_HTTP", &http.to_string());
        if let Some(port) = public_port {
            gateway = gateway.set("GATEWAY_PUBLIC_PORT", port);
        }
        let gateway = gateway.start().await?;
        let response = client
            .get(format!("http://{http}/a?b=c"))
            .header("host", "example.org")
            .send()
            .await?;
        assert_eq!(response.status(), 308);
        let own_port = format!(":{}", gateway.address.port());
        let port = port_in_location.unwrap_or(&own_port);
        assert_eq!(
            response.headers()["location"].to_str()?,
            format!("https://example.org{port}/a?b=c")
        );
    }
    Ok(())
}

#[tokio::test]
async fn http_1_0_requests_need_no_host_on_any_listener() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let http = address::unused_loopback();
    let gateway = Gateway::builder(&[upstream.address])
        .set("GATEWAY_HTTP", &http.to_string())
        .start()
        .await?;
    // The first one is the default health check of HAProxy, for which 2xx and 3xx are successes.
    for (listener, request, status) in [
        (gateway.admin_address, "OPTIONS / HTTP/1.0\r\n\r\n", 204),
        (gateway.admin_address, "GET /health HTTP/1.0\r\n\r\n", 200),
        (http, "OPTIONS / HTTP/1.0\r\n\r\n", 308),
    ] {
        let response = exchange(listener, request).await?;
        assert_eq!(parse_status(&response), status, "{request:?}: {response}");
    }
    let response = RawConnection::exchange(&gateway, "OPTIONS / HTTP/1.0\r\n\r\n").await?;
    assert_eq!(parse_status(&response), 200, "{response}");
    let request = upstream.received_requests().concat().to_lowercase();
    assert!(request.contains("\r\nhost: localhost\r\n"), "{request}");
    assert_eq!(
        parse_status(&exchange(http, "GET / HTTP/1.1\r\n\r\n").await?),
        400
    );
    Ok(())
}

#[tokio::test]
async fn the_admin_listener_serves_no_public_name() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    for (host, status) in [
        ("localhost:9901", 200),
        ("127.0.0.1:9901", 200),
        ("[::1]", 200),
        ("gateway", 200),
        ("rebound.example.org", 421),
        ("rebound.example.org:9901", 421),
    ] {
        let request = format!("GET /health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let response = exchange(gateway.admin_address, &request).await?;
        assert_eq!(parse_status(&response), status, "{host}: {response}");
    }
    Ok(())
}

#[tokio::test]
async fn metrics_of_auth_api_are_served_for_no_public_name() -> Result<()> {
    let replicas = Replicas::start(Store::Embedded, 1).await?;
    let address = replicas.instances[0].internal_address;
    for (host, path, status) in [
        ("127.0.0.1:9902", "/metrics", 200),
        ("[::1]:9902", "/metrics", 200),
        ("auth-api:9902", "/metrics", 200),
        ("auth-api.auth.svc.cluster.local:9902", "/metrics", 200),
        ("rebound.example.org", "/metrics", 421),
        ("rebound.example.org:9902", "/metrics", 421),
        // A gateway's health check, whose `servers` have a public name.
        ("auth.example.org:9902", "/ready", 200),
        ("auth.example.org:9902", "/health", 200),
    ] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let response = exchange(address, &request).await?;
        assert_eq!(parse_status(&response), status, "{host}: {response}");
    }
    Ok(())
}

/// Sends bytes to a listener without TLS and returns everything received until it closes.
async fn exchange(listener: SocketAddr, bytes: &str) -> Result<String> {
    let mut connection = TcpStream::connect(listener).await?;
    connection.write_all(bytes.as_bytes()).await?;
    let mut response = Vec::new();
    let read = connection.read_to_end(&mut response);
    // The listener may close by a reset, since it does not read all that it was sent.
    let _ = tokio::time::timeout(wait::TIMEOUT, read).await?;
    Ok(String::from_utf8_lossy(&response).into_owned())
}

#[tokio::test]
async fn cleartext_listeners_survive_malformed_requests_and_log_nothing_of_them() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let http = address::unused_loopback();
    let gateway = Gateway::builder(&[upstream.address])
        .config("premier: {limits: {header_timeout: 0.5, max_connections_per_client: 3}}")
        .set("GATEWAY_HTTP", &http.to_string())
        .start()
        .await?;
    for listener in [http, gateway.admin_address] {
        let incomplete = "GET / HTTP/1.1\r\nHost: loc";
        assert_eq!(parse_status(&exchange(listener, incomplete).await?), 408);
        assert_eq!(exchange(listener, "").await?, "");
        for malformed in [
            "POST /api/login HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer SECRET\r\nno header\r\n\r\n",
            "GET / HTTP/1.1\nHost: a\nAuthorization: Bearer SECRET\n\n",
            "\u{16}\u{3}\u{1} SECRET\r\n\r\n",
        ] {
            let response = exchange(listener, malformed).await?;
            assert_eq!(parse_status(&response), 400, "{response}");
            assert!(response.contains(r#"{"error":""#), "{response}");
        }
    }
    assert!(!gateway.process.log().contains("SECRET"));
    let mut open_connections = Vec::new();
    for _ in 0..3 {
        open_connections.push(TcpStream::connect(http).await?);
    }
    let request = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    wait::until(
        "further connections of this client to be rejected",
        async || {
            exchange(http, request)
                .await
                .is_ok_and(|response| response.is_empty())
        },
    )
    .await?;
    Ok(())
}

#[tokio::test]
async fn by_default_no_client_takes_more_than_a_tenth_of_the_connections() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::builder(&[upstream.address])
        .config("premier: {limits: {max_connections: 30}}")
        .start()
        .await?;
    let mut connections = Vec::new();
    while let Ok(connection) = RawConnection::connect(&gateway).await {
        connections.push(connection);
        assert!(connections.len() <= 3, "more than a tenth");
    }
    assert!(!connections.is_empty());
    let other_client = gateway.client()?;
    assert_eq!(other_client.get("/").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn a_trusted_proxy_has_connections_for_many_clients() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::builder(&[upstream.address])
        .config(
            "premier:
  trusted_proxies: ['${NONE:-} , 127.0.0.0/8,::1']
  limits: {max_connections: 30, max_connections_per_client: 1}
",
        )
        .start()
        .await?;
    let mut connections = Vec::new();
    for _ in 0..10 {
        connections.push(RawConnection::connect(&gateway).await?);
    }
    Ok(())
}

#[tokio::test]
async fn connections_beyond_the_total_limit_are_closed() -> Result<()> {
    const LIMITS: &str = "premier: {limits: {max_connections: 3, max_connections_per_client: 3}}";
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::start(upstream.address, LIMITS).await?;
    gateway.wait_until_disconnected().await?;
    let mut open_connections = Vec::new();
    for _ in 0..3 {
        open_connections.push(RawConnection::connect(&gateway).await?);
    }
    let further_client = gateway.client()?;
    assert!(further_client.get("/").await.is_err());
    let refused = gateway
        .metric("gateway_connections_refused_total", &[r#"reason="total""#])
        .await?;
    assert!(refused.is_some_and(|count| count >= 1.0), "{refused:?}");
    open_connections.pop();
    gateway
        .wait_for_response("/", |response| response.status == 200)
        .await
}

#[tokio::test]
async fn internal_paths_are_not_served_on_https_in_any_spelling() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    for path in [
        "/ready",
        "/metrics",
        "/ready/",
        "/metrics/",
        "//metrics",
        "/./ready",
        "/x/../metrics",
        "/%6detrics",
        "/%72%65%61%64%79",
        "/metrics?x=y",
        "/metrics#x",
        "/x/%2e%2e/ready",
        "//metrics//",
    ] {
        let http1 = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let response = RawConnection::exchange(&gateway, http1).await?;
        assert_eq!(parse_status(&response), 404, "{path}: {response}");
        let mut http2 = http2_frames::connect(&gateway).await?;
        http2.send(http2_frames::get(1, path)).await?;
        http2_frames::read_until_frame(http2_frames::HEADERS, &mut http2).await?;
    }
    assert_eq!(upstream.received_requests(), Vec::<String>::new());
    Ok(())
}
