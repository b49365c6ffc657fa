//! HTTP/2, frame by frame: floods, malformed requests, flow control, timeouts and shutdown.

use anyhow::Result;
use reqwest::Method;
use rustix::process::Signal;
use tests::client::{Protocol, send};
use tests::http2_frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PREFACE, RST_STREAM,
    SETTINGS, WINDOW_UPDATE, connect, frame, frame_types, get, goaway, header_block,
    literal_header, ping, post, read_frame_types, read_until_frame, read_until_frames, request,
    reset, stream_ids,
};
use tests::mock_upstream::request_target;
use tests::raw_connection::{RawConnection, parse_status};
use tests::{Gateway, MockResponse, MockUpstream, wait};
use tokio::task::JoinSet;

#[tokio::test]
async fn a_flood_of_resets_is_disconnected() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    let mut connection = connect(&gateway).await?;
    let flood: Vec<u8> = stream_ids(0..2000)
        .flat_map(|id| [get(id, "/"), reset(id)].concat())
        .collect();
    // The gateway may close the connection before everything is sent.
    let _ = connection.send(flood).await;
    assert!(read_frame_types(&mut connection).await?.contains(&GOAWAY));
    assert_eq!(gateway.client()?.get("/").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn a_slow_flood_of_resets_is_disconnected() -> Result<()> {
    const REQUESTS_PER_ROUND: u32 = 20;
    let upstream = MockUpstream::start(|_| MockResponse::Never).await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    let mut connection = connect(&gateway).await?;
    for round in 0..20 {
        let numbers = round * REQUESTS_PER_ROUND..(round + 1) * REQUESTS_PER_ROUND;
        let requests: Vec<u8> = stream_ids(numbers.clone())
            .flat_map(|id| get(id, "/"))
            .collect();
        if connection.send(requests).await.is_err() {
            break;
        }
        let expected = usize::try_from(numbers.end)?;
        wait::until("the requests, or the end of the connection", async || {
            let connections = gateway.metric("gateway_connections", &[]).await;
            upstream.received_requests().len() >= expected
                || connections.is_ok_and(|count| count == Some(0.0))
        })
        .await?;
        let resets: Vec<u8> = stream_ids(numbers).flat_map(reset).collect();
        let _ = connection.send(resets).await;
    }
    read_frame_types(&mut connection).await?;
    assert!(
        upstream.received_requests().len() < 200,
        "the flood is not stopped"
    );
    gateway.wait_until_idle().await
}

#[tokio::test]
async fn a_flood_of_resets_padded_with_cheap_requests_is_disconnected() -> Result<()> {
    const RESETS_PER_ROUND: u32 = 20;
    let upstream = MockUpstream::start(|_| MockResponse::Never).await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    let mut connection = connect(&gateway).await?;
    for round in 0..40 {
        let first = 2 * round * RESETS_PER_ROUND;
        let (abandoned, cheap) = (
            first..first + RESETS_PER_ROUND,
            first + RESETS_PER_ROUND..first + 2 * RESETS_PER_ROUND,
        );
        let requests: Vec<u8> = stream_ids(abandoned.clone())
            .flat_map(|id| get(id, "/"))
            .collect();
        if connection.send(requests).await.is_err() {
            break;
        }
        let expected = usize::try_from((round + 1) * RESETS_PER_ROUND)?;
        wait::until("the requests, or the end of the connection", async || {
            let connections = gateway.metric("gateway_connections", &[]).await;
            upstream.received_requests().len() >= expected
                || connections.is_ok_and(|count| count == Some(0.0))
        })
        .await?;
        let resets = stream_ids(abandoned).flat_map(reset);
        // The gateway itself responds with 404 to this path.
        let padding = stream_ids(cheap).flat_map(|id| get(id, "/metrics"));
        let _ = connection
            .send(resets.chain(padding).collect::<Vec<u8>>())
            .await;
    }
    read_frame_types(&mut connection).await?;
    assert!(
        upstream.received_requests().len() < 800,
        "the flood is not stopped"
    );
    gateway.wait_until_idle().await
}

#[tokio::test]
async fn a_stream_reset_before_its_error_response_is_no_longer_in_flight() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    let mut connection = connect(&gateway).await?;
    for round in 0..4 {
        // The gateway itself responds with 404 to this path.
        let burst = stream_ids(round * 12..(round + 1) * 12)
            .flat_map(|id| [get(id, "/metrics"), reset(id)].concat());
        connection.send(burst.collect::<Vec<u8>>()).await?;
        connection.send(ping()).await?;
        read_until_frame(PING, &mut connection).await?;
    }
    gateway.wait_until_idle().await
}

#[tokio::test]
async fn a_flood_of_pings_is_disconnected() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    let mut connection = connect(&gateway).await?;
    let pings = ping().repeat(1000);
    for _ in 0..20 {
        if connection.send(&pings).await.is_err() {
            break;
        }
    }
    // The GOAWAY may be lost: the gateway closes by a reset if unread bytes remain.
    read_frame_types(&mut connection).await?;
    Ok(())
}

#[tokio::test]
async fn streams_whose_bodies_are_not_read_block_no_other_stream() -> Result<()> {
    const LEAKY_BUCKET: &str = r#"
premier:
  paths:
    - pattern: "/delayed"
      features:
        rate_limit: {quota: 1, duration: 60, algorithm: leaky_bucket, bucket_size: 99, per: []}
"#;
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::start(upstream.address, LEAKY_BUCKET).await?;
    let client = gateway.client_with_protocol(Protocol::Http2)?;
    assert_eq!(client.get("/delayed").await?.status, 200);
    let mut uploads = JoinSet::new();
    for _ in 0..20 {
        let upload = client.request(Method::POST, "/delayed");
        uploads.spawn(send(upload.body("x".repeat(500_000))));
    }
    gateway
        .wait_for_metric("gateway_requests_in_flight", &[], 20.0)
        .await?;
    let small = client.request(Method::POST, "/").body("y".repeat(50_000));
    assert_eq!(send(small).await?.status, 200);
    Ok(())
}

/// Configuration with a quota of ten uploads, of all clients together.
const UPLOAD_QUOTA: &str = r#"
premier:
  paths:
    - pattern: "/upload"
      features:
        rate_limit: {quota: 10, duration: 3600, per: []}
"#;

#[tokio::test]
async fn a_client_whose_uploads_exceed_a_quota_keeps_its_connection() -> Result<()> {
    const CONCURRENT_UPLOADS: usize = 100;
    let upstream = MockUpstream::always_ok().await?;
    // More uploads than the errors that HTTP/2 libraries tolerate, and some that are larger than the window of a
    // stream.
    for (uploads, size) in [(2000, 16_000), (400, 300_000)] {
        let gateway = Gateway::start(upstream.address, UPLOAD_QUOTA).await?;
        let client = gateway.client_with_protocol(Protocol::Http2)?;
        assert_eq!(client.get("/").await?.status, 200);
        let connections = async || {
            let name = "gateway_connections_accepted_total";
            gateway.metric(name, &[]).await
        };
        let connections_before = connections().await?;
        let mut tasks = JoinSet::new();
        for _ in 0..CONCURRENT_UPLOADS {
            let client = client.clone();
            tasks.spawn(async move {
                let mut statuses = Vec::new();
                for _ in 0..uploads / CONCURRENT_UPLOADS {
                    let upload = client.request(Method::POST, "/upload");
                    statuses.push(send(upload.body("x".repeat(size))).await?.status);
                }
                anyhow::Ok(statuses)
            });
        }
        let mut statuses = Vec::new();
        while let Some(result) = tasks.join_next().await {
            statuses.extend(result??);
        }
        let count = |expected| {
            statuses
                .iter()
                .filter(|status| **status == expected)
                .count()
        };
        assert_eq!((count(200), count(429)), (10, uploads - 10), "{size}");
        assert_eq!(client.get("/").await?.status, 200);
        assert_eq!(connections().await?, connections_before, "{size}");
    }
    Ok(())
}

#[tokio::test]
async fn a_body_that_follows_its_error_response_is_discarded() -> Result<()> {
    const UPLOADS_PER_ROUND: u32 = 100;
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::start(upstream.address, UPLOAD_QUOTA).await?;
    let client = gateway.client()?;
    for _ in 0..10 {
        assert_eq!(client.get("/upload").await?.status, 200);
    }
    let mut connection = connect(&gateway).await?;
    let mut received = Vec::new();
    for round in 0..20 {
        let ids = || stream_ids(round * UPLOADS_PER_ROUND..(round + 1) * UPLOADS_PER_ROUND);
        let headers = ids().flat_map(|id| post(id, "/upload"));
        connection.send(headers.collect::<Vec<u8>>()).await?;
        let responses = usize::try_from((round + 1) * UPLOADS_PER_ROUND)?;
        read_until_frames(HEADERS, responses, &mut received, &mut connection).await?;
        let bodies = ids().flat_map(|id| frame(DATA, END_STREAM, id, &[b'x'; 16_000]));
        connection.send(bodies.collect::<Vec<u8>>()).await?;
    }
    connection.send(get(100_001, "/")).await?;
    read_until_frames(HEADERS, 2001, &mut received, &mut connection).await?;
    assert!(!frame_types(&received).contains(&RST_STREAM));
    gateway.wait_until_idle().await
}

/// Frames that raise the flow-control windows of the connection and of every stream to the maximum.
fn maximum_windows() -> Vec<u8> {
    const SETTINGS_INITIAL_WINDOW_SIZE: [u8; 2] = [0, 4];
    const MAX_WINDOW: u32 = 0x7fff_ffff;
    const DEFAULT_WINDOW: u32 = 0xffff;
    let settings = [&SETTINGS_INITIAL_WINDOW_SIZE[..], &MAX_WINDOW.to_be_bytes()].concat();
    let increment = (MAX_WINDOW - DEFAULT_WINDOW).to_be_bytes();
    [
        frame(SETTINGS, 0, 0, &settings),
        frame(WINDOW_UPDATE, 0, 0, &increment),
    ]
    .concat()
}

#[tokio::test]
async fn responses_that_are_not_read_use_bounded_memory_and_time_out() -> Result<()> {
    let large = "x".repeat(400_000);
    let upstream = MockUpstream::start(move |_| MockResponse::new(200, &large)).await?;
    let gateway = Gateway::start(upstream.address, "premier: {limits: {idle_timeout: 2}}").await?;
    let memory_before = gateway.process.resident_memory()?;
    let mut connection = connect(&gateway).await?;
    connection.send(maximum_windows()).await?;
    let requests = stream_ids(0..100).flat_map(|id| get(id, "/"));
    connection.send(requests.collect::<Vec<u8>>()).await?;
    upstream.wait_for_requests(100).await?;
    gateway.wait_until_disconnected().await?;
    let growth = gateway.process.peak_resident_memory()? - memory_before;
    assert!(growth < 32 << 20, "memory grew by {growth} bytes");
    drop(connection);
    Ok(())
}

#[tokio::test]
async fn responses_without_a_flow_control_window_time_out() -> Result<()> {
    /// `SETTINGS_INITIAL_WINDOW_SIZE` of 0.
    const NO_WINDOW: [u8; 6] = [0, 4, 0, 0, 0, 0];
    let upstream = MockUpstream::always_ok().await?;
    let gateway =
        Gateway::start(upstream.address, "premier: {limits: {idle_timeout: 0.5}}").await?;
    let mut connection = connect(&gateway).await?;
    connection.send(frame(SETTINGS, 0, 0, &NO_WINDOW)).await?;
    let requests = stream_ids(0..10).flat_map(|id| get(id, "/"));
    connection.send(requests.collect::<Vec<u8>>()).await?;
    read_frame_types(&mut connection).await?;
    Ok(())
}

#[tokio::test]
async fn cancelled_long_polls_are_not_treated_as_a_flood() -> Result<()> {
    let upstream = MockUpstream::start(|request| {
        if request.starts_with("GET /poll") {
            MockResponse::Never
        } else {
            MockResponse::new(200, "ok")
        }
    })
    .await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    let mut connection = connect(&gateway).await?;
    for id in stream_ids(0..90) {
        let before = upstream.received_requests().len();
        connection.send(get(id, "/poll")).await?;
        upstream.wait_for_requests(before + 1).await?;
        connection.send(reset(id)).await?;
    }
    connection.send(get(1001, "/")).await?;
    read_until_frame(HEADERS, &mut connection).await
}

#[tokio::test]
async fn a_response_in_progress_at_shutdown_arrives_complete() -> Result<()> {
    // More than the socket buffers hold.
    const LENGTH: usize = 16 << 20;
    let large = "x".repeat(LENGTH);
    let upstream = MockUpstream::start(move |_| MockResponse::new(200, &large)).await?;
    let mut gateway = Gateway::builder(&[upstream.address]).start().await?;
    let mut connection = connect(&gateway).await?;
    connection.send(maximum_windows()).await?;
    connection.send(get(1, "/")).await?;
    read_until_frame(HEADERS, &mut connection).await?;
    gateway.process.signal(Signal::TERM)?;
    gateway
        .process
        .wait_for_log("draining requests in flight")
        .await?;
    let rest = connection.read_to_end().await?;
    assert!(
        rest.len() > LENGTH - (64 << 10),
        "{} bytes received",
        rest.len()
    );
    drop(connection);
    assert!(gateway.process.wait_for_exit()?.success());
    Ok(())
}

#[tokio::test]
async fn a_request_that_crosses_the_goaway_is_served() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway =
        Gateway::start(upstream.address, "premier: {limits: {idle_timeout: 0.3}}").await?;
    let mut connection = connect(&gateway).await?;
    read_until_frame(GOAWAY, &mut connection).await?;
    connection.send(get(1, "/")).await?;
    assert!(read_frame_types(&mut connection).await?.contains(&HEADERS));
    assert_eq!(upstream.received_requests().len(), 1);
    Ok(())
}

#[tokio::test]
async fn rejected_requests_get_the_usual_error_response() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    let client = gateway.client_with_protocol(Protocol::Http2)?;
    let oversized_header = client
        .request(Method::GET, "/")
        .header("x", "y".repeat(33_000));
    let response = send(oversized_header).await?;
    assert_eq!(response.status, 431);
    assert!(!response.json()["error"].is_null());
    assert!(!response.header("x-request-id").is_empty());
    let long_path = format!("/{}", "a".repeat(9000));
    let response = send(client.request(Method::HEAD, &long_path)).await?;
    assert_eq!((response.status, response.text.as_str()), (414, ""));
    Ok(())
}

#[tokio::test]
async fn bodies_that_are_too_long_or_too_slow_are_rejected() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::start(
        upstream.address,
        "premier: {limits: {body_timeout: 0.5, max_body_bytes: 1000}}",
    )
    .await?;
    let declared = {
        let mut block = header_block(&[("content-length", "1001")]);
        // `:method: POST` in the static table, in place of GET.
        block[0] = 0x83;
        frame(HEADERS, END_HEADERS, 1, &block)
    };
    let received = [
        post(1, "/"),
        frame(DATA, 0, 1, &[b'x'; 600]),
        frame(DATA, END_STREAM, 1, &[b'x'; 600]),
    ];
    let paused = [post(1, "/"), frame(DATA, 0, 1, b"x")];
    for (request, status) in [
        (declared, 413),
        (received.concat(), 413),
        (paused.concat(), 408),
    ] {
        let response = format!("\"status\":{status}");
        let count = || gateway.process.log().matches(&response).count();
        let before = count();
        let mut connection = connect(&gateway).await?;
        connection.send(request).await?;
        read_until_frame(HEADERS, &mut connection).await?;
        wait::until(&response, async || count() > before).await?;
    }
    assert_eq!(upstream.received_requests(), Vec::<String>::new());
    Ok(())
}

#[tokio::test]
async fn an_endless_header_block_is_disconnected() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    let mut connection = connect(&gateway).await?;
    connection
        .send(frame(HEADERS, END_STREAM, 1, &header_block(&[])))
        .await?;
    let more_headers = literal_header("x", &"y".repeat(100)).repeat(100);
    for _ in 0..200 {
        if connection
            .send(frame(CONTINUATION, 0, 1, &more_headers))
            .await
            .is_err()
        {
            break;
        }
    }
    assert!(read_frame_types(&mut connection).await?.contains(&GOAWAY));
    assert_eq!(upstream.received_requests(), Vec::<String>::new());
    Ok(())
}

#[tokio::test]
async fn malformed_requests_are_never_forwarded() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    for headers in [
        &[("transfer-encoding", "chunked")][..],
        &[("connection", "close")],
        &[("host", "elsewhere")],
        &[("x", "a\r\nb: c")],
        &[("x", "a\0b")],
        &[("x\r\ny", "a")],
        &[("X", "upper")],
        &[(":method", "POST")],
        &[(":path", "/other")],
        &[("x", "y"), (":scheme", "http")],
        &[("content-length", "5")],
        &[("content-length", "0"), ("content-length", "0")],
        &[("te", "gzip")],
        &[("http2-settings", "AAMAAABk")],
        &[("x", " y")],
        &[("x", "y\t")],
    ] {
        let mut connection = connect(&gateway).await?;
        connection.send(request(1, &header_block(headers))).await?;
        // Without the GOAWAY, a connection with a well-formed request would stay open.
        connection.send(goaway()).await?;
        read_frame_types(&mut connection).await?;
        assert_eq!(
            upstream.received_requests(),
            Vec::<String>::new(),
            "{headers:?}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn requests_of_another_scheme_or_with_a_long_method_are_rejected() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    let long_method = "M".repeat(33);
    for (method, scheme) in [("GET", "ftp"), (long_method.as_str(), "https")] {
        let headers = [
            (":method", method),
            (":scheme", scheme),
            (":path", "/"),
            (":authority", "localhost"),
        ];
        let block = headers.map(|(name, value)| literal_header(name, value));
        let mut connection = connect(&gateway).await?;
        connection.send(request(1, &block.concat())).await?;
        read_until_frame(HEADERS, &mut connection).await?;
    }
    assert_eq!(upstream.received_requests(), Vec::<String>::new());
    gateway.process.wait_for_log("\"status\":501").await?;
    assert!(!gateway.process.log().contains(&long_method));
    Ok(())
}

#[tokio::test]
async fn a_path_cannot_name_another_host() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    for path in ["http://elsewhere/", "https://localhost/", "*", "elsewhere/"] {
        let mut connection = connect(&gateway).await?;
        connection.send(get(1, path)).await?;
        connection.send(goaway()).await?;
        read_frame_types(&mut connection).await?;
        assert_eq!(upstream.received_requests(), Vec::<String>::new(), "{path}");
    }
    Ok(())
}

#[tokio::test]
async fn requests_of_a_lost_connection_are_counted() -> Result<()> {
    let upstream = MockUpstream::start(|_| MockResponse::Never).await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    let mut connection = connect(&gateway).await?;
    for stream_id in [1, 3] {
        connection.send(get(stream_id, "/")).await?;
    }
    upstream.wait_for_requests(2).await?;
    drop(connection);
    gateway
        .wait_for_metric("gateway_requests_total", &["status=\"none\""], 2.0)
        .await
}

#[tokio::test]
async fn split_cookie_headers_are_joined() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    let mut connection = connect(&gateway).await?;
    let mut headers = vec![("cookie", "a=1"), ("cookie", "b=2")];
    headers.extend([("cookie", "c=3")].repeat(110));
    headers.extend([("te", "trailers"), ("trailer", "x")]);
    let request = request(1, &header_block(&headers));
    connection.send([request, goaway()].concat()).await?;
    read_frame_types(&mut connection).await?;
    let received = upstream.received_requests().concat().to_lowercase();
    assert!(
        received.contains("cookie: a=1; b=2; c=3; c=3"),
        "{received}"
    );
    assert!(!received.contains("trailer"), "{received}");
    assert_eq!(received.matches("cookie:").count(), 1, "{received}");
    Ok(())
}

#[tokio::test]
async fn idle_connections_are_closed() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::start(
        upstream.address,
        "premier: {limits: {header_timeout: 0.5, idle_timeout: 0.5}}",
    )
    .await?;
    let mut idle = connect(&gateway).await?;
    read_frame_types(&mut idle).await?;
    Ok(())
}

#[tokio::test]
async fn an_incomplete_header_block_times_out() -> Result<()> {
    let upstream = MockUpstream::start(|_| MockResponse::Never).await?;
    let gateway = Gateway::start(
        upstream.address,
        "premier: {limits: {header_timeout: 0.5, idle_timeout: 600}}",
    )
    .await?;
    let without_end_of_headers = frame(HEADERS, END_STREAM, 3, &header_block(&[]));
    let truncated_frame = get(3, "/")[..20].to_vec();
    for incomplete in [without_end_of_headers, truncated_frame] {
        let mut connection = connect(&gateway).await?;
        // A request in progress on another stream does not extend the timeout.
        connection.send([get(1, "/"), incomplete].concat()).await?;
        read_frame_types(&mut connection).await?;
    }
    Ok(())
}

#[tokio::test]
async fn responses_that_a_client_does_not_read_have_a_memory_budget() -> Result<()> {
    /// Size of a response, more than an exchange buffers.
    const RESPONSE_BYTES: usize = 256 * 1024;
    const CLIENT_BUDGET: f64 = 524_288.0;
    const CONNECTIONS: u32 = 2;
    const REQUESTS: u32 = 100;
    /// `SETTINGS_INITIAL_WINDOW_SIZE` (RFC 9113, section 6.5.2) of zero.
    const NO_WINDOW: [u8; 6] = [0, 4, 0, 0, 0, 0];
    let body = "x".repeat(RESPONSE_BYTES);
    let upstream = MockUpstream::start(move |_| MockResponse::new(200, &body)).await?;
    let gateway = Gateway::start(
        upstream.address,
        "premier: {limits: {max_buffered_bytes_per_client: 524288}}",
    )
    .await?;
    let mut connections = Vec::new();
    for number in 1..=CONNECTIONS {
        let mut connection = RawConnection::connect_http2(&gateway).await?;
        let preface = [PREFACE, &frame(SETTINGS, 0, 0, &NO_WINDOW)].concat();
        connection.send(preface).await?;
        let requests = stream_ids(0..REQUESTS).flat_map(|id| get(id, "/"));
        connection.send(requests.collect::<Vec<u8>>()).await?;
        connections.push(connection);
        let expected = usize::try_from(number * REQUESTS)?;
        upstream.wait_for_requests(expected).await?;
    }
    wait::until("the budget to be used up", async || {
        let buffered = gateway.metric("gateway_buffered_response_bytes", &[]).await;
        buffered.is_ok_and(|bytes| bytes.is_some_and(|bytes| bytes >= CLIENT_BUDGET))
    })
    .await?;
    let other = gateway.client_with_protocol(Protocol::Http2)?;
    assert_eq!(other.get("/").await?.text.len(), RESPONSE_BYTES);
    let buffered = gateway
        .metric("gateway_buffered_response_bytes", &[])
        .await?;
    // One exchange may have been below its high watermark when the budget was used up.
    assert!(
        buffered.is_some_and(|bytes| bytes < 2.0 * CLIENT_BUDGET),
        "{buffered:?}"
    );
    drop(connections);
    gateway
        .wait_for_metric("gateway_buffered_response_bytes", &[], 0.0)
        .await
}

#[tokio::test]
async fn a_target_has_the_same_verdict_and_one_log_line_in_both_versions() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    for (target, forwarded) in [
        ("/?q=\"a\"", None),
        ("/a<b>", None),
        ("/a#b", Some("/a")),
        ("/a?b#c", Some("/a?b")),
        ("/a?b=[c]|{d}^`", Some("/a?b=[c]|{d}^`")),
        ("/a\"b", Some("/a%22b")),
    ] {
        let received_before = upstream.received_requests().len();
        let count_log_lines = || {
            gateway
                .process
                .log()
                .matches(r#""target":"access""#)
                .count()
        };
        let log_lines_before = count_log_lines();
        let mut connection = connect(&gateway).await?;
        connection.send([get(1, target), goaway()].concat()).await?;
        read_frame_types(&mut connection).await?;
        let http1 =
            format!("GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let response = RawConnection::exchange(&gateway, http1).await?;
        let expected_status = if forwarded.is_some() { 200 } else { 400 };
        assert_eq!(parse_status(&response), expected_status, "{target}");
        let received: Vec<_> = upstream.received_requests()[received_before..]
            .iter()
            .map(|request| request_target(request).to_owned())
            .collect();
        let expected: Vec<_> = forwarded
            .into_iter()
            .flat_map(|target| [target; 2])
            .collect();
        assert_eq!(received, expected, "{target}");
        wait::until("a log line for each request", async || {
            count_log_lines() >= log_lines_before + 2
        })
        .await?;
        let log = gateway.process.log();
        let status = format!("\"status\":{expected_status}");
        let lines: Vec<_> = log
            .lines()
            .filter(|line| line.contains(r#""target":"access""#))
            .skip(log_lines_before)
            .collect();
        assert_eq!(lines.len(), 2, "{target}: {lines:?}");
        assert!(lines.iter().all(|line| line.contains(&status)), "{lines:?}");
    }
    Ok(())
}
