//! Requests and responses between client and upstream: framing, bodies, informational responses,
//! upgrades, reused connections, and disconnects on either side.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use reqwest::Method;
use tests::client::{Protocol, send};
use tests::mock_upstream::request_target;
use tests::raw_connection::{RawConnection, parse_status};
use tests::{Gateway, MockResponse, MockUpstream, address, wait};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// Short timeouts, so that tests of stalled clients take a second, and a path with retries.
const SHORT_TIMEOUTS: &str = r#"
premier:
  limits: {idle_timeout: 0.5, header_timeout: 0.5, body_timeout: 0.5}
  paths:
    - pattern: "/retried"
      features: {retry: {max_attempts: 3, wait: 0.01}}
"#;

/// Pseudo-random letters: lost, repeated or reordered bytes show in a comparison.
fn pseudo_random_text(length: u32) -> String {
    (0..length)
        .map(|number| char::from(b'a' + (number.wrapping_mul(2_654_435_761) >> 27) as u8 % 26))
        .collect()
}

#[tokio::test]
async fn pipelined_requests_get_responses_in_order() -> Result<()> {
    let upstream =
        MockUpstream::start(|request| MockResponse::new(200, request_target(request))).await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    let mut connection = RawConnection::connect(&gateway).await?;
    connection.send(
        "POST /1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc\
         POST /2 HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nabc\r\n0\r\nt: u\r\n\r\n\
         GET /3 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    )
    .await?;
    let responses = connection.read_to_string().await?;
    let bodies: Vec<_> = responses
        .split("\r\n\r\n")
        .skip(1)
        .map(|body| &body[..2])
        .collect();
    assert_eq!(bodies, ["/1", "/2", "/3"], "{responses}");
    let received = upstream.received_requests();
    assert!(
        received[1].ends_with("\r\n3\r\nabc\r\n0\r\n\r\n"),
        "{}",
        received[1]
    );
    Ok(())
}

#[tokio::test]
async fn a_connection_is_kept_alive_after_responses_without_a_body() -> Result<()> {
    let upstream = MockUpstream::start(|request| match request_target(request) {
        "/no-content" => MockResponse::Bytes(b"HTTP/1.1 204 No Content\r\n\r\n".to_vec()),
        "/not-modified" => MockResponse::Bytes(
            b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\nETag: \"x\"\r\n\r\n".to_vec(),
        ),
        "/head" => MockResponse::Bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n".to_vec()),
        _ => MockResponse::new(200, "end"),
    })
    .await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    let mut connection = RawConnection::connect(&gateway).await?;
    for request in ["GET /no-content", "GET /not-modified", "HEAD /head"] {
        connection
            .send(format!("{request} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
            .await?;
    }
    connection
        .send("GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .await?;
    let responses = connection.read_to_string().await?;
    let statuses: Vec<_> = responses.matches("HTTP/1.1 ").collect();
    assert_eq!(statuses.len(), 4, "{responses}");
    assert!(responses.contains("content-length: 7\r\n"), "{responses}");
    assert!(responses.ends_with("\r\n\r\nend"), "{responses}");

    let client = gateway.client_with_protocol(Protocol::Http2)?;
    assert_eq!(client.get("/no-content").await?.status, 204);
    assert_eq!(
        client.get("/not-modified").await?.header("content-length"),
        "9"
    );
    let head = send(client.request(Method::HEAD, "/head")).await?;
    assert_eq!((head.status, head.header("content-length")), (200, "7"));
    Ok(())
}

#[tokio::test]
async fn upstream_connections_are_reused() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let client = gateway.client_with_protocol(protocol)?;
        for _ in 0..50 {
            assert_eq!(client.get("/").await?.status, 200);
        }
    }
    assert_eq!(upstream.received_requests().len(), 100);
    assert!(
        upstream.connection_count() <= 2,
        "more than one connection per thread"
    );
    Ok(())
}

#[tokio::test]
async fn a_response_body_is_framed_for_the_protocol_of_the_client() -> Result<()> {
    let upstream = MockUpstream::start(|request| match request_target(request) {
        "/chunked" => MockResponse::Bytes(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2 ;x=y\r\nab\r\n1;x\r\nc\r\n0\r\nt: u\r\n\r\n".to_vec(),
        ),
        _ => MockResponse::BytesThenClose(b"HTTP/1.1 200 OK\r\n\r\nabc".to_vec()),
    })
    .await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    for path in ["/chunked", "/until-close"] {
        for protocol in [Protocol::Http1, Protocol::Http2] {
            let response = gateway.client_with_protocol(protocol)?.get(path).await?;
            assert_eq!(response.text, "abc", "{path}");
        }
        let http_1_0 =
            format!("GET {path} HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n");
        let response = RawConnection::exchange(&gateway, http_1_0).await?;
        assert!(response.ends_with("\r\n\r\nabc"), "{response}");
        assert!(response.contains("connection: close"), "{response}");
        assert!(!response.contains("transfer-encoding"), "{response}");

        let mut kept_alive = RawConnection::connect(&gateway).await?;
        kept_alive
            .send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
            .await?;
        let response = kept_alive.read_until("0\r\n\r\n").await?;
        assert!(
            response.contains("transfer-encoding: chunked"),
            "{response}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn small_request_chunks_are_coalesced() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    let mut connection = RawConnection::connect(&gateway).await?;
    let headers = "POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunks = "1\r\ny\r\n".repeat(10_000);
    connection
        .send(format!("{headers}{chunks}0\r\n\r\n"))
        .await?;
    assert_eq!(parse_status(&connection.read_until("ok").await?), 200);
    let received = upstream.received_requests().concat();
    let (_, body) = received.split_once("\r\n\r\n").unwrap_or_default();
    let chunks = body.split("\r\n").filter(|line| line.starts_with('y'));
    assert_eq!(chunks.clone().map(str::len).sum::<usize>(), 10_000);
    assert!(chunks.count() < 1000, "{body}");
    Ok(())
}

#[tokio::test]
async fn large_bodies_are_forwarded_complete_in_both_directions() -> Result<()> {
    let download = pseudo_random_text(4_000_000);
    let response_body = download.clone();
    let upstream = MockUpstream::start(move |_| MockResponse::new(200, &response_body)).await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    let upload = pseudo_random_text(1_000_000);
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let client = gateway.client_with_protocol(protocol)?;
        let response = send(client.request(Method::POST, "/").body(upload.clone())).await?;
        assert_eq!(response.status, 200);
        assert!(
            response.text == download,
            "{protocol:?}: {} bytes received",
            response.text.len()
        );
    }
    for request in upstream.received_requests() {
        assert!(
            request.ends_with(&upload),
            "{} bytes received",
            request.len()
        );
    }
    Ok(())
}

#[tokio::test]
async fn informational_responses_are_forwarded() -> Result<()> {
    let early_hints = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
    let upstream = MockUpstream::start(move |request| {
        let informational = match request_target(request) {
            "/hints" => early_hints.repeat(2),
            "/many-hints" => early_hints.repeat(100),
            "/too-many-hints" => early_hints.repeat(2000),
            _ => String::new(),
        };
        let response = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        MockResponse::Bytes((informational + response).into_bytes())
    })
    .await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    let mut connection = RawConnection::connect(&gateway).await?;
    connection
        .send("GET /hints HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await?;
    let response = connection.read_until("\r\n\r\nok").await?;
    assert_eq!(response.matches("HTTP/1.1 103").count(), 2, "{response}");

    connection.send(
        "POST / HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n",
    )
    .await?;
    let response = connection.read_until("\r\n\r\n").await?;
    assert!(response.starts_with("HTTP/1.1 100"), "{response}");
    connection.send("hi").await?;
    assert_eq!(
        parse_status(&connection.read_until("\r\n\r\nok").await?),
        200
    );
    assert!(upstream.received_requests()[1].ends_with("\r\n\r\nhi"));

    connection
        .send("GET /many-hints HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await?;
    let response = connection.read_until("\r\n\r\nok").await?;
    assert_eq!(response.matches("HTTP/1.1 103").count(), 100, "{response}");

    connection
        .send("GET /too-many-hints HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .await?;
    let response = connection.read_to_string().await?;
    assert!(response.contains("HTTP/1.1 502"), "{response}");
    let http2 = gateway.client_with_protocol(Protocol::Http2)?;
    assert_eq!(http2.get("/hints").await?.text, "ok");
    Ok(())
}

/// Upstream whose connections a test serves itself, for behaviour that [`MockUpstream`] does not
/// have. Stops with all of its connections when dropped.
struct CustomUpstream {
    address: SocketAddr,
    _accept_loop: JoinSet<()>,
}

impl CustomUpstream {
    /// Listens on an unused address and serves each connection by `serve`.
    async fn start<F>(serve: fn(TcpStream) -> F) -> Result<Self>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind(address::unused_loopback()).await?;
        let address = listener.local_addr()?;
        let mut accept_loop = JoinSet::new();
        accept_loop.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream));
            }
        });
        Ok(Self {
            address,
            _accept_loop: accept_loop,
        })
    }
}

/// Responds to the first request on a connection and closes the connection at the second.
async fn respond_once(mut stream: TcpStream) {
    let mut request = [0; 4096];
    if let Ok(1..) = stream.read(&mut request).await {
        let response = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        let _ = stream.write_all(response.as_bytes()).await;
        let _ = stream.read(&mut request).await;
    }
}

#[tokio::test]
async fn an_upstream_connection_closed_on_reuse_fails_no_idempotent_request() -> Result<()> {
    let upstream = CustomUpstream::start(respond_once).await?;
    let gateway = Gateway::start(
        upstream.address,
        "premier: {default_features: {circuit_breaker: {failure_threshold: 1}}}",
    )
    .await?;
    let client = gateway.client()?;
    for _ in 0..10 {
        let put = client.request(Method::PUT, "/").body("some");
        assert_eq!(send(put).await?.status, 200);
        assert_eq!(client.get("/").await?.status, 200);
    }
    let stale = gateway
        .metric("gateway_upstream_attempts_total", &[r#"outcome="stale""#])
        .await?;
    assert!(stale > Some(0.0), "{stale:?}");
    // A POST is not idempotent and may have been carried out: only the client may repeat it.
    let posted = send(client.request(Method::POST, "/").body("some")).await?;
    assert_eq!(posted.status, 502);
    Ok(())
}

/// Responds to a HEAD or conditional request without a body, and sends the body when the next request arrives,
/// as bytes that are late.
async fn send_bodies_late(mut stream: TcpStream) {
    const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    const LATE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
    let mut request = [0; 4096];
    let mut late = "";
    while let Ok(count @ 1..) = stream.read(&mut request).await {
        let text = String::from_utf8_lossy(&request[..count]).into_owned();
        let length = LATE.len();
        let response = match request_target(&text) {
            "/length" => format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"),
            "/chunked" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(),
            "/unframed" => "HTTP/1.1 200 OK\r\n\r\n".to_owned(),
            "/not-modified" => {
                format!("HTTP/1.1 304 Not Modified\r\nContent-Length: {length}\r\n\r\n")
            }
            "/no-content" => {
                format!("HTTP/1.1 204 No Content\r\nContent-Length: {length}\r\n\r\n")
            }
            _ => format!("{late}{OK}"),
        };
        late = LATE;
        if stream.write_all(response.as_bytes()).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn late_bytes_after_a_response_without_a_body_reach_no_other_client() -> Result<()> {
    let upstream = CustomUpstream::start(send_bodies_late).await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    let client = gateway.client()?;
    for (method, path) in [
        (Method::HEAD, "/length"),
        (Method::HEAD, "/chunked"),
        (Method::HEAD, "/unframed"),
        (Method::GET, "/not-modified"),
        (Method::GET, "/no-content"),
    ] {
        send(client.request(method, path)).await?;
        let next = client.get("/next").await?;
        assert_eq!(next.text, "ok", "after {path}");
    }
    Ok(())
}

/// Responds to every request as soon as its headers are received; a POST gets early hints first.
async fn respond_early(mut stream: TcpStream) {
    let mut request = [0; 4096];
    while let Ok(1..) = stream.read(&mut request).await {
        let early_hints = if request.starts_with(b"POST") {
            "HTTP/1.1 103 Early Hints\r\n\r\n"
        } else {
            ""
        };
        let response = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        let responses = [early_hints, response].concat();
        if stream.write_all(responses.as_bytes()).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn a_body_held_for_100_continue_is_not_awaited_after_an_early_response() -> Result<()> {
    let upstream = CustomUpstream::start(respond_early).await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    let request =
        "POST / HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n";
    let response = RawConnection::exchange(&gateway, request).await?;
    assert!(response.starts_with("HTTP/1.1 103"), "{response}");
    assert!(response.contains("connection: close\r\n"), "{response}");
    Ok(())
}

/// Responds as soon as it has received a part of the request, and resets the connection by not reading the rest.
async fn reject_early(mut stream: TcpStream) {
    let mut part = [0; 1024];
    if let Ok(1..) = stream.read(&mut part).await {
        let response =
            "HTTP/1.1 413 Content Too Large\r\nContent-Length: 5\r\nConnection: close\r\n\r\nlarge";
        let _ = stream.write_all(response.as_bytes()).await;
    }
}

#[tokio::test]
async fn a_response_that_precedes_a_reset_during_an_upload_reaches_the_client() -> Result<()> {
    let upstream = CustomUpstream::start(reject_early).await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    let client = gateway.client()?;
    for _ in 0..50 {
        let body = pseudo_random_text(500_000);
        let response = send(client.request(Method::POST, "/").body(body)).await?;
        let received = (response.status, response.text.as_str());
        assert_eq!(received, (413, "large"));
    }
    Ok(())
}

#[tokio::test]
async fn an_upgraded_connection_forwards_bytes_in_both_directions() -> Result<()> {
    let upstream = MockUpstream::start(|request| {
        if request.starts_with("GET /socket") {
            let switching_protocols = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\nConnection: Upgrade\r\n\r\nhello";
            return MockResponse::Bytes(switching_protocols.into());
        }
        MockResponse::Bytes(format!("<{request}>").into_bytes())
    })
    .await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    let mut connection = RawConnection::connect(&gateway).await?;
    let upgrade = "GET /socket HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    connection.send(upgrade).await?;
    let response = connection.read_until("hello").await?;
    assert!(response.contains("upgrade: websocket\r\n"), "{response}");
    for message in ["\0one\r\n\r\n", "\u{7f}two\r\n\r\n"] {
        connection.send(message).await?;
        assert_eq!(connection.read_until(">").await?, format!("<{message}>"));
    }
    let without_upgrade = "GET /socket HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let response = RawConnection::exchange(&gateway, without_upgrade).await?;
    assert_eq!(
        parse_status(&response),
        502,
        "the client did not request an upgrade"
    );
    Ok(())
}

/// Starts an endpoint that switches protocols once, and then sends `farewell` to a client that has closed its side. Returns its
/// address, and what it received after the request.
async fn tunnel_endpoint(
    farewell: &'static str,
) -> Result<(SocketAddr, JoinHandle<Result<Vec<u8>>>)> {
    const SWITCHING_PROTOCOLS: &[u8] =
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
    let listener = TcpListener::bind(address::unused_loopback()).await?;
    let address = listener.local_addr()?;
    let received = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await?;
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") && stream.read_buf(&mut request).await? > 0 {}
            // Health checks close the connection.
            if request.is_empty() {
                continue;
            }
            stream.write_all(SWITCHING_PROTOCOLS).await?;
            let mut received = Vec::new();
            stream.read_to_end(&mut received).await?;
            stream.write_all(farewell.as_bytes()).await?;
            return Ok(received);
        }
    });
    Ok((address, received))
}

#[tokio::test]
async fn what_a_client_sends_before_it_closes_a_tunnel_reaches_the_endpoint() -> Result<()> {
    // More than all buffers between both, so that the end waits behind backpressure.
    for length in [10, 20_000, 16_000_000] {
        let (endpoint, received) = tunnel_endpoint("farewell").await?;
        let gateway = Gateway::start(endpoint, "premier: {health_check: null}").await?;
        let mut connection = RawConnection::connect(&gateway).await?;
        connection
            .send("GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
            .await?;
        connection.read_until("\r\n\r\n").await?;
        let sent = pseudo_random_text(length);
        connection.send(&sent).await?;
        connection.shutdown().await?;
        // The endpoint may respond to the end.
        assert_eq!(connection.read_to_string().await?, "farewell");
        let received = received.await??;
        assert_eq!(received.len(), sent.len());
        assert_eq!(received, sent.into_bytes());
    }
    Ok(())
}

#[tokio::test]
async fn a_tunnel_is_idle_for_longer_than_a_connection_between_requests() -> Result<()> {
    let (endpoint, received) = tunnel_endpoint("farewell").await?;
    let limits =
        "premier: {health_check: null, limits: {idle_timeout: 0.2, stream_idle_timeout: 60}}";
    let gateway = Gateway::start(endpoint, limits).await?;
    let mut connection = RawConnection::connect(&gateway).await?;
    connection
        .send("GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        .await?;
    connection.read_until("\r\n\r\n").await?;
    let opened = Instant::now();
    wait::until("the time of an idle connection", async || {
        opened.elapsed() > Duration::from_millis(600)
    })
    .await?;
    connection.send("late").await?;
    connection.shutdown().await?;
    assert_eq!(connection.read_to_string().await?, "farewell");
    assert_eq!(received.await??, b"late");
    Ok(())
}

#[tokio::test]
async fn upgrades_to_other_protocols_than_websocket_are_not_forwarded() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    for headers in [
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk",
        "Connection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk",
        "Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c",
        "Connection: Upgrade\r\nUpgrade: websocket, h2c",
        "Upgrade: websocket",
    ] {
        let mut connection = RawConnection::connect(&gateway).await?;
        connection
            .send(format!(
                "GET / HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n\r\n"
            ))
            .await?;
        assert_eq!(
            parse_status(&connection.read_until("ok").await?),
            200,
            "{headers}"
        );
    }
    let received = upstream.received_requests().concat().to_lowercase();
    for word in ["upgrade", "http2-settings", "websocket"] {
        assert!(!received.contains(word), "{received}");
    }
    Ok(())
}

#[tokio::test]
async fn a_retried_request_is_sent_with_its_body() -> Result<()> {
    let attempts = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&attempts);
    let upstream = MockUpstream::start(move |_| match counter.fetch_add(1, Ordering::Relaxed) {
        0 => MockResponse::BytesThenClose(Vec::new()),
        1 => MockResponse::new(503, "failure"),
        _ => MockResponse::new(200, "success"),
    })
    .await?;
    let gateway = Gateway::start(upstream.address, SHORT_TIMEOUTS).await?;
    let body = pseudo_random_text(50_000);
    let client = gateway.client()?;
    let response = send(client.request(Method::PUT, "/retried").body(body.clone())).await?;
    assert_eq!((response.status, response.text.as_str()), (200, "success"));
    let received = upstream.received_requests();
    assert_eq!(received.len(), 3);
    assert!(received.iter().all(|request| request.ends_with(&body)));
    Ok(())
}

#[tokio::test]
async fn a_client_disconnect_cancels_its_request() -> Result<()> {
    let upstream = MockUpstream::start(|_| MockResponse::Never).await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let before = upstream.received_requests().len();
        let client = gateway.client_with_protocol(protocol)?;
        let request = tokio::spawn(async move { client.get("/").await });
        upstream.wait_for_requests(before + 1).await?;
        request.abort();
        gateway.wait_until_idle().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_client_disconnect_cancels_its_delayed_request() -> Result<()> {
    const LEAKY_BUCKET: &str = r"
premier:
  default_features:
    rate_limit: {quota: 1, duration: 60, algorithm: leaky_bucket, bucket_size: 9, per: []}
";
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::start(upstream.address, LEAKY_BUCKET).await?;
    assert_eq!(gateway.client()?.get("/").await?.status, 200);
    for protocol in [Protocol::Http1, Protocol::Http2] {
        for body_length in [0, 10_000] {
            let client = gateway.client_with_protocol(protocol)?;
            let body = pseudo_random_text(body_length);
            let request = client.request(Method::POST, "/").body(body);
            let request = tokio::spawn(send(request));
            gateway
                .wait_for_metric("gateway_requests_in_flight", &[], 1.0)
                .await?;
            request.abort();
            drop(client);
            gateway.wait_until_idle().await?;
        }
    }
    assert_eq!(upstream.received_requests().len(), 1);
    Ok(())
}

#[tokio::test]
async fn a_client_that_does_not_read_its_response_is_disconnected() -> Result<()> {
    const LENGTH: usize = 16 << 20;
    let large = "x".repeat(LENGTH);
    let upstream = MockUpstream::start(move |_| MockResponse::new(200, &large)).await?;
    let gateway = Gateway::start(upstream.address, SHORT_TIMEOUTS).await?;
    let mut connection = RawConnection::connect(&gateway).await?;
    connection
        .send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await?;
    wait::until("the request to arrive", async || {
        !upstream.received_requests().is_empty()
    })
    .await?;
    gateway.wait_until_idle().await?;
    let response = connection.read_to_string().await?;
    assert_eq!(parse_status(&response), 200);
    assert!(response.len() < LENGTH, "the whole response was sent");
    Ok(())
}

/// Responds as soon as the headers are received and reads no more; the response to a POST is larger
/// than all buffers on the way to the client.
async fn respond_without_reading_on(mut stream: TcpStream) {
    let mut request = [0; 4096];
    if let Ok(1..) = stream.read(&mut request).await {
        let length = if request.starts_with(b"POST") {
            32 << 20
        } else {
            0
        };
        let headers = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
        let _ = stream.write_all(headers.as_bytes()).await;
        let _ = stream.write_all(&vec![b'x'; length]).await;
    }
}

/// Uploads a byte at a time until the gateway closes the connection.
async fn upload_until_cut_off(gateway: &Gateway, connection: &mut RawConnection) -> Result<()> {
    let start = Instant::now();
    while connection.send("1\r\ny\r\n").await.is_ok() {
        let in_flight = gateway.metric("gateway_requests_in_flight", &[]).await?;
        if in_flight == Some(0.0) {
            break;
        }
        anyhow::ensure!(
            start.elapsed() < wait::TIMEOUT,
            "the client is still served"
        );
    }
    Ok(())
}

#[tokio::test]
async fn sent_request_bytes_do_not_count_as_read_progress_on_the_response() -> Result<()> {
    let upstream = CustomUpstream::start(respond_without_reading_on).await?;
    let gateway = Gateway::start(upstream.address, SHORT_TIMEOUTS).await?;
    let mut connection = RawConnection::connect(&gateway).await?;
    let headers = "POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    connection.send(headers).await?;
    upload_until_cut_off(&gateway, &mut connection).await
}

/// Begins a response as soon as the request headers are received, and completes it never.
async fn begin_response(mut stream: TcpStream) {
    let mut request = [0; 4096];
    if let Ok(1..) = stream.read(&mut request).await {
        let response = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegin";
        let _ = stream.write_all(response.as_bytes()).await;
        while let Ok(1..) = stream.read(&mut request).await {}
    }
}

#[tokio::test]
async fn an_upload_that_dribbles_after_the_response_has_begun_is_cut_off() -> Result<()> {
    let upstream = CustomUpstream::start(begin_response).await?;
    let gateway = Gateway::start(upstream.address, SHORT_TIMEOUTS).await?;
    let mut connection = RawConnection::connect(&gateway).await?;
    let headers = "POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    connection.send(headers).await?;
    connection.read_until("begin").await?;
    upload_until_cut_off(&gateway, &mut connection).await
}

#[tokio::test]
async fn responses_without_a_date_get_one() -> Result<()> {
    let dated =
        "HTTP/1.1 200 OK\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Length: 0\r\n\r\n";
    let upstream = MockUpstream::start(move |request| match request_target(request) {
        "/dated" => MockResponse::Bytes(dated.into()),
        _ => MockResponse::new(200, "ok"),
    })
    .await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let client = gateway.client_with_protocol(protocol)?;
        for path in ["/", "/metrics"] {
            let response = client.get(path).await?;
            assert!(response.header("date").ends_with(" GMT"), "{path}");
        }
        let response = client.get("/dated").await?;
        assert_eq!(response.header("date"), "Sun, 06 Nov 1994 08:49:37 GMT");
    }
    let admin = gateway.admin_client()?.get("/health").await?;
    assert!(admin.header("date").ends_with(" GMT"));
    Ok(())
}

#[tokio::test]
async fn a_truncated_response_does_not_look_complete() -> Result<()> {
    let upstream = MockUpstream::start(|request| {
        let framing = match request_target(request) {
            "/chunked" => "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
            _ => "Content-Length: 10\r\n\r\nabc",
        };
        MockResponse::BytesThenClose(format!("HTTP/1.1 200 OK\r\n{framing}").into_bytes())
    })
    .await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    for protocol in [Protocol::Http1, Protocol::Http2] {
        for path in ["/chunked", "/length"] {
            let response = gateway.client_with_protocol(protocol)?.get(path).await;
            assert!(response.is_err(), "{protocol:?} {path}: {response:?}");
        }
    }
    Ok(())
}
