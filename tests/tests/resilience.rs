//! Time-outs, retries, circuit breakers, replicas that come and go.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use reqwest::Method;
use serde_json::json;
use tests::client::send;
use tests::raw::Raw;
use tests::{BackEnd, Gateway, Reply, address, wait};

const PATHS: &str = r#"
premier:
  health_check: {interval: 0.2}
  limits: {header_timeout: 1}
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
    - pattern: "/leaky"
      features:
        rate_limit: {quota: 10, duration: 1, algorithm: leaky_bucket, bucket_size: 3, per: []}
"#;

const UPGRADE: &str = "GET /socket HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
const SWITCH: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nframes";

#[tokio::test]
async fn an_exchange_that_takes_too_long_is_given_up() -> Result<()> {
    let back_end = BackEnd::start(|_| Reply::Silence).await?;
    let gateway = Gateway::before(&[back_end.address])
        .config(PATHS)
        .start()
        .await?;
    let answer = gateway.client()?.get("/slow").await?;
    assert_eq!(answer.status, 504);
    assert_eq!(answer.json(), json!({"error": "too slow"}));
    Ok(())
}

#[tokio::test]
async fn only_what_may_be_repeated_is_tried_again() -> Result<()> {
    let tries = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&tries);
    let back_end = BackEnd::start(move |_| match count.fetch_add(1, Ordering::Relaxed) {
        0 => Reply::of(503, "not yet"),
        1 => Reply::Last(Vec::new()),
        _ => Reply::of(200, "at last"),
    })
    .await?;
    let gateway = Gateway::before(&[back_end.address])
        .config(PATHS)
        .start()
        .await?;
    let client = gateway.client()?;
    let answer = client.get("/retried").await?;
    assert_eq!((answer.status, answer.text.as_str()), (200, "at last"));
    assert_eq!(tries.load(Ordering::Relaxed), 3);

    tries.store(0, Ordering::Relaxed);
    let answer = send(client.request(Method::POST, "/retried").body("{}")).await?;
    assert_eq!((answer.status, answer.text.as_str()), (503, "not yet"));
    assert_eq!(tries.load(Ordering::Relaxed), 1);
    Ok(())
}

#[tokio::test]
async fn a_replica_that_cannot_be_reached_costs_no_request() -> Result<()> {
    let back_end = BackEnd::good().await?;
    let gateway = Gateway::before(&[address::free(), back_end.address])
        .start()
        .await?;
    let client = gateway.client()?;
    for _ in 0..20 {
        let answer = send(client.request(Method::POST, "/any").body("{}")).await?;
        assert_eq!(answer.status, 200, "{}", answer.text);
    }
    Ok(())
}

#[tokio::test]
async fn an_upgrade_that_cannot_be_connected_goes_elsewhere() -> Result<()> {
    let back_end = BackEnd::start(|_| Reply::Last(SWITCH.to_vec())).await?;
    for _ in 0..8 {
        let passing = BackEnd::good().await?;
        let gateway = Gateway::before(&[passing.address, back_end.address])
            .config("premier: {health_check: {interval: 600}}")
            .start()
            .await?;
        drop(passing);
        let mut raw = Raw::connect(&gateway).await?;
        raw.send(UPGRADE).await?;
        let answer = raw.until("frames").await?;
        assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    }
    Ok(())
}

#[tokio::test]
async fn without_any_replica_the_answer_is_503() -> Result<()> {
    let gateway = Gateway::before(&[address::free()]).start().await?;
    let answer = gateway.client()?.get("/any").await?;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.json(), json!({"error": "Service unavailable"}));
    assert!(answer.header("retry-after").parse::<u64>()? >= 1);
    assert_eq!(gateway.operator()?.get("/ready").await?.status, 503);
    Ok(())
}

#[tokio::test]
async fn a_replica_that_comes_back_is_used_again() -> Result<()> {
    let first = BackEnd::good().await?;
    let gateway = Gateway::before(&[first.address])
        .config(PATHS)
        .start()
        .await?;
    assert_eq!(gateway.client()?.get("/any").await?.status, 200);
    let place = first.address;
    drop(first);
    let client = gateway.client()?;
    wait::until("the replica to be out", async || {
        client
            .get("/any")
            .await
            .is_ok_and(|answer| answer.status == 503)
    })
    .await?;
    let _second = BackEnd::at(place, |_| Reply::of(200, "back")).await?;
    wait::until("the replica to be in", async || {
        client
            .get("/any")
            .await
            .is_ok_and(|answer| answer.text == "back")
    })
    .await
}

#[tokio::test]
async fn failures_in_a_row_open_the_breaker_until_a_probe_goes_well() -> Result<()> {
    let tries = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&tries);
    let back_end = BackEnd::start(move |_| match count.fetch_add(1, Ordering::Relaxed) {
        0..3 => Reply::of(500, "broken"),
        _ => Reply::of(200, "mended"),
    })
    .await?;
    let gateway = Gateway::before(&[back_end.address])
        .config(PATHS)
        .start()
        .await?;
    let client = gateway.client()?;
    for _ in 0..3 {
        assert_eq!(client.get("/broken").await?.status, 500);
    }
    let refused = client.get("/broken").await?;
    assert_eq!(refused.status, 503);
    assert!(!refused.header("retry-after").is_empty());
    assert_eq!(tries.load(Ordering::Relaxed), 3);
    let state = gateway
        .metric("gateway_circuit_breaker_state", &["/broken"])
        .await?;
    assert_eq!(state, Some(2.0));
    assert_eq!(client.get("/other").await?.status, 200, "other paths go on");
    wait::until("the probe", async || {
        client
            .get("/broken")
            .await
            .is_ok_and(|answer| answer.text == "mended")
    })
    .await
}

#[tokio::test]
async fn a_probe_whose_client_goes_away_is_followed_by_another() -> Result<()> {
    let back_end = BackEnd::start(|request| {
        if request.contains("well=no") {
            Reply::of(500, "broken")
        } else if request.contains("silent=yes") {
            Reply::Silence
        } else {
            Reply::of(200, "well")
        }
    })
    .await?;
    let gateway = Gateway::before(&[back_end.address])
        .config(PATHS)
        .start()
        .await?;
    let client = gateway.client()?;
    for _ in 0..3 {
        assert_eq!(client.get("/broken?well=no").await?.status, 500);
    }
    // One that is let through is the probe.
    let mut tries = 0;
    while back_end.received().len() < 4 {
        tries += 1;
        let (client, path) = (gateway.client()?, "/broken?silent=yes");
        let mut probe = tokio::spawn(async move { client.get(path).await });
        let begun = wait::until("the probe, or a refusal", async || {
            back_end.received().len() == 4 || probe.is_finished()
        });
        begun.await?;
        if back_end.received().len() == 4 {
            probe.abort();
        }
        let _ = (&mut probe).await;
        anyhow::ensure!(tries < 10_000, "no probe was let through");
    }
    gateway.until_quiet().await?;
    assert_eq!(client.get("/broken").await?.text, "well");
    Ok(())
}

#[tokio::test]
async fn a_leaky_bucket_holds_requests_back() -> Result<()> {
    let back_end = BackEnd::good().await?;
    let gateway = Gateway::before(&[back_end.address])
        .config(PATHS)
        .start()
        .await?;
    let client = gateway.client()?;
    let start = std::time::Instant::now();
    let mut requests = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let client = client.clone();
        requests.spawn(async move { client.get("/leaky").await.map(|answer| answer.status) });
    }
    let mut statuses: Vec<u16> = requests
        .join_all()
        .await
        .into_iter()
        .collect::<Result<_>>()?;
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 200, 429, 429, 429]);
    assert!(
        start.elapsed().as_millis() >= 200,
        "two waited for their turns"
    );
    Ok(())
}

#[tokio::test]
async fn a_websocket_passes() -> Result<()> {
    let back_end = BackEnd::start(|_| Reply::Bytes(SWITCH.to_vec())).await?;
    let gateway = Gateway::before(&[back_end.address]).start().await?;
    let mut raw = Raw::connect(&gateway).await?;
    raw.send(UPGRADE).await?;
    let answer = raw.until("frames").await?;
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    Ok(())
}

#[tokio::test]
async fn a_connection_that_a_replica_has_closed_is_not_used_again() -> Result<()> {
    let back_end = BackEnd::start(|_| {
        // Nothing says that the connection ends with the answer.
        Reply::Last(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec())
    })
    .await?;
    let gateway = Gateway::before(&[back_end.address]).start().await?;
    let client = gateway.client()?;
    for number in 0..50 {
        let answer = send(client.request(Method::POST, "/any").body("{}")).await?;
        assert_eq!(answer.status, 200, "{number}: {}", answer.text);
    }
    Ok(())
}

#[tokio::test]
async fn a_client_that_withholds_its_body_is_no_failure_of_a_replica() -> Result<()> {
    let back_end = BackEnd::good().await?;
    let gateway = Gateway::before(&[back_end.address])
        .config(PATHS)
        .start()
        .await?;
    let head = "POST /guarded HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n";
    for (expectation, body) in [
        ("", ""),
        ("", "some"),
        ("Expect: 100-continue\r\n", ""),
        ("Expect: 100-continue\r\n", "some"),
    ] {
        let mut raw = Raw::connect(&gateway).await?;
        raw.send(format!("{head}{expectation}\r\n{body}")).await?;
        let answer = raw.rest().await?;
        let last = answer.split("HTTP/1.1 ").last().unwrap_or_default();
        assert!(last.starts_with("408"), "{expectation} {body}: {answer}");
    }
    assert_eq!(gateway.client()?.get("/guarded").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn who_takes_an_answer_slowly_has_its_own_time() -> Result<()> {
    let large = "x".repeat(8 << 20);
    let back_end = BackEnd::start(move |request| {
        if request.contains("large=yes") {
            Reply::of(200, &large)
        } else {
            Reply::Silence
        }
    })
    .await?;
    let gateway = Gateway::before(&[back_end.address])
        .config(PATHS)
        .start()
        .await?;
    let mut slow = Raw::connect(&gateway).await?;
    slow.send("GET /slow?large=yes HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .await?;
    let begun = slow.until("xxx").await?;
    // Whoever asks now is told when its time is over, which is later than when the first one's is.
    assert_eq!(gateway.client()?.get("/slow").await?.status, 504);
    let rest = slow.rest().await?;
    let body = begun.matches('x').count() + rest.matches('x').count();
    assert!(body >= 8 << 20, "{body} bytes came");
    Ok(())
}
