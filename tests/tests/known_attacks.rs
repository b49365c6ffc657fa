//! Published attacks on other servers and proxies, repeated by raw bytes. docs/known-attacks.md lists them with the
//! test of each.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use rustls::client::{
    ClientSessionMemoryCache, ClientSessionStore, Resumption, Tls12ClientSessionValue,
    Tls13ClientSessionValue,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, NamedGroup, RootCertStore, SupportedProtocolVersion};
use tests::certificate::Certificate;
use tests::http2_frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PREFACE, RST_STREAM,
    SETTINGS, WINDOW_UPDATE, connect, frame, frame_types, get, goaway, header_block,
    header_block_for, literal_header, post, read_frame_types, request, stream_ids,
};
use tests::mock_upstream::request_target;
use tests::raw_connection::{RawConnection, parse_status};
use tests::{Gateway, MockResponse, MockUpstream, address, wait};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;

/// A request that an attack hides in another one. It must never reach an endpoint.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n";
/// Frame type PRIORITY (RFC 9113, section 6.3).
const PRIORITY: u8 = 2;
/// `SETTINGS_INITIAL_WINDOW_SIZE` (RFC 9113, section 6.5.2) of zero.
const NO_WINDOW: [u8; 6] = [0, 4, 0, 0, 0, 0];

/// Targets of the requests that an upstream has received.
fn targets(upstream: &MockUpstream) -> Vec<String> {
    let requests = upstream.received_requests();
    let targets = requests.iter().map(|request| request_target(request));
    targets.map(ToOwned::to_owned).collect()
}

/// GET request over HTTP/1.1, after which the connection is closed.
fn closing_get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
}

/// Sends frames on a new HTTP/2 connection, followed by GOAWAY, and reads until it is closed.
async fn exchange_frames(gateway: &Gateway, frames: Vec<u8>) -> Result<Vec<u8>> {
    let mut connection = connect(gateway).await?;
    connection.send([frames, goaway()].concat()).await?;
    connection.read_to_end().await
}

/// HEADERS frame of a POST request with further headers, whose body follows.
fn post_with(headers: &[(&str, &str)]) -> Vec<u8> {
    let mut block = header_block(headers);
    // `:method: POST` in the static table, in place of GET.
    block[0] = 0x83;
    frame(HEADERS, END_HEADERS, 1, &block)
}

// CVE-2025-4366 (Pingora).
#[tokio::test]
async fn a_body_that_the_gateway_does_not_forward_is_no_request() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    let length = SMUGGLED.len();
    let long = SMUGGLED.repeat(5000);
    for (framing, body, is_next_served) in [
        (
            format!("Content-Length: {length}"),
            SMUGGLED.to_owned(),
            true,
        ),
        (
            format!("Content-Length: {length}\r\nExpect: 100-continue"),
            SMUGGLED.to_owned(),
            false,
        ),
        (
            "Transfer-Encoding: chunked".to_owned(),
            format!("{length:x}\r\n{SMUGGLED}\r\n0\r\n\r\n"),
            false,
        ),
        (format!("Content-Length: {}", long.len()), long, false),
    ] {
        // The gateway itself responds with 404 to the first one.
        let request =
            format!("POST /metrics HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n\r\n{body}");
        let mut connection = RawConnection::connect(&gateway).await?;
        // The gateway may close the connection before everything is sent.
        let _ = connection.send(request + &closing_get("/next")).await;
        let responses = connection.read_to_string().await?;
        assert_eq!(parse_status(&responses), 404, "{framing}: {responses}");
        let count = responses.matches("HTTP/1.1 ").count();
        assert_eq!(count, 1 + usize::from(is_next_served), "{responses}");
    }
    assert_eq!(targets(&upstream), ["/next"]);
    Ok(())
}

// CVE-2026-2833 (Pingora), CVE-2024-23326, CVE-2025-64763 and CVE-2026-73548 (Envoy).
#[tokio::test]
async fn bytes_after_an_upgrade_that_is_not_accepted_are_requests() -> Result<()> {
    let upgrade = "Connection: upgrade\r\nUpgrade: websocket";
    for headers in [
        upgrade,
        "Connection: upgrade\r\nUpgrade: other",
        "Connection: upgrade\r\nUpgrade: websocket, other",
    ] {
        for (status, response_headers) in [
            ("200 OK", ""),
            ("200 OK", "Connection: upgrade\r\nUpgrade: websocket\r\n"),
            ("426 Upgrade Required", "Upgrade: websocket\r\n"),
        ] {
            let response =
                format!("HTTP/1.1 {status}\r\n{response_headers}Content-Length: 2\r\n\r\nok");
            let upstream =
                MockUpstream::start(move |_| MockResponse::Bytes(response.clone().into_bytes()))
                    .await?;
            let gateway = Gateway::builder(&[upstream.address]).start().await?;
            let request = format!("GET /socket HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n\r\n");
            let pipelined = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
            let bytes = request + pipelined + &closing_get("/next");
            let responses = RawConnection::exchange(&gateway, bytes).await?;
            assert_eq!(targets(&upstream), ["/socket", "/next"], "{headers}");
            assert_eq!(responses.matches("HTTP/1.1 404").count(), 1, "{responses}");
            // Both were sent by the gateway, not passed through.
            for received in upstream.received_requests() {
                assert!(received.contains("x-request-id: "), "{received}");
            }
        }
    }
    Ok(())
}

// nghttpx before 1.70: an upgrade with a body.
#[tokio::test]
async fn a_request_with_a_body_is_no_upgrade() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    let length = SMUGGLED.len();
    for (method, framing, body) in [
        (
            "GET",
            format!("Content-Length: {length}"),
            SMUGGLED.to_owned(),
        ),
        (
            "POST",
            "Transfer-Encoding: chunked".to_owned(),
            format!("{length:x}\r\n{SMUGGLED}\r\n0\r\n\r\n"),
        ),
    ] {
        let request = format!(
            "{method} /socket HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade, close\r\n\
             Upgrade: websocket\r\n{framing}\r\n\r\n{body}"
        );
        let response = RawConnection::exchange(&gateway, request).await?;
        assert_eq!(parse_status(&response), 200, "{response}");
        let received = upstream.received_requests().pop().unwrap_or_default();
        assert!(received.ends_with(&body), "{received}");
        assert!(!received.to_lowercase().contains("upgrade: "), "{received}");
    }
    assert_eq!(targets(&upstream), ["/socket", "/socket"]);
    Ok(())
}

// CVE-2026-2835 (Pingora), CVE-2026-24733 (Tomcat).
#[tokio::test]
async fn older_versions_of_http_frame_no_second_request() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    let host = "Host: localhost";
    for (request, status) in [
        (
            format!(
                "POST / HTTP/1.0\r\n{host}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{SMUGGLED}"
            ),
            400,
        ),
        (
            format!(
                "POST / HTTP/1.0\r\n{host}\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{SMUGGLED}"
            ),
            400,
        ),
        (format!("HEAD /\r\n\r\n{SMUGGLED}"), 400),
        (format!("GET /\r\n{SMUGGLED}"), 400),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), 505),
        (format!("GET / HTTP/1.10\r\n{host}\r\n\r\n"), 505),
        (format!("GET / http/1.1\r\n{host}\r\n\r\n"), 400),
    ] {
        let response = RawConnection::exchange(&gateway, &request).await?;
        assert_eq!(parse_status(&response), status, "{request:?}: {response}");
        assert_eq!(response.matches("HTTP/1.1 ").count(), 1, "{response}");
    }
    assert_eq!(targets(&upstream), Vec::<String>::new());
    // Without a length there is no body, and the connection ends after the response.
    let without_length = format!("POST /empty HTTP/1.0\r\n{host}\r\n\r\n{SMUGGLED}");
    let response = RawConnection::exchange(&gateway, without_length).await?;
    assert_eq!(parse_status(&response), 200);
    assert_eq!(targets(&upstream), ["/empty"]);
    Ok(())
}

// CVE-2025-32094 (Akamai), CVE-2024-24791 (Go).
#[tokio::test]
async fn an_expectation_is_100_continue_or_rejected() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    for expectations in [
        &["y 100-continue"][..],
        &["100-continue, 100-continue"],
        &["100-continue", "100-continue"],
        &["100-continue", "other"],
        &["other"],
        &[""],
    ] {
        let lines: Vec<_> = expectations
            .iter()
            .map(|value| format!("Expect: {value}\r\n"))
            .collect();
        let lines = lines.concat();
        let length = SMUGGLED.len();
        for framing in [
            String::new(),
            format!("Content-Length: {length}\r\n\r\n{SMUGGLED}"),
        ] {
            let request =
                format!("OPTIONS / HTTP/1.1\r\nHost: localhost\r\n{lines}{framing}\r\n\r\n");
            let response = RawConnection::exchange(&gateway, request).await?;
            assert_eq!(parse_status(&response), 417, "{lines:?}: {response}");
            assert_eq!(response.matches("HTTP/1.1 ").count(), 1, "{response}");
        }
        let headers: Vec<_> = expectations
            .iter()
            .map(|value| ("expect", *value))
            .collect();
        let frames = [post_with(&headers), frame(DATA, END_STREAM, 1, b"abc")].concat();
        let received = exchange_frames(&gateway, frames).await?;
        assert!(frame_types(&received).contains(&HEADERS), "{lines:?}");
    }
    assert_eq!(targets(&upstream), Vec::<String>::new());
    // One that has no effect is not forwarded.
    for request in [
        "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nExpect: 100-continue\r\n\r\n",
        "POST / HTTP/1.0\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc",
    ] {
        let response = RawConnection::exchange(&gateway, request).await?;
        assert_eq!(parse_status(&response), 200, "{request:?}: {response}");
    }
    let received = upstream.received_requests();
    assert!(received[1].ends_with("\r\n\r\nabc"), "{}", received[1]);
    assert!(!received.concat().contains("expect"), "{received:?}");
    Ok(())
}

/// Upstream that responds to each request as soon as its headers are received, whatever its body. It reports the
/// number of the connection and the target of each.
struct HastyUpstream {
    address: SocketAddr,
    received: UnboundedReceiver<(usize, String)>,
    task: JoinHandle<()>,
}

impl HastyUpstream {
    async fn start() -> Result<Self> {
        let listener = TcpListener::bind(address::unused_loopback()).await?;
        let address = listener.local_addr()?;
        let (sender, received) = unbounded_channel();
        let task = tokio::spawn(async move {
            for number in 0.. {
                let Ok((stream, _)) = listener.accept().await else {
                    return;
                };
                tokio::spawn(respond_hastily(stream, number, sender.clone()));
            }
        });
        Ok(Self {
            address,
            received,
            task,
        })
    }

    /// Returns the connection and the target of the next request.
    async fn next(&mut self) -> Option<(usize, String)> {
        let received = tokio::time::timeout(wait::TIMEOUT, self.received.recv());
        received.await.ok().flatten()
    }
}

impl Drop for HastyUpstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn respond_hastily(
    mut stream: TcpStream,
    number: usize,
    sender: UnboundedSender<(usize, String)>,
) {
    let mut chunk = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut chunk).await {
        let text = String::from_utf8_lossy(&chunk[..count]).into_owned();
        // The rest of a body.
        if !text.contains("x-request-id: ") {
            continue;
        }
        let target = request_target(&text).to_owned();
        let _ = sender.send((number, target));
        let response = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        if stream.write_all(response.as_bytes()).await.is_err() {
            return;
        }
    }
}

// The desynchronisation "0.CL" by `Expect` of 2025 (CVE-2025-32094), and CVE-2024-24791 (Go).
#[tokio::test]
async fn a_connection_on_which_an_endpoint_may_wait_for_a_body_is_not_reused() -> Result<()> {
    let mut upstream = HastyUpstream::start().await?;
    let gateway = Gateway::start(
        upstream.address,
        "premier: {health_check: null, limits: {body_timeout: 0.5}}",
    )
    .await?;
    let length = SMUGGLED.len();
    for rest in [
        // The whole body is sent without a 100 response.
        format!("Expect: 100-continue\r\nContent-Length: {length}\r\n\r\n{SMUGGLED}"),
        format!("Expect: 100-continue\r\nContent-Length: {length}\r\n\r\n"),
        format!("Content-Length: 1000\r\n\r\n{SMUGGLED}"),
    ] {
        let request =
            format!("POST /first HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{rest}");
        let response = RawConnection::exchange(&gateway, request).await?;
        assert_eq!(parse_status(&response), 200, "{rest:?}: {response}");
        gateway.wait_until_idle().await?;
        let next = RawConnection::exchange(&gateway, closing_get("/next")).await?;
        assert_eq!(parse_status(&next), 200, "{rest:?}: {next}");
        let (first, next) = (upstream.next().await, upstream.next().await);
        let (Some((first, _)), Some((next, target))) = (first, next) else {
            anyhow::bail!("two requests");
        };
        assert_eq!(target, "/next", "{rest:?}");
        assert_ne!(first, next, "{rest:?}");
    }
    Ok(())
}

// CVE-2024-45410 and CVE-2026-29054 (Traefik), CVE-2026-105299 (Pingora, in front of the gateway).
#[tokio::test]
async fn connection_options_that_a_proxy_passes_on_do_not_hide_the_client() -> Result<()> {
    let config = "premier: {trusted_proxies: [127.0.0.0/8], default_features: {rate_limit: {quota: 2, duration: 864000}}}";
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::start(upstream.address, config).await?;
    let traceparent = "00-11111111111111111111111111111111-2222222222222222-01";
    let mut statuses = Vec::new();
    for options in [
        "",
        "x-forwarded-for",
        "X-FORWARDED-FOR, X-Forwarded-Proto, Forwarded, X-Real-IP, X-Request-Id, Traceparent",
    ] {
        let request = format!(
            "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close, {options}\r\n\
             X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: http\r\nForwarded: for=192.0.2.1\r\n\
             X-Real-IP: 192.0.2.1\r\nX-Request-Id: 4bf92f35-77b3\r\ntraceparent: {traceparent}\r\n\r\n"
        );
        let response = RawConnection::exchange(&gateway, request).await?;
        statuses.push(parse_status(&response));
    }
    assert_eq!(statuses, [200, 200, 429]);
    for request in upstream.received_requests() {
        for header in [
            "x-forwarded-for: 192.0.2.1\r\n",
            "x-forwarded-proto: http\r\n",
            "forwarded: for=192.0.2.1\r\n",
            "x-real-ip: 192.0.2.1\r\n",
            "x-request-id: 4bf92f35-77b3\r\n",
            "traceparent: 00-1111",
        ] {
            assert!(request.contains(header), "{header}: {request}");
        }
    }
    Ok(())
}

/// Returns the status of a GET of `target` over HTTP/1.1, and the types of the frames that a GET over HTTP/2
/// results in.
async fn get_in_both_versions(gateway: &Gateway, target: &str) -> Result<(u16, Vec<u8>)> {
    let response = RawConnection::exchange(gateway, closing_get(target)).await?;
    let frames = exchange_frames(gateway, get(1, target)).await?;
    Ok((parse_status(&response), frame_types(&frames)))
}

// CVE-2026-73551 and CVE-2026-73511 (Envoy), CVE-2025-66490 and CVE-2025-32431 (Traefik).
#[tokio::test]
async fn paths_that_servers_route_differently_are_rejected() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    for target in [
        "/x/..;/a",
        "/x/..;a=b/a",
        "/x/.;/a",
        "/..;",
        "/x/%2e%2e;/a",
        "/x/..%3b/a",
        "/x/..%3Ba/a",
        "/x%2f..%2fa",
        "/a%2Fb",
        "/a%5cb",
        "/a\\b",
        "/a%00",
        "/%",
        "/%zz",
        "/a%2",
    ] {
        let (status, _) = get_in_both_versions(&gateway, target).await?;
        assert_eq!(status, 400, "{target}");
    }
    assert_eq!(targets(&upstream), Vec::<String>::new());
    Ok(())
}

// CVE-2026-73511 (Envoy), CVE-2026-27587 (Caddy), CVE-2023-45539 (HAProxy), CVE-2023-47106 (Traefik).
#[tokio::test]
async fn internal_paths_are_not_public_whatever_servers_ignore_in_them() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    for target in [
        "/metrics",
        "/metrics;a=b",
        "/metrics;",
        "/metrics%3Ba",
        "/;a/metrics",
        "/ready;a=b/;c",
        "/METRICS",
        "/Ready/",
        "/metrics#a",
        "/metrics#/../a",
        "/metrics?a",
        "/a/../metrics",
        "/%6Detrics/.",
    ] {
        let (status, _) = get_in_both_versions(&gateway, target).await?;
        assert_eq!(status, 404, "{target}");
    }
    assert_eq!(targets(&upstream), Vec::<String>::new());
    Ok(())
}

// CVE-2024-38474 and CVE-2024-38475 (Apache httpd), and request splitting by decoded paths.
#[tokio::test]
async fn encoded_delimiters_of_a_path_stay_encoded() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    let paths = [
        "/a%3Fb",
        "/a%23b",
        "/a%25b",
        "/a%0D%0AX:%20y",
        "/a%20HTTP%2E1",
        "/a?b=%0d%0aX:%20y",
    ];
    for target in paths {
        let (status, frames) = get_in_both_versions(&gateway, target).await?;
        assert_eq!(status, 200, "{target}");
        assert!(frames.contains(&HEADERS), "{target}");
        let expected = target.replace("%2E", ".");
        let received = targets(&upstream);
        assert_eq!(received[received.len() - 2..], [&*expected, &*expected]);
    }
    assert_eq!(upstream.received_requests().len(), 2 * paths.len());
    Ok(())
}

// CVE-2024-42516 and the like by a redirect, which repeats the target.
#[tokio::test]
async fn a_target_cannot_split_the_redirect_to_https() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let http = address::unused_loopback();
    let gateway = Gateway::builder(&[upstream.address])
        .set("GATEWAY_HTTP", &http.to_string())
        .start()
        .await?;
    for (target, is_valid) in [
        ("/%0d%0aSet-Cookie:a=b", true),
        ("/a?b=%0d%0aSet-Cookie:a=b", true),
        ("//evil.example/", true),
        ("/\rSet-Cookie:a=b", false),
        ("/\u{85}Set-Cookie:a=b", false),
    ] {
        let mut stream = TcpStream::connect(http).await?;
        stream.write_all(closing_get(target).as_bytes()).await?;
        let mut response = String::new();
        stream.read_to_string(&mut response).await?;
        let expected = if is_valid { 308 } else { 400 };
        assert_eq!(parse_status(&response), expected, "{target}: {response}");
        assert!(!response.to_lowercase().contains("\nset-cookie"));
        if is_valid {
            let location = format!(
                "location: https://localhost:{}{target}\r\n",
                gateway.address.port()
            );
            assert!(response.contains(&location), "{response}");
        }
    }
    Ok(())
}

// CVE-2026-54763 and CVE-2026-88011 (Traefik), GO-2026-5346 (Caddy).
#[tokio::test]
async fn no_spelling_of_an_identity_header_reaches_an_endpoint() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    let names = [
        "x-user-id",
        "x_user_id",
        "x.user.id",
        "x-user_id",
        "x+user+id",
        "x~user!id",
        "x_user_login",
        "x.session.id",
        "x_forwarded_for",
        "x.forwarded.for",
        "x^forwarded^anything",
        "x_real_ip",
        "x.request.id",
    ];
    let lines: Vec<_> = names
        .iter()
        .map(|name| format!("{}: forged\r\n", name.to_uppercase()))
        .collect();
    let lines = lines.concat();
    let request = format!("GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{lines}\r\n");
    let response = RawConnection::exchange(&gateway, request).await?;
    assert_eq!(parse_status(&response), 200);
    let headers = names.map(|name| (name, "forged"));
    exchange_frames(&gateway, request_with(&headers)).await?;
    let received = upstream.received_requests();
    assert_eq!(received.len(), 2);
    assert!(!received.concat().contains("forged"), "{received:?}");
    Ok(())
}

/// HEADERS frame with a complete GET request for `/` with further headers.
fn request_with(headers: &[(&str, &str)]) -> Vec<u8> {
    request(1, &header_block(headers))
}

// CVE-2023-25725 and CVE-2023-40225 (HAProxy).
#[tokio::test]
async fn empty_names_and_lengths_are_rejected() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    for header in [
        ": x",
        ":",
        "Content-Length:",
        "Content-Length: ",
        "Content-Length: ,",
        "Content-Length: 0,",
        "Content-Length: \t",
        "Transfer-Encoding:",
    ] {
        let request =
            format!("POST / HTTP/1.1\r\nHost: localhost\r\n{header}\r\nX: y\r\n\r\n{SMUGGLED}");
        let response = RawConnection::exchange(&gateway, request).await?;
        assert_eq!(parse_status(&response), 400, "{header:?}: {response}");
        assert_eq!(response.matches("HTTP/1.1 ").count(), 1, "{response}");
    }
    for headers in [
        &[("", "x")][..],
        &[("content-length", "")],
        &[("content-length", "0,")],
        &[("transfer-encoding", "")],
    ] {
        let frames = [post_with(headers), frame(DATA, END_STREAM, 1, b"abc")].concat();
        exchange_frames(&gateway, frames).await?;
    }
    assert_eq!(targets(&upstream), Vec::<String>::new());
    Ok(())
}

// CVE-2025-22871 (Go), CVE-2026-24880 (Tomcat), and the attacks TERM.EXT, EXT.TERM and SPILL on chunks.
#[tokio::test]
async fn chunk_lines_that_parsers_end_differently_are_rejected() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    for chunks in [
        "2;\nxx\r\n2\r\nab\r\n0\r\n\r\n",
        "2;a\nxx\r\n0\r\n\r\n",
        "2\n;a\r\nab\r\n0\r\n\r\n",
        "2;a\rb\r\nab\r\n0\r\n\r\n",
        "2\r;a\r\nab\r\n0\r\n\r\n",
        "2;a=\"\r\n\"\r\nab\r\n0\r\n\r\n",
        "2;a=\"\\\r\nab\r\n0\r\n\r\n",
        "2;a=\"b\"c\r\nab\r\n0\r\n\r\n",
        "2; a\r\nab\r\n0\r\n\r\n",
        "2;\r\nab\r\n0\r\n\r\n",
        "2 ;a\r\nab\r\n0\r\n\r\n",
        "2\r\nabXX\r\n0\r\n\r\n",
        "2\r\nab\n\n0\r\n\r\n",
        "2\r\nab\r\n\r\n0\r\n\r\n",
        "0\n\n",
        "0\r\n\n",
        "0_2\r\nab\r\n0\r\n\r\n",
        "2\0\r\nab\r\n0\r\n\r\n",
        "00000000000000002\r\nab\r\n0\r\n\r\n",
        "10000000000000002\r\nab\r\n0\r\n\r\n",
    ] {
        let request = format!(
            "POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}{SMUGGLED}"
        );
        let response = RawConnection::exchange(&gateway, request).await?;
        assert_eq!(parse_status(&response), 400, "{chunks:?}: {response}");
        assert_eq!(response.matches("HTTP/1.1 ").count(), 1, "{response}");
    }
    assert_eq!(targets(&upstream), Vec::<String>::new());
    Ok(())
}

// CVE-2023-39326 (Go).
#[tokio::test]
async fn chunk_extensions_cannot_multiply_a_body() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    let chunk = format!("1;{}\r\na\r\n", "x".repeat(200));
    let request = format!(
        "POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n{}0\r\n\r\n",
        chunk.repeat(100)
    );
    let response = RawConnection::exchange(&gateway, request).await?;
    assert_eq!(parse_status(&response), 400, "{response}");
    assert_eq!(targets(&upstream), Vec::<String>::new());
    Ok(())
}

// CVE-2023-46589 and CVE-2023-45648 (Tomcat), CVE-2026-88041 (Tomcat).
#[tokio::test]
async fn trailers_frame_nothing_and_reach_no_request() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    let headers = "POST / HTTP/1.1\r\nHost: localhost\r\nTrailer: x-user-id\r\nTransfer-Encoding: chunked\r\n";
    let trailers =
        "Content-Length: 50\r\nHost: elsewhere\r\nX-User-Id: forged\r\nTransfer-Encoding: gzip\r\n";
    let request = format!("{headers}\r\n3\r\nabc\r\n0\r\n{trailers}\r\n");
    let bytes = request + &closing_get("/next");
    let responses = RawConnection::exchange(&gateway, bytes).await?;
    assert_eq!(responses.matches("HTTP/1.1 200").count(), 2, "{responses}");
    let http2_trailers = [
        ("content-length", "50"),
        ("host", "elsewhere"),
        ("x-user-id", "forged"),
    ]
    .map(|(name, value)| literal_header(name, value))
    .concat();
    let frames = [
        post(1, "/"),
        frame(DATA, 0, 1, b"abc"),
        frame(HEADERS, END_STREAM | END_HEADERS, 1, &http2_trailers),
        get(3, "/next"),
    ];
    exchange_frames(&gateway, frames.concat()).await?;
    let received = upstream.received_requests();
    assert_eq!(received.len(), 4);
    for request in &received {
        let is_first = request_target(request) == "/";
        assert_eq!(
            request.ends_with("\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
            is_first,
            "{request}"
        );
        for text in ["forged", "elsewhere", "trailer", "gzip", "content-length"] {
            assert!(!request.contains(text), "{text}: {request}");
        }
    }
    for malformed in [
        "Content-Length\r\n",
        "X : y\r\n",
        " folded\r\n",
        "X: y\n",
        "X: a\rb\r\n",
        &format!("X: {}\r\n", "y".repeat(9000)),
    ] {
        let request = format!("{headers}\r\n0\r\n{malformed}\r\n{SMUGGLED}");
        let response = RawConnection::exchange(&gateway, request).await?;
        assert_eq!(parse_status(&response), 400, "{malformed:?}: {response}");
        assert_eq!(response.matches("HTTP/1.1 ").count(), 1, "{response}");
    }
    assert_eq!(upstream.received_requests().len(), 4);
    Ok(())
}

// CVE-2023-38709, CVE-2024-24795, CVE-2024-42516 and CVE-2026-33523 (Apache httpd), CVE-2026-78660 (Go).
#[tokio::test]
async fn an_endpoint_cannot_split_a_response() -> Result<()> {
    let responses = [
        "HTTP/1.1 200 OK\rX: evil\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\nX: evil\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 O\0evil\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 2000 evil\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 -20 evil\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\rSet-Cookie: evil\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\0evil\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\r\n evil\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX : evil\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\n: evil\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nevil\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\nevil",
        "HTTP/1.1 200 OK\r\nContent-Length: +4\r\n\r\nevil",
        "HTTP/1.1 200 OK\r\nContent-Length: 4, 4\r\n\r\nevil",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n4\r\nevil\r\n0\r\n\r\n",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nevil\r\n0\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nevil",
        "HTTP/2.0 200 evil\r\nContent-Length: 0\r\n\r\n",
    ];
    let upstream = MockUpstream::start(move |request| {
        let number = request_target(request).trim_start_matches('/');
        let number = number.parse::<usize>().ok();
        match number.and_then(|number| responses.get(number)) {
            Some(response) => MockResponse::Bytes(response.as_bytes().to_vec()),
            None => MockResponse::new(200, "ok"),
        }
    })
    .await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    for (number, response) in responses.iter().enumerate() {
        let target = format!("/{number}");
        let received = RawConnection::exchange(&gateway, closing_get(&target)).await?;
        assert_eq!(parse_status(&received), 502, "{response:?}: {received}");
        assert!(!received.contains("evil"), "{response:?}: {received}");
        let frames = exchange_frames(&gateway, get(1, &target)).await?;
        let text = String::from_utf8_lossy(&frames).into_owned();
        assert!(!text.contains("evil"), "{response:?}: {text:?}");
        let next = gateway.client()?.get("/next").await?;
        assert_eq!((next.status, next.text.as_str()), (200, "ok"));
    }
    Ok(())
}

// CVE-2026-33555 and CVE-2026-90678 (HAProxy, over HTTP/3).
#[tokio::test]
async fn an_http2_body_has_the_announced_length_or_is_never_complete() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    let length_5 = [("content-length", "5")];
    let trailers = frame(
        HEADERS,
        END_STREAM | END_HEADERS,
        1,
        &literal_header("x", "y"),
    );
    let end_stream = {
        let mut block = header_block(&length_5);
        block[0] = 0x83;
        request(1, &block)
    };
    for frames in [
        end_stream,
        [post_with(&length_5), frame(DATA, END_STREAM, 1, b"")].concat(),
        [post_with(&length_5), frame(DATA, END_STREAM, 1, b"abc")].concat(),
        [post_with(&length_5), frame(DATA, END_STREAM, 1, b"abcdefg")].concat(),
        [
            post_with(&length_5),
            frame(DATA, 0, 1, b"abc"),
            frame(DATA, END_STREAM, 1, b""),
        ]
        .concat(),
        [post_with(&length_5), frame(DATA, 0, 1, b"abc"), trailers].concat(),
    ] {
        exchange_frames(&gateway, frames).await?;
    }
    gateway.wait_until_idle().await?;
    assert_eq!(targets(&upstream), Vec::<String>::new());
    let frames = [post_with(&length_5), frame(DATA, END_STREAM, 1, b"abcde")];
    exchange_frames(&gateway, frames.concat()).await?;
    let received = upstream.received_requests();
    assert_eq!(received.len(), 1);
    assert!(received[0].ends_with("content-length: 5\r\n\r\nabcde"));
    Ok(())
}

// CVE-2026-65637 and CVE-2025-66614 (Tomcat), CVE-2026-27588 (Caddy).
#[tokio::test]
async fn the_host_of_a_request_is_that_of_its_connection_in_every_spelling() -> Result<()> {
    let config = "premier: {paths: [{pattern: '*', hosts: [localhost], features: {rate_limit: {quota: 5, duration: 864000}}}]}";
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::start(upstream.address, config).await?;
    let pseudo_headers = |host: &[(&str, &str)]| {
        // `:method: GET`, `:scheme: https` and `:path: /` in the static table.
        let mut block = vec![0x82, 0x87, 0x84];
        for (name, value) in host {
            block.extend(literal_header(name, value));
        }
        request(1, &block)
    };
    for host in [
        &[("host", "elsewhere")][..],
        &[(":authority", "elsewhere")],
        &[(":authority", "localhost"), ("host", "elsewhere")],
        &[(":authority", "")],
        &[(":authority", ""), ("host", "elsewhere")],
        &[(":authority", "user@localhost")],
        &[
            (":authority", "localhost"),
            ("host", "localhost"),
            ("host", "localhost"),
        ],
        &[],
    ] {
        exchange_frames(&gateway, pseudo_headers(host)).await?;
        assert_eq!(targets(&upstream), Vec::<String>::new(), "{host:?}");
    }
    // All of these are subject to the quota of the host.
    for host in ["localhost", "LOCALHOST", "localhost.", "Localhost:443"] {
        let host = [("host", host)];
        exchange_frames(&gateway, pseudo_headers(&host)).await?;
    }
    let absolute =
        "GET https://LocalHost/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let response = RawConnection::exchange(&gateway, absolute).await?;
    assert_eq!(parse_status(&response), 200, "{response}");
    let upper_case = "GET / HTTP/1.1\r\nHost: LOCALHOST.\r\nConnection: close\r\n\r\n";
    let response = RawConnection::exchange(&gateway, upper_case).await?;
    assert_eq!(parse_status(&response), 429, "{response}");
    assert_eq!(upstream.received_requests().len(), 5);
    Ok(())
}

// CVE-2023-44487 and its kin by other frames: CVE-2024-27316 (Apache httpd), CVE-2023-45288 (Go), CVE-2024-24549
// (Tomcat), RUSTSEC-2024-0332 and RUSTSEC-2026-0258 (h2), CVE-2026-27141 and CVE-2026-97032 (Go).
// CVE-2020-11080.
#[tokio::test]
async fn a_settings_frame_with_thousands_of_settings_is_rejected() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    let mut connection = connect(&gateway).await?;
    let settings = frame(SETTINGS, 0, 0, &NO_WINDOW.repeat(2730));
    connection.send(settings).await?;
    assert!(read_frame_types(&mut connection).await?.contains(&GOAWAY));
    Ok(())
}

#[tokio::test]
async fn a_flood_of_any_frame_is_cut_off_and_harms_no_other_client() -> Result<()> {
    const MAX_FRAMES: usize = 200_000;
    const FRAMES_PER_WRITE: usize = 2000;
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    let table_size = |size: u32| {
        let setting = [&[0, 1][..], &size.to_be_bytes()].concat();
        frame(SETTINGS, 0, 0, &setting)
    };
    let open_block = frame(HEADERS, END_STREAM, 1, &header_block(&[]));
    let mut padding = vec![255];
    padding.extend([0; 255]);
    let memory_before = gateway.process.resident_memory()?;
    for (name, beginning, flood) in [
        ("settings", Vec::new(), frame(SETTINGS, 0, 0, &NO_WINDOW)),
        (
            "table sizes",
            Vec::new(),
            [table_size(0), table_size(u32::MAX)].concat(),
        ),
        ("pings", Vec::new(), frame(PING, 0, 0, &[0; 8])),
        ("empty data", post(1, "/"), frame(DATA, 0, 1, b"")),
        ("padding", post(1, "/"), frame(DATA, 8, 1, &padding)),
        (
            "priorities",
            Vec::new(),
            frame(PRIORITY, 0, 3, &[0, 0, 0, 0, 16]),
        ),
        (
            "windows of the connection",
            Vec::new(),
            frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]),
        ),
        (
            "windows of a stream",
            post(1, "/"),
            frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]),
        ),
        (
            "unknown types",
            Vec::new(),
            (10..16).flat_map(|kind| frame(kind, 0, 0, b"")).collect(),
        ),
        (
            "empty continuations",
            open_block.clone(),
            frame(CONTINUATION, 0, 1, b""),
        ),
        (
            "continuations",
            open_block.clone(),
            frame(CONTINUATION, 0, 1, &literal_header("x", &"y".repeat(100))),
        ),
        (
            "table sizes in a header block",
            open_block,
            frame(CONTINUATION, 0, 1, &[0x20, 0x3f, 0xe1, 0x1f].repeat(100)),
        ),
    ] {
        let mut connection = connect(&gateway).await?;
        connection.send(beginning).await?;
        let flood = flood.repeat(FRAMES_PER_WRITE);
        let mut frames = 0;
        while frames < MAX_FRAMES && connection.send(&flood).await.is_ok() {
            frames += FRAMES_PER_WRITE;
        }
        // The GOAWAY may be lost: the gateway closes by a reset if unread bytes remain.
        read_frame_types(&mut connection).await?;
        let other = gateway.client()?.get("/other").await?;
        assert_eq!(other.status, 200, "after a flood of {name}");
    }
    let growth = gateway.process.peak_resident_memory()? - memory_before;
    assert!(growth < 48 << 20, "memory grew by {growth} bytes");
    gateway.wait_until_idle().await
}

// MadeYouReset: CVE-2025-8671, CVE-2025-48989 (Tomcat), RUSTSEC-2024-0003 (h2).
#[tokio::test]
async fn a_client_that_makes_the_gateway_reset_its_streams_is_disconnected() -> Result<()> {
    type Offence = fn(u32) -> Vec<u8>;
    const REQUESTS_PER_ROUND: u32 = 20;
    const ROUNDS: u32 = 60;
    fn window(id: u32, increment: u32) -> Vec<u8> {
        frame(WINDOW_UPDATE, 0, id, &increment.to_be_bytes())
    }
    let offences: [(&str, Offence); 5] = [
        ("an empty window update", |id| window(id, 0)),
        ("a window overflow", |id| {
            [window(id, 0x7fff_ffff), window(id, 0x7fff_ffff)].concat()
        }),
        ("data after the end", |id| frame(DATA, 0, id, b"x")),
        ("headers after the end", |id| {
            request(id, &literal_header("x", "y"))
        }),
        ("a dependency on itself", |id| {
            let priority = [&id.to_be_bytes()[..], &[16]].concat();
            frame(PRIORITY, 0, id, &priority)
        }),
    ];
    for (name, offence) in offences {
        let upstream = MockUpstream::start(|_| MockResponse::Never).await?;
        let gateway = Gateway::builder(&[upstream.address]).start().await?;
        let mut connection = connect(&gateway).await?;
        for round in 0..ROUNDS {
            let numbers = round * REQUESTS_PER_ROUND..(round + 1) * REQUESTS_PER_ROUND;
            let requests = stream_ids(numbers.clone()).flat_map(|id| get(id, "/"));
            if connection
                .send(requests.collect::<Vec<u8>>())
                .await
                .is_err()
            {
                break;
            }
            let expected = usize::try_from(numbers.end)?;
            wait::until("the requests, or the end of the connection", async || {
                let connections = gateway.metric("gateway_connections", &[]).await;
                upstream.received_requests().len() >= expected
                    || connections.is_ok_and(|count| count == Some(0.0))
            })
            .await?;
            let offences = stream_ids(numbers).flat_map(&offence);
            let _ = connection.send(offences.collect::<Vec<u8>>()).await;
        }
        read_frame_types(&mut connection).await?;
        let forwarded = upstream.received_requests().len();
        assert!(forwarded < 400, "{name}: {forwarded} requests");
        gateway.wait_until_idle().await?;
    }
    Ok(())
}

/// Reads until `count` streams have got a response or a reset, or until the connection is closed.
async fn wait_until_rejected(connection: &mut RawConnection, count: usize) {
    let mut received = Vec::new();
    while let Ok(bytes) = connection.read_some().await
        && !bytes.is_empty()
    {
        received.extend(bytes);
        let ends = |kind: &u8| [HEADERS, RST_STREAM].contains(kind);
        if frame_types(&received).into_iter().filter(ends).count() >= count {
            return;
        }
    }
}

// The HTTP/2 bomb: CVE-2026-49975 (Apache httpd), CVE-2026-47774 and CVE-2026-73550 (Envoy), CVE-2026-105297 (Pingora).
#[tokio::test]
async fn repeated_header_references_use_bounded_memory() -> Result<()> {
    const CONNECTIONS: usize = 4;
    const STREAMS: u32 = 128;
    /// Reference to the newest entry of the dynamic table (RFC 7541, section 6.1).
    const NEWEST: u8 = 0x80 | 0x3e;
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    let memory_before = gateway.process.resident_memory()?;
    let long = "c".repeat(120);
    for (name, value, references) in [
        ("cookie", "", 800),
        ("cookie", &*long, 500),
        ("host", &*long, 500),
        ("a", "", 800),
    ] {
        let mut connections = Vec::new();
        for _ in 0..CONNECTIONS {
            let mut connection = RawConnection::connect_http2(&gateway).await?;
            let mut bytes = [PREFACE, &frame(SETTINGS, 0, 0, &NO_WINDOW)].concat();
            for id in stream_ids(0..STREAMS) {
                let mut block = header_block(&[]);
                if id == 1 {
                    let mut entry = literal_header(name, value);
                    // Literal header with incremental indexing (RFC 7541, section 6.2.1).
                    entry[0] = 0x40;
                    block.extend(entry);
                }
                block.extend([NEWEST].repeat(references));
                bytes.extend(request(id, &block));
            }
            // The gateway may close the connection before everything is sent.
            let _ = connection.send(bytes).await;
            connections.push(connection);
        }
        for connection in &mut connections {
            wait_until_rejected(connection, usize::try_from(STREAMS)?).await;
        }
        assert_eq!(targets(&upstream), Vec::<String>::new(), "{name}");
        let growth = gateway.process.peak_resident_memory()? - memory_before;
        assert!(growth < 48 << 20, "{name}: memory grew by {growth} bytes");
    }
    // As many as a browser keeps cookies for a site are served.
    let cookies = [("cookie", "a=b"); 180];
    exchange_frames(&gateway, request_with(&cookies)).await?;
    assert_eq!(targets(&upstream), ["/"]);
    Ok(())
}

/// Session store that offers a session of any server to every other.
#[derive(Debug)]
struct SessionsOfAllNames(ClientSessionMemoryCache);

impl SessionsOfAllNames {
    fn name() -> ServerName<'static> {
        ServerName::try_from("any.example").expect("the name is valid")
    }
}

impl ClientSessionStore for SessionsOfAllNames {
    fn set_kx_hint(&self, _: ServerName<'static>, group: NamedGroup) {
        self.0.set_kx_hint(Self::name(), group);
    }

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        self.0.kx_hint(&Self::name())
    }

    fn set_tls12_session(&self, _: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.0.set_tls12_session(Self::name(), value);
    }

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.0.tls12_session(&Self::name())
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {
        self.0.remove_tls12_session(&Self::name());
    }

    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.0.insert_tls13_ticket(Self::name(), value);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.0.take_tls13_ticket(&Self::name())
    }
}

// CVE-2025-23419 (nginx), CVE-2025-23048 (Apache httpd).
#[tokio::test]
async fn a_tls_session_is_resumed_only_under_its_own_name() -> Result<()> {
    const VERSIONS: [&SupportedProtocolVersion; 2] =
        [&rustls::version::TLS12, &rustls::version::TLS13];
    let folder = tempfile::tempdir()?;
    let one = Certificate::generate(folder.path(), "one", &["one.example"])?;
    let two = Certificate::generate(folder.path(), "two", &["two.example"])?;
    let config = format!(
        "premier: {{tls: {{certificates: [{{cert: {:?}, key: {:?}}}, {{cert: {:?}, key: {:?}}}]}}}}",
        one.cert_file, one.key_file, two.cert_file, two.key_file
    );
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::start(upstream.address, &config).await?;
    let mut roots = RootCertStore::empty();
    for certificate in [&one, &two] {
        roots.add(CertificateDer::from_pem_slice(certificate.pem.as_bytes())?)?;
    }
    for version in VERSIONS {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let mut client = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[version])?
            .with_root_certificates(roots.clone())
            .with_no_client_auth();
        let sessions = SessionsOfAllNames(ClientSessionMemoryCache::new(32));
        client.resumption = Resumption::store(Arc::new(sessions));
        client.enable_early_data = true;
        let client = Arc::new(client);
        for (name, host, is_resumed, status) in [
            ("one.example", "one.example", false, 200),
            ("one.example", "one.example", true, 200),
            ("two.example", "one.example", false, 421),
            ("two.example", "two.example", true, 200),
            ("two.example", "one.example", true, 421),
            ("one.example", "one.example", false, 200),
        ] {
            let client = Arc::clone(&client);
            let mut connection = RawConnection::connect_with_config(&gateway, name, client).await?;
            let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
            connection.send(request).await?;
            let response = connection.read_to_string().await?;
            assert_eq!(parse_status(&response), status, "{name} {host}: {response}");
            assert_eq!(connection.is_resumed(), is_resumed, "{version:?} {name}");
            assert!(!connection.has_sent_early_data(), "{version:?} {name}");
        }
    }
    Ok(())
}

// CVE-2026-1642 (nginx).
#[tokio::test]
async fn cleartext_in_front_of_the_handshake_of_an_endpoint_is_no_response() -> Result<()> {
    let listener = TcpListener::bind(address::unused_loopback()).await?;
    let address = listener.local_addr()?;
    let attacker = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let response = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
            let _ = stream.write_all(response.as_bytes()).await;
        }
    });
    let upstream = MockUpstream::always_ok().await?;
    let config = format!("premier: {{servers: ['https://{address}'], health_check: null}}");
    let gateway = Gateway::start(upstream.address, &config).await?;
    for _ in 0..3 {
        let response = RawConnection::exchange(&gateway, closing_get("/")).await?;
        assert!(matches!(parse_status(&response), 502 | 503), "{response}");
        assert!(!response.contains("evil"), "{response}");
    }
    attacker.abort();
    Ok(())
}

// CVE-2023-43622 (Apache httpd) and the like: a connection whose client never reads ends.
#[tokio::test]
async fn unread_error_responses_end_their_connection() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway =
        Gateway::start(upstream.address, "premier: {limits: {idle_timeout: 0.5}}").await?;
    let mut connection = RawConnection::connect_http2(&gateway).await?;
    let preface = [PREFACE, &frame(SETTINGS, 0, 0, &NO_WINDOW)].concat();
    connection.send(preface).await?;
    let block = header_block_for("/metrics", &[]);
    let requests = stream_ids(0..100).flat_map(|id| request(id, &block));
    connection.send(requests.collect::<Vec<u8>>()).await?;
    read_frame_types(&mut connection).await?;
    gateway.wait_until_disconnected().await
}
