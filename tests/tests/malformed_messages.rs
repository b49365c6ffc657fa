//! Malformed, ambiguous, oversized and slow HTTP/1.1 messages, from clients and from the upstream.

use std::time::Duration;

use anyhow::Result;
use tests::mock_upstream::request_target;
use tests::raw_connection::{RawConnection, parse_status};
use tests::{Gateway, MockResponse, MockUpstream};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// Short timeouts, so that tests of slow clients take a second, and low limits.
const SHORT_LIMITS: &str = r#"
premier:
  limits: {header_timeout: 0.5, body_timeout: 0.5, idle_timeout: 0.5, max_body_bytes: 1000}
  paths:
    - pattern: "/counted/*"
      features: {rate_limit: {quota: 5, duration: 864000}}
"#;

/// Ambiguous, malformed, oversized or misdirected requests, each with the expected status.
fn rejected_requests() -> Vec<(String, u16)> {
    let with_headers = |method: &str, headers: &str| {
        format!("{method} / HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n\r\n")
    };
    let with_target = |target: &str| {
        format!("GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    };
    let chunked = "Transfer-Encoding: chunked";
    let framings = [
        format!("Content-Length: 5\r\n{chunked}"),
        "Content-Length: 1\r\nContent-Length: 1".to_owned(),
        "Content-Length: 1, 1".to_owned(),
        format!("{chunked}, identity"),
        format!("{chunked}\r\n{chunked}"),
        "Transfer-Encoding:\rchunked".to_owned(),
    ];
    let headers = [
        "X: a\rb",
        "X: a\r",
        "X: a\0b",
        "X : a",
        "X: a\r\n folded: x",
        "Host: localhost",
    ];
    let requests = [
        ("GET / HTTP/1.1\nHost: localhost\n\n", 400),
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: localhost:99999\r\n\r\n", 400),
        ("GET /?q=\"a\" HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        ("TRACE / HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
        (
            "CONNECT localhost:443 HTTP/1.1\r\nHost: localhost\r\n\r\n",
            405,
        ),
        (
            "GET / HTTP/1.1\r\nHost: elsewhere\r\nConnection: close\r\n\r\n",
            421,
        ),
    ];
    let targets = ["http://elsewhere/", "/\u{e4}", "/a%2fb", "/a%00", "/%zz"];
    let too_many_headers = "X: y\r\n".repeat(101);
    let oversized = [
        (with_headers(&"M".repeat(8000), "X: y"), 501),
        (
            with_headers("GET", &format!("Connection: {}", "a,".repeat(1000))),
            431,
        ),
        (with_target(&format!("/{}", "a".repeat(9000))), 414),
        (
            with_headers("GET", &format!("X: {}", "a".repeat(33_000))),
            431,
        ),
        (with_headers("GET", too_many_headers.trim_end()), 431),
    ];
    let bad_requests = framings
        .map(|framing| with_headers("POST", &framing) + "0\r\n\r\n")
        .into_iter()
        .chain(headers.map(|header| with_headers("GET", header)))
        .chain(targets.map(with_target))
        .map(|request| (request, 400));
    let requests = requests.map(|(request, status)| (request.to_owned(), status));
    bad_requests.chain(requests).chain(oversized).collect()
}

#[tokio::test]
async fn ambiguous_requests_are_rejected_and_never_forwarded() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    for (request, expected_status) in rejected_requests() {
        let response = RawConnection::exchange(&gateway, &request).await?;
        assert_eq!(
            parse_status(&response),
            expected_status,
            "{request:?}: {response}"
        );
        assert!(
            response.contains(r#"{"error":""#),
            "{request:?}: {response}"
        );
        assert!(
            response.to_lowercase().contains("x-request-id:"),
            "{response}"
        );
    }
    assert_eq!(upstream.received_requests(), Vec::<String>::new());
    Ok(())
}

#[tokio::test]
async fn a_request_with_a_malformed_chunk_is_rejected_and_never_forwarded() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    let headers = "POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    for chunks in [
        "x\r\n",
        "-1\r\n",
        "0x1\r\na\r\n0\r\n\r\n",
        "1\r\nab\r\n0\r\n\r\n",
        "1\na\n0\n\n",
        "1 \r\na\r\n0\r\n\r\n",
        "1;\0\r\na\r\n0\r\n\r\n",
        "ffffffffffffffffff\r\n",
    ] {
        let response = RawConnection::exchange(&gateway, format!("{headers}{chunks}")).await?;
        assert_eq!(parse_status(&response), 400, "{chunks:?}: {response}");
        assert!(response.contains(r#"{"error":""#), "{chunks:?}: {response}");
    }
    assert_eq!(
        upstream.received_requests(),
        Vec::<String>::new(),
        "an incomplete request is forwarded"
    );
    Ok(())
}

#[tokio::test]
async fn quota_and_upstream_see_the_same_normalized_path() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::start(upstream.address, SHORT_LIMITS).await?;
    let mut statuses = Vec::new();
    for target in [
        "/counted/a",
        "/counted//a",
        "//counted/./a",
        "/%63ounted/a",
        "/x/../counted/a?b=c",
        "https://localhost/counted/a",
    ] {
        let request =
            format!("GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let response = RawConnection::exchange(&gateway, request).await?;
        statuses.push(parse_status(&response));
    }
    assert_eq!(statuses, [200, 200, 200, 200, 200, 429]);
    for request in upstream.received_requests() {
        assert!(request.starts_with("GET /counted/a"), "{request}");
    }
    Ok(())
}

#[tokio::test]
async fn slow_clients_are_disconnected() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::start(upstream.address, SHORT_LIMITS).await?;
    let time_limit = Duration::from_secs(10);

    let mut incomplete = RawConnection::connect(&gateway).await?;
    incomplete.send("GET / HTTP/1.1\r\nHost: loc").await?;
    let response = incomplete.read_to_string_within(time_limit).await?;
    assert_eq!(parse_status(&response), 408);

    let mut silent = RawConnection::connect(&gateway).await?;
    assert_eq!(silent.read_to_string_within(time_limit).await?, "");

    let mut idle = RawConnection::connect(&gateway).await?;
    idle.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await?;
    let response = idle.read_to_string_within(time_limit).await?;
    assert_eq!(parse_status(&response), 200);

    let mut incomplete_body = RawConnection::connect(&gateway).await?;
    incomplete_body
        .send("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nabc")
        .await?;
    let response = incomplete_body.read_to_string_within(time_limit).await?;
    assert_eq!(parse_status(&response), 408);

    let mut without_handshake = TcpStream::connect(gateway.address).await?;
    let mut buffer = [0; 1];
    let read = without_handshake.read(&mut buffer);
    assert_eq!(tokio::time::timeout(time_limit, read).await??, 0);
    Ok(())
}

#[tokio::test]
async fn oversized_request_bodies_are_rejected() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::start(upstream.address, SHORT_LIMITS).await?;
    let with_length = "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1001\r\n\r\n";
    let response = RawConnection::exchange(&gateway, with_length).await?;
    assert_eq!(parse_status(&response), 413);

    let chunk = format!("1f4\r\n{}\r\n", "a".repeat(500));
    let chunked = format!(
        "POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}{chunk}{chunk}0\r\n\r\n"
    );
    let response = RawConnection::exchange(&gateway, chunked).await?;
    assert_eq!(parse_status(&response), 413);
    assert_eq!(upstream.received_requests(), Vec::<String>::new());
    Ok(())
}

/// Malformed response of the upstream for each path, and a well-formed one for any other path.
fn malformed_response(request: &str) -> MockResponse {
    let keep_open = |bytes: String| MockResponse::Bytes(bytes.into_bytes());
    let close = |bytes: &str| MockResponse::BytesThenClose(bytes.into());
    let long_value = "a".repeat(20 << 10);
    match request_target(request) {
        "/two-lengths" => {
            close("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 5\r\n\r\nabc")
        }
        "/truncated-body" => close("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc"),
        "/no-status-line" => close("garbage\r\n\r\n"),
        "/endless-header" => close(&format!("HTTP/1.1 200 OK\r\nX: {}", "a".repeat(2 << 20))),
        "/no-response" => close(""),
        "/bare-line-feeds" => keep_open("HTTP/1.1 200 OK\nContent-Length: 3\n\nabc".to_owned()),
        "/a-bare-line-feed" => {
            keep_open("HTTP/1.1 200 OK\r\nX: y\nContent-Length: 3\r\n\r\nabc".to_owned())
        }
        "/hints" => {
            keep_open(format!("HTTP/1.1 103 Early Hints\r\nLink: {long_value}\r\n\r\n").repeat(4))
        }
        "/internal-headers" => keep_open(
            "HTTP/1.1 200 OK\r\nServer: evil/1\r\nVia: 1.1 evil\r\nX-Powered-By: evil\r\n\
             Content-Length: 2\r\n\r\nok"
                .to_owned(),
        ),
        "/excess-body" => keep_open(
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok\
             HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nevil!"
                .to_owned(),
        ),
        _ => MockResponse::new(200, "ok"),
    }
}

#[tokio::test]
async fn a_malformed_upstream_response_affects_only_its_own_request() -> Result<()> {
    let upstream = MockUpstream::start(|request| malformed_response(request)).await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    for path in [
        "/two-lengths",
        "/truncated-body",
        "/no-status-line",
        "/bare-line-feeds",
        "/a-bare-line-feed",
        "/hints",
        "/internal-headers",
        "/endless-header",
        "/no-response",
        "/excess-body",
    ] {
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let response = RawConnection::exchange(&gateway, request).await?;
        assert!(!response.contains("evil"), "{path}: {response}");
        if path.contains("bare-line-feed") {
            assert_eq!(parse_status(&response), 502, "{path}: {response}");
        }
        assert!(
            !response.contains(&upstream.address.to_string()),
            "{path}: {response}"
        );
        for _ in 0..3 {
            let other = gateway.client()?.get("/other").await?;
            assert_eq!(
                (other.status, other.text.as_str()),
                (200, "ok"),
                "after {path}"
            );
        }
    }
    Ok(())
}
