//! Limits of the load that a client can put on upstream servers, and of the connections to an endpoint.

use std::sync::Arc;

use anyhow::Result;
use tests::client::{Client, Protocol, Response};
use tests::http2_frames::{connect, get, reset, stream_ids};
use tests::mock_upstream::request_target;
use tests::raw_connection::RawConnection;
use tests::{Gateway, MockResponse, MockUpstream, wait};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// Bound of upstream requests that a client abandons; it regains one in a second.
const ABANDONED: &str = "
premier: {limits: {max_abandoned_requests_per_client: 10}}
";

/// Starts a server that never responds to `/hang` and responds to all else with 200.
async fn hanging_upstream() -> Result<MockUpstream> {
    MockUpstream::start(|request| match request_target(request) {
        "/hang" => MockResponse::Never,
        _ => MockResponse::new(200, "ok"),
    })
    .await
}

/// Sends a GET request in the background.
fn get_in_background(client: &Client, path: &'static str) -> JoinHandle<Result<Response>> {
    let client = client.clone();
    tokio::spawn(async move { client.get(path).await })
}

/// Asserts that a response is an error response with a `Retry-After` of some seconds.
fn assert_rejected(response: &Response, status: u16) -> Result<()> {
    assert_eq!(response.status, status, "{}", response.text);
    assert!(!response.json()["error"].is_null());
    let retry_after: u64 = response.header("retry-after").parse()?;
    assert!((1..=10).contains(&retry_after), "{retry_after}");
    Ok(())
}

#[tokio::test]
async fn a_client_that_abandons_requests_over_many_http2_connections_is_rejected() -> Result<()> {
    const CONNECTIONS: usize = 4;
    const REQUESTS: u32 = 5;
    let upstream = hanging_upstream().await?;
    let gateway = Gateway::start(upstream.address, ABANDONED).await?;
    let mut connections = Vec::new();
    for number in 1..=CONNECTIONS {
        let mut connection = connect(&gateway).await?;
        let requests: Vec<u8> = stream_ids(0..REQUESTS)
            .flat_map(|id| get(id, "/hang"))
            .collect();
        connection.send(requests).await?;
        upstream
            .wait_for_requests(number * usize::try_from(REQUESTS)?)
            .await?;
        connections.push(connection);
    }
    for connection in &mut connections {
        let resets: Vec<u8> = stream_ids(0..REQUESTS).flat_map(reset).collect();
        connection.send(resets).await?;
    }
    gateway.wait_until_idle().await?;
    let abandoned = gateway
        .metric("gateway_abandoned_requests_total", &[])
        .await?;
    assert_eq!(abandoned, Some(20.0));

    let received = upstream.received_requests().len();
    let request = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let response = RawConnection::exchange(&gateway, request).await?;
    assert!(response.starts_with("HTTP/1.1 429"), "{response}");
    assert!(response.contains("retry-after: "), "{response}");
    assert_eq!(upstream.received_requests().len(), received);
    let labels = [r#"reason="abandoned""#];
    gateway
        .wait_for_metric("gateway_upstream_requests_refused_total", &labels, 1.0)
        .await?;
    gateway
        .process
        .wait_for_log("client abandons too many upstream requests")
        .await?;
    // Another client is not affected, and this one is served again after a while.
    assert_eq!(gateway.client()?.get("/").await?.status, 200);
    wait::until("the client to be served again", async || {
        let response = RawConnection::exchange(&gateway, request).await;
        response.is_ok_and(|response| response.starts_with("HTTP/1.1 200"))
    })
    .await
}

#[tokio::test]
async fn a_client_that_disconnects_during_requests_is_rejected() -> Result<()> {
    let upstream = hanging_upstream().await?;
    let gateway = Gateway::start(
        upstream.address,
        "premier: {limits: {max_abandoned_requests_per_client: 1}}",
    )
    .await?;
    let client = gateway.client_with_protocol(Protocol::Http1)?;
    assert_eq!(client.get("/").await?.status, 200);
    let requests: Vec<_> = (0..3)
        .map(|_| get_in_background(&client, "/hang"))
        .collect();
    upstream.wait_for_requests(4).await?;
    for request in &requests {
        request.abort();
    }
    gateway.wait_until_idle().await?;
    assert_rejected(&client.get("/").await?, 429)?;
    assert_eq!(gateway.client()?.get("/").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn requests_that_reached_no_upstream_or_whose_response_lasts_are_not_abandoned() -> Result<()>
{
    const EVENTS: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: x\n\n";
    let upstream = MockUpstream::start(|_| MockResponse::Bytes(EVENTS.to_vec())).await?;
    let gateway = Gateway::start(
        upstream.address,
        "premier: {limits: {max_abandoned_requests_per_client: 1}}",
    )
    .await?;
    let mut connection = connect(&gateway).await?;
    // The gateway itself responds with 404 to this path.
    let own = stream_ids(0..10).flat_map(|id| [get(id, "/metrics"), reset(id)].concat());
    connection.send(own.collect::<Vec<u8>>()).await?;
    for count in 1..=5 {
        let mut events = RawConnection::connect(&gateway).await?;
        events
            .send("GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .await?;
        let response = events.read_until("data: x").await?;
        assert!(response.starts_with("HTTP/1.1 200"), "{response}");
        assert_eq!(upstream.received_requests().len(), count);
    }
    gateway.wait_until_idle().await?;
    let abandoned = gateway
        .metric("gateway_abandoned_requests_total", &[])
        .await?;
    assert_eq!(abandoned, Some(0.0));
    Ok(())
}

#[tokio::test]
async fn a_client_with_many_concurrent_requests_leaves_endpoints_to_others() -> Result<()> {
    let upstream = hanging_upstream().await?;
    let gateway = Gateway::start(
        upstream.address,
        "premier: {limits: {max_upstream_requests_per_client: 5}}",
    )
    .await?;
    let client = gateway.client_with_protocol(Protocol::Http2)?;
    let requests: Vec<_> = (0..5)
        .map(|_| get_in_background(&client, "/hang"))
        .collect();
    upstream.wait_for_requests(5).await?;
    assert_rejected(&client.get("/").await?, 429)?;
    assert_eq!(gateway.client()?.get("/").await?.status, 200);
    let labels = [r#"reason="concurrent""#];
    gateway
        .wait_for_metric("gateway_upstream_requests_refused_total", &labels, 1.0)
        .await?;
    for request in requests {
        request.abort();
    }
    gateway.wait_until_idle().await?;
    assert_eq!(client.get("/").await?.status, 200);
    Ok(())
}

/// Configuration with one circuit breaker, which one failure opens, and two connections to each endpoint.
const TWO_CONNECTIONS: &str = "
premier:
  load_balancing: {strategy: round_robin, max_connections_per_endpoint: 2, max_pending_requests_per_endpoint: 1}
  default_features: {circuit_breaker: {failure_threshold: 1}}
";

/// Starts a server that responds to `/hang` only when notified, and its notification.
async fn blocking_upstream() -> Result<(MockUpstream, Arc<Notify>)> {
    let notify = Arc::new(Notify::new());
    let release = Arc::clone(&notify);
    let upstream = MockUpstream::start(move |request| match request_target(request) {
        "/hang" => {
            let late = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate".to_vec();
            MockResponse::BytesAfter(Arc::clone(&release), late)
        }
        _ => MockResponse::new(200, "ok"),
    })
    .await?;
    Ok((upstream, notify))
}

/// Lets the server respond, and returns the responses.
async fn released(
    release: &Notify,
    requests: Vec<JoinHandle<Result<Response>>>,
) -> Result<Vec<Response>> {
    wait::until("the responses", async || {
        release.notify_waiters();
        requests.iter().all(JoinHandle::is_finished)
    })
    .await?;
    let mut responses = Vec::new();
    for request in requests {
        responses.push(request.await??);
    }
    Ok(responses)
}

/// Waits until so many requests wait for a connection to an endpoint.
async fn wait_for_pending(gateway: &Gateway, expected: f64) -> Result<()> {
    gateway
        .wait_for_metric("gateway_upstream_requests_pending", &[], expected)
        .await
}

#[tokio::test]
async fn requests_beyond_the_connections_of_an_endpoint_wait_or_are_rejected() -> Result<()> {
    let (upstream, release) = blocking_upstream().await?;
    let gateway = Gateway::start(upstream.address, TWO_CONNECTIONS).await?;
    let client = gateway.client()?;
    let blocked: Vec<_> = (0..2)
        .map(|_| get_in_background(&client, "/hang"))
        .collect();
    upstream.wait_for_requests(2).await?;
    let pending = get_in_background(&client, "/");
    wait_for_pending(&gateway, 1.0).await?;
    let status = gateway.admin_client()?.get("/status").await?.json();
    let replica = &status["replicas"][0];
    assert_eq!(replica["connections_in_use"], 2, "{status}");
    assert_eq!(replica["max_connections"], 2, "{status}");
    assert_eq!(replica["pending"], 1, "{status}");

    assert_rejected(&client.get("/").await?, 503)?;
    let overflow = [r#"outcome="overflow""#];
    gateway
        .wait_for_metric("gateway_upstream_attempts_total", &overflow, 1.0)
        .await?;
    let state = gateway.metric("gateway_circuit_breaker_state", &[]).await?;
    assert_eq!(state, Some(0.0));

    for response in released(&release, blocked).await? {
        assert_eq!(response.text, "late");
    }
    assert_eq!(pending.await??.text, "ok");
    assert_eq!(upstream.connection_count(), 2);
    Ok(())
}

#[tokio::test]
async fn a_request_waits_for_a_connection_only_for_a_while_and_gives_up_with_its_client()
-> Result<()> {
    let (upstream, release) = blocking_upstream().await?;
    let gateway = Gateway::start(upstream.address, TWO_CONNECTIONS).await?;
    let client = gateway.client()?;
    let blocked: Vec<_> = (0..2)
        .map(|_| get_in_background(&client, "/hang"))
        .collect();
    upstream.wait_for_requests(2).await?;
    let abandoned = get_in_background(&client, "/");
    wait_for_pending(&gateway, 1.0).await?;
    abandoned.abort();
    wait_for_pending(&gateway, 0.0).await?;
    assert_rejected(&client.get("/").await?, 503)?;
    // No endpoint has worked for it.
    let abandoned = gateway
        .metric("gateway_abandoned_requests_total", &[])
        .await?;
    assert_eq!(abandoned, Some(0.0));
    for response in released(&release, blocked).await? {
        assert_eq!(response.text, "late");
    }
    assert_eq!(client.get("/").await?.text, "ok");
    Ok(())
}

#[tokio::test]
async fn an_endpoint_without_a_free_connection_is_passed_over() -> Result<()> {
    let (full, _release) = blocking_upstream().await?;
    let other = MockUpstream::always_ok().await?;
    let gateway = Gateway::builder(&[full.address, other.address])
        .config(TWO_CONNECTIONS)
        .start()
        .await?;
    let client = gateway.client()?;
    let mut blocked = Vec::new();
    while full.received_requests().len() < 2 {
        let before = full.received_requests().len() + other.received_requests().len();
        blocked.push(get_in_background(&client, "/hang"));
        wait::until("the request", async || {
            full.received_requests().len() + other.received_requests().len() > before
        })
        .await?;
    }
    for _ in 0..10 {
        assert_eq!(client.get("/").await?.text, "ok");
    }
    assert_eq!(full.received_requests().len(), 2);
    for request in blocked {
        request.abort();
    }
    Ok(())
}

#[tokio::test]
async fn idle_connections_do_not_count_against_the_connections_of_an_endpoint() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::start(upstream.address, TWO_CONNECTIONS).await?;
    let client = gateway.client()?;
    for _ in 0..20 {
        let requests: Vec<_> = (0..3).map(|_| get_in_background(&client, "/")).collect();
        for response in requests {
            assert_eq!(response.await??.text, "ok");
        }
    }
    assert!(upstream.connection_count() <= 2);
    Ok(())
}
