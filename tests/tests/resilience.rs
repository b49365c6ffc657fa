//! Upstream failures: timeouts, retries, circuit breakers, health checks and unreachable endpoints.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use reqwest::Method;
use serde_json::json;
use tests::client::{Client, send};
use tests::mock_upstream::request_target;
use tests::raw_connection::RawConnection;
use tests::{Gateway, MockResponse, MockUpstream, address, wait};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpListener;

/// One path for each feature under test.
const PATHS: &str = r#"
premier:
  health_check: {interval: 0.2}
  limits: {body_timeout: 1}
  paths:
    - pattern: "/slow"
      features:
        timeout: {seconds: 0.3, error_status: 504, error_message: too slow}
    - pattern: "/retried"
      features:
        retry: {max_attempts: 3, wait: 0.01}
    - pattern: "/broken"
      features:
        circuit_breaker: {failure_threshold: 3, recovery_timeout: 0.5}
    - pattern: "/guarded"
      features:
        timeout: {seconds: 0.5}
        circuit_breaker: {failure_threshold: 1, recovery_timeout: 600}
"#;

const UPGRADE_REQUEST: &str = "GET /socket HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
/// Response to [`UPGRADE_REQUEST`], with the first bytes of the new protocol.
const UPGRADE_RESPONSE: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nframes";

/// Starts a gateway with the configuration [`PATHS`].
async fn start_gateway(upstream: &MockUpstream) -> Result<Gateway> {
    Gateway::builder(&[upstream.address])
        .config(PATHS)
        .start()
        .await
}

/// Sends POST requests, which are not retried once sent, and asserts that each returns 200.
async fn assert_posts_succeed(client: &Client, count: u32) -> Result<()> {
    for number in 0..count {
        let response = send(client.request(Method::POST, "/any").body("{}")).await?;
        assert_eq!(response.status, 200, "{number}: {}", response.text);
    }
    Ok(())
}

#[tokio::test]
async fn a_slow_upstream_is_timed_out() -> Result<()> {
    let upstream = MockUpstream::start(|_| MockResponse::Never).await?;
    let gateway = start_gateway(&upstream).await?;
    let response = gateway.client()?.get("/slow").await?;
    assert_eq!(response.status, 504);
    assert_eq!(response.json(), json!({"error": "too slow"}));
    Ok(())
}

#[tokio::test]
async fn only_idempotent_requests_are_retried() -> Result<()> {
    let attempts = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&attempts);
    let upstream = MockUpstream::start(move |_| match counter.fetch_add(1, Ordering::Relaxed) {
        0 => MockResponse::new(503, "failure"),
        1 => MockResponse::BytesThenClose(Vec::new()),
        _ => MockResponse::new(200, "success"),
    })
    .await?;
    let gateway = start_gateway(&upstream).await?;
    let client = gateway.client()?;
    let response = client.get("/retried").await?;
    assert_eq!((response.status, response.text.as_str()), (200, "success"));
    assert_eq!(attempts.load(Ordering::Relaxed), 3);

    attempts.store(0, Ordering::Relaxed);
    let response = send(client.request(Method::POST, "/retried").body("{}")).await?;
    assert_eq!((response.status, response.text.as_str()), (503, "failure"));
    assert_eq!(attempts.load(Ordering::Relaxed), 1);
    Ok(())
}

#[tokio::test]
async fn an_unreachable_endpoint_fails_no_request() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::builder(&[address::unused_loopback(), upstream.address])
        .start()
        .await?;
    assert_posts_succeed(&gateway.client()?, 20).await
}

#[tokio::test]
async fn an_upgrade_request_fails_over_to_another_endpoint() -> Result<()> {
    let upstream =
        MockUpstream::start(|_| MockResponse::BytesThenClose(UPGRADE_RESPONSE.to_vec())).await?;
    for _ in 0..8 {
        let stopped = MockUpstream::always_ok().await?;
        let gateway = Gateway::builder(&[stopped.address, upstream.address])
            .config("premier: {health_check: {interval: 600}}")
            .start()
            .await?;
        drop(stopped);
        let mut connection = RawConnection::connect(&gateway).await?;
        connection.send(UPGRADE_REQUEST).await?;
        let response = connection.read_until("frames").await?;
        assert!(response.starts_with("HTTP/1.1 101"), "{response}");
    }
    Ok(())
}

#[tokio::test]
async fn without_a_reachable_endpoint_the_response_is_503() -> Result<()> {
    let gateway = Gateway::builder(&[address::unused_loopback()])
        .start()
        .await?;
    let response = gateway.client()?.get("/any").await?;
    assert_eq!(response.status, 503);
    assert_eq!(response.json(), json!({"error": "Service unavailable"}));
    assert!(response.header("retry-after").parse::<u64>()? >= 1);
    assert_eq!(gateway.admin_client()?.get("/ready").await?.status, 503);
    Ok(())
}

#[tokio::test]
async fn a_recovered_endpoint_is_used_again() -> Result<()> {
    let first = MockUpstream::always_ok().await?;
    let gateway = start_gateway(&first).await?;
    assert_eq!(gateway.client()?.get("/any").await?.status, 200);
    let address = first.address;
    drop(first);
    let client = gateway.client()?;
    client
        .wait_for_response("/any", |response| response.status == 503)
        .await?;
    let _second = MockUpstream::start_at(address, |_| MockResponse::new(200, "recovered")).await?;
    client
        .wait_for_response("/any", |response| response.text == "recovered")
        .await
}

#[tokio::test]
async fn consecutive_failures_open_the_circuit_breaker_until_a_probe_succeeds() -> Result<()> {
    let attempts = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&attempts);
    let upstream = MockUpstream::start(move |_| match counter.fetch_add(1, Ordering::Relaxed) {
        0..3 => MockResponse::new(500, "broken"),
        _ => MockResponse::new(200, "fixed"),
    })
    .await?;
    let gateway = start_gateway(&upstream).await?;
    let client = gateway.client()?;
    for _ in 0..3 {
        assert_eq!(client.get("/broken").await?.status, 500);
    }
    let rejected = client.get("/broken").await?;
    assert_eq!(rejected.status, 503);
    assert!(!rejected.header("retry-after").is_empty());
    assert_eq!(attempts.load(Ordering::Relaxed), 3);
    let state = gateway
        .metric("gateway_circuit_breaker_state", &["/broken"])
        .await?;
    assert_eq!(state, Some(2.0));
    assert_eq!(
        client.get("/other").await?.status,
        200,
        "the circuit breaker affects another path"
    );
    client
        .wait_for_response("/broken", |response| response.text == "fixed")
        .await
}

#[tokio::test]
async fn a_probe_cancelled_by_its_client_is_followed_by_another() -> Result<()> {
    let upstream = MockUpstream::start(|request| {
        if request.contains("fail=yes") {
            MockResponse::new(500, "broken")
        } else if request.contains("hang=yes") {
            MockResponse::Never
        } else {
            MockResponse::new(200, "fixed")
        }
    })
    .await?;
    let gateway = start_gateway(&upstream).await?;
    let client = gateway.client()?;
    for _ in 0..3 {
        assert_eq!(client.get("/broken?fail=yes").await?.status, 500);
    }
    // The first request that the open circuit breaker forwards is the probe.
    let mut attempts = 0;
    while upstream.received_requests().len() < 4 {
        attempts += 1;
        let (client, path) = (gateway.client()?, "/broken?hang=yes");
        let mut probe = tokio::spawn(async move { client.get(path).await });
        wait::until("the probe, or a rejection", async || {
            upstream.received_requests().len() == 4 || probe.is_finished()
        })
        .await?;
        if upstream.received_requests().len() == 4 {
            probe.abort();
        }
        let _ = (&mut probe).await;
        anyhow::ensure!(attempts < 10_000, "no probe was forwarded");
    }
    gateway.wait_until_idle().await?;
    assert_eq!(client.get("/broken").await?.text, "fixed");
    Ok(())
}

#[tokio::test]
async fn a_websocket_handshake_is_forwarded() -> Result<()> {
    let upstream = MockUpstream::start(|_| MockResponse::Bytes(UPGRADE_RESPONSE.to_vec())).await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    let mut connection = RawConnection::connect(&gateway).await?;
    connection.send(UPGRADE_REQUEST).await?;
    let response = connection.read_until("frames").await?;
    assert!(response.starts_with("HTTP/1.1 101"), "{response}");
    Ok(())
}

#[tokio::test]
async fn a_connection_closed_by_the_upstream_is_not_reused() -> Result<()> {
    let upstream = MockUpstream::start(|_| {
        // Without `Connection: close`: the response does not announce that the connection ends.
        MockResponse::BytesThenClose(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec())
    })
    .await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    assert_posts_succeed(&gateway.client()?, 50).await
}

#[tokio::test]
async fn a_client_that_withholds_its_body_is_not_an_upstream_failure() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway = start_gateway(&upstream).await?;
    let headers = "POST /guarded HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n";
    for (expect, body) in [
        ("", ""),
        ("", "some"),
        ("Expect: 100-continue\r\n", ""),
        ("Expect: 100-continue\r\n", "some"),
    ] {
        let request = format!("{headers}{expect}\r\n{body}");
        let response = RawConnection::exchange(&gateway, request).await?;
        let last = response.split("HTTP/1.1 ").last().unwrap_or_default();
        assert!(last.starts_with("408"), "{expect} {body}: {response}");
    }
    assert_eq!(gateway.client()?.get("/guarded").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn a_slow_reader_is_not_cut_off_by_the_upstream_timeout() -> Result<()> {
    let large = "x".repeat(8 << 20);
    let upstream = MockUpstream::start(move |request| {
        if request.contains("large=yes") {
            MockResponse::new(200, &large)
        } else {
            MockResponse::Never
        }
    })
    .await?;
    let gateway = start_gateway(&upstream).await?;
    let mut slow_reader = RawConnection::connect(&gateway).await?;
    slow_reader
        .send("GET /slow?large=yes HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .await?;
    let beginning = slow_reader.read_until("xxx").await?;
    // This request times out later than the first one would have.
    assert_eq!(gateway.client()?.get("/slow").await?.status, 504);
    let rest = slow_reader.read_to_string().await?;
    let received = beginning.matches('x').count() + rest.matches('x').count();
    assert!(received >= 8 << 20, "{received} bytes received");
    Ok(())
}

#[tokio::test]
async fn a_health_check_sends_the_host_and_port_of_its_endpoint() -> Result<()> {
    let endpoint = address::unused_loopback();
    let listener = TcpListener::bind(endpoint).await?;
    let _gateway = Gateway::builder(&[endpoint]).start().await?;
    let (stream, _) = listener.accept().await?;
    let mut lines = BufReader::new(stream).lines();
    let mut request = Vec::new();
    while let Some(line) = lines.next_line().await?.filter(|line| !line.is_empty()) {
        request.push(line.to_lowercase());
    }
    assert_eq!(
        request.first().map(String::as_str),
        Some("get /ready http/1.1")
    );
    assert!(
        request.contains(&format!("host: {endpoint}")),
        "{request:?}"
    );
    Ok(())
}

#[tokio::test]
async fn upgraded_connections_and_event_streams_do_not_count_as_slow_requests() -> Result<()> {
    const CONFIG: &str = r#"
premier:
  paths:
    - {pattern: "/timed", features: {timeout: {seconds: 1.5}}}
    - {pattern: "*", features: {monitoring: {log_threshold: 1}}}
"#;
    let upstream = MockUpstream::start(|request| match request_target(request) {
        "/socket" => MockResponse::Bytes(UPGRADE_RESPONSE.to_vec()),
        "/events" => MockResponse::Bytes(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n\r\ndata: x\n\n"
                .to_vec(),
        ),
        _ => MockResponse::Never,
    })
    .await?;
    let gateway = Gateway::builder(&[upstream.address])
        .config(CONFIG)
        .start()
        .await?;
    let mut socket = RawConnection::connect(&gateway).await?;
    socket.send(UPGRADE_REQUEST).await?;
    socket.read_until("frames").await?;
    let mut events = RawConnection::connect(&gateway).await?;
    events
        .send("GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await?;
    events.read_until("data: x").await?;
    // Lasts longer than the threshold.
    assert_eq!(gateway.client()?.get("/timed").await?.status, 504);
    drop((socket, events));
    gateway.wait_until_idle().await?;
    let slow = gateway
        .metric("gateway_slow_requests_total", &["pattern=\"*\""])
        .await?;
    assert_eq!(slow, Some(0.0));
    let seconds = gateway
        .metric("gateway_request_duration_seconds_sum", &["pattern=\"*\""])
        .await?;
    assert!(seconds.is_some_and(|seconds| seconds < 1.5), "{seconds:?}");
    Ok(())
}

#[tokio::test]
async fn a_paused_upload_is_subject_to_the_body_timeout_only() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::builder(&[upstream.address])
        .config("premier: {limits: {header_timeout: 0.5}}")
        .start()
        .await?;
    let mut upload = RawConnection::connect(&gateway).await?;
    upload
        .send("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nab")
        .await?;
    // Times out later than the upload would have.
    let response = RawConnection::exchange(&gateway, "GET / HTTP/1.1\r\n").await?;
    assert!(response.starts_with("HTTP/1.1 408"), "{response}");
    upload.send("cd").await?;
    let response = upload.read_until("ok").await?;
    assert!(response.starts_with("HTTP/1.1 200"), "{response}");
    Ok(())
}
