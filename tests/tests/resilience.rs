//! Upstream failures: timeouts, retries, circuit breakers, health checks and unreachable endpoints.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use reqwest::Method;
use serde_json::json;
use tests::client::{Client, Protocol, send};
use tests::mock_upstream::request_target;
use tests::raw_connection::RawConnection;
use tests::{Gateway, MockResponse, MockUpstream, address, wait};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Notify;

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
    - pattern: "/hanging"
      features:
        timeout: {seconds: 1}
        retry: {max_attempts: 2, wait: 0.01, attempt_timeout: 0.2}
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
    Gateway::start(upstream.address, PATHS).await
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
async fn an_attempt_that_hangs_leaves_time_for_another_one() -> Result<()> {
    let attempts = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&attempts);
    let upstream = MockUpstream::start(move |_| match counter.fetch_add(1, Ordering::Relaxed) {
        1 => MockResponse::new(200, "success"),
        _ => MockResponse::Never,
    })
    .await?;
    let gateway = start_gateway(&upstream).await?;
    let client = gateway.client()?;
    let response = client.get("/hanging").await?;
    assert_eq!((response.status, response.text.as_str()), (200, "success"));
    // The last attempt has all of the time that is left.
    let start = Instant::now();
    assert_eq!(client.get("/hanging").await?.status, 504);
    assert!(start.elapsed() >= Duration::from_secs(1));
    assert_eq!(attempts.load(Ordering::Relaxed), 4);
    // So has a request that cannot be repeated.
    let start = Instant::now();
    let response = send(client.request(Method::POST, "/hanging").body("{}")).await?;
    assert_eq!(response.status, 504);
    assert!(start.elapsed() >= Duration::from_secs(1));
    assert_eq!(attempts.load(Ordering::Relaxed), 5);
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
async fn a_request_that_ends_its_connection_is_not_sent_again_without_retries() -> Result<()> {
    // Longer than the gateway takes a close for that of an idle connection.
    const WORK: Duration = Duration::from_millis(600);
    let upstream = MockUpstream::start(|request| match request_target(request) {
        "/crash" => MockResponse::CloseAfter(WORK),
        _ => MockResponse::new(200, "ok"),
    })
    .await?;
    let gateway = start_gateway(&upstream).await?;
    let client = gateway.client()?;
    assert_eq!(client.get("/any").await?.status, 200);
    assert_eq!(client.get("/crash").await?.status, 502);
    assert_eq!(upstream.received_requests().len(), 2);
    assert_eq!(upstream.connection_count(), 1, "none was reused");
    for (outcome, expected) in [("broken", 1.0), ("stale", 0.0)] {
        let outcome = format!("outcome=\"{outcome}\"");
        let attempts = gateway
            .metric("gateway_upstream_attempts_total", &[&outcome])
            .await?;
        assert_eq!(attempts, Some(expected), "{outcome}");
    }
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

/// Response of an endpoint that has more requests than it can serve.
const LOAD_SHEDDING: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 4\r\n\r\nshed";

#[tokio::test]
async fn load_shedding_opens_no_circuit_breaker_and_is_not_retried() -> Result<()> {
    let upstream = MockUpstream::start(|_| MockResponse::Bytes(LOAD_SHEDDING.to_vec())).await?;
    let gateway = start_gateway(&upstream).await?;
    let client = gateway.client()?;
    for count in 1..=10 {
        let response = client.get("/broken").await?;
        assert_eq!((response.status, response.text.as_str()), (503, "shed"));
        assert_eq!(response.header("retry-after"), "1");
        assert_eq!(upstream.received_requests().len(), count);
    }
    let state = gateway
        .metric("gateway_circuit_breaker_state", &["/broken"])
        .await?;
    assert_eq!(state, Some(0.0));
    assert_eq!(client.get("/retried").await?.text, "shed");
    assert_eq!(upstream.received_requests().len(), 11, "a retry");
    Ok(())
}

#[tokio::test]
async fn only_statuses_of_a_failing_endpoint_open_the_circuit_breaker() -> Result<()> {
    for (status, opens) in [
        (500, true),
        (501, false),
        (502, true),
        (503, true),
        (504, true),
        (505, false),
        (507, false),
    ] {
        let upstream = MockUpstream::start(move |_| MockResponse::new(status, "")).await?;
        let gateway = start_gateway(&upstream).await?;
        let client = gateway.client()?;
        for _ in 0..6 {
            client.get("/broken").await?;
        }
        let expected = if opens { 3 } else { 6 };
        assert_eq!(upstream.received_requests().len(), expected, "{status}");
    }
    Ok(())
}

/// Response with `count` header lines, one of which has a value of `length` bytes.
fn response_with_headers(count: usize, length: usize) -> MockResponse {
    let (long, short) = ("a".repeat(length), "X: y\r\n".repeat(count - 2));
    let headers = format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nLong: {long}\r\n{short}\r\n");
    MockResponse::Bytes(headers.into_bytes())
}

#[tokio::test]
async fn a_response_whose_headers_exceed_a_limit_is_a_failure_that_is_not_retried() -> Result<()> {
    for (count, length) in [(101, 1), (2, 64 << 10)] {
        let upstream = MockUpstream::start(move |_| response_with_headers(count, length)).await?;
        let gateway = start_gateway(&upstream).await?;
        let client = gateway.client()?;
        assert_eq!(client.get("/retried").await?.status, 502);
        assert_eq!(upstream.received_requests().len(), 1, "a retry");
        for _ in 0..3 {
            assert_eq!(client.get("/broken").await?.status, 502);
        }
        assert_eq!(client.get("/broken").await?.status, 503);
    }
    let upstream = MockUpstream::start(|_| response_with_headers(100, 1)).await?;
    let gateway = start_gateway(&upstream).await?;
    assert_eq!(gateway.client()?.get("/retried").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn responses_that_break_off_are_failures() -> Result<()> {
    for (protocol, response) in [
        (Protocol::Http1, "Content-Length: 10\r\n\r\nab"),
        (Protocol::Http2, "Content-Length: 10\r\n\r\nab"),
        (Protocol::Http1, "Transfer-Encoding: chunked\r\n\r\n5\r\nab"),
        (
            Protocol::Http2,
            "Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n",
        ),
    ] {
        let bytes = format!("HTTP/1.1 200 OK\r\n{response}").into_bytes();
        let upstream =
            MockUpstream::start(move |_| MockResponse::BytesThenClose(bytes.clone())).await?;
        let gateway = start_gateway(&upstream).await?;
        let client = gateway.client_with_protocol(protocol)?;
        for _ in 0..3 {
            let result = client.get("/broken").await;
            assert!(result.is_err(), "{protocol:?} {response}: {result:?}");
        }
        gateway.wait_until_idle().await?;
        assert_eq!(client.get("/broken").await?.status, 503, "{response}");
        assert_eq!(upstream.received_requests().len(), 3);

        let truncated = [r#"pattern="/broken""#, r#"status="truncated""#];
        gateway
            .wait_for_metric("gateway_requests_total", &truncated, 3.0)
            .await?;
        let complete = [r#"pattern="/broken""#, r#"status="2xx""#];
        let complete = gateway.metric("gateway_requests_total", &complete).await?;
        assert_eq!(complete, None, "{response}");
        for (outcome, expected) in [("truncated", 3.0), ("2xx", 0.0)] {
            let outcome = format!("outcome=\"{outcome}\"");
            let attempts = gateway
                .metric("gateway_upstream_attempts_total", &[&outcome])
                .await?;
            assert_eq!(attempts, Some(expected), "{response}: {outcome}");
        }
        gateway
            .process
            .wait_for_log(r#""termination":"truncated""#)
            .await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_response_that_times_out_is_a_failure() -> Result<()> {
    let upstream = MockUpstream::start(|_| {
        MockResponse::Bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nab".to_vec())
    })
    .await?;
    let gateway = start_gateway(&upstream).await?;
    let client = gateway.client()?;
    assert!(client.get("/guarded").await.is_err());
    gateway.wait_until_idle().await?;
    assert_eq!(client.get("/guarded").await?.status, 503);
    Ok(())
}

#[tokio::test]
async fn clients_that_leave_during_a_response_open_no_circuit_breaker() -> Result<()> {
    let upstream = MockUpstream::start(|_| {
        MockResponse::Bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nab".to_vec())
    })
    .await?;
    let gateway = start_gateway(&upstream).await?;
    for count in 1..=4 {
        let mut connection = RawConnection::connect(&gateway).await?;
        connection
            .send("GET /broken HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .await?;
        let response = connection.read_until("ab").await?;
        assert!(response.starts_with("HTTP/1.1 200"), "{response}");
        drop(connection);
        gateway.wait_until_idle().await?;
        assert_eq!(upstream.received_requests().len(), count);
    }
    gateway
        .process
        .wait_for_log(r#""termination":"client_disconnected""#)
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
    let _gateway = Gateway::builder(&[endpoint])
        .config("premier: {health_check: {path: /ready}}")
        .start()
        .await?;
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
async fn servers_without_a_path_for_health_checks_are_healthy_unless_the_file_names_one()
-> Result<()> {
    for (config, healthy) in [
        ("premier: {}", 1.0),
        ("premier: {health_check: {path: /ready}}", 0.0),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        // Unlike a mock upstream, it has no response to health checks but 404.
        let server = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut request = vec![0; 4096];
                    while let Ok(length @ 1..) = stream.read(&mut request).await {
                        let is_ready = request[..length].starts_with(b"GET /ready ");
                        let status = if is_ready { 404 } else { 200 };
                        let response = format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n");
                        let _ = stream.write_all(response.as_bytes()).await;
                    }
                });
            }
        });
        let gateway = Gateway::builder(&[address]).config(config).start().await?;
        let label = address.to_string();
        gateway
            .wait_for_metric("gateway_replica_up", &[&label], healthy)
            .await?;
        assert_eq!(gateway.client()?.get("/").await?.status, 200);
        server.abort();
    }
    Ok(())
}

#[tokio::test]
async fn an_endpoint_without_health_checks_is_left_out_and_returns() -> Result<()> {
    for config in [
        "premier: {}",
        "premier: {health_check: null, default_features: {retry: {wait: 0}}}",
    ] {
        let closed = address::unused_loopback();
        let other = MockUpstream::always_ok().await?;
        let gateway = Gateway::builder(&[closed, other.address])
            .config(config)
            .start()
            .await?;
        let label = closed.to_string();
        let client = gateway.client()?;
        wait::until("the endpoint to be left out", async || {
            let _ = client.get("/").await;
            gateway
                .metric("gateway_replica_up", &[&label])
                .await
                .is_ok_and(|up| up == Some(0.0))
        })
        .await?;
        assert_eq!(gateway.client()?.get("/").await?.status, 200);
        let _returned = MockUpstream::start_at(closed, |_| MockResponse::new(200, "back")).await?;
        gateway
            .wait_for_response("/", |response| response.text == "back")
            .await?;
    }
    Ok(())
}

/// Responds to one request with 200 and closes the connection.
async fn respond_once(mut stream: TcpStream) -> std::io::Result<()> {
    let mut request = [0; 4096];
    let _ = stream.read(&mut request).await?;
    let response = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";
    stream.write_all(response).await
}

#[tokio::test]
async fn a_timeout_shorter_than_connecting_makes_no_endpoint_unhealthy() -> Result<()> {
    const CONFIG: &str = "
premier:
  health_check: {interval: 600}
  paths:
    - pattern: /fast
      features: {timeout: {seconds: 0.05}}
";
    let endpoint = address::unused_loopback();
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(endpoint)?;
    let listener = socket.listen(1)?;
    let health_check = tokio::spawn(async move {
        let (stream, _) = listener.accept().await?;
        respond_once(stream).await?;
        Ok::<_, std::io::Error>(listener)
    });
    let gateway = Gateway::builder(&[endpoint]).config(CONFIG).start().await?;
    let listener = health_check.await??;
    gateway
        .wait_for_metric("gateway_replica_up", &[], 1.0)
        .await?;
    // A full backlog makes the kernel ignore further connections.
    let mut backlog = Vec::new();
    let patience = Duration::from_millis(200);
    while let Ok(stream) = tokio::time::timeout(patience, TcpStream::connect(endpoint)).await {
        backlog.push(stream?);
    }
    let client = gateway.client()?;
    assert_eq!(client.get("/fast").await?.status, 504);
    let up = gateway.metric("gateway_replica_up", &[]).await?;
    assert_eq!(
        up,
        Some(1.0),
        "one short timeout made the endpoint unhealthy"
    );
    drop(backlog);
    let server = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(respond_once(stream));
        }
    });
    client
        .wait_for_response("/any", |response| response.status == 200)
        .await?;
    server.abort();
    Ok(())
}

#[tokio::test]
async fn an_endpoint_that_passes_its_health_check_again_is_probed_without_delay() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let address = upstream.address;
    let gateway = start_gateway(&upstream).await?;
    let client = gateway.client()?;
    // Its circuit breaker stays open for ten minutes.
    assert_eq!(client.get("/guarded").await?.status, 200);
    drop(upstream);
    client
        .wait_for_response("/guarded", |response| response.status == 503)
        .await?;
    gateway
        .process
        .wait_for_log("endpoint marked unhealthy")
        .await?;
    let _upstream = MockUpstream::start_at(address, |_| MockResponse::new(200, "ok")).await?;
    client
        .wait_for_response("/guarded", |response| response.status == 200)
        .await
}

#[tokio::test]
async fn with_every_endpoint_unhealthy_requests_are_tried_all_the_same() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let closed_port = address::unused_loopback().port();
    let config = format!("premier: {{health_check: {{port: {closed_port}, interval: 0.2}}}}");
    let gateway = Gateway::start(upstream.address, &config).await?;
    gateway
        .process
        .wait_for_log("endpoint marked unhealthy")
        .await?;
    assert_posts_succeed(&gateway.client()?, 5).await?;
    assert_eq!(gateway.admin_client()?.get("/ready").await?.status, 503);
    Ok(())
}

#[tokio::test]
async fn a_configured_timeout_is_the_only_limit_of_a_response() -> Result<()> {
    const CONFIG: &str = "
premier:
  limits: {stream_idle_timeout: 0.2}
  paths:
    - pattern: /patient
      features: {timeout: {seconds: 60}}
";
    let notify = Arc::new(Notify::new());
    let late = Arc::clone(&notify);
    let upstream = MockUpstream::start(move |request| {
        if request.contains("/patient") {
            let response = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate".to_vec();
            MockResponse::BytesAfter(Arc::clone(&late), response)
        } else {
            MockResponse::Never
        }
    })
    .await?;
    let gateway = Gateway::start(upstream.address, CONFIG).await?;
    let client = gateway.client()?;
    let patient = tokio::spawn({
        let client = client.clone();
        async move { client.get("/patient").await }
    });
    upstream.wait_for_requests(1).await?;
    // This request begins later and is ended by the idle timeout.
    assert_eq!(client.get("/other").await?.status, 504);
    notify.notify_one();
    assert_eq!(patient.await??.text, "late");
    Ok(())
}

#[tokio::test]
async fn an_idle_websocket_is_closed_after_the_configured_time() -> Result<()> {
    let upstream = MockUpstream::start(|_| MockResponse::Bytes(UPGRADE_RESPONSE.to_vec())).await?;
    let gateway = Gateway::start(
        upstream.address,
        "premier: {limits: {stream_idle_timeout: 0.2}}",
    )
    .await?;
    let response = RawConnection::exchange(&gateway, UPGRADE_REQUEST).await?;
    assert!(response.ends_with("frames"), "{response}");
    gateway
        .process
        .wait_for_log(r#""termination":"aborted""#)
        .await
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
    let gateway = Gateway::start(upstream.address, CONFIG).await?;
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
    let gateway =
        Gateway::start(upstream.address, "premier: {limits: {header_timeout: 0.5}}").await?;
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
